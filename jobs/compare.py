"""Several studies side by side: other models, other seeds, other settings.

slick compare studies/one studies/two
slick compare studies/seed-0 studies/seed-1 s3://bucket/study --out studies/comparison

Studies may be unfinished; what they lack is said. Differences are given, with intervals, where two studies asked the
same questions and matched answers alike; studies that differ in their seeds alone give a mean and a spread.
Settings, inputs and library versions that differ are listed.
"""

import argparse
from collections.abc import Sequence

from jobs.door import parse_out, run_main, wants_help
from slick.errors import SettingsError
from slick.report import compare_studies
from slick.storage import Folder
from tuning.sweep_config import SweepConfig

DECLARED = SweepConfig
"""Imported so that what the settings of sweeps and trainings affect is known."""


def main(argv: Sequence[str]) -> None:
    """Parse, hand over, stop."""
    if wants_help(argv) or "--help" in argv:
        print("usage: slick compare OUT1 OUT2 ... [--out FOLDER] [--num-chunks 100] [--seed 0]\n")
        print((__doc__ or "").strip())
        return
    out, rest = parse_out(argv, "slick compare", default="studies/comparison")
    parser = argparse.ArgumentParser(prog="slick compare", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("studies", nargs="*")
    parser.add_argument("--num-chunks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    try:
        known, unknown = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise SettingsError(f"slick compare: {error}; see `slick compare --help`") from error
    if unknown:
        raise SettingsError(f"slick compare does not know {' '.join(unknown)}; see `slick compare --help`")
    if known.num_chunks < 2:
        raise SettingsError(f"--num-chunks must be 2 or more for a t-test, got {known.num_chunks}")
    compare_studies([Folder(name) for name in known.studies], out, num_chunks=known.num_chunks, seed=known.seed)


if __name__ == "__main__":
    run_main(main)
