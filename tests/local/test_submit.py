"""Jobs on a real head with token authentication: a submitted step has the results and exit status of a local one."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.ray_client import RayJobClient
from slick.cluster import MALLOC_ENV
from slick.errors import ClusterError
from slick.report import ReportConfig, make_report
from slick.study import MANIFEST
from tests.local.head import ROOT, SECRET, TOKEN, HeadCluster, running_cluster
from tests.local.tiny import save_tiny_model
from tests.study_builder import AnsweredQuestion, write_answered_study
from tests.waiting import TIMEOUT_S, wait_for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadCluster]:
    with running_cluster(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture(scope="module")
def prepared(cluster: HeadCluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a study whose questions a job prepared, and the output of that command."""
    folder = tmp_path_factory.mktemp("work")
    rows = [
        {"relation": relation, "split": split, "question": f"Where is {relation} {split} {i}?", "answers": ["London"]}
        for relation in ("P1", "P2")
        for split, num in (("train", 8), ("dev", 5), ("test", 3))
        for i in range(num)
    ]
    (folder / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--questions", str(folder / "tiny.jsonl"), "--filter", "none", "--unknown-relations", "id"]
    result = cluster.slick(
        "submit", "questions", "smoke", *flags, "--out", str(folder / "study"), "--env", "SLICK_TEST_SECRET"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "study", result.stdout + result.stderr


def parse_job_id(output: str) -> str:
    match = re.search(r"^job (\S+), study", output, re.MULTILINE)
    assert match, output
    return match.group(1)


def test_step_runs_on_the_cluster(prepared: tuple[Path, str], cluster: HeadCluster) -> None:
    study, output = prepared
    assert (study / "questions" / MANIFEST).exists()
    assert "Questions from files/tiny.jsonl, 32 rows" in output, "the log of the step must be followed"
    assert f"{cluster.address}/#/jobs/{parse_job_id(output)}" in output
    assert output.rstrip().endswith(f"job {parse_job_id(output)}: SUCCEEDED")
    kept = (study / "logs" / f"{parse_job_id(output)}.log").read_text()
    assert "Questions from files/tiny.jsonl, 32 rows" in kept, "the log must outlive the cluster"
    environment = json.loads(cluster.get(f"/api/jobs/{parse_job_id(output)}"))["runtime_env"]["env_vars"]
    assert environment.items() >= MALLOC_ENV.items(), "workers on a cluster need the malloc settings of local workers"


def test_secrets_are_not_in_output_logs_or_metadata(prepared: tuple[Path, str], cluster: HeadCluster) -> None:
    output = prepared[1]
    details = json.loads(cluster.get(f"/api/jobs/{parse_job_id(output)}"))
    assert details["metadata"]["step"] == "questions"
    assert SECRET not in json.dumps([details["metadata"], details["entrypoint"], details["message"]])
    assert SECRET not in cluster.get(f"/api/jobs/{parse_job_id(output)}/logs")
    jobs = cluster.slick("jobs")
    for text in (output, jobs.stdout, jobs.stderr):
        assert SECRET not in text
        assert TOKEN not in text


def test_jobs_are_listed(prepared: tuple[Path, str], cluster: HeadCluster) -> None:
    jobs = cluster.slick("jobs")
    assert re.search(rf"^{parse_job_id(prepared[1])}  questions smoke  SUCCEEDED, for ", jobs.stdout, re.MULTILINE)
    assert f"  study {prepared[0]}" in jobs.stdout


@pytest.mark.slow
def test_lock_file_longer_than_an_environment_variable_is_installed(
    prepared: tuple[Path, str], cluster: HeadCluster, tmp_path: Path
) -> None:
    """pip finds the package installed, so nothing is downloaded."""
    lock, hashes = tmp_path / "requirements.lock", [f"    --hash=sha256:{i:064x}" for i in range(3_000)]
    lock.write_text(f"six=={version('six')} \\\n" + " \\\n".join(hashes) + "\n")
    command = ("submit", "report", "demo", "--out", str(tmp_path / "none"), "--requirements", str(lock))
    result = cluster.slick(*command)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "run `slick annotate` with this --out first" in result.stdout, (
        "the report starts after the packages are installed"
    )


@pytest.mark.slow  # test_autoscaling.py covers such a job, with actors on other nodes
def test_actors_of_a_job_run_the_uploaded_code(
    prepared: tuple[Path, str], cluster: HeadCluster, tmp_path: Path
) -> None:
    model = save_tiny_model(tmp_path / "model", steps=1)
    flags = ["--model", model, "--num-exemplar-sets", "2", "--num-shots", "2", "--sampling.num-samples", "2"]
    flags += ["--sampling.max-new-tokens", "4", "--repeats-per-relation", "0", "--controls-per-relation", "0"]
    result = cluster.slick("submit", "annotate", "smoke", *flags, "--max-actors", "1", "--out", str(prepared[0]))
    assert result.returncode == 0, result.stdout + result.stderr
    assert (prepared[0] / "annotate" / MANIFEST).exists()
    assert "Ray dashboard" not in result.stdout, "no second cluster was started"


def test_user_error_exits_with_2_and_one_message(cluster: HeadCluster, tmp_path: Path) -> None:
    result = cluster.slick("submit", "variants", "smoke", "--out", str(tmp_path / "empty"))
    assert result.returncode == 2, result.stdout + result.stderr
    output = result.stdout + result.stderr
    assert output.count("slick: ") == 1
    assert "Traceback" not in output
    jobs = cluster.slick("jobs").stdout
    lines = jobs[jobs.index(parse_job_id(output)) :].splitlines()
    assert "variants smoke  FAILED" in lines[0]
    assert lines[2].startswith("  slick: ")


@pytest.mark.slow
def test_graded_sheet_is_uploaded_for_the_report(cluster: HeadCluster, tmp_path: Path) -> None:
    questions = [
        AnsweredQuestion(question_id=f"q{i}", gold=("Oslo",), greedy=("=Rome", "Oslo City"), sampled=(("Rome",),) * 2)
        for i in range(4)
    ]
    study, sheet = write_answered_study(tmp_path / "study", questions), tmp_path / "laptop" / "graded.csv"
    make_report(study, ReportConfig())
    tables = study.child("report", "tables")
    header, *rows = csv.reader(io.StringIO(tables.read_bytes("error_audit.csv").decode()))
    sheet.parent.mkdir()
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([header, *([*row[:-1], "wrong"] for row in rows)])
    command = ("submit", "report", "demo", "--out", study.uri)
    result = cluster.slick(*command, "--graded", str(sheet))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "wrong,16," in tables.read_bytes("error_audit_shares.csv").decode()
    assert [study.child("report", "graded").read_bytes(name) for name in study.child("report", "graded").names()] == [
        sheet.read_bytes()
    ]
    sheet.write_text(sheet.read_text().replace("wrong", "nonsense"))
    refused = cluster.slick(*command, f"--graded={sheet}")
    assert refused.returncode == 2
    assert "files/graded.csv has unknown grades" in refused.stdout


def test_head_started_outside_its_virtual_environment_uses_rays_python(tmp_path: Path) -> None:
    """There `python` is that of the system, or missing; jobs failed with "No module named 'pyarrow'"."""
    bare = tmp_path / "bin" / "python"
    bare.parent.mkdir()
    bare.write_text(f'#!/bin/sh\nexec {Path(sys.executable).resolve()} -I -S "$@"\n')
    bare.chmod(0o755)
    study = write_answered_study(
        tmp_path / "study", [AnsweredQuestion(question_id="q", gold=("a",), greedy=("b",), sampled=(("b",),))]
    )
    (tmp_path / "home").mkdir()
    with running_cluster(tmp_path / "home", PATH=f"{bare.parent}:/usr/bin:/bin") as cluster:
        result = cluster.slick("submit", "report", "demo", "--out", study.uri)
        assert result.returncode == 0, result.stdout + result.stderr
    assert study.child("report").exists(MANIFEST)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RAY_AUTH_TOKEN": "wrong-" + TOKEN}, "does not accept the token of this machine"),
        ({"RAY_AUTH_MODE": "disabled"}, "this machine has no token"),
    ],
)
def test_missing_or_wrong_token_is_one_message(
    cluster: HeadCluster, tmp_path: Path, environ: dict[str, str], message: str
) -> None:
    for command in (["jobs"], ["submit", "variants", "smoke", "--out", str(tmp_path)]):
        result = cluster.slick(*command, **environ)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert TOKEN not in result.stdout + result.stderr


