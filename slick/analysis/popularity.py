"""How popular the subjects of questions are, and what the model knows of popular and unpopular ones. Pure.

Popularity is any number of the source that grows with it, so only its order counts here: quantiles and ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.analysis.terms import InsufficientDataError
from slick.types import Category

NUM_BINS = 4
"""Quantiles of popularity; fewer where many subjects are equally popular."""
MIN_QUESTIONS = 10
"""Fewer give no correlation worth an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityData:
    """Annotated questions whose subject's popularity is known, by question_id; all arrays have shape (Q,)."""

    question_ids: NDArray[np.str_]
    relations: NDArray[np.str_]
    categories: NDArray[np.str_]
    greedy: NDArray[np.float64]
    """P_Correct of greedy answers, in [0, 1]."""
    sampled: NDArray[np.float64]
    """P_Correct of sampled answers, in [0, 1]; NaN where not all samples were drawn."""
    values: NDArray[np.float64]
    """Popularity of the subject, 0 or more."""
    num_unknown_popularity: int = 0
    """Annotated questions whose subject's popularity is not known."""
    rows: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Name of a fine-tuning set to the places of its rows in the arrays; rows of unknown popularity are left out."""


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation, with its 95 % interval."""

    value: float
    low: float
    high: float
    num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PopularityBins:
    """Quantiles of popularity; equally popular subjects are never parted."""

    labels: tuple[str, ...]
    """Least and most popularity of each, ascending."""
    bin_of_question: NDArray[np.int64]
    """Shape (Q,): the place of each question's bin in `labels`."""


def popularity_bins(known: PopularityData, num: int = NUM_BINS) -> PopularityBins:
    """Cut the questions at quantiles of popularity.

    Raises:
        NotTestable: all subjects are equally popular.
    """
    edges = np.unique(np.quantile(known.values, np.arange(1, num) / num, method="inverted_cdf"))
    _, places = np.unique(np.searchsorted(edges, known.values, side="left"), return_inverse=True)
    if not len(places) or places.max() == 0:
        raise InsufficientDataError("needs subjects that differ in popularity, and they do not")
    ends = [known.values[places == place] for place in range(places.max() + 1)]
    return PopularityBins(
        labels=tuple(_bin_label(end.min(), end.max()) for end in ends), bin_of_question=places.astype(np.int64)
    )


def category_shares(known: PopularityData, bins: PopularityBins) -> NDArray[np.float64]:
    """Share of each category (columns, strongest first) among the questions of each bin (rows); rows add up to 1."""
    shape = (len(bins.labels), len(Category))
    counts = np.zeros(shape)
    for column, category in enumerate(Category):
        mine = bins.bin_of_question[known.categories == str(category)]
        counts[:, column] = np.bincount(mine, minlength=shape[0])
    return np.asarray(counts / counts.sum(axis=1, keepdims=True), dtype=np.float64)


def popularity_correlation(popularity: NDArray[np.float64], p_correct: NDArray[np.float64]) -> RankCorrelation:
    """Rank correlation of popularity with P_Correct, each of shape (Q,).

    Raises:
        NotTestable: too few questions, or one side does not vary.

    Source: Bonett and Wright 2000, https://doi.org/10.1007/BF02294183, for the interval: Fisher's transformation with
    variance (1 + r**2 / 2) / (Q - 3).
    """
    from scipy.stats import spearmanr

    num = len(popularity)
    if num < MIN_QUESTIONS:
        raise InsufficientDataError(f"needs {MIN_QUESTIONS} questions or more for a correlation, there are {num}")
    if np.isnan(p_correct).any():
        raise InsufficientDataError("P_Correct of samples is not known of every question: annotate in mode full")
    if len(np.unique(popularity)) < 2 or len(np.unique(p_correct)) < 2:
        raise InsufficientDataError("all questions are equally popular, or all equally known")
    value = float(spearmanr(popularity, p_correct).statistic)
    reach = 1.96 * np.sqrt((1 + value**2 / 2) / (num - 3))
    middle = np.arctanh(np.clip(value, -1 + 1e-9, 1 - 1e-9))
    return RankCorrelation(value, float(np.tanh(middle - reach)), float(np.tanh(middle + reach)), num)


def _bin_label(low: float, high: float) -> str:
    """The ends of a bin.

    >>> _bin_label(0, 0), _bin_label(3, 1520), _bin_label(0.25, 0.5)
    ('0', '3 to 1,520', '0.25 to 0.5')
    """
    ends = [f"{end:,.0f}" if float(end).is_integer() else f"{end:,.4g}" for end in (low, high)]
    return ends[0] if low == high else " to ".join(ends)
