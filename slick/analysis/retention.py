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
from slick.analysis.terms import LAST, Cell, NotTestable
from slick.types import Category

HIGHLY = str(Category.HIGHLY_KNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How HighlyKnown questions fare in one variant, averaged over seeds; E epochs."""

    share: float
    """Share of Unknown rows in D, in [0, 1]."""
    variant: str
    epochs: NDArray[np.int64]
    """Shape (E,)."""
    best_epoch: int
    """The epoch with the highest accuracy, ties to the earliest."""
    best: Cell
    """Accuracy there, percent."""
    lost: tuple[Cell, ...]
    """Points lost from the best epoch to each epoch; length E, negative nowhere."""

    def at(self, epoch: int) -> Cell:
        """Points lost by an epoch."""
        return self.lost[int(np.flatnonzero(self.epochs == epoch)[0])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """D beside D_Known, the same set without its Unknown rows, at the end of training."""

    share: float
    lost: Cell
    """Points of HighlyKnown accuracy that D loses from its best epoch."""
    lost_known: Cell | None
    """Those that D_Known loses from its own; None where it was not trained."""
    cost: Cell | None
    """Accuracy of D_Known less that of D, on the same questions."""


def retention(data: StudyData, kind: str = "unknown", split: str = "test") -> tuple[Retention, ...]:
    """HighlyKnown accuracy of every variant of a kind, by share of Unknown rows.

    Args:
        data: the stored rows.
        kind: `unknown` (D) or `known` (D_Known).
        split: `test` or `ood`.

    Raises:
        NotTestable: there is no such run, or it was not tested on HighlyKnown questions.
    """
    return tuple(_retention(data, share, name, split) for share, name in data.sweep(kind, least=1))


def control(data: StudyData) -> tuple[Control, ...]:
    """What D loses, what D_Known loses, and what the Unknown rows cost, by share of Unknown rows.

    Raises:
        NotTestable: as in `retention`, or no D_Known was trained.
    """
    known = {one.share: one for one in retention(data, "known")}
    found = []
    for one in retention(data):
        other = known.get(one.share)
        found.append(
            Control(
                share=one.share,
                lost=one.lost[-1],
                lost_known=other.lost[-1] if other else None,
                cost=data.difference((other.variant, LAST), (one.variant, LAST), "test", HIGHLY) if other else None,
            )
        )
    return tuple(found)


def changes(data: StudyData, one: Retention) -> dict[str, Cell]:
    """Change of test accuracy in each category from the best epoch of HighlyKnown questions to the end, in points."""
    found = {}
    for category in map(str, Category):
        try:
            found[category] = data.difference((one.variant, LAST), (one.variant, one.best_epoch), "test", category)
        except NotTestable:  # no test question of that category
            continue
    return found


def _retention(data: StudyData, share: float, name: str, split: str) -> Retention:
    epochs, curve = data.mean_curve(name, split, HIGHLY)
    if np.isnan(curve).any():
        raise NotTestable(f"the runs of {name} were not tested on {HIGHLY} {split} questions at every epoch")
    best = int(epochs[int(np.argmax(curve))])
    lost = [data.difference((name, best), (name, int(epoch)), split, HIGHLY) for epoch in epochs]
    return Retention(
        share=share,
        variant=name,
        epochs=epochs,
        best_epoch=best,
        best=data.accuracy(name, best, split, HIGHLY),
        lost=tuple(Cell(0.0, 0.0, cell.num_seeds) if epoch == best else cell
                   for epoch, cell in zip(epochs, lost, strict=True)),
    )  # fmt: skip
