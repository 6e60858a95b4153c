"""right_to_wrong.parquet of the finished runs, with what the new answers have to do with the fine-tuning sets."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from slick.analysis.forgotten import ForgottenFact, RunForgetting, TargetCounts, TargetIndex, sum_by_relation
from slick.datasets import read_questions
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import lookup_by_question, read_predictions, read_right_to_wrong, read_variant_rows
from slick.types import ALL_CATEGORIES

RIGHT_TO_WRONG_FILE = "right_to_wrong.parquet"
PREDICTION_COLUMNS = ["question_id", "split", "hit", "text"]
TEST_SPLITS = ("test", "ood")
"""Not dev: the epoch before is the one with the best dev accuracy, so losses there are chance in part."""


def load_forgetting(
    study: Folder, names: Mapping[str, tuple[str, int]], epoch_tables: Mapping[str, pa.Table]
) -> tuple[RunForgetting, ...]:
    """What every run lost, by split.

    Args:
        study: its folder.
        names: run_id to variant and seed, of the runs that count.
        epoch_tables: run_id to its epochs.parquet.

    Returns:
        By variant, seed and split; a run without right_to_wrong.parquet or without dev rows is left out, and all are
        where the questions are not there.

    Raises:
        StudyError: a file is broken, or lacks a column.
    """
    if read_manifest(study.child("questions")) is None:
        return ()
    questions = _QuestionIndex(study)
    targets: dict[str, TargetIndex] = {}
    found: list[RunForgetting] = []
    for run_id, (variant, seed) in sorted(names.items(), key=lambda item: item[1]):
        folder = study.child("runs", run_id)
        epochs = best_and_last_epoch(epoch_tables[run_id])
        if epochs is None or not folder.exists(RIGHT_TO_WRONG_FILE):
            continue
        if variant not in targets:
            targets[variant] = _load_targets(study, variant, questions)
        for split in TEST_SPLITS:
            one = _run_forgetting(
                folder, (run_id, variant, seed, split), epoch_tables[run_id], targets[variant], questions
            )
            found += [] if one is None else [one]
    return tuple(found)


def best_and_last_epoch(epochs: pa.Table) -> tuple[int, int] | None:
    """The epoch with the best dev accuracy, ties to the earliest, and the last; None without dev rows."""
    dev = {row["epoch"]: row["num_correct"] for row in epochs.to_pylist() if _is_total_row(row, "dev")}
    return (min(dev, key=lambda epoch: (-dev[epoch], epoch)), max(dev)) if dev else None


def _is_total_row(row: Mapping[str, Any], split: str) -> bool:
    return bool(row["split"] == split and row["category"] == ALL_CATEGORIES)


class _QuestionIndex:
    """Relations of all questions, and the rest of those that are asked for."""

    def __init__(self, study: Folder) -> None:
        self._table = read_questions(study, ["question_id", "relation", "question", "answers"])
        self._place = lookup_by_question(self._table, range(self._table.num_rows), f"{study}/questions")
        self._relations = self._table["relation"].to_pylist()

    def relation(self, question_id: str) -> str:
        return str(self._relations[self._place[question_id]])

    def rows(self, question_ids: list[str]) -> list[dict[str, Any]]:
        places = pa.array([self._place[one] for one in question_ids], pa.int64())
        rows: list[dict[str, Any]] = self._table.take(places).to_pylist()
        return rows


def _load_targets(study: Folder, variant: str, questions: _QuestionIndex) -> TargetIndex:
    rows = read_variant_rows(study, variant, ["question_id", "category", "target"]).to_pylist()
    return TargetIndex((questions.relation(row["question_id"]), row["category"], row["target"]) for row in rows)


def _run_forgetting(
    folder: Folder, name: tuple[str, str, int, str], epochs: pa.Table, targets: TargetIndex, questions: _QuestionIndex
) -> RunForgetting | None:
    run_id, variant, seed, split = name
    ends = best_and_last_epoch(epochs)
    assert ends is not None
    right = {row["epoch"]: int(row["num_correct"]) for row in epochs.to_pylist() if _is_total_row(row, split)}
    if not right.keys() >= set(ends):
        return None
    rows = [row for row in read_right_to_wrong(folder).to_pylist() if row["split"] == split]
    asked = questions.rows([row["question_id"] for row in rows])
    lost = tuple(
        ForgottenFact(
            question_id=row["question_id"],
            relation=question["relation"],
            category=row["category"] or "",
            question=question["question"],
            gold=tuple(question["answers"]),
            before=row["text_before"],
            after=row["text_after"],
            target_counts=targets.target_counts(row["text_after"], question["relation"]),
        )
        for row, question in zip(rows, asked, strict=True)
    )
    before, after = _baseline_counts(folder, ends, split, targets, questions)
    return RunForgetting(
        run_id=run_id,
        variant=variant,
        seed=seed,
        split=split,
        epoch_before=ends[0],
        epoch_after=ends[1],
        num_correct_before=right[ends[0]],
        num_correct_after=right[ends[1]],
        lost=lost,
        baseline_after=after,
        baseline_before=before,
    )


def _baseline_counts(
    run: Folder, ends: tuple[int, int], split: str, targets: TargetIndex, questions: _QuestionIndex
) -> tuple[dict[str, TargetCounts], dict[str, TargetCounts]]:
    """Of questions wrong at both epochs, where the answers at the first and at the last stand, by relation."""
    names = [f"epoch-{epoch:03d}.parquet" for epoch in ends]
    if not set(names) <= set(run.child("predictions").names(".parquet")):
        return {}, {}
    before, after = (_wrong_answers(read_predictions(run, name, PREDICTION_COLUMNS), split) for name in names)
    standings: list[dict[str, TargetCounts]] = []
    for texts in (before, after):
        answers = [(questions.relation(one), text) for one, text in texts.items() if one in before and one in after]
        standings.append(
            sum_by_relation((relation, targets.target_counts(text, relation)) for relation, text in answers)
        )
    return standings[0], standings[1]


def _wrong_answers(predictions: pa.Table, split: str) -> dict[str, str]:
    """question_id to the wrong answer."""
    rows = predictions.to_pylist()
    return {row["question_id"]: row["text"] for row in rows if row["split"] == split and not row["hit"]}
