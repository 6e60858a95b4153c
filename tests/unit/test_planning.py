"""Plans and labels of all stores of a study, one relation at a time, from questions that are all in one file."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from slick.annotation import AnnotateConfig, RescoreConfig, rescore
from slick.annotation.labels import LabelJob, _texts_by_store
from slick.annotation.planning import PlanJob, StudyPlan, find_exemplars, plan_questions
from slick.annotation.prompting import PromptBuilder
from slick.annotation.selection import select
from slick.annotation.set_aside import write_set_aside
from slick.annotation.step import _worker_config
from slick.annotation.uncertainty import Scoring
from slick.datasets import read_questions
from slick.errors import EngineError
from slick.inference.base import SamplingConfig
from slick.prompt_formats import QaFormat
from slick.storage import Folder
from slick.study_files import (
    CONTEXT_FIELD,
    GENERATION_SCHEMA,
    QUESTION_SCHEMA,
    SET_ASIDE_SCHEMA,
    read_exemplars,
    read_knowledge,
)
from slick.types import Message
from tests.study_builder import finish_step

RELATIONS = ("P1", "P2", "Ünïcode \U0001f600", "a/b")


class SystemFormat(QaFormat):
    """Lines of questions and answers after the system message."""

    def shared_context(self, context: Sequence[Message]) -> list[str]:
        return [message.content for message in context if message.role == "system"]

    def prefix(self, context: Sequence[Message], exemplars: Sequence[tuple[str, str]]) -> str:
        return "".join(self.shared_context(context)) + super().prefix(context, exemplars)


def row(relation: str, split: str, number: int, **columns: Any) -> dict[str, Any]:
    question_id = f"{relation}-{split}-{number}"
    return {
        "question_id": question_id,
        "relation": relation,
        "domain": "id",
        "split": split,
        "subject": f"Ada {number}",
        "question": f"Where was Ada {number} of {relation} born?",
        "answers": [f"town of {question_id}"],
    } | columns


def write_study(path: Path, rows: Sequence[dict[str, Any]]) -> Folder:
    """A study whose questions are all in one file."""
    study = Folder(str(path))
    folder = study.child("questions")
    schema = QUESTION_SCHEMA.append(CONTEXT_FIELD)
    folder.write_table("part-0.parquet", pa.Table.from_pylist(list(rows), schema))
    finish_step(folder, "questions")
    return study


def plan(study: Folder, config: AnnotateConfig) -> tuple[PlanJob, StudyPlan]:
    selection = select(study, config, {})
    relations = selection.relations()
    exemplars = find_exemplars(study, relations, config, None, parallel=False)
    prompt_format = SystemFormat()
    job = PlanJob(
        selection=select(study, config, exemplars.main),
        config=config,
        exemplars=exemplars,
        prompt_format=prompt_format,
        worker_config=_worker_config(study.child("annotate"), "model", config, prompt_format),
        context=10_000,
    )
    study.child("annotate").write_json("exemplars.json", exemplars.main)
    return job, plan_questions(job, relations, parallel=False)


def test_compared_prefixes_include_those_of_control_questions_alone(tmp_path: Path) -> None:
    def system(text: str) -> str:
        return json.dumps([{"role": "system", "content": text}])

    rows = [row("P1", "dev", number, context=system(f"System {number}. ")) for number in range(4)]
    study = write_study(tmp_path, rows)
    config = AnnotateConfig(
        num_exemplar_sets=4, num_shots=2, annotate_exemplars=True, controls_per_relation=4, repeats_per_relation=0
    )
    _, planned = plan(study, config)
    compared = planned.compared_prefixes("generations")
    only_controls = planned.prefixes["controls"].keys() - planned.prefixes["generations"].keys()
    assert only_controls
    assert compared.keys() == planned.prefixes["generations"].keys() | only_controls


def test_plans_are_those_of_all_questions_at_once(tmp_path: Path) -> None:
    sizes = {"dev": 5, "train": 5, "test": 2}
    rows = [row(relation, split, i) for relation in RELATIONS for split, num in sizes.items() for i in range(num)]
    rows += [row("only dev", "dev", number) for number in range(5)]
    study = write_study(tmp_path, rows[::-1])
    config = AnnotateConfig(num_exemplar_sets=2, num_shots=2, batch_questions=2)
    job, planned = plan(study, config)
    exemplars = read_exemplars(study.child("annotate"))
    questions = read_questions(study)
    texts = {row["question_id"]: (row["question"], row["answers"][0]) for row in questions.to_pylist()}
    builder = PromptBuilder(exemplars, texts, SystemFormat())
    is_selected = pa.array([split != "dev" for split in questions["split"].to_pylist()])
    groups = builder.add_prompts(questions.filter(is_selected))["prompt_group"].to_pylist()
    plans = planned.plans["generations"]
    assert (
        [run.relation for of_file in plans for run in of_file.runs] == sorted(RELATIONS) == list(dict.fromkeys(groups))
    )
    assert [(of_file.num_batches, of_file.num_questions) for of_file in plans] == [(4, 7)] * 4
    assert planned.prefixes["generations"] == builder.prefixes
    assert planned.num_selected == len(groups)
    assert len(job.counters) == 1, "the tokenizer is loaded once"


def answers(question_id: str, text: str, relation: str = "P1") -> dict[str, Any]:
    return {
        "question_id": question_id,
        "relation": relation,
        "greedy_text": [text],
        "greedy_hit": [False],
        "sampled_text": [[text]],
        "sampled_hit": [[False]],
        "num_tokens": 1,
    }


def write_answers(study: Folder, stores: dict[str, list[dict[str, Any]]], config: AnnotateConfig) -> None:
    """A finished annotation with these answers."""
    folder = study.child("annotate")
    for store, rows in stores.items():
        folder.child(store).write_table("part-000000.parquet", pa.Table.from_pylist(rows, GENERATION_SCHEMA))
    folder.write_json("exemplars.json", {"P1": [[]]})
    finish_step(folder, "annotate", settings=asdict(config), inputs={"questions": "q", "model": "m"})


def config_of_checks(controls: int = 0, repeats: int = 0) -> AnnotateConfig:
    return AnnotateConfig(
        num_exemplar_sets=1,
        sampling=SamplingConfig(num_samples=1),
        controls_per_relation=controls,
        repeats_per_relation=repeats,
        dtype="float32",
    )


def test_rescored_control_questions_have_the_gold_answers_of_the_real_ones(tmp_path: Path) -> None:
    rows = [
        row("P1", "test", 0, question_id=name, answers=[gold]) for name, gold in (("x", "Rome"), ("control-x", "Lima"))
    ]
    study = write_study(tmp_path, rows)
    controls = [answers("control-x", "It is Rome"), answers("control-control-x", "It is Rome")]
    stores = {"generations": [answers("x", "It is Rome"), answers("control-x", "It is Lima")], "controls": controls}
    write_answers(study, stores, config_of_checks(controls=2))
    rescore(study, RescoreConfig(matcher="contains"))
    assert read_knowledge(study)["category"].to_pylist() == ["HighlyKnown"] * 2
    found = study.child("annotate").read_json("confidence.json")["controls"]["categories"]["P1"]["test"]
    assert (found["HighlyKnown"], found["Unknown"]) == (1, 1)


@pytest.mark.parametrize("relation", ["P1", "P2"])
def test_answers_to_questions_that_the_study_lacks_are_refused(tmp_path: Path, relation: str) -> None:
    study = write_study(tmp_path, [row("P1", "test", 0)])
    config = config_of_checks()
    write_answers(study, {"generations": [answers("P1-test-0", "Rome"), answers("other", "Rome", relation)]}, config)
    with pytest.raises(EngineError, match=rf"1 questions of relation {relation} .*\['other'\]; delete annotate/"):
        rescore(study, RescoreConfig(matcher="contains"))


def test_the_judge_gets_no_store_without_questions(tmp_path: Path) -> None:
    study = write_study(tmp_path, [row("P1", "test", 0)])
    config = config_of_checks(repeats=1)
    columns = {
        "question_id": "P1-test-0",
        "relation": "P1",
        "domain": "id",
        "split": "test",
        "reason": "prompt too long",
    }
    set_aside = pa.Table.from_pylist([columns | {"num_tokens": 9, "limit": 8}], SET_ASIDE_SCHEMA)
    write_set_aside(study.child("annotate"), "repeats", set_aside)
    job = LabelJob(
        selection=select(study, config, {}),
        config=config,
        scoring=Scoring(matcher="judge", num_exemplar_sets=1, num_samples=1),
        rematch=False,
        set_aside={"generations": SET_ASIDE_SCHEMA.empty_table(), "repeats": set_aside},
        temporary=None,
    )
    assert list(_texts_by_store(job, job.selection.relations())) == ["generations"]
