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
path = {"PATH": os.environ["PATH"]}
logs = sys.argv[2]
with open(f"{logs}/raylet.out", "w") as log:
    raylet = subprocess.Popen(["sleep", "600"], env=path | {"TMPDIR": folder}, **silent | {"stderr": log})
time.sleep(1)  # the process that kills has seen the folder of logs
raylet.kill()
raylet.wait()
worker = subprocess.Popen(["sleep", "600"], env=path | {"TMPDIR": folder}, **silent)
with open(f"{logs}/dashboard_agent.out", "w") as log:  # its environment is overwritten
    agent = subprocess.Popen(["sleep", "600"], env=path, **silent | {"stderr": log})
print(worker.pid, agent.pid, flush=True)
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
    logs = tmp_path / "ray" / "session_2030-01-01_1" / "logs"
    logs.mkdir(parents=True)
    (logs / "dashboard_agent.out").touch()
    with (logs / "dashboard_agent.out").open() as read:
        others = [subprocess.Popen(["sleep", "600"], env=environ, stdin=read)]  # as `tail -f` of the user
    with (tmp_path / "ray" / "own.log").open("w") as log:
        others.append(subprocess.Popen(["sleep", "600"], env=environ, stderr=log))
    command = [sys.executable, "-c", DRIVER, str(folder), str(logs)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert all(map(is_running, pids))
    driver.send_signal(by)
    driver.wait()
    wait_for(lambda: not any(map(is_running, pids)) and not folder.exists())
    for other in others:
        assert is_running(other.pid)
        other.kill()
        other.wait()
