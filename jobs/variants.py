"""Draw fine-tuning sets with a given share of Unknown questions.

slick variants demo --out studies/demo
slick variants paper --unknown-shares 0 0.5 1 --out studies/llama
slick variants paper --concentrated-shares 0.5 --out studies/llama    # added to the existing sets
slick variants paper --weighted-shares 0.5 --unknown-weight 0.25 --out studies/llama
slick variants paper --p-correct-shares 0.5 --out studies/llama       # rows weighted by their share of correct answers
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from slick.variants import draw_variants


def main(argv: Sequence[str]) -> None:
    """Run the step with the settings of the command line."""
    run_step_command("variants", draw_variants, argv, __doc__)


if __name__ == "__main__":
    run_main(main)
