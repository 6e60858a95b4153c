"""The matcher `judge` with a real local model: outcomes are the most probable choices, and are computed once."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from slick.annotation import AnnotateConfig, RescoreConfig, annotate, judge_pool, rescore
from slick.annotation.judge import JUDGE_FOLDER, grade_answers, judge_fingerprint
from slick.annotation.judge_client import JudgeConfig
from slick.annotation.judge_pool import Item, grade_by_model
from slick.annotation.rubrics import ANSWER_RUBRIC, answer_item
from slick.annotation.worker import AnnotationWorker, WorkerConfig
from slick.datasets import read_questions
from slick.errors import ModelError
from slick.formatting import ProgressReporter
from slick.inference.base import ENGINES, PACKED_ENGINE, EngineConfig, PromptBatch, SamplingConfig
from slick.storage import Folder
from slick.study_files import GENERATION_SCHEMA, JUDGE_OUTCOMES, UNPARSABLE, read_knowledge
from tests.local.tiny import save_tiny_model, write_birthplace_questions

ITEMS = [Item(f"key-{i}", answer_item(f"Where was Train A{i} born?", ["London"], f"answer {i}"), 0) for i in range(11)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"), steps=3)


@pytest.fixture
def config(model: str) -> AnnotateConfig:
    return AnnotateConfig(
        matcher="judge",
        judge=JudgeConfig(model=model, min_control_accuracy=0),
        dtype="float32",
        num_exemplar_sets=1,
        sampling=SamplingConfig(num_samples=2),
        batch_questions=4,
        batches_per_file=1,
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker in this process takes the place of the pool of actors."""

    def run(units_for: Any, config: WorkerConfig, **_: object) -> Iterator[dict[str, Any]]:
        worker = AnnotationWorker(config)
        for unit in units_for(False, 1, 1):
            yield worker.answer(unit)

    monkeypatch.setattr(judge_pool, "run_worker_pool", run)


def test_outcome_is_the_most_probable_choice(config: AnnotateConfig, in_process: None, tmp_path: Path) -> None:
    folder, progress = Folder(str(tmp_path)), ProgressReporter("judge", len(ITEMS), "answers", quiet=True)
    grade_by_model(folder, ITEMS, config, progress)
    rows = {row["key"]: row for row in folder.child(JUDGE_FOLDER).read_tables().to_pylist()}
    assert len(folder.child(JUDGE_FOLDER).names(".parquet")) == 3
    assert progress.done == len(rows) == len(ITEMS)
    engine = ENGINES.get(PACKED_ENGINE).load(EngineConfig(model=config.judge.model, prefixes=(ANSWER_RUBRIC.prefix,)))
    batch = PromptBatch(
        prefixes=[ANSWER_RUBRIC.prefix],
        question_ids=[item.key for item in ITEMS],
        suffixes=[ANSWER_RUBRIC.suffix(item.text) for item in ITEMS],
    )
    for item, values in zip(ITEMS, engine.log_probabilities(batch, ANSWER_RUBRIC.choices), strict=True):
        best = values.index(max(values))
        row = rows[item.key]
        assert (row["outcome"], row["reply"]) == (JUDGE_OUTCOMES[best], ANSWER_RUBRIC.choices[best])
        assert (row["item"], row["attempts"]) == (item.text, 1)


def test_answer_longer_than_the_context_is_unparsable(config: AnnotateConfig, in_process: None, tmp_path: Path) -> None:
    folder, progress = Folder(str(tmp_path)), ProgressReporter("judge", 2, "answers", quiet=True)
    long = Item("long", answer_item("Where?", ["London"], "very " * 3000), 0)
    grade_by_model(folder, [long, ITEMS[0]], config, progress)
    rows = {row["key"]: row for row in folder.child(JUDGE_FOLDER).read_tables().to_pylist()}
    assert rows["long"]["outcome"] == UNPARSABLE
    assert rows["key-0"]["outcome"] != UNPARSABLE
    assert progress.done == 2


def test_context_that_cannot_hold_the_instructions_is_refused(config: AnnotateConfig, tmp_path: Path) -> None:
    small = save_tiny_model(tmp_path / "model", steps=1, max_position_embeddings=128)
    config = replace(config, judge=JudgeConfig(model=small, min_control_accuracy=0))
    with pytest.raises(ModelError, match=r"context of 128 tokens, but the instructions of the judge need \d+"):
        grade_by_model(Folder(str(tmp_path)), ITEMS, config, ProgressReporter("judge", 1, "answers", quiet=True))


def test_stored_outcomes_are_not_computed_again(config: AnnotateConfig, in_process: None, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    write_birthplace_questions(study, num_train=3, num_dev=1, num_test=1)
    folder, questions = study.child("annotate"), read_questions(study)
    rows = [
        {
            "question_id": row["question_id"],
            "relation": row["relation"],
            "greedy_text": ["Paris"],
            "greedy_hit": [False],
            "sampled_text": [[row["answers"][0], "Rome"]],
            "sampled_hit": [[True, False]],
            "num_tokens": 1,
        }
        for row in questions.to_pylist()
    ]
    folder.child("generations").write_table("part-000000.parquet", pa.Table.from_pylist(rows, GENERATION_SCHEMA))
    identity = judge_fingerprint(config.judge)
    judgements, counts = grade_answers(folder, {"generations": questions}, config, identity)
    assert (counts["exact"], counts["empty"], counts["unparsable"]) == (10, 0, 0), "two relations have equal questions"
    assert counts["correct"] + counts["incorrect"] + counts["not_attempted"] == 20
    stored = folder.child(JUDGE_FOLDER)
    (first, *_), before = stored.names(), stored.versions()
    stored.delete(first)
    again, _ = grade_answers(folder, {"generations": questions}, config, identity)
    assert again.outcomes == judgements.outcomes
    kept = stored.versions()
    assert before.items() - kept.items() == {(first, before[first])}, "only the outcomes of the lost file are computed"
    assert len(stored.read_tables()) == 20


@pytest.mark.slow
def test_annotating_with_a_judge_equals_rescoring(ray_cluster: None, config: AnnotateConfig, tmp_path: Path) -> None:
    studies = {name: Folder(str(tmp_path / name)) for name in ("annotated", "rescored")}
    config = replace(config, model=config.judge.model, num_shots=1, repeats_per_relation=2, controls_per_relation=2)
    for study in studies.values():
        write_birthplace_questions(study, num_train=3, num_dev=3, num_test=2)
    manifest = annotate(studies["annotated"], config)
    annotate(studies["rescored"], replace(config, matcher="exact", judge=JudgeConfig()))
    rescored = rescore(studies["rescored"], RescoreConfig(matcher="judge", judge=config.judge))
    assert rescored.fingerprint == manifest.fingerprint
    assert rescored.counts["judge"] == manifest.counts["judge"]
    assert read_knowledge(studies["rescored"]).equals(read_knowledge(studies["annotated"]))
    outcomes = Counter(
        row["outcome"] for row in studies["annotated"].child("annotate", JUDGE_FOLDER).read_tables().to_pylist()
    )
    assert outcomes.total() > 10
    copy = tmp_path / "copy"
    shutil.copytree(studies["annotated"].local_path, copy)
    (copy / "annotate" / "manifest.json").unlink()
    (copy / "annotate" / JUDGE_FOLDER / "part-000000.parquet").unlink()
    resumed = annotate(Folder(str(copy)), config)
    assert read_knowledge(Folder(str(copy))).equals(read_knowledge(studies["annotated"]))
    assert resumed.counts["judge"] == manifest.counts["judge"]
