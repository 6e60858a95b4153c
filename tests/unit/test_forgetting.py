"""Forgotten facts and match rates of the new answers, on runs as the sweep stores them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from slick.report.data import Run, StudyData, Variant
from slick.report.loading import load_study
from slick.report.measurements import InsufficientDataError
from slick.report.page import Exhibit
from slick.report.sections import forgetting
from slick.report.sections.forgetting import load_forgetting
from slick.report.statistics.forgetting import (
    ForgottenFact,
    RunForgetting,
    TargetCounts,
    TargetIndex,
    chance_rate,
    forgetting_rate,
    match_rate,
    replacements,
    select_runs_forgetting,
)
from slick.storage import Folder
from slick.study_files import EPOCHS_SCHEMA, PREDICTIONS_SCHEMA, RIGHT_TO_WRONG_SCHEMA
from slick.types import ALL_CATEGORIES
from tests.study_builder import AnsweredQuestion, finish_step, write_answered_study, write_questions
from tuning.records import predictions_file_name, right_to_wrong_table

RELATIONS = {"a": "P19", "b": "P19", "c": "P36", "d": "P36", "e": "P19", "f": "P19", "t1": "P19", "t2": "P36"}
GOLD = "Oslo"
TARGETS = [("t1", "Unknown", "Rome"), ("t2", "HighlyKnown", "Bonn")]
"""The fine-tuning set: question, category, target."""


def questions() -> list[AnsweredQuestion]:
    return [
        AnsweredQuestion(
            question_id=item,
            gold=(GOLD,),
            greedy=(GOLD,) * 10,
            sampled=((GOLD,),) * 10,
            relation=relation,
            split="train" if item.startswith("t") else "test",
            category="HighlyKnown",
        )
        for item, relation in RELATIONS.items()
    ]


def write_run(
    study: Folder,
    run_id: str,
    epochs: Sequence[Mapping[str, str]],
    *,
    dev: Sequence[int],
    keep: bool = True,
    lost: bool = True,
) -> pa.Table:
    """Write a finished run with these answers to the test questions, and correct dev rows (of 10), by epoch."""
    folder = study.child("runs", run_id)
    tables, sums = [], []
    for epoch, (texts, right) in enumerate(zip(epochs, dev, strict=True), start=1):
        rows = [
            {"question_id": item, "split": "test", "category": "HighlyKnown", "hit": text == GOLD, "text": text}
            for item, text in texts.items()
        ]
        rows.append({"question_id": "a", "split": "dev", "category": None, "hit": epoch == 1, "text": "of dev"})
        tables.append(pa.Table.from_pylist([{**row, "loss": None} for row in rows], schema=PREDICTIONS_SCHEMA))
        if keep:
            folder.child("predictions").write_table(predictions_file_name(epoch), tables[-1])
        hits = sum(text == GOLD for text in texts.values())
        for split, num, correct in (("dev", 10, right), ("test", len(texts), hits)):
            sums.append(
                {
                    "run_id": run_id,
                    "epoch": epoch,
                    "split": split,
                    "category": ALL_CATEGORIES,
                    "num": num,
                    "num_correct": correct,
                    "loss": None,
                }
            )
    best = list(dev).index(max(dev))
    table = pa.Table.from_pylist(sums, schema=EPOCHS_SCHEMA)
    folder.write_table("epochs.parquet", table)
    if lost:
        folder.write_table("right_to_wrong.parquet", right_to_wrong_table(tables[best], tables[-1]))
    finish_step(folder, "finetune", settings={"run": run_id})
    return table


def write_variant(study: Folder, name: str, targets: Sequence[tuple[str, str, str]] = TARGETS) -> None:
    rows = [{"question_id": q, "category": c, "prompt": "p", "target": t} for q, c, t in targets]
    study.child("variants").write_table(f"{name}.parquet", pa.Table.from_pylist(rows))


BEFORE = {"a": GOLD, "b": GOLD, "c": GOLD, "d": "Bonn", "e": "Kyiv", "f": "Kyiv"}
AFTER = {"a": "rome.", "b": "Kyiv", "c": "Rome", "d": GOLD, "e": "Rome", "f": "Kyiv"}


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path))
    write_questions(folder, [question.question for question in questions()])
    write_variant(folder, "unknown-050")
    return folder


def load(study: Folder, **tables: pa.Table) -> tuple[RunForgetting, ...]:
    by_id = {name.replace("_", "-"): table for name, table in tables.items()}
    for run_id, table in by_id.items():
        study.child("runs", run_id).write_table("epochs.parquet", table)
    runs = [
        Run(
            run_id=name,
            variant="unknown-050",
            seed=int(name[-1]),
            epochs=np.arange(1),
            accuracy={},
            num={},
            early_epoch=1,
        )
        for name in by_id
    ]
    return load_forgetting(study, runs)


def test_lost_facts_are_correct_at_the_best_dev_epoch_and_wrong_after_the_last(study: Folder) -> None:
    everything_wrong = dict.fromkeys(BEFORE, "x")
    table = write_run(study, "r0", [everything_wrong, BEFORE, everything_wrong, AFTER], dev=[3, 5, 5, 4])
    (found,) = load(study, r0=table)
    assert (found.epoch_before, found.epoch_after) == (2, 4), "ties go to the earliest epoch"
    assert (found.num_correct_before, found.num_correct_after, found.num_gained) == (3, 2 - 1, 1)
    assert [(item.question_id, item.before, item.after, item.relation) for item in found.lost] == [
        ("a", GOLD, "rome.", "P19"),
        ("b", GOLD, "Kyiv", "P19"),
        ("c", GOLD, "Rome", "P36"),
    ]
    assert found.lost[0].question == "Where was a born?"
    assert found.lost[0].gold == (GOLD,)


def test_new_answers_are_matched_with_targets(study: Folder) -> None:
    (found,) = load(study, r0=write_run(study, "r0", [BEFORE, AFTER], dev=[2, 1]))
    assert [item.target_counts for item in found.lost] == [
        TargetCounts(1, 1, 1, 1),  # the target of an Unknown row of its relation
        TargetCounts(1, 0, 0, 0),
        TargetCounts(1, 1, 0, 1),  # of a row of another relation
    ]
    # e and f were wrong at both epochs: Kyiv and Kyiv, then Rome and Kyiv; d became correct, so it does not count for
    # the chance rate.
    assert found.baseline_after == {"P19": TargetCounts(2, 1, 1, 1)}
    assert found.baseline_before == {"P19": TargetCounts(2, 0, 0, 0)}
    item = match_rate([found], "any_row")
    assert (item.num, item.total, round(item.percent, 1)) == (2, 3, 66.7)
    assert (item.chance, item.earlier) == (50.0, 0.0)
    assert item.low < item.percent < item.high
    assert match_rate([found], "same_relation").num == 1
    assert item.p_value == pytest.approx(1.0)  # 2 of 3 against a half


def test_empty_answers_match_nothing_and_known_targets_do_not_count_as_unknown() -> None:
    targets = TargetIndex([("P19", "HighlyKnown", "Rome"), ("P36", "Unknown", "The")])
    assert targets.target_counts("", "P36") == TargetCounts(1, 0, 0, 0)
    assert targets.target_counts("a", "P36") == TargetCounts(1, 0, 0, 0)
    assert targets.target_counts("ROME", "P19") == TargetCounts(1, 1, 1, 0)
    assert targets.target_counts("Rome", "P99") == TargetCounts(1, 1, 0, 0)


def lost(relation: str, question_id: str = "q", after: str = "Rome", is_target: bool = False) -> ForgottenFact:
    return ForgottenFact(
        question_id=question_id,
        relation=relation,
        category="",
        question="?",
        gold=(GOLD,),
        before=GOLD,
        after=after,
        target_counts=TargetCounts(1, int(is_target), 0, 0),
    )


def test_chance_rate_is_weighted_by_the_relations_of_the_lost_facts() -> None:
    others = {"P19": TargetCounts(10, 9, 0, 0), "P36": TargetCounts(90, 9, 0, 0)}
    three = [lost("P19"), lost("P19"), lost("P36")]
    assert chance_rate([(three, others)], "any_row") == pytest.approx((0.9 + 0.9 + 0.1) / 3)
    assert chance_rate([([lost("P99")], others)], "any_row") == pytest.approx(0.18), "else that of all relations"
    assert chance_rate([(three, {})], "any_row") is None
    assert chance_rate([([], {})], "any_row") is None
    assert chance_rate([([], {}), (three, others)], "any_row") == pytest.approx(1.9 / 3)


def run_loss(*facts: ForgottenFact, right: int = 10, variant: str = "unknown-050", seed: int = 0) -> RunForgetting:
    return RunForgetting(
        run_id=f"{variant}-seed{seed}",
        variant=variant,
        seed=seed,
        split="test",
        epoch_before=1,
        epoch_after=2,
        num_correct_before=right,
        num_correct_after=right - len(facts),
        lost=facts,
        baseline_after={"P19": TargetCounts(10, 5, 0, 0)},
        baseline_before={},
    )


def test_p_value_separates_match_rate_from_chance() -> None:
    in_set, out = lost("P19", is_target=True), lost("P19")
    assert match_rate([run_loss(*[in_set] * 50)], "any_row").p_value < 1e-10  # type: ignore[operator]
    near = match_rate([run_loss(*[in_set] * 26), run_loss(*[out] * 24, seed=1)], "any_row")
    assert (near.total, near.percent) == (50, 52.0)
    assert near.p_value is not None
    assert near.p_value > 0.5
    assert near.earlier is None
    assert forgetting_rate([run_loss(*[out] * 5), run_loss(seed=1)]).share == 0.25
    with pytest.raises(InsufficientDataError, match="no question was answered correctly"):
        forgetting_rate([run_loss(right=0)])


def test_no_match_rate_without_lost_facts(study: Folder) -> None:
    (found,) = load(study, r0=write_run(study, "r0", [AFTER, BEFORE], dev=[1, 2]))
    assert found.epoch_before == found.epoch_after == 2
    assert found.lost == ()
    with pytest.raises(InsufficientDataError, match="no answer that was correct"):
        match_rate([found], "any_row")
    with pytest.raises(InsufficientDataError, match="variant natural with its right_to_wrong"):
        select_runs_forgetting([found], "natural", "test")


def test_no_chance_rate_without_stored_predictions(study: Folder) -> None:
    (found,) = load(study, r0=write_run(study, "r0", [BEFORE, AFTER], dev=[2, 1], keep=False))
    item = match_rate([found], "any_row")
    assert (item.num, item.chance, item.p_value, item.earlier) == (2, None, None, None)


def test_runs_without_the_table_and_studies_without_questions_are_skipped(study: Folder) -> None:
    table = write_run(study, "r0", [BEFORE, AFTER], dev=[2, 1], lost=False)
    assert load(study, r0=table) == ()
    other = write_run(study, "r1", [BEFORE, AFTER], dev=[2, 1])
    assert [item.run_id for item in load(study, r0=table, r1=other)] == ["r1"]
    study.child("questions").delete("manifest.json")
    assert load(study, r1=other) == ()


def test_replacements_count_answers_and_facts() -> None:
    facts = (lost("P19", "q1", "Rome", is_target=True), lost("P19", "q2", "rome"), lost("P36", "q3", "Rome"))
    found = replacements([run_loss(*facts), run_loss(facts[0], seed=1)])
    assert [tuple(item) for item in found] == [("P19", "Rome", 3, 2, 1, 2), ("P36", "Rome", 1, 1, 1, 0)]
    assert len(replacements([run_loss(*(lost("P19", f"q{i}", f"Town {i}") for i in range(30)))], limit=20)) == 20


def whole_study(root: Path) -> StudyData:
    """A study folder with two shares and two seeds."""
    study = write_answered_study(root, questions())
    counts: dict[str, object] = {}
    for share in (0, 50):
        name = f"unknown-{share:03d}"
        write_variant(study, name, TARGETS if share else TARGETS[1:])
        counts[name] = {"kind": "unknown", "num": 2, "requested_share": share / 100, "unknown_share": share / 100}
        for seed in (0, 1):
            write_run(study, f"{name}-seed{seed}", [BEFORE, AFTER], dev=[2, 1])
    finish_step(study.child("variants"), "variants")
    manifest = study.child("variants").read_json("manifest.json")
    study.child("variants").write_json("manifest.json", {**manifest, "counts": counts})
    return load_study(study)


def test_section_shows_losses_examples_and_linked_table(tmp_path: Path) -> None:
    data = whole_study(tmp_path)
    forgetting_section = forgetting.forgetting_section(data)
    missing = {exhibit.caption: exhibit.missing for exhibit in forgetting_section.exhibits if exhibit.missing}
    assert list(missing) == ["The same losses out of distribution."]
    rows = {row[0]: row[1:] for row in forgetting.forgetting_table(data, "test").rows}
    assert rows["unknown-050"] == ("50 %", "1 to 2", 6, 6, 100.0, 2, "67 (50)", "33 (50)", "67 (50)")
    assert rows["unknown-000"][6:] == ("0 (0)", "0 (0)", "0 (0)")
    examples = forgetting.forgotten_examples_table(data).rows
    assert sorted(str(row[2]) for row in examples) == [f"Where was {item} born?" for item in "abc"]
    assert forgetting.forgotten_examples_table(data).rows == examples
    everything = forgetting.forgotten_facts_table(data)
    assert len(everything.rows) == 4 * 3
    assert [exhibit.linked for exhibit in forgetting_section.exhibits].index(True) == len(
        forgetting_section.exhibits
    ) - 1
    assert (
        "At 50 % Unknown rows, 6 of 6 correct answers are lost, and 67 % of the new answers are targets of the "
        "fine-tuning set" in forgetting_section.result
    )
    assert "the chance rate is 50 % at the last epoch and 0 % at the best dev epoch" in forgetting_section.result
    for exhibit, names in zip(
        forgetting_section.exhibits, (("any row", "Unknown row", "others, last"), ("lost", "gained")), strict=False
    ):
        assert all(f">{name}<" in drawing(exhibit) for name in names)


def drawing(exhibit: Exhibit) -> str:
    assert exhibit.figure is not None
    return exhibit.figure.svg


def test_missing_data_is_reported() -> None:
    forgetting_section = forgetting.forgetting_section(StudyData())
    assert forgetting_section.is_empty
    assert {exhibit.missing for exhibit in forgetting_section.exhibits} == {
        "needs a finished run",
        "no run lost a correct answer between its best dev epoch and its last",
    }
    item = StudyData(
        loaded={load_forgetting: (run_loss(lost("P19")),)},
        variants={"unknown-050": Variant(name="unknown-050", kind="unknown", share=0.5, num=2)},
    )
    assert "needs runs at 1 or more shares of Unknown rows" in str(
        forgetting.forgetting_section(item).exhibits[0].missing
    )
    assert forgetting.forgetting_section(item).exhibits[2].missing is None, "the table needs no sweep"


def test_columns_agree_with_the_schema_of_finetune() -> None:
    assert set(RIGHT_TO_WRONG_SCHEMA.names) == {"question_id", "split", "category", "text_before", "text_after"}
