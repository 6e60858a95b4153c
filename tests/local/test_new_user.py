"""What a new user of a cluster does: submit a study, watch it, stop it half-way, submit it again, read the report."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.cli import slick
from tests.local.head import HeadCluster, running_cluster
from tests.waiting import wait_for

JOB = re.compile(r"^job (\S+), study", re.MULTILINE)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadCluster]:
    with running_cluster(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.mark.slow
def test_a_study_is_submitted_watched_stopped_and_submitted_again(cluster: HeadCluster, tmp_path: Path) -> None:
    out = tmp_path / "study"
    begun = cluster.slick("submit", "study", "smoke", "--out", str(out), "--no-wait")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    found = JOB.search(begun.stdout)
    assert found, begun.stdout
    assert f"{cluster.address}/#/jobs/{found[1]}" in begun.stdout

    seen: list[str] = []

    def a_training_is_under_way() -> bool:
        job = json.loads(cluster.get(f"/api/jobs/{found[1]}"))
        assert job["status"] != "FAILED", job
        seen.append(job["message"] or "")
        return bool(list(out.glob("runs/*/started.json")))

    wait_for(a_training_is_under_way, lambda: seen[-1])
    listed = cluster.slick("jobs").stdout
    assert re.search(rf"^{found[1]}  study smoke  RUNNING, for ", listed, re.MULTILINE)
    assert f"  study {out}" in listed
    assert any(re.match(r"annotate: [\d,]+ of [\d,]+ questions, ", message) for message in seen), "how far it is"
    assert re.search(r"^  sweep: \d of 5 trainings, ", listed, re.MULTILINE)
    labels = (out / "annotate" / "knowledge.parquet").stat().st_mtime_ns
    assert f"job {found[1]} is stopping" in cluster.slick("jobs", "--stop", found[1]).stdout
    wait_for(lambda: "STOPPED" in cluster.slick("jobs").stdout, lambda: cluster.slick("jobs").stdout)
    assert "sweep      begun, not finished" in slick("status", "--out", str(out)).stdout

    again = cluster.slick("submit", "study", "smoke", "--out", str(out))
    assert again.returncode == 0, again.stdout + again.stderr
    assert (out / "annotate" / "knowledge.parquet").stat().st_mtime_ns == labels, "what was done is not done again"
    assert (out / "report" / "index.html").read_text().startswith("<!doctype html>")
    assert len(json.loads((out / "report" / "outcomes.json").read_text())) == 25
    assert slick("status", "--out", str(out)).stdout.count("done in") == 6
