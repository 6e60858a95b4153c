"""Files of a finished epoch and of a finished run: predictions, metrics per split and category, and the manifest.

Array suffixes: E epochs, R rows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slick.errors import StudyError
from slick.precision import merge_runtimes
from slick.storage import Folder
from slick.study import Manifest, complete_step
from slick.study_files import (
    EPOCHS_SCHEMA,
    PREDICTIONS_SCHEMA,
    RIGHT_TO_WRONG_SCHEMA,
    ROWS_SCHEMA,
    read_predictions,
    read_run_set_aside,
)
from slick.types import ALL_CATEGORIES, Category
from tuning.data import SPLITS, QuestionRow
from tuning.evaluation_epochs import epochs_without_test_rows
from tuning.runs import EpochAccuracies, RunPlan, read_accuracies, read_runtimes, run_folder

SET_ASIDE_FILE: Final = "set_aside.parquet"
"""Rows that exceed the model's context; a file in the run's folder, written only if there are any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer to one row after one epoch."""

    text: str
    """The greedy answer."""
    hit: bool
    loss: float | None
    """Cross entropy in nats, summed over the target's tokens and its end token; None if not computed."""
    num_tokens: int
    """Number of these tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitMetrics:
    """Number of correct predictions and mean loss of one split and category."""

    split: str
    category: str
    num: int
    num_correct: int
    loss: float | None
    """Mean cross entropy in nats per answer token; None if it was not computed for every row. Over all train rows, the
    mean is weighted by row, as the loss that is minimized; other means are not weighted."""


def summarize(rows: Sequence[QuestionRow], predictions: Sequence[Prediction]) -> list[SplitMetrics]:
    """Metrics of each split, over all rows and per category; combinations without rows are omitted."""
    metrics = []
    for split in SPLITS:
        for category in (ALL_CATEGORIES, *Category):
            selected = [
                (row.weight if category == ALL_CATEGORIES else 1.0, prediction)
                for row, prediction in zip(rows, predictions, strict=True)
                if row.split == split and category in (ALL_CATEGORIES, row.category)
            ]
            if selected:
                metrics.append(_split_metrics(split, str(category), selected))
    return metrics


def _split_metrics(split: str, category: str, weighted: Sequence[tuple[float, Prediction]]) -> SplitMetrics:
    losses = [weight * prediction.loss for weight, prediction in weighted if prediction.loss is not None]
    num_tokens = sum(weight * prediction.num_tokens for weight, prediction in weighted)
    return SplitMetrics(
        split=split,
        category=category,
        num=len(weighted),
        num_correct=sum(prediction.hit for _, prediction in weighted),
        loss=sum(losses) / num_tokens if len(losses) == len(weighted) else None,
    )


def epochs_table(run_id: str, epochs: Sequence[Sequence[SplitMetrics]]) -> pa.Table:
    """The table `epochs.parquet` of the epochs so far."""
    rows = [
        {
            "run_id": run_id,
            "epoch": epoch,
            "split": metric.split,
            "category": metric.category,
            "num": metric.num,
            "num_correct": metric.num_correct,
            "loss": metric.loss,
        }
        for epoch, metrics in enumerate(epochs, start=1)
        for metric in metrics
    ]
    return pa.Table.from_pylist(rows, schema=EPOCHS_SCHEMA)


def predictions_file_name(epoch: int) -> str:
    """Name of the file of an epoch in predictions/."""
    return f"epoch-{epoch:03d}.parquet"


def predictions_table(rows: Sequence[QuestionRow], predictions: Sequence[Prediction]) -> pa.Table:
    """The table `predictions/epoch-NNN.parquet`; see `predictions_file_name`."""
    return pa.table(
        {
            "question_id": [row.question_id for row in rows],
            "split": [row.split for row in rows],
            "category": [row.category for row in rows],
            "hit": [prediction.hit for prediction in predictions],
            "text": [prediction.text for prediction in predictions],
            "loss": [prediction.loss for prediction in predictions],
        },
        schema=PREDICTIONS_SCHEMA,
    )


def rows_table(predictions: Sequence[pa.Table]) -> pa.Table:
    """The table `rows.parquet`: for each row, the first correct epoch (null if none) and the number of correct epochs.

    Splits that were not evaluated after every epoch are omitted.

    Args:
        predictions: tables of all epochs, in order.
    """
    splits = set.intersection(*(set(table["split"].to_pylist()) for table in predictions))
    predictions = [table.filter(pc.is_in(table["split"], pa.array(sorted(splits)))) for table in predictions]
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
    """The table `right_to_wrong.parquet`: rows that are correct in `before` and wrong in `after`, with both answers."""
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
    """Metrics of the first `num_epochs` epochs in an `epochs.parquet`; None if it has fewer."""
    by_epoch: list[list[SplitMetrics]] = [[] for _ in range(num_epochs)]
    for row in epochs.to_pylist():
        if row["epoch"] <= num_epochs:
            values = {name: row[name] for name in ("split", "category", "num", "num_correct", "loss")}
            by_epoch[row["epoch"] - 1].append(SplitMetrics(**values))
    return by_epoch if all(by_epoch) else None


def accuracy(metrics: Sequence[SplitMetrics], split: str, category: str = ALL_CATEGORIES) -> float | None:
    """Share of correct answers in [0, 1]; None if there are no rows."""
    for metric in metrics:
        if (metric.split, metric.category) == (split, category):
            return metric.num_correct / metric.num
    return None


def finalize_run(study: Folder, plan: RunPlan, *, started_at: float, **counts: Any) -> Manifest:
    """Write rows.parquet, right_to_wrong.parquet and, last, the manifest of a run whose epochs are all stored.

    Args:
        study: the study.
        plan: the training.
        started_at: `time.monotonic()` when the training started.
        counts: counts of the training in addition to those that are computed from its epochs.

    Raises:
        StudyError: an epoch is missing.
    """
    folder = run_folder(study, plan.run_id)
    epochs = read_accuracies(folder)
    dev = [epoch[f"dev_{ALL_CATEGORIES}"] for epoch in epochs]
    best = dev.index(max(dev))
    tables = [read_predictions(folder, predictions_file_name(epoch)) for epoch in range(1, len(epochs) + 1)]
    folder.write_table("rows.parquet", rows_table(tables))
    folder.write_table("right_to_wrong.parquet", right_to_wrong_table(tables[best], tables[-1]))
    train = _final_train_accuracy(folder, epochs[-1])
    not_evaluated = epochs_without_test_rows(epochs)
    splits = tables[-1]["split"].to_pylist()
    epoch_counts = {
        "epochs": len(epochs),
        "train_rows": splits.count("train"),
        "evaluated_rows": len(splits),
        "best_dev_epoch": best + 1,
        "best_dev_accuracy": dev[best],
        "final_train_accuracy": train,
        "converged": train == 1.0,
        "set_aside": count_set_aside(folder),
        **({"epochs_without_test_rows": not_evaluated} if not_evaluated else {}),
    }
    return complete_step(
        folder,
        "finetune",
        plan.identity,
        settings=plan.config,
        inputs=plan.inputs,
        counts=epoch_counts | counts | merge_runtimes(read_runtimes(folder)),
        started_at=started_at,
    )


def _final_train_accuracy(run: Folder, epoch: EpochAccuracies) -> float:
    """Accuracy on all training rows after an epoch."""
    if f"train_{ALL_CATEGORIES}" not in epoch:
        raise StudyError(
            f"{run}/epochs.parquet has no row of all training rows in its last epoch; delete {run} and train it again"
        )
    return epoch[f"train_{ALL_CATEGORIES}"]


def count_set_aside(folder: Folder) -> dict[str, dict[str, int]]:
    """Rows that a run set aside: reason to split to number of rows; empty if there are none.

    Args:
        folder: the run's folder.
    """
    counts: dict[str, dict[str, int]] = {}
    if folder.exists(SET_ASIDE_FILE):
        rows = read_run_set_aside(folder, SET_ASIDE_FILE).to_pylist()
        for (reason, split), num in sorted(Counter((row["reason"], row["split"]) for row in rows).items()):
            counts.setdefault(reason, {})[split] = num
    return counts
