"""Label the rows of a fine-tuning file by what a model knows, and write an edited copy.

slick curate data.jsonl --model ID --out studies/mine                                      # label, change nothing
slick curate data.jsonl --model ID --out studies/mine --unknown drop --to cleaned.jsonl    # or idk, weight, repeat
slick curate data.jsonl --model ID --dry-run                                               # rows, tokens, a prompt
slick curate data.jsonl --model ID --probe-rows 50 --price 2.5                             # hours, from 50 rows

--dry-run       read and tokenize the file, and print the workload; nothing is written
--probe-rows N  annotate N rows, print the hours for the whole file, and keep nothing
--price X       the price of one hour of an actor, for --probe-rows
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.common import has_help_flag, parse_config, parse_out, run_main
from jobs.config_file import expand_config_file
from jobs.flags import FlagParser, flag_name, pop_switch
from slick.curation.config import CurateConfig
from slick.curation.step import curate_file
from slick.errors import SettingsError
from slick.storage import Folder

CURATE = "curate"
PROG = f"slick {CURATE}"
_OTHER_FLAGS = ("out", "config", "dry-run", "probe-rows", "price")


def main(argv: Sequence[str]) -> None:
    """Run the step with the settings of the command line, or only forecast its cost."""
    if has_help_flag(argv):
        print(f"{(__doc__ or '').strip()}\n")
        parse_config(CurateConfig(), ["--help"], f"{PROG} DATA --out DIR")
        return
    only, rest = pop_forecast_flags(data_flags(argv, PROG))
    study: Folder | None = None
    if not only.is_forecast or "out" in map(flag_name, rest):
        study, rest = parse_out(rest, PROG)
    flags = expand_config_file(rest, CurateConfig(), PROG, others=_OTHER_FLAGS)
    config = parse_config(CurateConfig(), flags, PROG, _OTHER_FLAGS)
    if only.dry_run:
        print("\n".join(_dry_run(config)))
    elif only.probe_rows is not None:
        print("\n".join(_probe(config, only.probe_rows, study, only.price)))
    elif study is not None:
        curate_file(study, config)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastFlags:
    """The flags of a forecast."""

    dry_run: bool
    probe_rows: int | None
    price: float

    @property
    def is_forecast(self) -> bool:
        """Whether the file is not labelled."""
        return self.dry_run or self.probe_rows is not None


def pop_forecast_flags(argv: Sequence[str]) -> tuple[ForecastFlags, list[str]]:
    """The flags of a forecast, and the remaining arguments.

    Raises:
        SettingsError: they contradict each other, or a value is invalid.
    """
    dry_run, rest = pop_switch(argv, "--dry-run")
    parser = FlagParser(PROG)
    parser.add_flag("--probe-rows", type=int)
    parser.add_flag("--price", type=float)
    known, rest = parser.parse_known(rest)
    if dry_run and known.probe_rows is not None:
        raise SettingsError("--dry-run and --probe-rows are exclusive; give one of them")
    if known.price is not None and known.probe_rows is None:
        raise SettingsError("--price is for --probe-rows, which measures the hours; add --probe-rows 50")
    if known.price is not None and not (known.price >= 0 and math.isfinite(known.price)):
        raise SettingsError(f"--price must be 0 or more, got {known.price}")
    return ForecastFlags(dry_run=dry_run, probe_rows=known.probe_rows, price=known.price or 0.0), rest


def _dry_run(config: CurateConfig) -> Iterator[str]:
    from slick.curation.files import open_data
    from slick.curation.forecast import forecast, forecast_lines
    from slick.curation.plan import plan_curation

    plan = plan_curation(open_data(config.data), config)
    yield from forecast_lines(plan, forecast(plan))


def _probe(config: CurateConfig, num: int, study: Folder | None, price: float) -> Iterator[str]:
    from slick.curation.files import open_data
    from slick.curation.plan import plan_curation
    from slick.curation.probe import probe_lines, run_probe

    if config.to is not None:
        raise SettingsError(
            f"--probe-rows keeps no labels, so it cannot write --to {config.to}; leave one of the two out"
        )
    plan = plan_curation(open_data(config.data), config)
    yield from probe_lines(plan, run_probe(plan, num, study), price)


if __name__ == "__main__":
    run_main(main)
