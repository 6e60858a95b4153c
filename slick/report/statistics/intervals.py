"""Significance of paired differences, and accuracies on a subset of the questions. Pure."""

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.report.data import Run, StudyData
from slick.report.measurements import MIN_SEEDS, CheckpointRef, InsufficientDataError, Measurement


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
    return Interval(max(0.0, (center - margin) / scale), min(1.0, (center + margin) / scale))


def chunk_accuracies(rows: NDArray[np.float64], num_chunks: int = 100, seed: int = 0) -> NDArray[np.float64]:
    """Shuffle the rows, cut them into near-equal chunks, and average each.

    Args:
        rows: shape (N,), 1.0 for a right answer, 0.0 for a wrong one, or the share of seeds that were right.
        num_chunks: fewer are made where there are fewer rows.
        seed: of the shuffle; the same seed and N give the same chunks, so that two models can be paired.

    Returns:
        Shape (min(num_chunks, N),), shares in [0, 1].
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    return np.array([chunk.mean() for chunk in np.array_split(rows[order], min(num_chunks, len(rows)))])


def paired_p_value(
    first: NDArray[np.float64], second: NDArray[np.float64], num_chunks: int = 100, seed: int = 0
) -> float:
    """Two-sided p of the paired t-test over chunks; 1.0 if the two never differ.

    Args:
        first: shape (N,), as in `chunk_accuracies`.
        second: shape (N,), the same N >= 2 rows in the same order.
        num_chunks: as in `chunk_accuracies`.
        seed: as in `chunk_accuracies`.

    Raises:
        ValueError: the two cannot be paired.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(f"a paired test needs two rows or more, the same for both; got {len(first)} and {len(second)}")
    a, b = chunk_accuracies(first, num_chunks, seed), chunk_accuracies(second, num_chunks, seed)
    if np.allclose(a, b):
        return 1.0
    if np.allclose(a - b, (a - b)[0]):
        return 0.0  # the same difference in every chunk: t is infinite
    from scipy.stats import ttest_rel

    return float(ttest_rel(a, b).pvalue)


def significance_stars(p_value: float) -> str:
    """`**` for p < 0.01, `*` for p < 0.05, as the paper prints them.

    >>> significance_stars(0.003), significance_stars(0.03), significance_stars(0.3)
    ('**', '*', '')
    """
    return "**" if p_value < 0.01 else "*" if p_value < 0.05 else ""


MIN_QUESTIONS = 10
"""Fewer are not compared."""


class SubsetComparison(NamedTuple):
    """Two models on the same questions, in percent and points."""

    first: Measurement
    second: Measurement
    change: Measurement
    """First minus second."""
    num: int
    """Questions."""


def compare_on_questions(
    data: StudyData,
    first: tuple[str, CheckpointRef],
    second: tuple[str, CheckpointRef],
    split: str,
    ids: NDArray[np.str_] | None = None,
) -> SubsetComparison:
    """Accuracy of two models, each a (variant, when), and the difference on the same questions.

    Args:
        data: the study.
        first: what is compared.
        second: what it is compared with.
        split: `dev`, `test` or `ood`.
        ids: the questions that count; None for all of the split.

    Raises:
        NotTestable: predictions were not kept, not of the same questions, or of fewer than `MIN_QUESTIONS` that count.
    """
    (asked_a, hits_a), (asked_b, hits_b) = (
        _hits_on_questions(data, name, checkpoint, split, ids) for name, checkpoint in (first, second)
    )
    num = len(asked_a)
    if not np.array_equal(asked_a, asked_b):
        raise InsufficientDataError(f"the runs of {first[0]} and {second[0]} were not asked the same {split} questions")
    if num < MIN_QUESTIONS:
        raise InsufficientDataError(
            f"needs {MIN_QUESTIONS} {split} questions or more to compare {first[0]} with {second[0]}, there are {num}"
        )
    gaps = 100.0 * (np.mean(list(hits_a.values()), axis=0) - np.mean(list(hits_b.values()), axis=0))
    se = _paired_se(gaps)
    both = sorted(hits_a.keys() & hits_b.keys())
    if len(both) >= MIN_SEEDS:
        se = max(se, _seed_se(np.array([100.0 * (hits_a[seed].mean() - hits_b[seed].mean()) for seed in both])))
    change = Measurement(float(gaps.mean()), se, min(len(hits_a), len(hits_b)))
    return SubsetComparison(_mean_accuracy(hits_a), _mean_accuracy(hits_b), change, num)


def _paired_se(gaps: NDArray[np.float64]) -> float:
    """Of the mean of differences in [-100, 100]; half a question for the better and half for the worse are added.

    So few questions of which none changed do not count as certain.

    Source: Agresti and Min 2005, https://doi.org/10.1002/sim.1781.

    >>> _paired_se(np.zeros(10)) > 0
    True
    """
    num = len(gaps) + 2
    variance = (float((gaps**2).sum()) + 100.0**2) / num - (float(gaps.sum()) / num) ** 2
    return float(np.sqrt(variance / num))


def _hits_on_questions(
    data: StudyData, name: str, checkpoint: CheckpointRef, split: str, ids: NDArray[np.str_] | None
) -> tuple[NDArray[np.str_], dict[int, NDArray[np.float64]]]:
    """The questions that count, and seed to 1.0 or 0.0 for each of them."""
    runs = data.runs_for(name)
    asked = _stored_predictions(runs[0], checkpoint, split)[0]
    wanted = np.ones(len(asked), dtype=bool) if ids is None else np.isin(asked, ids)
    found = {}
    for run in runs:
        same, hit = _stored_predictions(run, checkpoint, split)
        if not np.array_equal(same, asked):
            raise InsufficientDataError(f"the runs of {name} were not asked the same {split} questions")
        found[run.seed] = hit[wanted].astype(np.float64)
    return asked[wanted], found


def _stored_predictions(run: Run, checkpoint: CheckpointRef, split: str) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    rows = run.predictions.get((run.epoch(checkpoint), split))
    if rows is None:
        raise InsufficientDataError(f"run {run.run_id} kept no {split} predictions of epoch {run.epoch(checkpoint)}")
    return rows.question_ids, rows.hit


def _mean_accuracy(predictions: dict[int, NDArray[np.float64]]) -> Measurement:
    """Mean over seeds; its error is over seeds where there are enough, else over questions."""
    by_seed = np.array([100.0 * hit.mean() for hit in predictions.values()])
    rows = 100.0 * np.mean(list(predictions.values()), axis=0)
    se = _seed_se(by_seed) if len(by_seed) >= MIN_SEEDS else float(rows.std(ddof=1) / np.sqrt(len(rows)))
    return Measurement(float(by_seed.mean()), se, len(by_seed))


def _seed_se(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
