"""The workflow of a new cluster user: submit a study, watch it, stop it, submit it again and read the report."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.cli import run_slick
from tests.local.head import HeadCluster, running_cluster
from tests.waiting import wait_for

JOB = re.compile(r"^job (\S+), study", re.MULTILINE)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadCluster]:
    with running_cluster(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.mark.slow
def test_study_is_submitted_stopped_and_resumed(cluster: HeadCluster, tmp_path: Path) -> None:
    out = tmp_path / "study"
    submitted = cluster.slick("submit", "study", "smoke", "--out", str(out), "--no-wait")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    match = JOB.search(submitted.stdout)
    assert match, submitted.stdout
    assert f"{cluster.address}/#/jobs/{match[1]}" in submitted.stdout

    messages: list[str] = []

    def training_has_started() -> bool:
        job = json.loads(cluster.get(f"/api/jobs/{match[1]}"))
        assert job["status"] != "FAILED", job
        messages.append(job["message"] or "")
        return bool(list(out.glob("runs/*/started.json")))

    wait_for(training_has_started, lambda: messages[-1])
    jobs = cluster.slick("jobs").stdout
    assert re.search(rf"^{match[1]}  study smoke  RUNNING, for ", jobs, re.MULTILINE)
    assert f"  study {out}" in jobs
    assert any(re.match(r"annotate: [\d,]+ of [\d,]+ questions, ", message) for message in messages), (
        "the job message must show the progress"
    )
    assert re.search(r"^  sweep: \d of 5 trainings, ", jobs, re.MULTILINE)
    annotated_at = (out / "annotate" / "knowledge.parquet").stat().st_mtime_ns
    assert f"job {match[1]} is stopping" in cluster.slick("jobs", "--stop", match[1]).stdout
    wait_for(lambda: "STOPPED" in cluster.slick("jobs").stdout, lambda: cluster.slick("jobs").stdout)
    assert "sweep      begun, not finished" in run_slick("status", "--out", str(out)).stdout

    resubmitted = cluster.slick("submit", "study", "smoke", "--out", str(out))
    assert resubmitted.returncode == 0, resubmitted.stdout + resubmitted.stderr
    assert (out / "annotate" / "knowledge.parquet").stat().st_mtime_ns == annotated_at, (
        "finished steps must not run again"
    )
    assert (out / "report" / "index.html").read_text().startswith("<!doctype html>")
    assert len(json.loads((out / "report" / "outcomes.json").read_text())) == 25
    assert run_slick("status", "--out", str(out)).stdout.count("done in") == 6