def test_job_can_be_left_running_followed_and_stopped(cluster: HeadCluster) -> None:
    code = (
        "import pathlib, sys\nfrom jobs.ray_client import RayJobClient\n"
        "client, folder = RayJobClient(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "client.submit('echo begun; sleep infinity', 'sleeper', folder, {}, {})"
    )
    subprocess.run(
        [sys.executable, "-c", code, cluster.address, str(cluster.home)],
        cwd=ROOT,
        env=cluster.environment(),
        check=True,
    )
    follow = [sys.executable, "-m", "jobs.cli", "jobs", "--address", cluster.address, "--follow", "sleeper"]
    log = cluster.home / "follow.log"
    with log.open("w") as file:
        follower = subprocess.Popen(follow, cwd=ROOT, env=cluster.environment(), stdout=file, stdin=subprocess.DEVNULL)
        wait_for(lambda: "\nbegun" in log.read_text(), log.read_text)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(TIMEOUT_S) == 130
    assert "The job continues. To follow it: slick jobs" in log.read_text()
    assert "sleeper  not of slick  RUNNING" in cluster.slick("jobs").stdout
    assert "job sleeper is stopping" in cluster.slick("jobs", "--stop", "sleeper").stdout
    ended = cluster.slick("jobs", "--follow", "sleeper")
    assert (ended.returncode, ended.stdout.splitlines().count("begun")) == (130, 1)
    assert "job sleeper has already ended" in cluster.slick("jobs", "--stop", "sleeper").stdout


