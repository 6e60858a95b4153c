"""Questions too long for the model's context are set aside in every answer set, never labelled, and counted."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.status import describe_p_true, describe_step
from slick.annotation import AnnotateConfig, RescoreConfig, annotate, read_generations, read_p_true, rescore
from slick.annotation.set_aside import TOO_LONG, read_set_aside
from slick.datasets import read_questions
from slick.errors import DataError, SlickError
from slick.inference.base import SamplingConfig
from slick.prompts import few_shot_prefix, few_shot_suffix
from slick.storage import Folder
from slick.study_files import SET_ASIDE_SCHEMA, read_knowledge
from tests.local.tiny import save_tiny_model, tiny_model, tiny_tokenizer, write_birthplace_questions
from tests.study_builder import write_trainable_study
from tuning.config import TrainConfig
from tuning.finetune import finetune

CONTEXT = 256
LONG_QUESTION = "P1-train-003"
LONG_ANSWER = "P2-test-002"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> AnnotateConfig:
    return AnnotateConfig(
        model=save_tiny_model(tmp_path_factory.mktemp("model"), steps=20, max_position_embeddings=CONTEXT),
        num_exemplar_sets=3,
        num_shots=2,
        sampling=SamplingConfig(num_samples=4, max_new_tokens=6, temperature=0.8),
        batch_questions=4,
        batches_per_file=1,
        max_actors=1,
        max_set_aside_share=0.05,
    )


def write_study(path: Path, changed: dict[str, dict[str, Any]]) -> Folder:
    """The questions of `write_birthplace_questions` with changed rows, by question id."""
    study = Folder(str(path))
    write_birthplace_questions(study)
    folder = study.child("questions")
    rows = [row | changed.get(row["question_id"], {}) for row in folder.read_tables().to_pylist()]
    folder.write_table("part-00000.parquet", pa.Table.from_pylist(rows, folder.read_tables().schema))
    return study


def write_study_with_long_texts(path: Path) -> Folder:
    """One train question and the gold answer of one test question are longer than the context."""
    long = "Where was Train D3 " + "of the long name " * 60 + "born?"
    return write_study(
        path, {LONG_QUESTION: {"question": long}, LONG_ANSWER: {"answers": ["a very long answer " * 60]}}
    )


@pytest.fixture(scope="module")
def annotated_study(tmp_path_factory: pytest.TempPathFactory, config: AnnotateConfig, ray_cluster: None) -> Folder:
    """An annotated study; annotation with a smaller limit was refused first."""
    study = write_study_with_long_texts(tmp_path_factory.mktemp("done"))
    with pytest.raises(
        DataError, match=r"1 of 61 questions \(1.6 %\) have a prompt.*256 tokens.*at most 1 %"
    ) as raised:
        annotate(study, replace(config, max_set_aside_share=0.01))
    for part in (LONG_QUESTION, "annotate/set_aside/generations.parquet", "--max-set-aside-share"):
        assert part in str(raised.value)
    assert not study.child("annotate", "generations").exists()
    annotate(study, replace(config, p_true=True, max_set_aside_share=0.1))
    return study


def read_counts(study: Folder, *names: str) -> dict[str, Any]:
    counts: dict[str, Any] = study.child("annotate", *names).read_json("manifest.json")["counts"]
    return counts


def test_long_question_is_listed_and_not_labelled(annotated_study: Folder) -> None:
    (row,) = read_set_aside(annotated_study.child("annotate"), "generations").to_pylist()
    questions = {row["question_id"]: row for row in read_questions(annotated_study).to_pylist()}
    sets = annotated_study.child("annotate").read_json("exemplars.json")["P1"]
    prompts = [
        few_shot_prefix([(questions[i]["question"], questions[i]["answers"][0]) for i in ids])
        + few_shot_suffix(questions[LONG_QUESTION]["question"])
        for ids in sets
    ]
    longest = max(len(tokens) for tokens in tiny_tokenizer()(prompts)["input_ids"])
    assert row == {
        "question_id": LONG_QUESTION,
        "relation": "P1",
        "domain": "id",
        "split": "train",
        "reason": TOO_LONG,
        "num_tokens": longest + 6,
        "limit": CONTEXT,
    }
    expected = {i for i in questions if ("train" in i and "P9" not in i) or "test" in i}
    assert set(read_knowledge(annotated_study)["question_id"].to_pylist()) == expected - {LONG_QUESTION}
    assert read_generations(annotated_study).num_rows == len(expected) - 1
    counts = read_counts(annotated_study)
    assert counts["set_aside"] == {"generations": {TOO_LONG: {"P1": {"train": 1}}}}
    assert counts["questions"] == len(expected) - 1
    assert "60 of 60 questions answered (1 more set aside: prompt too long" in describe_step(
        annotated_study, "annotate"
    )


def test_p_true_has_its_own_list(annotated_study: Folder) -> None:
    (row,) = read_set_aside(annotated_study.child("annotate"), "p_true").to_pylist()
    assert row["question_id"] == LONG_ANSWER
    scored = set(read_p_true(annotated_study)["question_id"].to_pylist())
    assert len(scored) == 13
    assert LONG_ANSWER not in scored
    assert LONG_ANSWER in read_knowledge(annotated_study)["question_id"].to_pylist(), "only its gold answer is too long"
    assert read_counts(annotated_study, "p_true")["set_aside"] == {"p_true": {TOO_LONG: {"P2": {"test": 1}}}}
    assert "13 of 13 gold answers scored (1 more set aside" in describe_p_true(annotated_study)


@pytest.mark.slow
def test_other_questions_have_the_same_answers(annotated_study: Folder, config: AnnotateConfig, tmp_path: Path) -> None:
    short = write_study(tmp_path, {})
    annotate(short, config)
    assert not short.child("annotate", "set_aside").exists("generations.parquet")
    assert read_counts(short)["set_aside"] == {}
    by_question = {row["question_id"]: row for row in read_generations(short).to_pylist()}
    assert by_question.pop(LONG_QUESTION)
    for row in read_generations(annotated_study).to_pylist():
        assert row["sampled_text"] == by_question[row["question_id"]]["sampled_text"]


def test_interrupted_run_resumes(
    annotated_study: Folder, config: AnnotateConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(annotated_study.local_path, tmp_path, dirs_exist_ok=True)
    study = Folder(str(tmp_path))
    folder = study.child("annotate")
    parts = folder.child("generations")
    for name in parts.names(".parquet")[1::2]:
        parts.delete(name)
    for name in ("manifest.json", "knowledge.parquet", "set_aside"):
        folder.delete(name)
    kept = {name: parts.read_bytes(name) for name in parts.names(".parquet")}
    annotate(study, config)
    assert all(parts.read_bytes(name) == data for name, data in kept.items())
    assert read_knowledge(study).equals(read_knowledge(annotated_study))
    assert read_generations(study).equals(read_generations(annotated_study))
    out = capsys.readouterr().out
    assert "annotate/generations: 1 question set aside" in out
    assert f"{LONG_QUESTION} (" in out
    assert "60 questions (1 more set aside)" in out


@pytest.mark.slow
def test_labels_mode_and_gold_estimator_set_aside_the_same(
    annotated_study: Folder, config: AnnotateConfig, tmp_path: Path
) -> None:
    labels, gold = (write_study_with_long_texts(tmp_path / name) for name in ("labels", "gold"))
    annotate(labels, replace(config, mode="labels"))
    annotate(gold, replace(config, estimator="gold"))
    names = ["question_id", "category"]
    assert read_knowledge(labels).select(names).equals(read_knowledge(annotated_study).select(names))
    assert read_knowledge(gold)["question_id"].equals(read_knowledge(annotated_study)["question_id"])
    expected = read_set_aside(annotated_study.child("annotate"), "generations")
    assert read_set_aside(labels.child("annotate"), "generations").equals(expected)
    assert read_set_aside(gold.child("annotate"), "gold").equals(expected)
    assert read_counts(gold)["set_aside"] == {"gold": {TOO_LONG: {"P1": {"train": 1}}}}


@pytest.mark.slow
def test_repeats_controls_and_rescoring_omit_the_long_question(
    config: AnnotateConfig, annotated_study: Folder, tmp_path: Path
) -> None:
    """All train and test questions of a relation are repeated, so the long one would be among them."""
    study = write_study_with_long_texts(tmp_path)
    annotate(study, replace(config, repeats_per_relation=27, controls_per_relation=27))
    stores = {name: study.child("annotate", name).read_tables() for name in ("repeats", "controls")}
    for table in stores.values():
        assert table.num_rows == 60
        assert not any(LONG_QUESTION in question_id for question_id in table["question_id"].to_pylist())
    assert study.child("annotate").read_json("confidence.json")["repeats"]["questions"] == 60
    rescore(study, RescoreConfig(matcher="contains"))
    assert read_knowledge(study).num_rows == 60
    assert read_counts(study)["set_aside"] == {"generations": {TOO_LONG: {"P1": {"train": 1}}}}


def test_too_long_exemplars_are_an_error(config: AnnotateConfig, tmp_path: Path) -> None:
    long = {f"P2-dev-{i:03d}": {"question": f"Who wrote Dev {i} {'and so on ' * 60}?"} for i in range(6)}
    study = write_study(tmp_path, long)
    with pytest.raises(
        DataError, match=r"exemplars of relation P2 leave no room.*exemplar set \d of 3 has [\d,]+ tokens"
    ):
        annotate(study, replace(config, max_set_aside_share=1.0))


def test_list_has_the_documented_columns(annotated_study: Folder) -> None:
    assert read_set_aside(annotated_study.child("annotate"), "generations").schema == SET_ASIDE_SCHEMA
    assert read_set_aside(annotated_study.child("annotate"), "repeats").num_rows == 0


TRAINING = TrainConfig(variant="half", epochs=1, batch_size=8, dropout=0.0, max_new_tokens=6, max_set_aside_share=0.1)


def write_study_with_long_rows(path: Path) -> Folder:
    """A trainable study in which a test question and a train target are longer than the context."""
    study = write_trainable_study(path, tiny_model("llama", max_position_embeddings=CONTEXT), tiny_tokenizer())
    for folder, name, question_id, text in (
        (study.child("questions"), "part-00000", "test-0003", {"question": "Where " + "and where " * 99 + "was it?"}),
        (study.child("variants"), "half", "train-0003", {"target": "a very long answer " * 60}),
    ):
        table = folder.read_table(f"{name}.parquet")
        rows = [row | text if row["question_id"] == question_id else row for row in table.to_pylist()]
        folder.write_table(f"{name}.parquet", pa.Table.from_pylist(rows, table.schema))
    return study


@pytest.mark.slow
def test_training_omits_too_long_rows(tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture) -> None:
    study = write_study_with_long_rows(tmp_path)
    with pytest.raises(SlickError, match=r"2 of 42 rows of variant half do not fit.*256 tokens.*at most 1 %"):
        finetune(study, replace(TRAINING, max_set_aside_share=0.01))
    counts = finetune(study, TRAINING).counts
    assert counts["set_aside"] == {TOO_LONG: {"test": 1, "train": 1}}
    assert counts["train_rows"] == 11
    run = study.child("runs", "half-seed0")
    set_aside = {row["question_id"]: row for row in run.read_table("set_aside.parquet").to_pylist()}
    assert set(set_aside) == {"test-0003", "train-0003"}
    assert all(row["num_tokens"] > row["limit"] == CONTEXT for row in set_aside.values())
    predicted = run.child("predictions").read_table("epoch-001.parquet")["question_id"].to_pylist()
    assert len(predicted) == 40
    assert not set(set_aside) & set(predicted)
    (test_row,) = (
        row
        for row in run.read_table("epochs.parquet").to_pylist()
        if (row["split"], row["category"]) == ("test", "all")
    )
    assert test_row["num"] == 11
    assert "1 of 1 trainings left out rows that exceed the model's context" in capsys.readouterr().out
