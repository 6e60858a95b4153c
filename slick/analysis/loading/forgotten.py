"""right_to_wrong.parquet of the finished runs, with what the new answers have to do with the fine-tuning sets."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from slick.analysis.forgotten import Lost, RunLoss, Standing, Targets, add_standings
from slick.datasets import read_questions
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import lookup_by_question, read_predictions, read_right_to_wrong, read_variant_rows
from slick.types import ALL_CATEGORIES

LOST = "right_to_wrong.parquet"
COLUMNS = ["question_id", "split", "hit", "text"]
SPLITS = ("test", "ood")
"""Not dev: the epoch before is the one with the best dev accuracy, so losses there are chance in part."""


def load_forgotten(
    study: Folder, names: Mapping[str, tuple[str, int]], epoch_tables: Mapping[str, pa.Table]
) -> tuple[RunLoss, ...]:
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
    questions = _Questions(study)
    targets: dict[str, Targets] = {}
    found: list[RunLoss] = []
    for run_id, (variant, seed) in sorted(names.items(), key=lambda item: item[1]):
        folder = study.child("runs", run_id)
        epochs = best_and_last(epoch_tables[run_id])
        if epochs is None or not folder.exists(LOST):
            continue
        if variant not in targets:
            targets[variant] = _targets(study, variant, questions)
        for split in SPLITS:
            one = _loss(folder, (run_id, variant, seed, split), epoch_tables[run_id], targets[variant], questions)
            found += [] if one is None else [one]
    return tuple(found)


def best_and_last(epochs: pa.Table) -> tuple[int, int] | None:
    """The epoch with the best dev accuracy, ties to the earliest, and the last; None without dev rows."""
    dev = {row["epoch"]: row["num_correct"] for row in epochs.to_pylist() if _is(row, "dev")}
    return (min(dev, key=lambda epoch: (-dev[epoch], epoch)), max(dev)) if dev else None


def _is(row: Mapping[str, Any], split: str) -> bool:
    return bool(row["split"] == split and row["category"] == ALL_CATEGORIES)


class _Questions:
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


def _targets(study: Folder, variant: str, questions: _Questions) -> Targets:
    rows = read_variant_rows(study, variant, ["question_id", "category", "target"]).to_pylist()
    return Targets((questions.relation(row["question_id"]), row["category"], row["target"]) for row in rows)


def _loss(
    folder: Folder, name: tuple[str, str, int, str], epochs: pa.Table, targets: Targets, questions: _Questions
) -> RunLoss | None:
    run_id, variant, seed, split = name
    ends = best_and_last(epochs)
    assert ends is not None
    right = {row["epoch"]: int(row["num_correct"]) for row in epochs.to_pylist() if _is(row, split)}
    if not right.keys() >= set(ends):
        return None
    rows = [row for row in read_right_to_wrong(folder).to_pylist() if row["split"] == split]
    asked = questions.rows([row["question_id"] for row in rows])
    lost = tuple(
        Lost(
            question_id=row["question_id"],
            relation=question["relation"],
            category=row["category"] or "",
            question=question["question"],
            gold=tuple(question["answers"]),
            before=row["text_before"],
            after=row["text_after"],
            standing=targets.standing(row["text_after"], question["relation"]),
        )
        for row, question in zip(rows, asked, strict=True)
    )
    before, after = _others(folder, ends, split, targets, questions)
    return RunLoss(
        run_id=run_id,
        variant=variant,
        seed=seed,
        split=split,
        epoch_before=ends[0],
        epoch_after=ends[1],
        right_before=right[ends[0]],
        right_after=right[ends[1]],
        lost=lost,
        still_wrong=after,
        wrong_before=before,
    )


def _others(
    run: Folder, ends: tuple[int, int], split: str, targets: Targets, questions: _Questions
) -> tuple[dict[str, Standing], dict[str, Standing]]:
    """Of questions wrong at both epochs, where the answers at the first and at the last stand, by relation."""
    names = [f"epoch-{epoch:03d}.parquet" for epoch in ends]
    if not set(names) <= set(run.child("predictions").names(".parquet")):
        return {}, {}
    before, after = (_wrong(read_predictions(run, name, COLUMNS), split) for name in names)
    standings: list[dict[str, Standing]] = []
    for texts in (before, after):
        answers = [(questions.relation(one), text) for one, text in texts.items() if one in before and one in after]
        standings.append(add_standings((relation, targets.standing(text, relation)) for relation, text in answers))
    return standings[0], standings[1]


def _wrong(predictions: pa.Table, split: str) -> dict[str, str]:
    """question_id to the wrong answer."""
    rows = predictions.to_pylist()
    return {row["question_id"]: row["text"] for row in rows if row["split"] == split and not row["hit"]}
