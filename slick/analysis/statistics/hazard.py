"""How many times as fast one category is fitted as another: a hazard ratio over grouped times. Pure.

Many rows are first right at the same epoch, so the epoch is an interval and not an instant: the discrete-time model
with a complementary log-log link gives the ratio that a Cox model has in continuous time (Prentice and Gloeckler 1978,
https://doi.org/10.2307/2529588), with no approximation for ties. Its errors are clustered by question, since the seeds
of a variant train on the same questions. Cox's own estimate, ties by Efron's approximation, stands beside it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.analysis.fit_times import CONFIDENCE_LEVEL, TimeToFit
from slick.analysis.terms import InsufficientDataError

MIN_ROWS = 10
"""Rows and questions of each category, below which clustered errors say nothing."""

MIN_FITTED = 5
"""Rows fitted early, and late, of each category, below which a ratio of its own says nothing."""

MAX_INTERVALS = 20
"""More epochs than this are taken together: the ratio keeps its meaning, and the fit stays small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HazardRatio:
    """At any epoch, how many times as likely a waiting row of `first` is to be fitted as one of `second`."""

    first: str
    second: str
    value: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p_value: float
    """That there is no difference."""
    cox: float | None
    """By Cox's model, ties by Efron's approximation; None where that finds no maximum."""
    change: "EarlyLateChange | None"
    """None where early or late epochs fit too few rows of one category to tell."""
    num_questions: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyLateChange:
    """The ratio early and late in training: a single one stands for both only if they agree."""

    early_until_epoch: int
    """The last epoch that counts as early."""
    early: float
    late: float
    p_value: float
    """That the two are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _DiscreteTimeDesign:
    """One line for every row and interval that it waited in; N lines, I intervals."""

    outcome: NDArray[np.float64]
    """Shape (N,), 1.0 where the row was fitted in that interval."""
    first: NDArray[np.float64]
    """Shape (N,), 1.0 for rows of the first category."""
    epochs: NDArray[np.int64]
    """Shape (N,), the last epoch of the interval."""
    questions: NDArray[np.int64]
    """Shape (N,), the cluster of each line."""


def hazard_ratio(rows: TimeToFit, first: str, second: str) -> HazardRatio:
    """Fit the model to the rows of two categories.

    Raises:
        NotTestable: too few rows, or one category is fitted entirely before the other, so the ratio has no bound.
    """
    chosen = rows.for_categories(first, second)
    is_first = chosen.categories == first
    sizes = tuple(len(np.unique(chosen.question_ids[mask])) for mask in (is_first, ~is_first))
    if min(sizes) < MIN_ROWS:
        raise InsufficientDataError(
            f"the ratio needs {MIN_ROWS} questions of each category, {rows.variant} has {sizes[0]} {first} and "
            f"{sizes[1]} {second}"
        )
    design = _build_design(chosen, is_first)
    if not _has_finite_ratio(design, np.ones(len(design.epochs), dtype=bool)):
        raise InsufficientDataError(
            f"of the {first} and {second} rows of {rows.variant}, one kind is fitted wholly before the other, or not "
            "at all, so their ratio has no bound"
        )
    found = _fit_cloglog(design, design.first[:, None])
    value, error = float(found.params[0]), float(found.bse[0])
    from scipy.stats import norm

    reach = float(norm.ppf((1 + CONFIDENCE_LEVEL) / 2)) * error
    return HazardRatio(
        first=first,
        second=second,
        value=float(np.exp(value)),
        low=float(np.exp(value - reach)),
        high=float(np.exp(value + reach)),
        p_value=float(found.pvalues[0]),
        cox=_cox_ratio(chosen, is_first),
        change=_early_late_change(design),
        num_questions=(sizes[0], sizes[1]),
    )


def _build_design(rows: TimeToFit, is_first: NDArray[np.bool_]) -> _DiscreteTimeDesign:
    """Lines of rows and intervals; an interval in which no row, or every row, was fitted tells nothing of the ratio."""
    ends = _interval_ends(rows)
    at = np.searchsorted(ends, rows.epochs)
    row, interval = np.nonzero(np.arange(len(ends))[None, :] <= at[:, None])
    outcome = (interval == at[row]) & rows.fitted[row]
    fitted, waiting = np.bincount(interval, outcome, len(ends)), np.bincount(interval, minlength=len(ends))
    keep = ((fitted > 0) & (fitted < waiting))[interval]
    return _DiscreteTimeDesign(
        outcome=outcome[keep].astype(np.float64),
        first=is_first[row[keep]].astype(np.float64),
        epochs=ends[interval[keep]],
        questions=np.unique(rows.question_ids, return_inverse=True)[1][row[keep]],
    )


def _interval_ends(rows: TimeToFit) -> NDArray[np.int64]:
    """The last epoch of each interval: every epoch, or intervals that hold as many fitted rows as each other."""
    if rows.last_epoch <= MAX_INTERVALS or not rows.fitted.any():
        return np.arange(1, rows.last_epoch + 1)
    cuts = np.quantile(rows.epochs[rows.fitted], np.arange(1, MAX_INTERVALS) / MAX_INTERVALS, method="inverted_cdf")
    return np.unique([*cuts.astype(np.int64), rows.last_epoch])


def _fit_cloglog(design: _DiscreteTimeDesign, terms: NDArray[np.float64]) -> Any:
    """The generalised linear model of `terms`, shape (N, K), with a level for each interval; its results."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.families.links import CLogLog
    from statsmodels.genmod.generalized_linear_model import GLM

    levels = (design.epochs[:, None] == np.unique(design.epochs)[None, :]).astype(np.float64)
    model = GLM(design.outcome, np.column_stack([terms, levels]), family=Binomial(link=CLogLog()))
    found = model.fit(cov_type="cluster", cov_kwds={"groups": design.questions}, maxiter=200)
    if not found.converged:
        raise InsufficientDataError("the fit of the hazard ratio did not converge")
    return found


