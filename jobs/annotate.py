"""Ask a model every question under every exemplar set, and sort the questions into four categories.

slick annotate demo --out studies/demo
slick annotate paper --model meta-llama/Llama-3.2-1B --out studies/llama
"""

from collections.abc import Sequence

from jobs.door import run_main, step_door
from jobs.presets import ANNOTATE
from slick.annotation import annotate


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    step_door("annotate", ANNOTATE, annotate, argv, __doc__ or "")


if __name__ == "__main__":
    run_main(main)
