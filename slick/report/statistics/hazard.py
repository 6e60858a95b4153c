"""Survival analysis of the time to fit: Kaplan-Meier curves, log-rank tests and hazard ratios of categories. Pure.

A row is fitted at the first epoch after which the model answers its question correctly; a row that is never fitted is
censored at the last one. The seeds of a variant train on the same questions, so their rows are not independent: the
confidence bands are as wide as for one row per question, which is conservative.

Many rows are fitted at the same epoch, so an epoch is an interval and not an instant. The discrete-time model with a
complementary log-log link estimates the hazard ratio of a continuous-time Cox model without an approximation for ties
(Prentice and Gloeckler 1978). Its errors are clustered by question. The Cox estimate with Efron's approximation is
reported for comparison.

Source: Kaplan and Meier 1958, https://doi.org/10.2307/2281868; Prentice and Gloeckler 1978,
https://doi.org/10.2307/2529588; Hier and Obafemi-Ajayi 2026, arXiv:2601.18468 (time to the first fit);
arXiv:2604.10079 (rows that are never fitted).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.report.measurements import InsufficientDataError
from slick.report.statistics.intervals import holm, wilson_interval
from slick.types import Category

CONFIDENCE_LEVEL = 0.95
MIN_ROWS = 10
"""Minimum number of questions per category for clustered errors."""

MIN_FITTED = 5
"""Minimum number of rows per category fitted early, and late, for separate ratios."""

MAX_INTERVALS = 20
"""More epochs than this are grouped into intervals, which bounds the size of the fit and keeps the ratio's meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeToFit:
    """The training rows of one or more runs; all arrays have shape (rows,)."""

    variant: str
    seeds: tuple[int, ...]
    last_epoch: int
    """Number of epochs that every row was observed."""
    question_ids: NDArray[np.str_]
    categories: NDArray[np.str_]
    epochs: NDArray[np.int64]
    """The first epoch that fitted the row; `last_epoch` if none did."""
    fitted: NDArray[np.bool_]
    """False if no epoch fitted the row."""

    def for_categories(self, *categories: str) -> "TimeToFit":
        """The rows of these categories."""
        mask = np.isin(self.categories, [str(category) for category in categories])
        return replace(
            self,
            question_ids=self.question_ids[mask],
            categories=self.categories[mask],
            epochs=self.epochs[mask],
            fitted=self.fitted[mask],
        )

    @property
    def num_questions(self) -> int:
        """Number of different questions."""
        return len(np.unique(self.question_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalCurve:
    """Share of rows of a category not fitted yet; T epochs, from 0 (before training)."""

    category: str
    epochs: NDArray[np.int64]
    """Shape (T,)."""
    unfitted_share: NDArray[np.float64]
    """Shape (T,), share not fitted by the end of each epoch, in [0, 1]."""
    low: NDArray[np.float64]
    """Shape (T,), lower ends of the 95 % intervals; NaN where all or no rows are fitted."""
    high: NDArray[np.float64]
    num_rows: int
    num_questions: int

    @property
    def median(self) -> int | None:
        """The epoch by which half of the rows are fitted; None if there is none."""
        indices = np.flatnonzero(self.unfitted_share <= 0.5)
        return int(self.epochs[indices[0]]) if len(indices) else None

    @property
    def never_fitted(self) -> tuple[float, float, float]:
        """Share of rows that are never fitted, with Wilson's 95 % interval over questions."""
        share = float(self.unfitted_share[-1])
        return share, *wilson_interval(share * self.num_questions, self.num_questions, CONFIDENCE_LEVEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRankTest:
    """Log-rank test of two categories."""

    first: str
    second: str
    p_value: float
    """The largest p-value over the seeds."""
    p_adjusted: float
    """Corrected for the number of comparisons by Holm's method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HazardRatio:
    """The hazard of an unfitted row of `first` relative to one of `second`, at any epoch."""

    first: str
    second: str
    value: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p_value: float
    """Of the hypothesis that the ratio is 1."""
    cox: float | None
    """Estimate of Cox's model with Efron's approximation for ties; None if it does not converge."""
    change: "EarlyLateChange | None"
    """None if early or late epochs fit too few rows of one category."""
    num_questions: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyLateChange:
    """The ratio early and late in training; a single ratio is adequate only if they agree."""

    early_until_epoch: int
    """The last epoch that counts as early."""
    early: float
    late: float
    p_value: float
    """Of the hypothesis that the two are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _DiscreteTimeDesign:
    """Person-period data: one line for every row and interval in which it was not yet fitted; N lines."""

    outcome: NDArray[np.float64]
    """Shape (N,), 1.0 where the row was fitted in that interval."""
    first: NDArray[np.float64]
    """Shape (N,), 1.0 for rows of the first category."""
    epochs: NDArray[np.int64]
    """Shape (N,), the last epoch of the interval."""
    questions: NDArray[np.int64]
    """Shape (N,), the cluster of each line."""


def select_runs(rows_by_run: Sequence[TimeToFit], variant: str) -> tuple[TimeToFit, ...]:
    """The runs of a variant, by seed.

    Raises:
        InsufficientDataError: none of them has its rows.parquet.
    """
    chosen = tuple(sorted((rows for rows in rows_by_run if rows.variant == variant), key=lambda rows: rows.seeds))
    if not chosen:
        raise InsufficientDataError(f"needs a finished run of variant {variant} with its rows.parquet")
    return chosen


def pool_runs(runs: Sequence[TimeToFit]) -> TimeToFit:
    """The rows of several runs of one variant, observed up to the last epoch of the shortest run."""
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
    """The curve of every category with rows, strongest category first."""
    return tuple(
        survival_curve(rows, str(category)) for category in Category if (rows.categories == str(category)).any()
    )


def survival_curve(rows: TimeToFit, category: str) -> SurvivalCurve:
    """Kaplan-Meier estimate of the share not fitted yet, with intervals by the exponential Greenwood formula.

    Raises:
        InsufficientDataError: there is no row of that category.
    """
    from scipy.stats import ecdf, norm

    chosen = rows.for_categories(category)
    num_rows, num_questions = len(chosen.epochs), chosen.num_questions
    if not num_rows:
        raise InsufficientDataError(f"variant {rows.variant} has no {category} rows")
    epochs = np.arange(rows.last_epoch + 1)
    survival = ecdf(_censored_data(chosen)).sf
    # Bands for one row per question are wider by the square root of the number of rows per question.
    reach = norm.ppf((1 + CONFIDENCE_LEVEL) / 2) * np.sqrt(num_rows / num_questions)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # no interval where all or no rows are fitted: set to NaN below
        interval = survival.confidence_interval(confidence_level=2 * norm.cdf(reach) - 1, method="log-log")
    unfitted_share = np.asarray(survival.evaluate(epochs), dtype=np.float64)
    inner = (unfitted_share > 0) & (unfitted_share < 1)
    low, high = (np.where(inner, bound.evaluate(epochs), np.nan) for bound in (interval.low, interval.high))
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
    """Log-rank tests between all pairs of categories that every run has.

    Rows of several seeds are not independent, so each run is tested on its own and the largest p-value is kept.

    Raises:
        InsufficientDataError: the runs have rows of fewer than two categories.
    """
    categories = [c for c in map(str, Category) if all((run.categories == c).any() for run in runs)]
    pairs = [(first, second) for i, first in enumerate(categories) for second in categories[i + 1 :]]
    if not pairs:
        raise InsufficientDataError(f"the runs of {runs[0].variant} have rows of fewer than two categories")
    values = [
        max(_log_rank_p(run.for_categories(first), run.for_categories(second)) for run in runs)
        for first, second in pairs
    ]
    return tuple(
        LogRankTest(first=first, second=second, p_value=value, p_adjusted=adjusted)
        for (first, second), value, adjusted in zip(pairs, values, holm(values), strict=True)
    )


def _log_rank_p(first: TimeToFit, second: TimeToFit) -> float:
    """Two-sided p-value; 1.0 if all rows are fitted at the same epoch, or none is."""
    from scipy.stats import logrank

    ends = np.concatenate([first.epochs, second.epochs]), np.concatenate([first.fitted, second.fitted])
    if all(len(np.unique(values)) == 1 for values in ends) or not ends[1].any():
        return 1.0
    return float(logrank(_censored_data(first), _censored_data(second)).pvalue)


def _censored_data(rows: TimeToFit) -> object:
    from scipy.stats import CensoredData

    return CensoredData(uncensored=rows.epochs[rows.fitted], right=rows.epochs[~rows.fitted])


def hazard_ratio(rows: TimeToFit, first: str, second: str) -> HazardRatio:
    """Fit the discrete-time model to the rows of two categories.

    Raises:
        InsufficientDataError: there are too few rows, or one category is fitted entirely before the other, so that the
            ratio is not finite.
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
    results = _fit_cloglog(design, design.first[:, None])
    log_ratio, se = float(results.params[0]), float(results.bse[0])
    from scipy.stats import norm

    margin = float(norm.ppf((1 + CONFIDENCE_LEVEL) / 2)) * se
    return HazardRatio(
        first=first,
        second=second,
        value=float(np.exp(log_ratio)),
        low=float(np.exp(log_ratio - margin)),
        high=float(np.exp(log_ratio + margin)),
        p_value=float(results.pvalues[0]),
        cox=_cox_ratio(chosen, is_first),
        change=_early_late_change(design),
        num_questions=(sizes[0], sizes[1]),
    )


def _build_design(rows: TimeToFit, is_first: NDArray[np.bool_]) -> _DiscreteTimeDesign:
    """Person-period data without intervals in which no row or every row was fitted, which carry no information."""
    ends = _interval_ends(rows)
    at = np.searchsorted(ends, rows.epochs)
    row, interval = np.nonzero(np.arange(len(ends))[None, :] <= at[:, None])
    outcome = (interval == at[row]) & rows.fitted[row]
    fitted, at_risk = np.bincount(interval, outcome, len(ends)), np.bincount(interval, minlength=len(ends))
    keep = ((fitted > 0) & (fitted < at_risk))[interval]
    return _DiscreteTimeDesign(
        outcome=outcome[keep].astype(np.float64),
        first=is_first[row[keep]].astype(np.float64),
        epochs=ends[interval[keep]],
        questions=np.unique(rows.question_ids, return_inverse=True)[1][row[keep]],
    )


def _interval_ends(rows: TimeToFit) -> NDArray[np.int64]:
    """The last epoch of each interval: every epoch, or quantiles of the epochs at which rows are fitted."""
    if rows.last_epoch <= MAX_INTERVALS or not rows.fitted.any():
        return np.arange(1, rows.last_epoch + 1)
    cuts = np.quantile(rows.epochs[rows.fitted], np.arange(1, MAX_INTERVALS) / MAX_INTERVALS, method="inverted_cdf")
    return np.unique([*cuts.astype(np.int64), rows.last_epoch])


def _fit_cloglog(design: _DiscreteTimeDesign, terms: NDArray[np.float64]) -> Any:
    """Results of the generalised linear model of `terms`, shape (N, K), with an intercept for each interval."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.families.links import CLogLog
    from statsmodels.genmod.generalized_linear_model import GLM

    levels = (design.epochs[:, None] == np.unique(design.epochs)[None, :]).astype(np.float64)
    model = GLM(design.outcome, np.column_stack([terms, levels]), family=Binomial(link=CLogLog()))
    results = model.fit(cov_type="cluster", cov_kwds={"groups": design.questions}, maxiter=200)
    if not results.converged:
        raise InsufficientDataError("the fit of the hazard ratio did not converge")
    return results


def _has_finite_ratio(design: _DiscreteTimeDesign, mask: NDArray[np.bool_]) -> bool:
    """True if the maximum-likelihood ratio is finite.

    That needs, for each category, an epoch of the mask at which one of its rows remains unfitted while a row of the
    other is fitted.
    """
    ends, at = np.unique(design.epochs[mask], return_inverse=True)
    first, fitted = design.first[mask] > 0, design.outcome[mask] > 0

    def outlasts(staying: NDArray[np.bool_], leaving: NDArray[np.bool_]) -> bool:
        stay, leave = (np.bincount(at, lines, len(ends)) > 0 for lines in (staying & ~fitted, leaving & fitted))
        return bool((stay & leave).any())

    return outlasts(first, ~first) and outlasts(~first, first)


def _early_late_change(design: _DiscreteTimeDesign) -> EarlyLateChange | None:
    """The ratio before and after the epoch that maximises the smallest number of fitted rows per side and category."""
    ends = np.unique(design.epochs)[:-1]
    if not len(ends):
        return None
    fitted, first = design.outcome > 0, design.first > 0
    sides = [(design.epochs <= end, design.epochs > end) for end in ends]
    fewest = [min((fitted & is_one & side).sum() for is_one in (first, ~first) for side in pair) for pair in sides]
    best = int(np.argmax(fewest))
    if fewest[best] < MIN_FITTED or not all(_has_finite_ratio(design, side) for side in sides[best]):
        return None
    results = _fit_cloglog(design, np.column_stack([design.first, design.first * sides[best][1]]))
    early, change = float(results.params[0]), float(results.params[1])
    return EarlyLateChange(
        early_until_epoch=int(ends[best]),
        early=float(np.exp(early)),
        late=float(np.exp(early + change)),
        p_value=float(results.pvalues[1]),
    )


def _cox_ratio(rows: TimeToFit, is_first: NDArray[np.bool_]) -> float | None:
    """The point estimate only: the clustered errors of statsmodels are not valid with this many ties."""
    from statsmodels.duration.hazard_regression import PHReg

    model = PHReg(rows.epochs, is_first[:, None].astype(float), status=rows.fitted.astype(int), ties="efron")
    with np.errstate(all="ignore"):  # Newton's method may diverge where the categories hardly overlap
        params = model.fit().params
        converged = bool(np.isfinite(params).all()) and abs(float(model.score(params)[0])) < 1e-3 * len(rows.epochs)
    return float(np.exp(params[0])) if converged else None
