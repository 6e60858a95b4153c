"""The wording step on a finished study: real labels, and answers of a fine-tuned model equal to those of generate."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from slick.datasets.rewordings import load_rewordings
from slick.prompts import closed_book_prompt
from tests.local.cli import run_slick


@pytest.fixture(scope="module")
def reworded(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke study after `slick wording` and a new report."""
    out = tmp_path_factory.mktemp("wording") / "smoke"
    shutil.copytree(study, out)
    for command in (("wording", "smoke", "--questions-per-category", "3"), ("report", "smoke")):
        result = run_slick(*command, "--out", str(out))
        assert result.returncode == 0, result.stdout + result.stderr
    return out


def test_labelled_questions_are_asked_in_the_second_wording(reworded: Path) -> None:
    again = pq.read_table(reworded / "wording" / "knowledge.parquet").to_pylist()
    labels = {row["question_id"]: row for row in pq.read_table(reworded / "annotate" / "knowledge.parquet").to_pylist()}
    assert {row["relation"] for row in again} == {row["relation"] for row in labels.values()}
    per_group: dict[tuple[str, str], int] = {}
    for row in again:
        group = row["relation"], labels[row["question_id"]]["category"]
        per_group[group] = per_group.get(group, 0) + 1
        assert (row["greedy_total"], row["sampled_total"]) == (10, 160)
    assert max(per_group.values()) == 3
    manifest = json.loads((reworded / "wording" / "manifest.json").read_text())
    assert manifest["counts"]["questions"] == len(again)


def test_a_fine_tuned_model_answers_its_questions_as_generate_does(reworded: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = "unknown-050-seed0"
    checkpoint = reworded / "runs" / run / "checkpoint-last"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    rows = pq.read_table(reworded / "wording" / "trained" / run / "answers").to_pylist()
    trained = pq.read_table(reworded / "variants" / "unknown-050.parquet")
    assert {row["question_id"] for row in rows} == set(trained["question_id"].to_pylist())
    parts = (reworded / "questions").glob("part-*.parquet")
    questions = {row["question_id"]: row for part in parts for row in pq.read_table(part).to_pylist()}
    templates = load_rewordings()
    for row in rows[:8]:
        question = questions[row["question_id"]]
        prompt = closed_book_prompt(templates[question["relation"]].replace("[X]", question["subject"]))
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        answer = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        text = tokenizer.decode(answer, skip_special_tokens=True).split("\n")[0].strip()
        assert row["greedy_text"] == [text], question


def test_the_report_and_the_status_show_the_step(reworded: Path) -> None:
    page = (reworded / "report" / "index.html").read_text()
    assert "Labels and learned facts in a second wording" in page
    labels = (reworded / "report" / "tables" / "wording_labels.csv").read_text()
    assert labels.count("\n") == 6, labels
    assert "unknown-050" in (reworded / "report" / "tables" / "wording_learned.csv").read_text()
    status = run_slick("status", "--out", str(reworded)).stdout
    assert "wording    done in" in status


def test_the_step_is_not_repeated_and_other_settings_are_refused(reworded: Path) -> None:
    manifests = [*reworded.glob("wording/**/manifest.json")]
    stamps = {path: path.stat().st_mtime_ns for path in manifests}
    assert len(stamps) == 2
    assert run_slick("wording", "smoke", "--questions-per-category", "3", "--out", str(reworded)).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in manifests} == stamps
    result = run_slick("wording", "smoke", "--questions-per-category", "4", "--out", str(reworded))
    assert result.returncode == 2
    assert "questions_per_category was 3, is 4" in result.stderr
