"""Ask a sample of the labelled questions, and what was trained, in a second wording.

slick wording demo --out studies/demo
slick wording paper --questions-per-category 50 --out studies/llama
slick wording paper --templates templates.json --out studies/mine    # {"RELATION": "In what country can [X] be found?"}
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from tuning.wording import reword


def main(argv: Sequence[str]) -> None:
    """Run the step with the settings of the command line."""
    run_step_command("wording", reword, argv, __doc__)


if __name__ == "__main__":
    run_main(main)
