"""What a fine-tuning leaves behind each epoch: predictions of every row, and their sums by split and category. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from slick.types import ALL, Category
from tuning.rows import SPLITS, Row

EPOCHS_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("epoch", pa.int32()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("num", pa.int32()),
        ("num_correct", pa.int32()),
        ("loss", pa.float64()),
    ]
)
PREDICTIONS_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("hit", pa.bool_()),
        ("text", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one row was answered after one epoch."""

    text: str
    """The greedy answer."""
    hit: bool
    loss: float | None
    """Summed cross entropy in nats of the target's tokens, its end included; None if not computed."""
    num_tokens: int
    """Those tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Verdicts of one split and category, summed."""

    split: str
    category: str
    num: int
    num_correct: int
    loss: float | None
    """Mean cross entropy in nats over the answer tokens of these rows."""


def summarize(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[Measure]:
    """Sums for each split over all rows and over each category; only where there are rows."""
    measures = []
    for split in SPLITS:
        for category in (ALL, *Category):
            chosen = [
                verdict
                for row, verdict in zip(rows, verdicts, strict=True)
                if row.split == split and category in (ALL, row.category)
            ]
            if chosen:
                measures.append(_measure(split, str(category), chosen))
    return measures


def _measure(split: str, category: str, verdicts: Sequence[Verdict]) -> Measure:
    losses = [verdict.loss for verdict in verdicts if verdict.loss is not None]
    num_tokens = sum(verdict.num_tokens for verdict in verdicts)
    return Measure(
        split=split,
        category=category,
        num=len(verdicts),
        num_correct=sum(verdict.hit for verdict in verdicts),
        loss=sum(losses) / num_tokens if len(losses) == len(verdicts) else None,
    )


def epochs_table(run_id: str, epochs: Sequence[Sequence[Measure]]) -> pa.Table:
    """`epochs.parquet` of the epochs so far."""
    rows = [
        {
            "run_id": run_id,
            "epoch": epoch,
            "split": measure.split,
            "category": measure.category,
            "num": measure.num,
            "num_correct": measure.num_correct,
            "loss": measure.loss,
        }
        for epoch, measures in enumerate(epochs, start=1)
        for measure in measures
    ]
    return pa.Table.from_pylist(rows, schema=EPOCHS_SCHEMA)


def predictions_table(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> pa.Table:
    """`predictions/epoch-NNN.parquet`."""
    return pa.table(
        {
            "question_id": [row.question_id for row in rows],
            "split": [row.split for row in rows],
            "category": [row.category for row in rows],
            "hit": [verdict.hit for verdict in verdicts],
            "text": [verdict.text for verdict in verdicts],
        },
        schema=PREDICTIONS_SCHEMA,
    )


def accuracy(measures: Sequence[Measure], split: str, category: str = ALL) -> float | None:
    """Share of right answers in [0, 1]; None where there are no rows."""
    for measure in measures:
        if (measure.split, measure.category) == (split, category):
            return measure.num_correct / measure.num
    return None


def accuracy_of(epochs: pa.Table, split: str) -> tuple[int, float]:
    """The last epoch of an `epochs.parquet`, and the split's accuracy over all its rows then."""
    rows = [row for row in epochs.to_pylist() if (row["split"], row["category"]) == (split, ALL)]
    return rows[-1]["epoch"], rows[-1]["num_correct"] / rows[-1]["num"]
