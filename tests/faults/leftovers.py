"""Processes and files that a run leaves behind.

Each run of a command is a session of its own (`setsid`). Ray's processes stay in the session of their driver, also
when the driver has died, so the session id identifies all processes of a run, and no others.
"""

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

GRACE_S = 20.0
"""Processes of a run that has ended may live so long, in seconds."""
WATCH_S = 90.0
"""Seconds after which processes that still live are killed by the harness, so that they do not disturb later rounds."""


@dataclass(frozen=True)
class Process:
    """A live process."""

    pid: int
    started: str
    """Start time in clock ticks since boot, so that a reused pid is another process."""
    title: str
    """Title that the process has set (as Ray's workers do), else its command line."""


def session_processes(session: int) -> list[Process]:
    """Live processes of a session. Zombies are not counted."""
    found = (_read_process(int(name), session) for name in os.listdir("/proc") if name.isdigit())
    return [process for process in found if process is not None]


def _read_process(pid: int, session: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX" or int(fields[3]) != session:
            return None
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, IndexError):
        return None  # it has ended
    return Process(pid, fields[19], title)


@dataclass
class Watch:
    """Measures in a thread how long the processes of a session outlive its driver."""

    session: int
    longest_s: float = 0.0
    """Seconds until the last process had ended, or until it was killed by the harness."""
    late: list[str] = field(default_factory=list)
    """Titles of the processes that lived after `GRACE_S`."""
    killed: list[str] = field(default_factory=list)
    """Titles of the processes that the harness killed."""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until no process of the session is left."""
        self._thread.join()

    def _watch(self) -> None:
        began = time.monotonic()
        while processes := session_processes(self.session):
            self.longest_s = time.monotonic() - began
            if self.longest_s > GRACE_S and not self.late:
                self.late = [process.title[:80] for process in processes]
            if self.longest_s > WATCH_S:
                self.killed = [process.title[:80] for process in processes]
                kill_session(self.session)
                return
            time.sleep(0.2)


def kill_session(session: int) -> None:
    """Kill all processes of a session."""
    while processes := session_processes(session):
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)


def leftover_files(study: Path, reference: Path, temporary: Path) -> list[str]:
    """Files of unfinished writes in the study, and temporary files outside Ray's own folder of logs.

    Args:
        study: a finished study.
        reference: the undisturbed study, whose top-level files may exist.
        temporary: the TMPDIR of the study's runs.
    """
    files = [str(path.relative_to(study)) for path in study.rglob("*") if path.name.endswith((".part", ".tmp"))]
    allowed = {path.name for path in reference.iterdir()}
    files += [path.name for path in study.iterdir() if path.name not in allowed]
    return files + [f"TMPDIR/{path.name}" for path in temporary.iterdir() if path.name != "ray"]


def shared_memory() -> set[str]:
    """Names in /dev/shm."""
    return set(os.listdir("/dev/shm"))


def unused_shared_memory(before: set[str]) -> list[str]:
    """Names in /dev/shm that did not exist before and that no live process of this machine has open or mapped."""
    new = shared_memory() - before
    return sorted(name for name in new if not _is_used(f"/dev/shm/{name}")) if new else []


def _is_used(path: str) -> bool:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if path in Path(f"/proc/{pid}/maps").read_text():
                return True
            if any(os.readlink(entry.path) == path for entry in os.scandir(f"/proc/{pid}/fd")):
                return True
        except OSError:
            continue
    return False
