"""The output of a submitted job, kept in the study folder, so that it outlives the cluster.

Ray stores the log of a job on the head node, which is deleted with the cluster. While a submitted job runs, its output
is also written to `logs/JOB_ID.log` in the study, every 30 seconds and at its end.
"""

import io
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TextIO

from slick.cluster import submitted_job_id
from slick.errors import SlickError
from slick.storage import Folder

LOGS = "logs"
"""The folder in a study."""
SAVE_INTERVAL_S = 30.0
MAX_CHARACTERS = 4_000_000
"""Of the output of one job; of longer ones, the first and the last halves are kept."""


class _Tee(io.TextIOBase):
    """Writes to a stream and to the log."""

    def __init__(self, stream: TextIO, log: "JobLog") -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        self._log.add(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


class JobLog:
    """The output so far, and the file that it is saved to."""

    def __init__(self, folder: Folder, name: str, max_characters: int = MAX_CHARACTERS) -> None:
        """Prepare the log; nothing is written yet.

        Args:
            folder: the folder of the file.
            name: the file's name.
            max_characters: output beyond these is cut from the middle.
        """
        self._folder, self._name, self._half = folder, name, max_characters // 2
        self._first, self._last, self._num_cut = "", "", 0
        self._lock = threading.Lock()
        self._is_saved = True

    def add(self, text: str) -> None:
        """Append output."""
        with self._lock:
            self._is_saved = False
            room = self._half - len(self._first)
            if room > 0:
                self._first, text = self._first + text[:room], text[room:]
            self._last += text
            excess = len(self._last) - self._half
            if excess > 0:
                self._num_cut, self._last = self._num_cut + excess, self._last[excess:]

    def save(self) -> None:
        """Write the output so far; does nothing if there is none since the last time.

        Raises:
            SlickError, OSError: the file cannot be written.
        """
        with self._lock:
            if self._is_saved:
                return
            cut = f"\n[... {self._num_cut:,} characters ...]\n" if self._num_cut else ""
            content, self._is_saved = self._first + cut + self._last, True
        self._folder.write_bytes(self._name, content.encode("utf-8", "replace"))


@contextmanager
def keep_job_log(argv: Sequence[str]) -> Iterator[None]:
    """Keep the output of this process in the study that `--out` names, if the process is a submitted job.

    A log that cannot be written is reported once and does not stop the job.

    Args:
        argv: the arguments of the command.
    """
    job_id, out = submitted_job_id(), _find_out(argv)
    if not job_id or not out:
        yield
        return
    log = JobLog(Folder(out).child(LOGS), f"{job_id}.log")
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Tee(stdout, log), _Tee(stderr, log)
    ended, has_failed = threading.Event(), False

    def save() -> None:
        nonlocal has_failed
        try:
            log.save()
        except (SlickError, OSError) as error:
            if not has_failed:
                print(f"slick: the log of this job is not kept in {out}: {error}", file=stderr, flush=True)
            has_failed = True

    def save_regularly() -> None:
        while not ended.wait(SAVE_INTERVAL_S):
            save()

    thread = threading.Thread(target=save_regularly, name="slick-job-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        sys.stdout, sys.stderr = stdout, stderr
        save()


def _find_out(argv: Sequence[str]) -> str:
    """The value of `--out`; empty without one."""
    for name, value in pairwise([*argv, ""]):
        if name == "--out":
            return value
        if name.startswith("--out="):
            return name.partition("=")[2]
    return ""
