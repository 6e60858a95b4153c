"""A process that outlives the driver of a local cluster, and kills what the driver leaves behind; then it ends.

If a driver is killed, or its raylet, Ray's workers may live for minutes, and train workers would write to a study that
the next run has begun to resume. The cluster's processes are known by their TMPDIR, a folder that no other cluster has.
Ray's agents overwrite a part of their environment, which may contain that name; they are known by their log files.

Started as a script, with the folder as its argument: it must not import anything that takes long or may fail.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator

_POLL_S = 0.25
_KILL_S = 10.0
"""Seconds for which processes are killed; some may be about to start others."""
_LOGS = "/logs/"
"""Ray keeps the logs of a cluster in TMPDIR/ray/session_TIME_PID/logs."""


def start_reaper(folder: str) -> None:
    """Start the process, in a session of its own, so that no signal to this process's group ends it.

    Args:
        folder: the TMPDIR of the cluster's processes, which is deleted after the driver's end.
    """
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__), folder, str(os.getpid())]
    subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def _reap(folder: str, driver: int) -> None:
    logs = ""
    while os.getppid() == driver:
        logs = logs or _find_log_folder(folder)
        time.sleep(_POLL_S)
    end = time.monotonic() + _KILL_S
    logs = logs or _find_log_folder(folder)
    while (pids := _processes_of(folder, logs)) and time.monotonic() < end:
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except OSError:
                continue
        time.sleep(_POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def _find_log_folder(folder: str) -> str:
    """The log folder of the cluster, which no other cluster has; empty until a process of it writes there."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for path in _written_files(pid) if _names_folder(pid, folder) else ():
            parent, name, _ = path.partition(_LOGS)
            if name and os.path.basename(parent).startswith("session_"):
                return parent + name
    return ""


def _processes_of(folder: str, logs: str) -> list[str]:
    """Live processes whose environment names the folder, as TMPDIR or as that of the token, or that write to `logs`."""
    return [
        pid
        for pid in filter(str.isdigit, os.listdir("/proc"))
        if _names_folder(pid, folder) or (logs and any(path.startswith(logs) for path in _written_files(pid)))
    ]


def _names_folder(pid: str, folder: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return folder.encode() in file.read()
    except OSError:
        return False  # it has ended, or is another user's


def _written_files(pid: str) -> Iterator[str]:
    """Paths of the files that a process has open for writing, and not for reading alone, as `tail` has."""
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            if os.lstat(entry.path).st_mode & stat.S_IWUSR:
                yield os.readlink(entry.path)
    except OSError:
        return  # it has ended, or is another user's


if __name__ == "__main__":
    _reap(sys.argv[1], int(sys.argv[2]))
