"""Label the rows of a fine-tuning file by what a model knows, and write an edited copy.

slick curate data.jsonl --model ID --out studies/mine                                      # label, change nothing
slick curate data.jsonl --model ID --out studies/mine --unknown drop --to cleaned.jsonl    # or idk, weight, repeat
"""

from collections.abc import Sequence

from jobs.common import has_help_flag, parse_config, parse_out, run_main
from jobs.config_file import expand_config_file
from slick.curation.config import CurateConfig
from slick.curation.step import curate_file
from slick.errors import SettingsError

CURATE = "curate"
PROG = f"slick {CURATE}"


def main(argv: Sequence[str]) -> None:
    """Run the step with the settings of the command line."""
    if has_help_flag(argv):
        print(f"{(__doc__ or '').strip()}\n")
        parse_config(CurateConfig(), ["--help"], f"{PROG} DATA --out DIR")
        return
    out, flags = parse_out(data_flags(argv, PROG), PROG)
    flags = expand_config_file(flags, CurateConfig(), PROG)
    curate_file(out, parse_config(CurateConfig(), flags, PROG, ("out", "config")))


def data_flags(argv: Sequence[str], prog: str) -> list[str]:
    """The arguments with the data as a flag.

    Raises:
        SettingsError: no data is given.
    """
    if any(word == "--data" or word.startswith("--data=") for word in argv):
        return list(argv)
    if not argv or argv[0].startswith("-"):
        raise SettingsError(f"{prog} needs a file or folder of rows first: {prog} data.jsonl --model ID --out DIR")
    return ["--data", *argv]


if __name__ == "__main__":
    run_main(main)
