"""Feed readers many damaged inputs: `python -m tests.fuzz.run --inputs 10000`.

Each input is read in an empty folder. A reader may return or raise a `SlickError` whose message is one text without a
traceback. The table lists, for each reader, the inputs, how many were read and how many were refused.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from slick.errors import SlickError
from slick.formatting import format_table
from tests.fuzz.targets import TARGETS, Target

TIME_LIMIT_S = 60
"""An input that takes longer is a hang."""


class HangError(Exception):
    """A reader did not end in time."""


def fuzz(target: Target, num_inputs: int, seed_number: int = 0) -> Counter[str]:
    """Feed one reader.

    Args:
        target: the reader.
        num_inputs: how many inputs.
        seed_number: seed of the inputs.

    Returns:
        Numbers of inputs that were read and refused.

    Raises:
        Exception: the first defect, with the smallest input that shows it.
    """
    outcomes: Counter[str] = Counter()
    root = Path(tempfile.mkdtemp(prefix="slick-fuzz-"))

    @seed(seed_number)
    @settings(
        max_examples=num_inputs,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def run(drawn: Any) -> None:
        folder = root / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        outcomes[_read_once(target, folder, drawn)] += 1
        leftover = [path.name for path in folder.rglob("*") if path.name.endswith((".part", ".tmp"))]
        assert not leftover, f"half-written files are left: {leftover}"

    try:
        run()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return outcomes


def _read_once(target: Target, folder: Path, drawn: Any) -> str:
    def stop(*_: object) -> None:
        raise HangError(f"{target.name}: an input took more than {TIME_LIMIT_S} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT_S)
    try:
        target.read(folder, drawn)
    except SlickError as error:
        message = str(error)
        assert message.strip(), "an error without a message"
        assert "Traceback" not in message, message
        return "refused"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return "read"


def main(argv: Sequence[str]) -> int:
    """Fuzz the readers, print a table, and return 1 if one has a defect."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="inputs per reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", default=sorted(TARGETS), choices=sorted(TARGETS), metavar="NAME")
    options = parser.parse_args(argv)
    rows: list[tuple[str, ...]] = [("reader", "inputs", "read", "refused", "seconds", "defect")]
    num_defects = 0
    for name in options.readers:
        began, defect, outcomes = time.monotonic(), "", Counter[str]()
        try:
            outcomes = fuzz(TARGETS[name], options.inputs, options.seed)
        except Exception as error:  # noqa: BLE001 (any exception is a defect)
            traceback.print_exc()
            defect, num_defects = f"{type(error).__name__}", num_defects + 1
        seconds = f"{time.monotonic() - began:.0f}"
        numbers = (f"{outcomes.total():,}", f"{outcomes['read']:,}", f"{outcomes['refused']:,}")
        rows.append((name, *numbers, seconds, defect))
        print("  ".join(rows[-1]), flush=True)
    print("\n".join(format_table(rows, right=(1, 2, 3, 4))))
    return int(num_defects > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