def _has_finite_ratio(design: _DiscreteTimeDesign, mask: NDArray[np.bool_]) -> bool:
    """True if a finite ratio is likeliest: each category outlasts, at some epoch of the mask, a fit of the other."""
    ends, at = np.unique(design.epochs[mask], return_inverse=True)
    first, fitted = design.first[mask] > 0, design.outcome[mask] > 0

    def anywhere(staying: NDArray[np.bool_], leaving: NDArray[np.bool_]) -> bool:
        stay, leave = (np.bincount(at, lines, len(ends)) > 0 for lines in (staying & ~fitted, leaving & fitted))
        return bool((stay & leave).any())

    return anywhere(first, ~first) and anywhere(~first, first)


def _early_late_change(design: _DiscreteTimeDesign) -> EarlyLateChange | None:
    """Early and late are parted where the category with the fewest fitted rows on a side has the most of them."""
    ends = np.unique(design.epochs)[:-1]
    if not len(ends):
        return None
    fitted, first = design.outcome > 0, design.first > 0
    sides = [(design.epochs <= end, design.epochs > end) for end in ends]
    fewest = [min((fitted & is_one & side).sum() for is_one in (first, ~first) for side in both) for both in sides]
    best = int(np.argmax(fewest))
    if fewest[best] < MIN_FITTED or not all(_has_finite_ratio(design, side) for side in sides[best]):
        return None
    found = _fit_cloglog(design, np.column_stack([design.first, design.first * sides[best][1]]))
    early, more = float(found.params[0]), float(found.params[1])
    return EarlyLateChange(
        early_until_epoch=int(ends[best]),
        early=float(np.exp(early)),
        late=float(np.exp(early + more)),
        p_value=float(found.pvalues[1]),
    )


def _cox_ratio(rows: TimeToFit, is_first: NDArray[np.bool_]) -> float | None:
    """The point estimate alone: the library's clustered errors do not hold with this many ties."""
    from statsmodels.duration.hazard_regression import PHReg

    model = PHReg(rows.epochs, is_first[:, None].astype(float), status=rows.fitted.astype(int), ties="efron")
    with np.errstate(all="ignore"):  # Newton's steps may run away where the categories hardly overlap
        found = model.fit().params
        settled = bool(np.isfinite(found).all()) and abs(float(model.score(found)[0])) < 1e-3 * len(rows.epochs)
    return float(np.exp(found[0])) if settled else None
