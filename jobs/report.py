"""Write the report: figures, tables and a test of each finding of the paper.

slick report demo --out studies/demo
"""

from collections.abc import Sequence

from jobs.common import run_main, run_step_command
from slick.report import make_report


def main(argv: Sequence[str]) -> None:
    """Run the step with the settings of the command line."""
    run_step_command("report", make_report, argv, __doc__)


if __name__ == "__main__":
    run_main(main)
