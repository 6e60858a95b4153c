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

import numpy as np
from numpy.typing import NDArray

from slick.analysis.terms import InsufficientDataError
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
