"""Build a question set, and a small model trained on a corpus that states each fact a controlled number of times.

slick world demo --out studies/demo
slick world demo --questions entity_questions.zip --out studies/real-facts
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from slick.world import build_world


def main(argv: Sequence[str]) -> None:
    """Run the step with the settings of the command line."""
    run_step_command("world", build_world, argv, __doc__)


if __name__ == "__main__":
    run_main(main)
