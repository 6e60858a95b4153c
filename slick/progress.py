"""Progress of a long step on the terminal: done, of how many, how fast, how long still."""

import sys
import time
from collections import deque
from collections.abc import Callable


class Progress:
    """Prints one line that renews itself on a terminal, and a line every `interval_s` elsewhere (logs of a Ray job).

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
        tell: Callable[[str], object] | None = None,
    ) -> None:
        """Begin at 0.

        Args:
            label: what is done.
            total: how many there are.
            unit: of what.
            interval_s: between lines where they cannot renew themselves, and between calls of `tell`.
            quiet: print nothing.
            tell: called with the line now and then.
        """
        self._label, self._total, self._unit = label, total, unit
        self._quiet, self._tell = quiet, tell
        self._tell_s = interval_s
        self._tty = sys.stderr.isatty()
        self._interval_s = 0.2 if self._tty else interval_s
        self._shown = self._told = time.monotonic()
        self._marks = deque([(self._shown, 0)], maxlen=60 if self._tty else 4)
        self.done = 0

    def resume_at(self, done: int) -> None:
        """Count `done` units as finished by an earlier run: shown, but not part of the speed."""
        self.done = done
        self._marks = deque([(self._shown, done)], maxlen=self._marks.maxlen)

    def add(self, num: int, note: str = "") -> None:
        """Count `num` more units; `note` follows the figures."""
        self.done += num
        now = time.monotonic()
        if now - self._shown >= self._interval_s or self.done >= self._total:
            self._shown = now
            self._print(now, note)
            self._marks.append((now, self.done))

    @property
    def seconds_left(self) -> float:
        """At the speed of the last few lines; infinite where nothing was done yet."""
        speed = self._speed(time.monotonic())
        return (self._total - self.done) / speed if speed > 0 else float("inf")

    def _speed(self, now: float) -> float:
        since, done_then = self._marks[0]
        return (self.done - done_then) / max(now - since, 1e-9)

    def _print(self, now: float, note: str) -> None:
        text = (
            f"{self._label}: {self.done:,} of {self._total:,} {self._unit}, {self._speed(now):,.1f}/s, "
            f"{duration(self.seconds_left)} left{', ' + note if note else ''}"
        )
        if self._tell is not None and (now - self._told >= self._tell_s or self.done >= self._total):
            self._told = now
            self._tell(text)
        if self._quiet:
            return
        end = "\r" if self._tty and self.done < self._total else "\n"
        print(f"\x1b[2K{text}" if self._tty else text, end=end, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(42.4), duration(192), duration(7260), duration(float("inf"))
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
