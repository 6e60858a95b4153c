"""Metrics of trainings and sweeps for Ray's metrics endpoint and dashboard."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from slick.types import ALL_CATEGORIES
from tuning.records import SplitMetrics
from tuning.run_status import RunStatus


class TrainMetrics:
    """Exports the epochs of one run from the worker that stores them. Every metric has the tag `run_id`."""

    def __init__(self, run_id: str) -> None:
        from ray.util import metrics

        run, rows = ("run_id",), ("run_id", "split", "category")
        self._metrics: dict[str, Any] = {
            "epoch": metrics.Gauge("slick_train_epoch", "Epochs finished.", tag_keys=run),
            "loss": metrics.Gauge("slick_train_loss", "Mean loss on the train rows, nats per token.", tag_keys=run),
            "accuracy": metrics.Gauge(
                "slick_train_accuracy", "Share of rows answered correctly, in [0, 1].", tag_keys=rows
            ),
            "tokens_per_s": metrics.Gauge("slick_train_tokens_per_s", "Tokens trained on per second.", tag_keys=run),
            "tokens": metrics.Counter("slick_train_tokens", "Tokens trained on.", tag_keys=run),
        }
        for metric in self._metrics.values():
            metric.set_default_tags({"run_id": run_id})

    def record(self, epoch: int, split_metrics: Sequence[SplitMetrics], *, tokens: int, seconds: float) -> None:
        """Export a finished epoch.

        Args:
            epoch: from 1.
            split_metrics: metrics of all splits and categories.
            tokens: tokens trained on, by all workers.
            seconds: duration of the training without the evaluation; above 0.
        """
        self._metrics["epoch"].set(epoch)
        for row in split_metrics:
            tags = {"split": row.split, "category": row.category}
            self._metrics["accuracy"].set(row.num_correct / row.num, tags=tags)
            if (row.split, row.category) == ("train", ALL_CATEGORIES) and row.loss is not None:
                self._metrics["loss"].set(row.loss)
        self._metrics["tokens_per_s"].set(tokens / seconds)
        if tokens:
            self._metrics["tokens"].inc(tokens)


class SweepMetrics:
    """Exports the progress of a sweep from its driver."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._trainings = Gauge("slick_sweep_trainings", "Trainings of the sweep, by state.", tag_keys=("state",))
        self._epochs = Gauge("slick_sweep_epochs", "Epochs finished, over all trainings.")
        self._retries = Gauge("slick_sweep_retries", "Retries of failed trainings.")
        self._best = Gauge("slick_sweep_best_dev_accuracy", "Highest dev accuracy of any epoch, in [0, 1].")
        self._seconds_left = Gauge("slick_sweep_seconds_left", "Expected time to the end of the sweep.")
        self._states: set[str] = set()

    def record(self, rows: Sequence[RunStatus], seconds_left: float | None) -> None:
        """Export the status of all trainings.

        Args:
            rows: status of every training.
            seconds_left: None if not known.
        """
        states: Counter[str] = Counter(row.state for row in rows)
        self._states |= set(states)
        for state in self._states:
            self._trainings.set(states[state], tags={"state": state})
        self._epochs.set(sum(row.epochs for row in rows))
        self._retries.set(sum(row.attempts - 1 for row in rows))
        best = max((row.best_dev_accuracy for row in rows if row.best_dev_accuracy is not None), default=None)
        if best is not None:
            self._best.set(best)
        if seconds_left is not None:
            self._seconds_left.set(seconds_left)
