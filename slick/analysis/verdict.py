"""What a judged finding looks like, and the words shared by those who judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slick.analysis.terms import EARLY, LAST, Cell, NotTestable, When

Z = 1.96
"""Standard errors beyond which a difference counts as more than noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One finding of the paper, judged for this study."""

    id: str
    claim: str
    holds: bool | None
    """None: not testable with what the study holds."""
    own: object
    """JSON value."""
    paper: object
    """JSON value."""
    why: str


class Verdict(NamedTuple):
    """How one finding turned out."""

    holds: bool
    own: object
    why: str


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; 0.0 if either side does not vary.

    >>> rank_correlation([0, 1, 2], [9, 5, 1])
    -1.0
    """
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    from scipy.stats import rankdata

    return round(float(np.corrcoef(rankdata(x), rankdata(y))[0, 1]), 3)


def minus(a: Cell, b: Cell) -> Cell:
    """The difference a - b of two independent measurements."""
    return Cell(a.value - b.value, float(np.hypot(a.se, b.se)), min(a.num_seeds, b.num_seeds))


def mean_cell(cells: Sequence[Cell]) -> Cell:
    """The mean of several measurements; errors are added as if they moved together, which is never too small."""
    return Cell(
        float(np.mean([cell.value for cell in cells])),
        float(np.mean([cell.se for cell in cells])),
        min(cell.num_seeds for cell in cells),
    )


def points(cell: Cell) -> str:
    """A percentage or difference with its error, for people.

    >>> points(Cell(1.25, 0.5, 1))
    '1.2 ± 0.5'
    """
    return f"{cell.value:.1f} ± {cell.se:.1f}"


def percent(share: float) -> str:
    """A share as a whole percentage.

    >>> percent(0.25)
    '25 %'
    """
    return f"{100 * share:.0f} %"


def rounded(values: Sequence[float]) -> list[float]:
    """Points to one decimal, as JSON."""
    return [round(float(value), 1) for value in values]


def when_label(when: When) -> str:
    """A checkpoint in words.

    >>> when_label("early_stop"), when_label(10), when_label(1)
    ('early stop', '10 epochs', '1 epoch')
    """
    if isinstance(when, int):
        return f"{when} epoch{'' if when == 1 else 's'}"
    return {EARLY: "early stop", LAST: "convergence"}[when]


def need_power(cells: Sequence[Cell], limit: float = 5.0) -> None:
    """Refuse to call things equal when the data could not have shown a difference.

    Raises:
        NotTestable: two standard errors exceed `limit` points.
    """
    worst = max(cell.se for cell in cells)
    if Z * worst > limit:
        raise NotTestable(
            f"'about equal' cannot be judged: a difference has a standard error of {worst:.1f} points; "
            "use more test rows or seeds"
        )


def failures(parts: Sequence[str], good: str) -> str:
    """The sentence for `why`: what failed, or the sentence for when nothing did."""
    return "; ".join(parts) if parts else good
