"""A sweep on the terminal and in Ray's dashboard."""

import io
import os
import re
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.nodes import wait_for
from tuning.board import _Screen
from tuning.standing import Standing

ROOT = Path(__file__).parents[2]
ROW = Standing(run_id="x", variant="x", seed=0, settings="", epochs=2, budget=3, state="running", best_dev_accuracy=0.5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_table_is_drawn_over_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    screen = _Screen()
    for lines in (["one", "two"], ["three", "four", "five"], ["six"]):
        screen.show(lines, last=False)
    shown: list[str] = []
    at = 0
    for step in re.findall(r"\x1b\[\dF|\x1b\[J|[^\x1b\r\n]+\n", terminal.getvalue().replace("\x1b[2K", "")):
        if step.endswith("F"):
            at -= int(step[2:-1])
        elif step == "\x1b[J":
            del shown[at:]
        else:
            shown[at : at + 1] = [step.strip()]
            at += 1
    assert shown == ["six"]


def test_in_a_log_the_table_comes_now_and_then(capsys: pytest.CaptureFixture) -> None:
    screen = _Screen()
    for number in range(5):
        screen.show([f"line {number}"], last=number == 4)
    assert capsys.readouterr().err == "line 4\n", "a minute has not passed"


def test_how_far_a_sweep_is_shows_in_ray_s_metrics(ray_cluster: None) -> None:
    import ray

    from tuning.meters import SweepMeters

    rows = [ROW, replace(ROW, state="done", tries=3, epochs=3), replace(ROW, best_dev_accuracy=None, state="waiting")]
    meters = SweepMeters()
    meters.record([ROW, ROW, ROW], None)
    meters.record(rows, 12.5)
    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {
        ("trainings", "running"): 1.0,
        ("trainings", "done"): 1.0,
        ("trainings", "waiting"): 1.0,
        ("epochs", ""): 7.0,
        ("retries", ""): 2.0,
        ("best_dev_accuracy", ""): 0.5,
        ("seconds_left", ""): 12.5,
    }
    end, found = time.monotonic() + 60, dict[tuple[str, str], float]()
    while found != wanted and time.monotonic() < end:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        for name, labels, value in re.findall(r"^ray_slick_sweep_(\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE):
            tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            found[name, tags.get("state", "")] = float(value)
        time.sleep(0.5)
    assert found == wanted


JOB = """
import time
from slick.cluster import connect, tell_job
connect()
for number in range(16):
    tell_job(f"sweep: {number + 1} of 16 trainings")
    time.sleep(0.5)
"""


def test_a_job_s_line_is_that_of_its_sweep_until_it_ends(ray_cluster: None) -> None:
    import ray
    from ray.job_submission import JobStatus, JobSubmissionClient

    address = f"http://{ray._private.worker.global_worker.node.address_info['webui_url']}"
    client = JobSubmissionClient(address)
    environment = {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "JOB": JOB}
    job = client.submit_job(
        entrypoint=f"{sys.executable} -c 'import os; exec(os.environ[\"JOB\"])'", runtime_env={"env_vars": environment}
    )
    wait_for(lambda: re.fullmatch(r"sweep: \d+ of 16 trainings", client.get_job_info(job).message or ""))
    assert client.get_job_status(job) == JobStatus.RUNNING
    wait_for(lambda: client.get_job_status(job).is_terminal())
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
    assert "sweep" not in client.get_job_info(job).message


def test_a_driver_that_is_no_job_has_no_line(ray_cluster: None) -> None:
    from slick.cluster import tell_job

    assert tell_job("sweep: 1 of 2 trainings") is False
