"""A process that outlives the driver of a local cluster, and kills what the driver leaves behind; then it ends.

If a driver is killed, or its raylet, Ray's workers may live for minutes, and train workers would write to a study that
the next run has begun to resume. The cluster's processes are known by their TMPDIR, a folder that no other cluster has.

Started as a script, with the folder as its argument: it must not import anything that takes long or may fail.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

_POLL_S = 0.25
_KILL_S = 10.0
"""Seconds for which processes are killed; some may be about to start others."""


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
    while os.getppid() == driver:
        time.sleep(_POLL_S)
    end = time.monotonic() + _KILL_S
    while (pids := _processes_of(folder)) and time.monotonic() < end:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(_POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: str) -> list[int]:
    """Live processes whose environment names the folder, as TMPDIR or as that of the token."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _names_folder(name, folder)]


def _names_folder(pid: str, folder: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return folder.encode() in file.read()  # processes that set a title have overwritten some variables
    except OSError:
        return False  # it has ended, or is another user's


if __name__ == "__main__":
    _reap(sys.argv[1], int(sys.argv[2]))