def test_missing_job_is_one_message(cluster: HeadCluster) -> None:
    result = cluster.slick("jobs", "--follow", "nobody")
    assert result.returncode == 2
    assert "nobody does not exist" in result.stderr


def test_missing_job_is_not_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    head = RayJobClient.__new__(RayJobClient)
    head.address = "http://127.0.0.1:1"
    head._client = SimpleNamespace(get_job_info=lambda _: exec('raise RuntimeError("it does not exist")'))
    monkeypatch.setattr("jobs.ray_client.time.sleep", lambda _: pytest.fail("a missing job must not be polled"))
    with pytest.raises(ClusterError, match="it does not exist"):
        head.follow("nobody")


class InterruptedJobServer:
    """A job server whose log connection breaks; every attempt sends the log from its beginning."""

    def __init__(self, attempts: list[list[str]]) -> None:
        self.attempts = attempts

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for text in self.attempts.pop(0):
            yield text
        if self.attempts:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job_id: str) -> Any:
        status = "RUNNING" if self.attempts else "SUCCEEDED"
        info = {"submission_id": job_id, "status": status, "metadata": {}, "message": "", "error_type": None}
        return SimpleNamespace(**info, driver_exit_code=0, start_time=1, end_time=2)


def test_broken_log_connection_resumes_without_repetition(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.ray_client.RETRY_INTERVAL_S", 0.0)
    head = RayJobClient.__new__(RayJobClient)
    head.address = "http://127.0.0.1:1"
    head._client = InterruptedJobServer([["one\n", "tw"], [], ["one\ntwo\n", "th"], ["one\n", "two\nthree\n"]])
    assert head.follow("j").status == "SUCCEEDED"
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
