"""Confidence intervals, significance of paired differences, and accuracies on a subset of the questions. Pure.

The paired t-test over 100 chunks of the test rows is that of the paper, with the median p-value over many shuffles.
Accuracies on a subset follow the same rules as those of whole splits (`slick.report.data`): the standard error of a
difference is over paired questions and, with three seeds or more, never smaller than the one over seeds.

Source: Gekhman et al. 2024, arXiv:2405.05904, appendix I; S. Holm 1979, https://www.jstor.org/stable/4615733.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.report.data import Run, StudyData
from slick.report.measurements import (
    MIN_SEEDS,
    CheckpointRef,
    InsufficientDataError,
    Measurement,
    mean_over_seeds,
    paired_se,
    seed_se,
)

NUM_SHUFFLES = 200
"""Shuffles of the rows over which the p-value of the t-test over chunks is the median."""

MIN_QUESTIONS = 10
"""Smaller subsets are not compared."""


class Interval(NamedTuple):
    """The ends of a confidence interval, in [0, 1]."""

    low: float
    high: float


def wilson_interval(num: float, total: float, confidence: float = 0.95) -> Interval:
    """The confidence interval of a proportion of Wilson 1927, without continuity correction.

    Args:
        num: successes; a fraction where they are weighted.
        total: trials, above 0.
        confidence: of the two-sided interval.

    >>> [round(end, 3) for end in wilson_interval(1, 5)]
    [0.036, 0.624]
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = num / total
    center = share + z**2 / (2 * total)
    margin = z * sqrt((share * (1 - share) + z**2 / (4 * total)) / total)
    scale = 1 + z**2 / total
    # Rounding could exclude a share of 0 or 1, and error bars must not be negative.
    return Interval(min(max(0.0, (center - margin) / scale), share), max(min(1.0, (center + margin) / scale), share))


class Proportion(NamedTuple):
    """A count out of a total, with Wilson's 95 % interval of the share."""

    num: int
    total: int
    low: float
    """In [0, 1], like `high` and `share`."""
    high: float

    @property
    def share(self) -> float:
        """The count over the total."""
        return self.num / self.total


def proportion(num: int, total: int, missing: str = "there are no questions to take a share of") -> Proportion:
    """A share with Wilson's 95 % interval.

    Raises:
        InsufficientDataError: the total is 0; the message is `missing`.

    >>> [round(end, 3) for end in proportion(1, 100)[2:]]
    [0.002, 0.054]
    """
    if not total:
        raise InsufficientDataError(missing)
    return Proportion(num, total, *wilson_interval(num, total))


class RankStatistic(NamedTuple):
    """A rank correlation, or the area under a ROC curve, with its 95 % interval."""

    value: float
    low: float
    high: float
    num: int
    """Items behind the value."""


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> RankStatistic:
    """Spearman's rank correlation of two varying measures of shape (N,), N > 3.

    Source: D. G. Bonett and T. A. Wright 2000, https://doi.org/10.1007/BF02294183, for the interval: Fisher's
    transformation with variance (1 + rho**2 / 2) / (N - 3).
    """
    from scipy.stats import spearmanr

    rho = float(spearmanr(x, y).statistic)
    margin = NormalDist().inv_cdf(0.975) * np.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    center = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    return RankStatistic(rho, float(np.tanh(center - margin)), float(np.tanh(center + margin)), len(x))


