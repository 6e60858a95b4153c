"""Stored epochs as the curve that policies look at. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slick.errors import StudyError
from slick.storage import Folder
from slick.study_files import read_epochs
from slick.types import ALL_CATEGORIES, Category
from tuning.curves import AccuracyCurve
from tuning.policies import parse_policy

EpochAccuracies = dict[str, float]
"""Of one epoch: `split_category` to a share in [0, 1]; only where there are rows."""


def read_accuracies(run: Folder) -> list[EpochAccuracies]:
    """One mapping an epoch, from the `epochs.parquet` of a run.

    Raises:
        StudyError: it is not there, is not as a training writes it, or lacks an epoch or the dev questions of one.
    """
    try:
        return accuracies_from_rows(read_epochs(run).to_pylist())
    except _InvalidEpochsError as error:
        raise StudyError(f"{run}/epochs.parquet {error}; restore it, or delete {run} and train it again") from error


def read_curve(run: Folder) -> AccuracyCurve:
    """The curve of a run's `epochs.parquet`; see `read_accuracies`."""
    return curve_from_accuracies(read_accuracies(run))


class _InvalidEpochsError(StudyError):
    """What is wrong with the epochs, without the file."""


def accuracies_from_rows(rows: Iterable[Mapping[str, Any]]) -> list[EpochAccuracies]:
    """One mapping an epoch, from the rows of an `epochs.parquet`.

    Raises:
        StudyError: an epoch, or the dev questions of one, are missing.
    """
    by_epoch: dict[int, EpochAccuracies] = {}
    for row in rows:
        by_epoch.setdefault(row["epoch"], {})[f"{row['split']}_{row['category']}"] = row["num_correct"] / row["num"]
    if sorted(by_epoch) != list(range(1, len(by_epoch) + 1)):
        raise _InvalidEpochsError(f"has epochs {sorted(by_epoch)[:20]}, wanted all from 1")
    if lacking := [epoch for epoch, found in by_epoch.items() if f"dev_{ALL_CATEGORIES}" not in found]:
        raise _InvalidEpochsError(f"has no row of all dev questions in epoch {lacking[0]}")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def curve_from_rows(rows: Iterable[Mapping[str, Any]]) -> AccuracyCurve:
    """The curve of the rows of an `epochs.parquet`."""
    return curve_from_accuracies(accuracies_from_rows(rows))


def curve_from_accuracies(epochs: Sequence[EpochAccuracies]) -> AccuracyCurve:
    """The curve of epochs in order."""

    def measured(name: str) -> tuple[float, ...] | None:
        return tuple(epoch[name] for epoch in epochs) if name in epochs[0] else None

    return AccuracyCurve(
        dev_accuracy=tuple(epoch[f"dev_{ALL_CATEGORIES}"] for epoch in epochs),
        unknown_train_accuracy=measured(f"train_{Category.UNKNOWN}"),
        highlyknown_dev_accuracy=measured(f"dev_{Category.HIGHLY_KNOWN}"),
    )


def all_policies_decided(curve: AccuracyCurve, stop_policies: Sequence[tuple[str, int]]) -> bool:
    """True if no later epoch can change what any of the policies picks within its budget."""
    return all(parse_policy(policy).decided_epoch(curve, budget) is not None for policy, budget in stop_policies)
