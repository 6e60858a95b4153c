"""When each training row is first answered right: shares not yet fitted by epoch, and tests between categories. Pure.

A row is fitted at the first epoch after which the model answers its question right; a row that no epoch fits is
censored at the last. Seeds train on the same questions, which then fit alike, so rows of several seeds count for no
more than their questions: bands are as wide as if the seeds said the same thing, and never too narrow.

Sources: Kaplan and Meier 1958, https://doi.org/10.2307/2281868; Hier and Obafemi-Ajayi 2026, arXiv:2601.18468, who
follow rows to their first fit; arXiv:2604.10079 for rows that are never fitted.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.report.measurements import InsufficientDataError
from slick.types import Category

CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeToFit:
    """The training rows of one run, or of several; all arrays have shape (rows,)."""

    variant: str
    seeds: tuple[int, ...]
    last_epoch: int
    """Epochs that every row was followed for."""
    question_ids: NDArray[np.str_]
    categories: NDArray[np.str_]
    epochs: NDArray[np.int64]
    """The first epoch that answered the row right; `last_epoch` where none did."""
    fitted: NDArray[np.bool_]
    """False where none did."""

    def for_categories(self, *categories: str) -> "TimeToFit":
        """The rows of these categories."""
        mask = np.isin(self.categories, [str(category) for category in categories])
        return TimeToFit(
            variant=self.variant,
            seeds=self.seeds,
            last_epoch=self.last_epoch,
            question_ids=self.question_ids[mask],
            categories=self.categories[mask],
            epochs=self.epochs[mask],
            fitted=self.fitted[mask],
        )

    @property
    def num_questions(self) -> int:
        """Different questions among the rows."""
        return len(np.unique(self.question_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalCurve:
    """How many rows of a category are not fitted yet; T epochs, from 0, before the first."""

    category: str
    epochs: NDArray[np.int64]
    """Shape (T,)."""
    unfitted_share: NDArray[np.float64]
    """Shape (T,), share not fitted by the end of each epoch, in [0, 1]."""
    low: NDArray[np.float64]
    """Shape (T,), lower ends of the 95 % intervals; NaN where all rows or none are fitted."""
    high: NDArray[np.float64]
    num_rows: int
    num_questions: int

    @property
    def median(self) -> int | None:
        """The epoch by which half of the rows are fitted; None if none is."""
        found = np.flatnonzero(self.unfitted_share <= 0.5)
        return int(self.epochs[found[0]]) if len(found) else None

    @property
    def never_fitted(self) -> tuple[float, float, float]:
        """Share of rows that no epoch fits, and its 95 % interval (Wilson, over questions)."""
        from statsmodels.stats.proportion import proportion_confint

        share, num = float(self.unfitted_share[-1]), self.num_questions
        low, high = proportion_confint(share * num, num, alpha=1 - CONFIDENCE_LEVEL, method="wilson")
        return share, float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRankTest:
    """Two categories beside each other."""

    first: str
    second: str
    p_value: float
    """Of the log-rank test, the largest among the seeds."""
    p_adjusted: float
    """The same, corrected for the number of comparisons (Holm)."""


def select_runs(found: Sequence[TimeToFit], variant: str) -> tuple[TimeToFit, ...]:
    """The runs of a variant, by seed.

    Raises:
        NotTestable: none of them kept when its rows were fitted.
    """
    chosen = tuple(sorted((one for one in found if one.variant == variant), key=lambda one: one.seeds))
    if not chosen:
        raise InsufficientDataError(f"needs a finished run of variant {variant} with its rows.parquet")
    return chosen


def pool_runs(runs: Sequence[TimeToFit]) -> TimeToFit:
    """The rows of several runs of one variant, followed for as long as the shortest of them."""
    last = min(run.last_epoch for run in runs)
    epochs = np.concatenate([run.epochs for run in runs])
    fitted = np.concatenate([run.fitted for run in runs]) & (epochs <= last)
    return TimeToFit(
        variant=runs[0].variant,
        seeds=tuple(seed for run in runs for seed in run.seeds),
        last_epoch=last,
        question_ids=np.concatenate([run.question_ids for run in runs]),
        categories=np.concatenate([run.categories for run in runs]),
        epochs=np.minimum(epochs, last),
        fitted=fitted,
    )


def survival_curves(rows: TimeToFit) -> tuple[SurvivalCurve, ...]:
    """The curve of every category that has rows, strongest first."""
    return tuple(
        survival_curve(rows, str(category)) for category in Category if (rows.categories == str(category)).any()
    )


def survival_curve(rows: TimeToFit, category: str) -> SurvivalCurve:
    """Kaplan-Meier estimate of the share not fitted yet, intervals by the exponential Greenwood formula.

    Raises:
        NotTestable: there is no row of that category.
    """
    from scipy.stats import ecdf, norm

    chosen = rows.for_categories(category)
    num_rows, num_questions = len(chosen.epochs), chosen.num_questions
    if not num_rows:
        raise InsufficientDataError(f"variant {rows.variant} has no {category} rows")
    epochs = np.arange(rows.last_epoch + 1)
    survival = ecdf(_censored_data(chosen)).sf
    # Bands for as many rows as there are questions are wider by the square root of rows a question.
    reach = norm.ppf((1 + CONFIDENCE_LEVEL) / 2) * np.sqrt(num_rows / num_questions)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # no interval where all rows or none wait: left out below
        interval = survival.confidence_interval(confidence_level=2 * norm.cdf(reach) - 1, method="log-log")
    unfitted_share = np.asarray(survival.evaluate(epochs), dtype=np.float64)
    inner = (unfitted_share > 0) & (unfitted_share < 1)
    low, high = (np.where(inner, end.evaluate(epochs), np.nan) for end in (interval.low, interval.high))
    return SurvivalCurve(
        category=category,
        epochs=epochs,
        unfitted_share=unfitted_share,
        low=low,
        high=high,
        num_rows=num_rows,
        num_questions=num_questions,
    )


def log_rank_tests(runs: Sequence[TimeToFit]) -> tuple[LogRankTest, ...]:
    """Log-rank tests between all pairs of categories that every run has, each run by itself.

    Rows of several seeds are not independent, so seeds are not thrown together: a difference counts when the seed that
    shows it least shows it.

    Raises:
        NotTestable: the runs have rows of fewer than two categories.
    """
    from statsmodels.stats.multitest import multipletests

    there = [str(category) for category in Category if all((run.categories == str(category)).any() for run in runs)]
    pairs = [(first, second) for i, first in enumerate(there) for second in there[i + 1 :]]
    if not pairs:
        raise InsufficientDataError(f"the runs of {runs[0].variant} have rows of fewer than two categories")
    values = [
        max(_log_rank_p(run.for_categories(first), run.for_categories(second)) for run in runs)
        for first, second in pairs
    ]
    adjusted = multipletests(values, method="holm")[1]
    return tuple(
        LogRankTest(first=first, second=second, p_value=value, p_adjusted=float(corrected))
        for (first, second), value, corrected in zip(pairs, values, adjusted, strict=True)
    )


def _log_rank_p(first: TimeToFit, second: TimeToFit) -> float:
    """Two-sided p; 1.0 where all rows are fitted at one epoch, or none is, so that nothing differs."""
    from scipy.stats import logrank

    ends = np.concatenate([first.epochs, second.epochs]), np.concatenate([first.fitted, second.fitted])
    if all(len(np.unique(values)) == 1 for values in ends) or not ends[1].any():
        return 1.0
    return float(logrank(_censored_data(first), _censored_data(second)).pvalue)


def _censored_data(rows: TimeToFit) -> object:
    from scipy.stats import CensoredData

    return CensoredData(uncensored=rows.epochs[rows.fitted], right=rows.epochs[~rows.fitted])


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
