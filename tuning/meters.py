"""Ray metrics of a fine-tuning, at Ray's metrics endpoint and dashboard beside those of the machines."""

from collections.abc import Sequence
from typing import Any

from slick.types import ALL
from tuning.records import Measure


class TrainMeters:
    """Publishes one run's epochs; for the worker that records them. Every metric has the tag `run_id`."""

    def __init__(self, run_id: str) -> None:
        from ray.util.metrics import Counter, Gauge

        run, rows = ("run_id",), ("run_id", "split", "category")
        self._metrics: dict[str, Any] = {
            "epoch": Gauge("slick_train_epoch", "Epochs finished.", tag_keys=run),
            "loss": Gauge("slick_train_loss", "Mean loss on the train rows, nats a token.", tag_keys=run),
            "accuracy": Gauge("slick_train_accuracy", "Share of rows answered right, in [0, 1].", tag_keys=rows),
            "tokens_per_s": Gauge("slick_train_tokens_per_s", "Tokens trained on in a second.", tag_keys=run),
            "tokens": Counter("slick_train_tokens", "Tokens trained on.", tag_keys=run),
        }
        for metric in self._metrics.values():
            metric.set_default_tags({"run_id": run_id})

    def record(self, epoch: int, measures: Sequence[Measure], *, tokens: int, seconds: float) -> None:
        """Publish a finished epoch.

        Args:
            tokens: taken through the model in the epoch's training, by all workers.
            seconds: that the training took, without the evaluation; above 0.
        """
        self._metrics["epoch"].set(epoch)
        for measure in measures:
            tags = {"split": measure.split, "category": measure.category}
            self._metrics["accuracy"].set(measure.num_correct / measure.num, tags=tags)
            if (measure.split, measure.category) == ("train", ALL) and measure.loss is not None:
                self._metrics["loss"].set(measure.loss)
        self._metrics["tokens_per_s"].set(tokens / seconds)
        if tokens:
            self._metrics["tokens"].inc(tokens)