def paired_p_value(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    num_chunks: int = 100,
    seed: int = 0,
    num_shuffles: int = NUM_SHUFFLES,
) -> float:
    """Two-sided p-value of the paired t-test over chunks: the median over shuffles, 1.0 if the two never differ.

    The paper shuffles once, and a p-value near a threshold then depends on that shuffle. Where all chunks have the same
    difference, t is infinite, and the exact sign test over rows takes its place.

    Args:
        first: shape (N,), 1.0 for a correct answer, 0.0 for a wrong one, or the share of seeds with a correct one.
        second: shape (N,), the same N >= 2 rows in the same order.
        num_chunks: at most; there is one chunk per row if there are fewer rows.
        seed: of the shuffles.
        num_shuffles: number of shuffles.

    Raises:
        ValueError: the shapes differ, or there are fewer than two rows.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"a paired test needs at least two rows, equally many of each model; got {len(first)} and {len(second)}"
        )
    gaps = first - second
    if not gaps.any():
        return 1.0
    from scipy.stats import binomtest
    from scipy.stats import t as student_t

    num_chunks = min(num_chunks, len(gaps))
    starts = np.cumsum([0, *(len(chunk) for chunk in np.array_split(gaps, num_chunks)[:-1])])
    sizes = np.diff([*starts, len(gaps)])
    shuffled = np.random.default_rng(seed).permuted(np.tile(gaps, (num_shuffles, 1)), axis=1)
    means_SC = np.add.reduceat(shuffled, starts, axis=1) / sizes
    errors_S = means_SC.std(axis=1, ddof=1) / np.sqrt(num_chunks)
    exact = float(binomtest(int((gaps > 0).sum()), int((gaps != 0).sum())).pvalue)
    is_constant = errors_S < 1e-12
    t_S = means_SC.mean(axis=1) / np.where(is_constant, 1.0, errors_S)
    return float(np.median(np.where(is_constant, exact, 2 * student_t.sf(np.abs(t_S), num_chunks - 1))))


def significance_stars(p_value: float) -> str:
    """`**` for p < 0.01, `*` for p < 0.05, as the paper prints them.

    >>> significance_stars(0.003), significance_stars(0.03), significance_stars(0.3)
    ('**', '*', '')
    """
    return "**" if p_value < 0.01 else "*" if p_value < 0.05 else ""


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the same order; they control the family-wise error rate.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


class SubsetComparison(NamedTuple):
    """Two models on the same questions, in percent and points."""

    first: Measurement
    second: Measurement
    change: Measurement
    """First minus second."""
    num: int
    """Number of questions."""


def compare_on_questions(
    data: StudyData,
    first: tuple[str, CheckpointRef],
    second: tuple[str, CheckpointRef],
    split: str,
    ids: NDArray[np.str_] | None = None,
) -> SubsetComparison:
    """Accuracies of two models and their difference on the same questions.

    Args:
        data: the study.
        first: variant and checkpoint of one model.
        second: variant and checkpoint of the other.
        split: `dev`, `test` or `ood`.
        ids: question_ids of the subset; None for the whole split.

    Raises:
        InsufficientDataError: predictions were not stored, are of different questions, or the subset has fewer than
            `MIN_QUESTIONS` questions.
    """
    (ids_a, hits_a), (ids_b, hits_b) = (
        _hits_on_questions(data, name, checkpoint, split, ids) for name, checkpoint in (first, second)
    )
    num = len(ids_a)
    if not np.array_equal(ids_a, ids_b):
        raise InsufficientDataError(f"the runs of {first[0]} and {second[0]} do not have the same {split} questions")
    if num < MIN_QUESTIONS:
        raise InsufficientDataError(
            f"needs {MIN_QUESTIONS} {split} questions or more to compare {first[0]} with {second[0]}, there are {num}"
        )
    gaps = 100.0 * (np.mean(list(hits_a.values()), axis=0) - np.mean(list(hits_b.values()), axis=0))
    se = paired_se(gaps)
    shared_seeds = sorted(hits_a.keys() & hits_b.keys())
    if len(shared_seeds) >= MIN_SEEDS:
        se = max(se, seed_se(np.array([100.0 * (hits_a[seed].mean() - hits_b[seed].mean()) for seed in shared_seeds])))
    change = Measurement(float(gaps.mean()), se, min(len(hits_a), len(hits_b)))
    return SubsetComparison(_mean_accuracy(hits_a), _mean_accuracy(hits_b), change, num)


def _hits_on_questions(
    data: StudyData, name: str, checkpoint: CheckpointRef, split: str, ids: NDArray[np.str_] | None
) -> tuple[NDArray[np.str_], dict[int, NDArray[np.float64]]]:
    """The question_ids of the subset, and for each seed 1.0 or 0.0 per question."""
    runs = data.runs_for(name)
    first_ids = _stored_predictions(runs[0], checkpoint, split)[0]
    mask = np.ones(len(first_ids), dtype=bool) if ids is None else np.isin(first_ids, ids)
    hits_by_seed = {}
    for run in runs:
        question_ids, hit = _stored_predictions(run, checkpoint, split)
        if not np.array_equal(question_ids, first_ids):
            raise InsufficientDataError(f"the runs of {name} do not have the same {split} questions")
        hits_by_seed[run.seed] = hit[mask].astype(np.float64)
    return first_ids[mask], hits_by_seed


def _stored_predictions(run: Run, checkpoint: CheckpointRef, split: str) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    rows = run.predictions.get((run.epoch(checkpoint), split))
    if rows is None:
        raise InsufficientDataError(f"run {run.run_id} kept no {split} predictions of epoch {run.epoch(checkpoint)}")
    return rows.question_ids, rows.hit


def _mean_accuracy(predictions: dict[int, NDArray[np.float64]]) -> Measurement:
    """The mean over seeds, with the error of `mean_over_seeds`."""
    return mean_over_seeds([100.0 * hit.mean() for hit in predictions.values()], len(next(iter(predictions.values()))))
