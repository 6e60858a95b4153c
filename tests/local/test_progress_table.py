"""Progress of a sweep on the terminal and in Ray's dashboard."""

import io
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.ray_client import submit_when_ready
from tests.local.metrics import exported_metrics
from tests.waiting import TIMEOUT_S, wait_for
from tuning.progress_table import _TerminalRenderer
from tuning.run_status import RunStatus

ROOT = Path(__file__).parents[2]
ROW = RunStatus(
    run_id="x", variant="x", seed=0, settings="", epochs=2, budget=3, state="running", best_dev_accuracy=0.5
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_table_is_redrawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    renderer = _TerminalRenderer()
    for lines in (["one", "two"], ["three", "four", "five"], ["six"]):
        renderer.show(lines, last=False)
    screen: list[str] = []
    cursor = 0
    for step in re.findall(r"\x1b\[\dF|\x1b\[J|[^\x1b\r\n]+\n", terminal.getvalue().replace("\x1b[2K", "")):
        if step.endswith("F"):
            cursor -= int(step[2:-1])
        elif step == "\x1b[J":
            del screen[cursor:]
        else:
            screen[cursor : cursor + 1] = [step.strip()]
            cursor += 1
    assert screen == ["six"]


def test_table_is_repeated_at_intervals_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("tuning.progress_table.LOG_INTERVAL_S", float("inf"))
    renderer = _TerminalRenderer()
    for line in range(5):
        renderer.show([f"line {line}"], last=line == 4)
    assert capsys.readouterr().err == "line 4\n", "only the last table is printed before the interval has passed"


def test_sweep_progress_is_exported_to_ray_metrics(ray_cluster: None) -> None:
    from tuning.progress_table import SweepMetrics

    rows = [
        ROW,
        replace(ROW, state="done", attempts=3, epochs=3),
        replace(ROW, best_dev_accuracy=None, state="waiting"),
    ]
    metrics = SweepMetrics()
    metrics.record([ROW, ROW, ROW], None)
    metrics.record(rows, 12.5)
    expected = {
        ("trainings", "running"): 1.0,
        ("trainings", "done"): 1.0,
        ("trainings", "waiting"): 1.0,
        ("epochs", ""): 7.0,
        ("retries", ""): 2.0,
        ("best_dev_accuracy", ""): 0.5,
        ("seconds_left", ""): 12.5,
    }

    def exported() -> dict[tuple[str, str], float]:
        return {(name, tags.get("state", "")): value for name, tags, value in exported_metrics("slick_sweep_")}

    wait_for(lambda: exported() == expected, exported)


JOB = """
import os, pathlib, time
os.environ["RAY_ADDRESS"] = os.environ["ADDRESS"]  # Ray sets it to the newest cluster on this machine
from slick.cluster import connect, set_job_message
connect()
while not pathlib.Path(SEEN).exists():
    set_job_message("sweep: 3 of 16 trainings")  # repeated, because Ray overwrites the message when the job starts
    time.sleep(0.1)
"""


def test_job_message_is_the_progress_of_the_sweep(ray_cluster: None, tmp_path: Path) -> None:
    import ray
    from ray.job_submission import JobStatus, JobSubmissionClient

    address = f"http://{ray._private.worker.global_worker.node.address_info['webui_url']}"
    client = JobSubmissionClient(address)
    stop_file = tmp_path / "seen"  # the job runs until this file exists
    environment = {
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "JOB": JOB.replace("SEEN", repr(str(stop_file))),
        "ADDRESS": ray.get_runtime_context().gcs_address,
    }
    command = f"{sys.executable} -c 'import os; exec(os.environ[\"JOB\"])'"
    jobs: list[str] = []
    agent_log = Path(ray._private.worker.global_worker.node.get_logs_dir_path()) / "dashboard_agent.log"

    def submit() -> None:
        if "Failed to start HTTP server" in agent_log.read_text():
            pytest.skip("another Ray cluster on this machine has the port of the agent that starts jobs")
        jobs.append(client.submit_job(entrypoint=command, runtime_env={"env_vars": environment}))

    submit_when_ready(submit, limit_s=TIMEOUT_S)
    (job,) = jobs
    info = client.get_job_info
    wait_for(
        lambda: info(job).status.is_terminal() or info(job).message == "sweep: 3 of 16 trainings", lambda: info(job)
    )
    assert client.get_job_status(job) == JobStatus.RUNNING, client.get_job_logs(job)
    stop_file.touch()
    wait_for(lambda: client.get_job_status(job).is_terminal())
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
    assert "sweep" not in client.get_job_info(job).message


def test_driver_outside_a_job_has_no_message(ray_cluster: None) -> None:
    from slick.cluster import set_job_message

    assert set_job_message("sweep: 1 of 2 trainings") is False
