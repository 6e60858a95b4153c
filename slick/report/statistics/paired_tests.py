"""Paired comparison of two fine-tuned models: t-test over chunks, McNemar, bootstrap, and interval over seeds. Pure.

The paper's t-test over chunks averages the seeds of a question first. McNemar's exact test compares, within each seed,
the questions that only one of the models answers. The seeds share their questions, so their p-values are dependent;
twice the median is valid under any dependence. The bootstrap resamples questions for given runs; the interval over
seeds resamples runs for given questions. Multiple comparisons are corrected by Holm's method.

Source: Q. McNemar 1947, https://doi.org/10.1007/BF02295996; N. Meinshausen, L. Meier, P. Bühlmann 2009,
https://doi.org/10.1198/jasa.2009.tm08647 (quantiles of dependent p-values, gamma = 1/2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.report.data import StudyData
from slick.report.findings.categories import TABLE_2_VARIANTS
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.recommendation import Estimate, t_interval_over_seeds
from slick.report.statistics.intervals import paired_p_value
from slick.types import ALL_CATEGORIES, Category

NUM_RESAMPLES = 999
"""Bootstrap resamples; the Monte Carlo error of the ends is a few hundredths of the interval's width."""


class ModelAtCheckpoint(NamedTuple):
    """One model of a comparison."""

    variant: str
    checkpoint: str
    """`EARLY_STOP` or `CONVERGENCE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """The accuracy of `first` minus that of `second` on the same test questions."""

    first: ModelAtCheckpoint
    second: ModelAtCheckpoint
    category: str
    """Category of the test questions, or `ALL_CATEGORIES`."""
    num: int
    """Number of questions."""
    difference: float
    """Points, averaged over seeds."""
    low: float
    """Lower end of the 95 % bootstrap interval over questions."""
    high: float
    seeds: Estimate
    """The difference over seeds, with its 95 % t interval."""
    t_test_p: float
    """The paper's paired t-test over chunks of questions; the median over shuffles into chunks."""
    mcnemar_p: float
    """McNemar's exact test; twice the median over seeds."""
    num_same_sign: int
    """Number of seeds whose difference has the sign of the mean."""

    @property
    def models(self) -> tuple[ModelAtCheckpoint, ModelAtCheckpoint]:
        """Both models."""
        return self.first, self.second


def compare_models(
    data: StudyData,
    first: ModelAtCheckpoint,
    second: ModelAtCheckpoint,
    category: str = ALL_CATEGORIES,
    num_chunks: int = 100,
    seed: int = 0,
) -> PairedComparison:
    """Compare two models by all tests, over the seeds that both have.

    Args:
        data: the study.
        first: one model.
        second: the other.
        category: of the test questions.
        num_chunks: of the t-test.
        seed: of the shuffles into chunks and of the bootstrap.

    Raises:
        InsufficientDataError: predictions were not stored, or there are fewer than two questions.
    """
    (ids_a, rows_a), (ids_b, rows_b) = _hits_by_seed(data, first, category), _hits_by_seed(data, second, category)
    if not np.array_equal(ids_a, ids_b):
        raise InsufficientDataError(f"{first.variant} and {second.variant} do not have the same test questions")
    shared = sorted(rows_a.keys() & rows_b.keys())
    if not shared:
        raise InsufficientDataError(f"{first.variant} and {second.variant} have no seed in common")
    a_SQ, b_SQ = (np.array([rows[s] for s in shared], dtype=np.float64) for rows in (rows_a, rows_b))
    mean_a, mean_b = a_SQ.mean(axis=0), b_SQ.mean(axis=0)
    if len(mean_a) < 2:
        raise InsufficientDataError("fewer than two test questions")
    gaps = 100.0 * (a_SQ.mean(axis=1) - b_SQ.mean(axis=1))
    low, high = bootstrap_interval(mean_a, mean_b, seed)
    return PairedComparison(
        first=first,
        second=second,
        category=category,
        num=len(mean_a),
        difference=float(gaps.mean()),
        low=low,
        high=high,
        seeds=t_interval_over_seeds(gaps.tolist()),
        t_test_p=paired_p_value(mean_a, mean_b, num_chunks, seed),
        mcnemar_p=combine_p_values([mcnemar_p(a, b) for a, b in zip(a_SQ > 0, b_SQ > 0, strict=True)]),
        num_same_sign=int((np.sign(gaps) == np.sign(gaps.mean())).sum()),
    )


