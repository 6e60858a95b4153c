"""Two fine-tuned models on the same test questions, by every test that fits: chunks, McNemar, bootstrap, seeds. Pure.

The paper's t-test over chunks averages a question's seeds first. McNemar's exact test looks at the questions that one
model answers and the other does not, within each seed; seeds share their questions, so their p-values depend on each
other, and twice their median is taken, which holds under any dependence. The bootstrap draws questions anew, the
trainings given; the interval over seeds does the reverse. Where many comparisons are made, Holm's p holds for all.

Source: Q. McNemar 1947, https://doi.org/10.1007/BF02295996; N. Meinshausen, L. Meier, P. Bühlmann 2009,
https://doi.org/10.1198/jasa.2009.tm08647 (quantiles of dependent p-values, gamma = 1/2); S. Holm 1979,
https://www.jstor.org/stable/4615733.
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
"""Of the bootstrap; its ends then have a Monte Carlo error of a few hundredths of their distance."""


class ModelAtCheckpoint(NamedTuple):
    """One model of a comparison."""

    variant: str
    checkpoint: str
    """`EARLY` or `LAST`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """The accuracy of `first` minus that of `second` on the same test questions."""

    first: ModelAtCheckpoint
    second: ModelAtCheckpoint
    category: str
    """Of the test questions; `ALL_CATEGORIES` for all."""
    num: int
    """Questions."""
    difference: float
    """Points, averaged over seeds."""
    low: float
    """Lower end of the 95 % bootstrap interval over questions."""
    high: float
    seeds: Estimate
    """The difference over seeds, with its 95 % t interval."""
    t_test_p: float
    """The paper's paired t-test over chunks of questions."""
    mcnemar_p: float
    """Exact; twice the median over seeds."""
    num_same_sign: int
    """Seeds whose difference has the sign of the mean."""

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
        category: of the test questions.
        num_chunks: of the t-test.
        seed: of the shuffle before it, and of the bootstrap.

    Raises:
        NotTestable: predictions were not kept, or there are fewer than two questions.
    """
    (ids_a, rows_a), (ids_b, rows_b) = _hits_by_seed(data, first, category), _hits_by_seed(data, second, category)
    if not np.array_equal(ids_a, ids_b):
        raise InsufficientDataError(f"{first.variant} and {second.variant} were not asked the same test questions")
    shared = sorted(rows_a.keys() & rows_b.keys())
    if not shared:
        raise InsufficientDataError(f"{first.variant} and {second.variant} have no seed in common")
    a_SQ, b_SQ = (np.array([rows[one] for one in shared], dtype=np.float64) for rows in (rows_a, rows_b))
    a, b = a_SQ.mean(axis=0), b_SQ.mean(axis=0)
    if len(a) < 2:
        raise InsufficientDataError("fewer than two test questions")
    gaps = 100.0 * (a_SQ.mean(axis=1) - b_SQ.mean(axis=1))
    low, high = bootstrap_interval(a, b, seed)
    return PairedComparison(
        first=first,
        second=second,
        category=category,
        num=len(a),
        difference=float(gaps.mean()),
        low=low,
        high=high,
        seeds=t_interval_over_seeds(gaps.tolist()),
        t_test_p=paired_p_value(a, b, num_chunks, seed),
        mcnemar_p=combine_p_values([mcnemar_p(one, other) for one, other in zip(a_SQ > 0, b_SQ > 0, strict=True)]),
        num_same_sign=int((np.sign(gaps) == np.sign(gaps.mean())).sum()),
    )


def mcnemar_p(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Two-sided p of McNemar's exact test; both of shape (Q,), True for a right answer.

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
    """One p of several that depend on each other: twice their median; that of a single one is its own.

    >>> combine_p_values([0.01, 0.02, 0.5]), combine_p_values([0.03])
    (0.04, 0.03)
    """
    if len(p_values) == 1:
        return p_values[0]
    return min(1.0, 2.0 * float(np.median(p_values)))


def bootstrap_interval(first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean difference in points; rows of shape (Q,) are drawn in pairs."""
    from scipy.stats import bootstrap

    found = bootstrap(
        (first, second),
        _mean_difference,
        paired=True,
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        batch=100,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return 100.0 * float(found.confidence_interval.low), 100.0 * float(found.confidence_interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the same order: under 0.05, the chance of any false one among all is.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def compare_to_best(data: StudyData, checkpoint: str, num_chunks: int = 100, seed: int = 0) -> list[PairedComparison]:
    """The single-category variants of tables 2 and 7, each beside the best of its column, column by column.

    Raises:
        NotTestable: fewer than two of them were run, or their predictions were not kept.
    """
    names = [name for name in TABLE_2_VARIANTS if data.has_run(name)]
    if len(names) < 2:
        raise InsufficientDataError(f"needs finished runs of two or more of {', '.join(TABLE_2_VARIANTS)}")
    found = []
    for category in (ALL_CATEGORIES, *map(str, Category)):
        best = max(names, key=lambda name: data.accuracy(name, checkpoint, category=category).value)
        others = [name for name in names if name != best]
        found += [
            compare_models(
                data,
                ModelAtCheckpoint(one, checkpoint),
                ModelAtCheckpoint(best, checkpoint),
                category,
                num_chunks,
                seed,
            )
            for one in others
        ]
    return found


def compare_early_to_last(data: StudyData, num_chunks: int = 100, seed: int = 0) -> list[PairedComparison]:
    """Early stop against convergence for each single-category variant (E25, appendix I).

    Raises:
        NotTestable: none of them was run, or their predictions were not kept.
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
    data: StudyData, side: ModelAtCheckpoint, category: str
) -> tuple[NDArray[np.str_], dict[int, NDArray[np.bool_]]]:
    """All test questions, and seed to hits on those of a category."""
    found: dict[int, NDArray[np.bool_]] = {}
    ids = np.array([], dtype=str)
    for run in data.runs_for(side.variant):
        rows = run.predictions.get((run.epoch(side.checkpoint), "test"))
        if rows is None or (found and not np.array_equal(ids, rows.question_ids)):
            raise InsufficientDataError(
                f"run {run.run_id} kept no predictions of the same test questions at {side.checkpoint}"
            )
        ids = rows.question_ids
        found[run.seed] = rows.hit[rows.mask(category)]
    return ids, found


def _mean_difference(first: NDArray[np.float64], second: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray((first - second).mean(axis=axis))
