"""Read and filter a question set into the study folder.

slick questions paper --questions entity_questions.zip --out studies/entity-questions
slick questions paper --questions trivia.jsonl --filter none --rejects bad-rows.jsonl --out studies/trivia
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from slick.datasets import prepare_questions


def main(argv: Sequence[str]) -> None:
    """Run the step with the settings of the command line."""
    run_step_command("questions", prepare_questions, argv, __doc__)


if __name__ == "__main__":
    run_main(main)