def mcnemar_p(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Two-sided p-value of McNemar's exact test; both of shape (Q,), True for a correct answer.

    >>> mcnemar_p(np.array([True] * 6), np.array([False] * 6))
    0.03125
    """
    from statsmodels.stats.contingency_tables import mcnemar

    table = [
        [int((first & second).sum()), int((first & ~second).sum())],
        [int((~first & second).sum()), int((~first & ~second).sum())],
    ]
    return float(mcnemar(table, exact=True).pvalue)


def combine_p_values(p_values: Sequence[float]) -> float:
    """One p-value for several dependent ones: twice their median; a single one is unchanged.

    >>> combine_p_values([0.01, 0.02, 0.5]), combine_p_values([0.03])
    (0.04, 0.03)
    """
    if len(p_values) == 1:
        return p_values[0]
    return min(1.0, 2.0 * float(np.median(p_values)))


def bootstrap_interval(first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean difference in points; rows of shape (Q,) are resampled in pairs."""
    from scipy.stats import bootstrap

    result = bootstrap(
        (first, second),
        _mean_difference,
        paired=True,
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=100,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return 100.0 * float(result.confidence_interval.low), 100.0 * float(result.confidence_interval.high)


def compare_to_best(data: StudyData, checkpoint: str, num_chunks: int = 100, seed: int = 0) -> list[PairedComparison]:
    """Compare each single-category variant with the best of its column in tables 2 and 7, column by column.

    Raises:
        InsufficientDataError: fewer than two of them were run, or their predictions were not stored.
    """
    names = [name for name in TABLE_2_VARIANTS if data.has_run(name)]
    if len(names) < 2:
        raise InsufficientDataError(f"needs finished runs of two or more of {', '.join(TABLE_2_VARIANTS)}")
    comparisons = []
    for category in (ALL_CATEGORIES, *map(str, Category)):
        best = max(names, key=lambda name: data.accuracy(name, checkpoint, category=category).value)
        others = [name for name in names if name != best]
        comparisons += [
            compare_models(
                data,
                ModelAtCheckpoint(name, checkpoint),
                ModelAtCheckpoint(best, checkpoint),
                category,
                num_chunks,
                seed,
            )
            for name in others
        ]
    return comparisons


def compare_early_to_last(data: StudyData, num_chunks: int = 100, seed: int = 0) -> list[PairedComparison]:
    """Compare early stop with convergence for each single-category variant (E25, appendix I).

    Raises:
        InsufficientDataError: none of them was run, or their predictions were not stored.
    """
    names = [name for name in TABLE_2_VARIANTS if data.has_run(name)]
    if not names:
        raise InsufficientDataError(f"needs a finished run of one of {', '.join(TABLE_2_VARIANTS)}")
    return [
        compare_models(
            data,
            ModelAtCheckpoint(name, EARLY_STOP),
            ModelAtCheckpoint(name, CONVERGENCE),
            ALL_CATEGORIES,
            num_chunks,
            seed,
        )
        for name in names
    ]


def _hits_by_seed(
    data: StudyData, model: ModelAtCheckpoint, category: str
) -> tuple[NDArray[np.str_], dict[int, NDArray[np.bool_]]]:
    """The question_ids of all test questions, and for each seed the hits on those of a category."""
    hits_by_seed: dict[int, NDArray[np.bool_]] = {}
    ids = np.array([], dtype=str)
    for run in data.runs_for(model.variant):
        predictions = run.predictions.get((run.epoch(model.checkpoint), "test"))
        if predictions is None or (hits_by_seed and not np.array_equal(ids, predictions.question_ids)):
            raise InsufficientDataError(
                f"run {run.run_id} kept no predictions of the same test questions at {model.checkpoint}"
            )
        ids = predictions.question_ids
        hits_by_seed[run.seed] = predictions.hit[predictions.mask(category)]
    return ids, hits_by_seed


def _mean_difference(first: NDArray[np.float64], second: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray((first - second).mean(axis=axis))
