"""What a fine-tuning leaves behind: predictions of every row each epoch, their sums, and what became of each row. Pure.

Legend of array suffixes: E epochs, R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from slick.study_files import EPOCHS_SCHEMA, PREDICTIONS_SCHEMA, RIGHT_TO_WRONG_SCHEMA, ROWS_SCHEMA
from slick.types import ALL_CATEGORIES, Category
from tuning.data import SPLITS, QuestionRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How one row was answered after one epoch."""

    text: str
    """The greedy answer."""
    hit: bool
    loss: float | None
    """Summed cross entropy in nats of the target's tokens, its end included; None if not computed."""
    num_tokens: int
    """Those tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitMetrics:
    """Verdicts of one split and category, summed."""

    split: str
    category: str
    num: int
    num_correct: int
    loss: float | None
    """Mean cross entropy in nats over the answer tokens of these rows."""


def summarize(rows: Sequence[QuestionRow], verdicts: Sequence[Prediction]) -> list[SplitMetrics]:
    """Sums for each split over all rows and over each category; only where there are rows."""
    measures = []
    for split in SPLITS:
        for category in (ALL_CATEGORIES, *Category):
            chosen = [
                verdict
                for row, verdict in zip(rows, verdicts, strict=True)
                if row.split == split and category in (ALL_CATEGORIES, row.category)
            ]
            if chosen:
                measures.append(_split_metrics(split, str(category), chosen))
    return measures


def _split_metrics(split: str, category: str, verdicts: Sequence[Prediction]) -> SplitMetrics:
    losses = [verdict.loss for verdict in verdicts if verdict.loss is not None]
    num_tokens = sum(verdict.num_tokens for verdict in verdicts)
    return SplitMetrics(
        split=split,
        category=category,
        num=len(verdicts),
        num_correct=sum(verdict.hit for verdict in verdicts),
        loss=sum(losses) / num_tokens if len(losses) == len(verdicts) else None,
    )


def epochs_table(run_id: str, epochs: Sequence[Sequence[SplitMetrics]]) -> pa.Table:
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


def predictions_file_name(epoch: int) -> str:
    """File of an epoch in predictions/."""
    return f"epoch-{epoch:03d}.parquet"


def predictions_table(rows: Sequence[QuestionRow], verdicts: Sequence[Prediction]) -> pa.Table:
    """`predictions/epoch-NNN.parquet`, as `predictions_file_name` has it."""
    return pa.table(
        {
            "question_id": [row.question_id for row in rows],
            "split": [row.split for row in rows],
            "category": [row.category for row in rows],
            "hit": [verdict.hit for verdict in verdicts],
            "text": [verdict.text for verdict in verdicts],
            "loss": [verdict.loss for verdict in verdicts],
        },
        schema=PREDICTIONS_SCHEMA,
    )


def rows_table(predictions: Sequence[pa.Table]) -> pa.Table:
    """`rows.parquet`: of each row the first epoch that answered it right (null if none did), and how many did.

    Args:
        predictions: of every epoch, from the first.
    """
    hits_ER = np.array([table["hit"].to_numpy() for table in predictions])
    num_R = hits_ER.sum(axis=0)
    first_R = hits_ER.argmax(axis=0) + 1
    last = predictions[-1]
    return pa.table(
        {
            "question_id": last["question_id"],
            "split": last["split"],
            "category": last["category"],
            "first_fit_epoch": pa.array(first_R, pa.int32(), mask=num_R == 0),
            "num_hits": pa.array(num_R, pa.int32()),
        },
        schema=ROWS_SCHEMA,
    )


def right_to_wrong_table(before: pa.Table, after: pa.Table) -> pa.Table:
    """`right_to_wrong.parquet`: rows that one epoch answered right and a later one wrong, with both answers."""
    lost = pa.array(before["hit"].to_numpy() & ~after["hit"].to_numpy())
    return pa.table(
        {
            "question_id": after["question_id"].filter(lost),
            "split": after["split"].filter(lost),
            "category": after["category"].filter(lost),
            "text_before": before["text"].filter(lost),
            "text_after": after["text"].filter(lost),
        },
        schema=RIGHT_TO_WRONG_SCHEMA,
    )


def metrics_from_table(epochs: pa.Table, num_epochs: int) -> list[list[SplitMetrics]] | None:
    """The measures of the first epochs in an `epochs.parquet`; None if it has fewer."""
    found: list[list[SplitMetrics]] = [[] for _ in range(num_epochs)]
    for row in epochs.to_pylist():
        if row["epoch"] <= num_epochs:
            values = {name: row[name] for name in ("split", "category", "num", "num_correct", "loss")}
            found[row["epoch"] - 1].append(SplitMetrics(**values))
    return found if all(found) else None


def accuracy(measures: Sequence[SplitMetrics], split: str, category: str = ALL_CATEGORIES) -> float | None:
    """Share of right answers in [0, 1]; None where there are no rows."""
    for measure in measures:
        if (measure.split, measure.category) == (split, category):
            return measure.num_correct / measure.num
    return None
