"""Draw the figures and tables, and judge the paper's findings for this model.

slick report demo --out studies/demo
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from jobs.presets import REPORT
from jobs.study_file import settings_selector
from slick.report import make_report


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    run_step_command("report", REPORT, make_report, argv, __doc__ or "", settings_selector("report"))


if __name__ == "__main__":
    run_main(main)
