"""A complete study from the command line, with real Ray Data, Ray Train with DeepSpeed, and Ray Tune."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.local.cli import ROOT, run_slick
from tests.local.conftest import SECRETS, InterruptedStudy
from tests.waiting import TIMEOUT_S, wait_for


def test_interrupted_study_resumes_and_writes_a_report(study: Path) -> None:
    page = (study / "report" / "index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    outcomes = {row["id"]: row for row in json.loads((study / "report" / "outcomes.json").read_text())}
    assert sorted(outcomes, key=lambda name: int(name[1:])) == [f"E{i}" for i in range(1, 26)]
    assert outcomes["E1"]["holds"] is None
    assert outcomes["E2"]["holds"] is True
    for row in outcomes.values():
        assert row["why"]
        assert (row["own"] is None) <= (row["holds"] is None), "an outcome without a value must not be judged"


def test_no_secret_of_the_environment_is_stored_logged_or_in_a_command_line(
    interrupted_study: InterruptedStudy,
) -> None:
    assert "raylet" in interrupted_study.command_lines
    assert "ray::" in interrupted_study.command_lines, "the workers"
    files = [
        path for folder in (interrupted_study.out, interrupted_study.ray_folder) for path in sorted(folder.rglob("*"))
    ]
    contents = {path: path.read_bytes() for path in files if path.is_file() and not path.is_symlink()}
    assert {"manifest.json", "started.json", "study.json", "raylet.out"} <= {path.name for path in contents}
    for name, secret in SECRETS.items():
        assert secret not in interrupted_study.output, name
        assert secret not in interrupted_study.command_lines, name
        assert [path for path, content in contents.items() if secret.encode() in content] == [], name


def test_folders_have_the_documented_files_and_columns(study: Path) -> None:
    knowledge = pq.read_table(study / "annotate" / "knowledge.parquet")
    assert {"question_id", "category", "p_correct_greedy", "p_correct_sampled", "p_upper"} <= set(
        knowledge.column_names
    )
    generations = pq.read_table(study / "annotate" / "generations")
    assert sorted(generations["question_id"].to_pylist()) == sorted(knowledge["question_id"].to_pylist())
    assert {len(texts) for texts in generations["greedy_text"].to_pylist()} == {10}
    assert {len(texts) for row in generations["sampled_text"].to_pylist() for texts in row} == {16}
    points = pq.read_table(study / "sweep" / "points.parquet")
    assert {"variant", "unknown_share", "seed", "epochs", "policy", "stop_epoch", "cost_epochs"} <= set(
        points.column_names
    )
    assert points.num_rows > 0
    for run in (study / "runs").iterdir():
        for name in ("config.json", "epochs.parquet", "checkpoint-best", "checkpoint-last", "manifest.json"):
            assert (run / name).exists(), run


def test_manifests_and_report_have_device_dtype_and_attention(study: Path) -> None:
    for name in ("annotate", "runs/unknown-050-seed0"):
        manifest = json.loads((study / name / "manifest.json").read_text())
        assert manifest["settings"]["dtype"] == manifest["counts"]["dtype"] == "float32", "dtype auto on a CPU"
        assert manifest["counts"]["device"] == "cpu"
        assert manifest["counts"]["attention"].startswith("slick packed")
    provenance = (study / "report" / "tables" / "provenance.csv").read_text()
    for part in ("annotation", "trainings"):
        assert f'{part} ran with,"device cpu, dtype float32, attention slick packed' in provenance


def test_finished_study_is_not_repeated(study: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in study.rglob("manifest.json")}
    result = run_slick("study", "smoke", "--out", str(study))
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in study.rglob("manifest.json")} == stamps
    status = run_slick("status", "--out", str(study)).stdout
    assert status.count("done in") == 6
    assert "5 of 5 trainings, 15 of 15 epochs" in status


def test_other_settings_are_refused_without_changes(study: Path) -> None:
    result = run_slick("study", "smoke", "--seed", "5", "--out", str(study))
    assert result.returncode == 2
    assert "was written with other inputs or settings" in result.stderr
    assert (study / "report" / "index.html").exists()
    assert json.loads((study / "study.json").read_text())["settings"]["seed"] == 0


def test_termination_is_one_message_and_the_step_resumes(study: Path, tmp_path: Path) -> None:
    """`kill`, Slurm and Kubernetes send SIGTERM, for which Ray's C++ code has a handler that aborts."""
    out, log = tmp_path / "smoke", tmp_path / "log.txt"
    for name in ("world", "questions"):
        shutil.copytree(study / name, out / name)
    command = [sys.executable, "-m", "jobs.cli", "annotate", "smoke", "--out", str(out)]
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        wait_for(lambda: "Ray dashboard" in log.read_text() or process.poll() is not None, log.read_text)
        process.terminate()
        assert process.wait(TIMEOUT_S) == 143, log.read_text()
    assert log.read_text().count("slick: stopped") == 1
    assert "SIGTERM received" not in log.read_text()
    assert "Traceback" not in log.read_text()
    result = run_slick("annotate", "smoke", "--out", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    again = pq.read_table(out / "annotate" / "knowledge.parquet")
    assert again.equals(pq.read_table(study / "annotate" / "knowledge.parquet"))


def test_variant_of_another_model_is_refused(study: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(study / "world" / "model")
    model.model.norm.weight.data.mul_(1.5)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(study / "world" / "model").save_pretrained(tmp_path)
    result = run_slick(
        "finetune", "smoke", "--variant", "unknown-050", "--seed", "9", "--model", str(tmp_path), "--out", str(study)
    )
    assert result.returncode == 2
    assert "--allow-other-model" in result.stderr


@pytest.mark.slow
def test_world_of_real_facts_reproduces_the_counts_of_the_paper(entity_questions: str, tmp_path: Path) -> None:
    out = tmp_path / "real-facts"
    result = run_slick("study", "smoke", "--questions", entity_questions, "--out", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    outcomes = {row["id"]: row for row in json.loads((out / "report" / "outcomes.json").read_text())}
    assert outcomes["E1"]["holds"] is True, outcomes["E1"]
    planted = pq.read_table(out / "world" / "planted.parquet").to_pylist()
    questions = {row["question"] for part in out.glob("questions/*.parquet") for row in pq.read_table(part).to_pylist()}
    assert questions
    assert questions <= {row["question"] for row in planted}
