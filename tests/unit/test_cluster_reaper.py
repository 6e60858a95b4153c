"""What a killed driver leaves behind is killed: the processes with its private TMPDIR, and the folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_for

DRIVER = """
import os, subprocess, sys, time
from slick.cluster_reaper import start_reaper
folder = sys.argv[1]
start_reaper(folder)
silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
worker = subprocess.Popen(["sleep", "600"], env={"TMPDIR": folder, "PATH": os.environ["PATH"]}, **silent)
print(worker.pid, flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_processes_and_folder_of_a_killed_driver_are_removed(tmp_path: Path, by: signal.Signals) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    environ = {"TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    other = subprocess.Popen(["sleep", "600"], env=environ)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    worker = int(driver.stdout.readline())
    assert is_running(worker)
    driver.send_signal(by)
    driver.wait()
    wait_for(lambda: not is_running(worker) and not folder.exists())
    assert is_running(other.pid)
    other.kill()
    other.wait()
