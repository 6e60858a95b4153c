"""Fine-tune over variants x seeds, and read off every epoch budget and stopping policy.

slick sweep demo --out studies/demo
slick sweep paper --grid.seeds 0 1 2 --out studies/llama
"""

from collections.abc import Sequence

from jobs.door import run_main, step_door
from jobs.presets import SWEEP
from tuning.sweep import sweep


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    step_door("sweep", SWEEP, sweep, argv, __doc__ or "")


if __name__ == "__main__":
    run_main(main)
