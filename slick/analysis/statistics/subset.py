"""Accuracy on some questions of a split, and paired differences of it. Pure.

The same rules as for whole splits (`slick.analysis.data`): the error of a difference is that over the questions,
paired, and with three seeds or more never smaller than the one over seeds.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import Run, StudyData
from slick.analysis.terms import MIN_SEEDS, CheckpointRef, InsufficientDataError, Measurement

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
