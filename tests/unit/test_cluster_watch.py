"""A command ends with one message if a process of its local Ray cluster has died."""

import subprocess
import sys

import pytest

COMMAND = """
import os, subprocess, sys, time
from jobs.common import run_main
from slick.cluster_watch import watch_cluster

def main(arguments):
    is_connected = True
    raylet = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    helper = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = arguments[0]
    with watch_cluster(lambda: {"raylet": raylet.pid}, lambda: is_connected, helper.kill, folder):
        time.sleep(1.5)
    if arguments[1] == "disconnect":
        is_connected = False
        time.sleep(1)
    raylet.kill()
    if arguments[1] == "raise":
        raise ValueError("caused by the loss")
    if arguments[1] == "disconnect":
        helper.kill()
        print("done")
        return
    time.sleep(600)

run_main(main, sys.argv[1:])
"""


@pytest.mark.parametrize("then", ["hang", "raise"])
def test_loss_of_a_process_ends_the_command_with_one_message(tmp_path, then: str) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, str(folder), then], capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.strip() == (
        "slick: Ray's process raylet on this machine has died (killed, perhaps for lack of memory). Finished work is "
        "kept; the same command resumes it."
    )
    assert not folder.exists()


def test_a_cluster_that_is_not_in_use_may_end(tmp_path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, str(tmp_path), "disconnect"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "done", "")
    assert tmp_path.exists()
