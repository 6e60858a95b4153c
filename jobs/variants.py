"""Draw fine-tuning sets with a chosen share of Unknown questions from the knowledge table.

slick variants demo --out studies/demo
slick variants paper --unknown-shares 0 0.5 1 --out studies/llama
slick variants paper --concentrated-shares 0.5 --out studies/llama    # added to those that are there
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from jobs.presets import VARIANTS
from jobs.study_file import settings_selector
from slick.variants import draw_variants


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    run_step_command("variants", VARIANTS, draw_variants, argv, __doc__ or "", settings_selector("variants"))


if __name__ == "__main__":
    run_main(main)
