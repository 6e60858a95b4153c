"""What fine-tuning takes of what the model knew firmly: test accuracy by category, against its best epoch. Pure.

HighlyKnown questions were all answered right before any fine-tuning, under every few-shot prompt; WeaklyKnown and
Unknown ones were not, by any greedy answer. So what is lost of the former is forgotten, and what is answered of the
latter is gained. The loss is counted from the best epoch, when the format of the answers is learned.

The best epoch is picked on the questions that it is then measured on, so a loss within its interval may be chance.
Where an epoch's answers were not kept, the interval takes the two epochs for independent, which is never too narrow.

Source: Kaplan et al. 2026, arXiv:2604.15574, who measure forgetting from peak held-out accuracy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.terms import CONVERGENCE, InsufficientDataError, Measurement
from slick.types import Category

HIGHLY_KNOWN = str(Category.HIGHLY_KNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionCurve:
    """How HighlyKnown questions fare in one variant, averaged over seeds; E epochs."""

    share: float
    """Share of Unknown rows in D, in [0, 1]."""
    variant: str
    epochs: NDArray[np.int64]
    """Shape (E,)."""
    best_epoch: int
    """The epoch with the highest accuracy, ties to the earliest."""
    best_accuracy: Measurement
    """Accuracy there, percent."""
    points_lost: tuple[Measurement, ...]
    """Points lost from the best epoch to each epoch; length E, negative nowhere."""

    def points_lost_at(self, epoch: int) -> Measurement:
        """Points lost by an epoch."""
        return self.points_lost[int(np.flatnonzero(self.epochs == epoch)[0])]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOnlyAblation:
    """D beside D_Known, the same set without its Unknown rows, at the end of training."""

    share: float
    points_lost: Measurement
    """Points of HighlyKnown accuracy that D loses from its best epoch."""
    points_lost_known: Measurement | None
    """Those that D_Known loses from its own; None where it was not trained."""
    cost: Measurement | None
    """Accuracy of D_Known less that of D, on the same questions."""


def retention_curves(data: StudyData, kind: str = "unknown", split: str = "test") -> tuple[RetentionCurve, ...]:
    """HighlyKnown accuracy of every variant of a kind, by share of Unknown rows.

    Args:
        data: the stored rows.
        kind: `unknown` (D) or `known` (D_Known).
        split: `test` or `ood`.

    Raises:
        NotTestable: there is no such run, or it was not tested on HighlyKnown questions.
    """
    return tuple(_retention_curve(data, share, name, split) for share, name in data.sweep_variants(kind, min_shares=1))


def known_only_ablation(data: StudyData) -> tuple[KnownOnlyAblation, ...]:
    """What D loses, what D_Known loses, and what the Unknown rows cost, by share of Unknown rows.

    Raises:
        NotTestable: as in `retention`, or no D_Known was trained.
    """
    known = {one.share: one for one in retention_curves(data, "known")}
    found = []
    for one in retention_curves(data):
        other = known.get(one.share)
        found.append(
            KnownOnlyAblation(
                share=one.share,
                points_lost=one.points_lost[-1],
                points_lost_known=other.points_lost[-1] if other else None,
                cost=data.difference((other.variant, CONVERGENCE), (one.variant, CONVERGENCE), "test", HIGHLY_KNOWN)
                if other
                else None,
            )
        )
    return tuple(found)


def category_changes(data: StudyData, one: RetentionCurve) -> dict[str, Measurement]:
    """Change of test accuracy in each category from the best epoch of HighlyKnown questions to the end, in points."""
    found = {}
    for category in map(str, Category):
        try:
            found[category] = data.difference(
                (one.variant, CONVERGENCE), (one.variant, one.best_epoch), "test", category
            )
        except InsufficientDataError:  # no test question of that category
            continue
    return found


def _retention_curve(data: StudyData, share: float, name: str, split: str) -> RetentionCurve:
    epochs, curve = data.mean_curve(name, split, HIGHLY_KNOWN)
    if np.isnan(curve).any():
        raise InsufficientDataError(
            f"the runs of {name} were not tested on {HIGHLY_KNOWN} {split} questions at every epoch"
        )
    best = int(epochs[int(np.argmax(curve))])
    lost = [data.difference((name, best), (name, int(epoch)), split, HIGHLY_KNOWN) for epoch in epochs]
    return RetentionCurve(
        share=share,
        variant=name,
        epochs=epochs,
        best_epoch=best,
        best_accuracy=data.accuracy(name, best, split, HIGHLY_KNOWN),
        points_lost=tuple(
            Measurement(0.0, 0.0, cell.num_seeds) if epoch == best else cell
            for epoch, cell in zip(epochs, lost, strict=True)
        ),
    )
