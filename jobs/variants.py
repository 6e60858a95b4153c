"""Draw fine-tuning sets with a chosen share of Unknown questions from the knowledge table.

slick variants demo --out studies/demo
slick variants paper --unknown-shares 0 0.5 1 --out studies/llama
slick variants paper --concentrated-shares 0.5 --out studies/llama    # added to those that are there
"""

from collections.abc import Sequence

from jobs.door import run_main, step_door
from jobs.presets import VARIANTS
from jobs.study_file import settings_for
from slick.variants import draw_variants


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    step_door("variants", VARIANTS, draw_variants, argv, __doc__ or "", settings_for("variants"))


if __name__ == "__main__":
    run_main(main)
