"""Plant facts at known strength: questions, a small model that knows them, and the truth about each.

slick world demo --out studies/demo
slick world demo --questions entity_questions.zip --out studies/real-facts
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from jobs.presets import WORLD
from jobs.study_file import settings_selector
from slick.world import build_world


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    run_step_command("world", WORLD, build_world, argv, __doc__ or "", settings_selector("world"))


if __name__ == "__main__":
    run_main(main)
