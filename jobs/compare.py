"""Compare studies of different models, seeds or settings.

slick compare studies/one studies/two
slick compare studies/seed-0 studies/seed-1 s3://bucket/study --out studies/comparison

Studies may be unfinished; missing parts are listed. Differences between two studies have confidence intervals if both
have the same questions and answer matcher. For studies that differ only in their seeds, the mean and the spread are
given. Settings, inputs and library versions that differ are listed.
"""

from collections.abc import Sequence

from jobs.common import has_help_flag, run_main
from jobs.flags import FlagParser
from slick.errors import SettingsError
from slick.report import compare_studies
from slick.storage import Folder


def main(argv: Sequence[str]) -> None:
    """Compare the studies that the command line names."""
    if has_help_flag(argv):
        print("usage: slick compare OUT1 OUT2 ... [--out FOLDER] [--num-chunks 100] [--seed 0]\n")
        print((__doc__ or "").strip())
        return
    parser = FlagParser("slick compare")
    parser.add_argument("studies", nargs="*")
    parser.add_flag("--out", default="studies/comparison")
    parser.add_flag("--num-chunks", type=int, default=100)
    parser.add_flag("--seed", type=int, default=0)
    known = parser.parse_all(argv)
    if known.num_chunks < 2:
        raise SettingsError(f"--num-chunks must be 2 or more for a t-test, got {known.num_chunks}")
    compare_studies(
        [Folder(name) for name in known.studies], Folder(known.out), num_chunks=known.num_chunks, seed=known.seed
    )


if __name__ == "__main__":
    run_main(main)
