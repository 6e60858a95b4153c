"""Progress of a long step on the terminal: done, of how many, how fast, how long still."""

import sys
import time
from collections import deque
from collections.abc import Callable

from slick.formatting import format_duration, format_rate

MAX_INTERVAL_S = 300.0
"""The most time between two lines in a log."""
LOG_INTERVAL_SHARE = 0.1
"""In a log, the next line comes after this share of the time so far."""


class ProgressReporter:
    """Prints one line that renews itself on a terminal, and elsewhere (logs of a Ray job) lines at growing intervals.

    The speed is that of the last few lines: what a step took to start says nothing about how long it will go on.
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
            label: what is done.
            total: how many there are.
            unit: of what.
            interval_s: seconds to the first line where lines cannot renew themselves, and between calls of `tell`. From
                then on the next line comes after a tenth of the time so far, `MAX_INTERVAL_S` at most.
            quiet: print nothing.
            tell: called with the line now and then.
        """
        self._label, self._total, self._unit = label, total, unit
        self._quiet, self._tell = quiet, on_update
        self._tell_s = interval_s
        self._tty = sys.stderr.isatty()
        self._interval_s = 0.2 if self._tty else interval_s
        self._began = self._shown = self._told = time.monotonic()
        self._marks = deque([(self._shown, 0)], maxlen=60 if self._tty else 4)
        self._note, self._is_shown = "", True
        self.done = 0

    def resume_at(self, done: int) -> None:
        """Count `done` units as finished by an earlier run: shown, but not part of the speed."""
        self.done = done
        self._marks = deque([(self._shown, done)], maxlen=self._marks.maxlen)

    def add(self, num: int, note: str = "") -> None:
        """Count `num` more units, fewer than none where work begins again; `note` follows the figures."""
        self.done += num
        now = time.monotonic()
        if num < 0:
            self._marks = deque([(now, self.done)], maxlen=self._marks.maxlen)
        self._note, self._is_shown = note, False
        is_last = self.done >= self._total
        if self._tell is not None and (is_last or now - self._told >= self._tell_s):
            self._told = now
            self._tell(self._text(now))
        if is_last or now - self._shown >= self._interval(now):
            self._show(now)

    def finish(self) -> None:
        """Print the last line, unless it was printed: a step may end before all units are done."""
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
        """Seconds between two lines: in a log they grow, so that a long step does not fill it."""
        if self._tty:
            return self._interval_s
        return max(self._interval_s, min(MAX_INTERVAL_S, LOG_INTERVAL_SHARE * (now - self._began)))

    @property
    def seconds_left(self) -> float:
        """At the speed of the last few lines; infinite where nothing was done yet."""
        if self.done >= self._total:
            return 0.0
        speed = self._speed(time.monotonic())
        return (self._total - self.done) / speed if speed > 0 else float("inf")

    def _speed(self, now: float) -> float:
        since, done_then = self._marks[0]
        return max(0, self.done - done_then) / max(now - since, 1e-9)

    @property
    def _remaining(self) -> str:
        """The time left, in words; empty where it is not known, as before the first unit of a run that goes on."""
        seconds = self.seconds_left
        return "" if seconds == float("inf") else f"{format_duration(seconds)} left"

    def _text(self, now: float) -> str:
        done = f"{self._label}: {self.done:,} of {self._total:,} {self._unit}"
        return f"{done}{_suffix(format_rate(self._speed(now)))}{_suffix(self._remaining)}{_suffix(self._note)}"


def _suffix(text: str) -> str:
    return f", {text}" if text else ""
