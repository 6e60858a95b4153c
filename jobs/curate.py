"""Label the rows of a fine-tuning file by what a model knows, and write an edited copy.

slick curate data.jsonl --model ID --out studies/mine                                      # label, change nothing
slick curate data.jsonl --model ID --out studies/mine --unknown drop --to cleaned.jsonl    # or idk, weight, repeat
"""

from collections.abc import Sequence
from dataclasses import replace

from jobs.common import has_help_flag, parse_config, parse_out, run_main
from slick.curation.config import CurateConfig
from slick.curation.step import curate_file
from slick.errors import SettingsError

PROG = "slick curate"


def main(argv: Sequence[str]) -> None:
    """Run the step with the settings of the command line."""
    if has_help_flag(argv):
        print(f"{(__doc__ or '').strip()}\n")
        parse_config(CurateConfig(), ["--help"], f"{PROG} DATA --out DIR")
        return
    if not argv or argv[0].startswith("-"):
        raise SettingsError(f"{PROG} needs a file or folder of rows first: {PROG} data.jsonl --model ID --out DIR")
    data, *rest = argv
    out, flags = parse_out(rest, PROG)
    curate_file(out, replace(parse_config(CurateConfig(), flags, PROG), data=data))


if __name__ == "__main__":
    run_main(main)
