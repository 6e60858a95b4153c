"""The curve of one training, and the epoch that is chosen on it. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from slick.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyCurve:
    """What was measured after each epoch of one training; position 0 is epoch 1."""

    dev_accuracy: tuple[float, ...]
    """Share of dev questions answered right, in [0, 1]; one an epoch."""
    unknown_train_accuracy: tuple[float, ...] | None = None
    """Share of the Unknown training rows answered right, in [0, 1]; one an epoch. None: there are no such rows."""
    highlyknown_dev_accuracy: tuple[float, ...] | None = None
    """Share of the HighlyKnown dev questions answered right, in [0, 1]; one an epoch. None: no dev question is known
    to be one, for example because none was annotated."""

    def __post_init__(self) -> None:
        measured = {
            "dev": self.dev_accuracy,
            "Unknown train": self.unknown_train_accuracy,
            "HighlyKnown dev": self.highlyknown_dev_accuracy,
        }
        for name, values in measured.items():
            if values is None:
                continue
            if len(values) != self.num_epochs or not values:
                raise DataError(
                    f"a curve needs one {name} accuracy for each epoch, got {len(values)} for {self.num_epochs} epochs"
                )
            for epoch, value in enumerate(values, start=1):
                if not 0.0 <= value <= 1.0:  # also refuses NaN
                    raise DataError(f"{name} accuracy of epoch {epoch} is {value}; it must be a share in [0, 1]")

    @property
    def num_epochs(self) -> int:
        """Epochs that were trained."""
        return len(self.dev_accuracy)

    def truncate_to(self, budget: int) -> "AccuracyCurve":
        """The curve of the same training had it ended after `budget` epochs.

        Raises:
            DataError: the training has fewer epochs.
        """
        if not 1 <= budget <= self.num_epochs:
            raise DataError(f"a budget of {budget} epochs cannot be read off a training of {self.num_epochs}")
        return self._map_values(lambda values: values[:budget])

    def extend_to(self, budget: int) -> "AccuracyCurve":
        """The curve as if nothing changed any more up to `budget` epochs, of which it has as many or fewer."""
        return self._map_values(lambda values: values + values[-1:] * (budget - len(values)))

    def _map_values(self, change: Callable[[tuple[float, ...]], tuple[float, ...]]) -> "AccuracyCurve":
        unknown, highly = self.unknown_train_accuracy, self.highlyknown_dev_accuracy
        return AccuracyCurve(
            dev_accuracy=change(self.dev_accuracy),
            unknown_train_accuracy=None if unknown is None else change(unknown),
            highlyknown_dev_accuracy=None if highly is None else change(highly),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StopDecision:
    """Which epoch's checkpoint a rule chooses, and what finding it took."""

    stop_epoch: int
    """From 1."""
    cost_epochs: int
    """Epochs that had to be trained before the rule could choose; at least `stop_epoch`."""

    def __post_init__(self) -> None:
        assert 1 <= self.stop_epoch <= self.cost_epochs, self
