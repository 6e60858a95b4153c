"""Numbers, durations, tables and progress lines as text for people."""

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

MAX_INTERVAL_S = 300.0
"""Maximum interval between two lines in a log."""
LOG_INTERVAL_SHARE = 0.1
"""Interval to the next line in a log, as a share of the elapsed time."""


def format_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """One line per row, with aligned columns separated by two spaces.

    Args:
        rows: the cells of each row, heads included; all rows are equally long.
        right: indices of the columns that are aligned to the right.

    >>> format_table([("set", "rows"), ("train", "12")], right=[1])
    ['set    rows', 'train    12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def format_percent(share: float, spec: str = ".0f") -> str:
    """A share in [0, 1] as a percentage; `spec` is the number's format specification.

    >>> format_percent(0.25), format_percent(0.1234, ".1f")
    ('25 %', '12.3 %')
    """
    return f"{100 * share:{spec}} %"


def format_rate(per_second: float) -> str:
    """Units per second, or the time of one if that is more than a second; empty for 0.

    >>> format_rate(1234.5), format_rate(1.0), format_rate(0.43), format_rate(1 / 240), format_rate(0.0)
    ('1,234.5/s', '1.0/s', '2.3 s each', '4 min 0 s each', '')
    """
    if per_second <= 0:
        return ""
    if per_second >= 1:
        return f"{per_second:,.1f}/s"
    seconds = 1 / per_second
    return f"{seconds:.1f} s each" if seconds < 10 else f"{format_duration(seconds)} each"


def format_duration(seconds: float) -> str:
    """Seconds in the two largest units.

    >>> format_duration(42.4), format_duration(192), format_duration(7260), format_duration(float("inf"))
    ('42 s', '3 min 12 s', '2 h 1 min', 'unknown time')
    """
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class ProgressReporter:
    """Prints one line that is updated in place on a terminal; in logs, lines at growing intervals.

    The speed is measured over the last few lines, so that the time to start a step does not count.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        interval_s: float = 10.0,
        *,
        quiet: bool = False,
        on_update: Callable[[str], object] | None = None,
    ) -> None:
        """Begin at 0.

        Args:
            label: the beginning of the line.
            total: number of units.
            unit: name of the units.
            interval_s: seconds to the first line in a log, and between calls of `on_update`. Later intervals in a log
                are a tenth of the elapsed time, and `MAX_INTERVAL_S` at most.
            quiet: print nothing.
            on_update: called with the line every `interval_s` seconds, and at the end.
        """
        self._label, self._total, self._unit = label, total, unit
        self._quiet, self._on_update = quiet, on_update
        self._update_s = interval_s
        self._tty = sys.stderr.isatty()
        self._interval_s = 0.2 if self._tty else interval_s
        self._began = self._shown = self._updated = time.monotonic()
        self._marks = deque([(self._shown, 0)], maxlen=60 if self._tty else 4)
        self._note, self._is_shown = "", True
        self.done = 0

    def resume_at(self, done: int) -> None:
        """Count `done` units of an earlier run; they do not count for the speed."""
        self.done = done
        self._marks = deque([(self._shown, done)], maxlen=self._marks.maxlen)

    def add(self, num: int, note: str = "") -> None:
        """Add `num` units, which is negative if work is repeated; `note` is the end of the line."""
        self.done += num
        now = time.monotonic()
        if num < 0:
            self._marks = deque([(now, self.done)], maxlen=self._marks.maxlen)
        self._note, self._is_shown = note, False
        is_last = self.done >= self._total
        if self._on_update is not None and (is_last or now - self._updated >= self._update_s):
            self._updated = now
            self._on_update(self._text(now))
        if is_last or now - self._shown >= self._interval(now):
            self._show(now)

    def finish(self) -> None:
        """Print the last state, unless it was printed, since a step may end before all units are done."""
        if not self._is_shown:
            self._show(time.monotonic())

    def _show(self, now: float) -> None:
        self._shown, self._is_shown = now, True
        if not self._quiet:
            end = "\r" if self._tty and self.done < self._total else "\n"
            text = self._text(now)
            print(f"\x1b[2K{text}" if self._tty else text, end=end, file=sys.stderr, flush=True)
        self._marks.append((now, self.done))

    def _interval(self, now: float) -> float:
        """Seconds to the next line; grows in a log, so that long steps do not flood it."""
        if self._tty:
            return self._interval_s
        return max(self._interval_s, min(MAX_INTERVAL_S, LOG_INTERVAL_SHARE * (now - self._began)))

    @property
    def seconds_left(self) -> float:
        """Seconds left at the speed of the last lines; infinite before the first unit."""
        if self.done >= self._total:
            return 0.0
        speed = self._speed(time.monotonic())
        return (self._total - self.done) / speed if speed > 0 else float("inf")

    def _speed(self, now: float) -> float:
        since, done_then = self._marks[0]
        return max(0, self.done - done_then) / max(now - since, 1e-9)

    @property
    def _remaining(self) -> str:
        """The time left as text; empty if it is not known."""
        seconds = self.seconds_left
        return "" if seconds == float("inf") else f"{format_duration(seconds)} left"

    def _text(self, now: float) -> str:
        done = f"{self._label}: {self.done:,} of {self._total:,} {self._unit}"
        return f"{done}{_suffix(format_rate(self._speed(now)))}{_suffix(self._remaining)}{_suffix(self._note)}"


def _suffix(text: str) -> str:
    return f", {text}" if text else ""
