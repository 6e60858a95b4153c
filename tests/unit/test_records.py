"""Files of a run: metrics per split, first correct epochs, rows that became wrong."""

from dataclasses import replace

import pyarrow as pa
import pytest

from tuning.data import QuestionRow
from tuning.records import (
    Prediction,
    accuracy,
    epochs_table,
    metrics_from_table,
    predictions_table,
    right_to_wrong_table,
    rows_table,
    summarize,
)


def make_row(question_id: str, split: str, category: str | None) -> QuestionRow:
    return QuestionRow(question_id=question_id, split=split, category=category, suffix="", target="x", accepted=("x",))


ROWS = [
    make_row("a", "train", "Unknown"),
    make_row("b", "train", "HighlyKnown"),
    make_row("c", "train", "Unknown"),
    make_row("d", "dev", None),
]


def predictions(*texts: str) -> list[Prediction]:
    losses = [0.5 * i if row.split == "train" else None for i, row in enumerate(ROWS)]
    return [
        Prediction(text=text, hit=text == "x", loss=loss, num_tokens=2)
        for text, loss in zip(texts, losses, strict=True)
    ]


EPOCHS = [predictions("y", "x", "y", "x"), predictions("x", "x", "y", "y"), predictions("x", "z", "y", "")]
TABLES = [predictions_table(ROWS, epoch) for epoch in EPOCHS]


def test_rows_table_has_the_first_correct_epoch() -> None:
    assert rows_table(TABLES).to_pylist() == [
        {"question_id": "a", "split": "train", "category": "Unknown", "first_fit_epoch": 2, "num_hits": 2},
        {"question_id": "b", "split": "train", "category": "HighlyKnown", "first_fit_epoch": 1, "num_hits": 2},
        {"question_id": "c", "split": "train", "category": "Unknown", "first_fit_epoch": None, "num_hits": 0},
        {"question_id": "d", "split": "dev", "category": None, "first_fit_epoch": 1, "num_hits": 1},
    ]


def test_right_to_wrong_table_has_both_answers() -> None:
    assert right_to_wrong_table(TABLES[0], TABLES[2]).to_pylist() == [
        {
            "question_id": "b",
            "split": "train",
            "category": "HighlyKnown",
            "text_before": "x",
            "text_after": "z",
        },
        {"question_id": "d", "split": "dev", "category": None, "text_before": "x", "text_after": ""},
    ]
    assert right_to_wrong_table(TABLES[1], TABLES[1]).num_rows == 0


def test_metrics_round_trip_through_the_table() -> None:
    epochs = [summarize(ROWS, epoch) for epoch in EPOCHS]
    table = epochs_table("run", epochs)
    assert metrics_from_table(table, 2) == epochs[:2]
    assert metrics_from_table(table, 4) is None
    assert metrics_from_table(table.slice(0, 0), 1) is None
    assert accuracy(epochs[1], "train") == pytest.approx(2 / 3)
    assert accuracy(epochs[1], "train", "Unknown") == 0.5
    assert accuracy(epochs[1], "test") is None


def test_loss_is_the_token_mean_if_all_rows_have_one() -> None:
    losses = {(m.split, m.category): m.loss for m in summarize(ROWS, EPOCHS[0])}
    assert losses["train", "all"] == pytest.approx((0.0 + 0.5 + 1.0) / 6)
    assert losses["dev", "all"] is None
    assert TABLES[0]["loss"].to_pylist() == [0.0, 0.5, 1.0, None]


def test_loss_of_all_train_rows_is_weighted_and_others_are_not() -> None:
    weights = (0.25, 1.0, 0.0, 1.0)
    rows = [replace(row, weight=weight) for row, weight in zip(ROWS, weights, strict=True)]
    plain, weighted = ({(m.split, m.category): m.loss for m in summarize(some, EPOCHS[0])} for some in (ROWS, rows))
    assert weighted["train", "all"] == pytest.approx((0.25 * 0.0 + 1.0 * 0.5) / (2 * 1.25))
    del plain["train", "all"], weighted["train", "all"]
    assert weighted == plain
    assert TABLES[0].schema.field("loss").type == pa.float64()
