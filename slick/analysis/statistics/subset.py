"""Accuracy on some questions of a split, and paired differences of it. Pure.

The same rules as for whole splits (`slick.analysis.data`): the error of a difference is that over the questions,
paired, and with three seeds or more never smaller than the one over seeds.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import Run, StudyData
from slick.analysis.terms import MIN_SEEDS, Cell, NotTestable, When

MIN_QUESTIONS = 10
"""Fewer are not compared."""


class Compared(NamedTuple):
    """Two models on the same questions, in percent and points."""

    first: Cell
    second: Cell
    change: Cell
    """First minus second."""
    num: int
    """Questions."""


def compare(
    data: StudyData, first: tuple[str, When], second: tuple[str, When], split: str, ids: NDArray[np.str_] | None = None
) -> Compared:
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
    (asked_a, hits_a), (asked_b, hits_b) = (_hits(data, name, when, split, ids) for name, when in (first, second))
    num = len(asked_a)
    if not np.array_equal(asked_a, asked_b):
        raise NotTestable(f"the runs of {first[0]} and {second[0]} were not asked the same {split} questions")
    if num < MIN_QUESTIONS:
        raise NotTestable(
            f"needs {MIN_QUESTIONS} {split} questions or more to compare {first[0]} with {second[0]}, there are {num}"
        )
    gaps = 100.0 * (np.mean(list(hits_a.values()), axis=0) - np.mean(list(hits_b.values()), axis=0))
    se = _paired_se(gaps)
    both = sorted(hits_a.keys() & hits_b.keys())
    if len(both) >= MIN_SEEDS:
        se = max(se, _seed_se(np.array([100.0 * (hits_a[seed].mean() - hits_b[seed].mean()) for seed in both])))
    change = Cell(float(gaps.mean()), se, min(len(hits_a), len(hits_b)))
    return Compared(_cell(hits_a), _cell(hits_b), change, num)


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


def _hits(
    data: StudyData, name: str, when: When, split: str, ids: NDArray[np.str_] | None
) -> tuple[NDArray[np.str_], dict[int, NDArray[np.float64]]]:
    """The questions that count, and seed to 1.0 or 0.0 for each of them."""
    runs = data.runs_of(name)
    asked = _stored(runs[0], when, split)[0]
    wanted = np.ones(len(asked), dtype=bool) if ids is None else np.isin(asked, ids)
    found = {}
    for run in runs:
        same, hit = _stored(run, when, split)
        if not np.array_equal(same, asked):
            raise NotTestable(f"the runs of {name} were not asked the same {split} questions")
        found[run.seed] = hit[wanted].astype(np.float64)
    return asked[wanted], found


def _stored(run: Run, when: When, split: str) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    rows = run.hits.get((run.epoch(when), split))
    if rows is None:
        raise NotTestable(f"run {run.run_id} kept no {split} predictions of epoch {run.epoch(when)}")
    return rows.question_ids, rows.hit


def _cell(hits: dict[int, NDArray[np.float64]]) -> Cell:
    """Mean over seeds; its error is over seeds where there are enough, else over questions."""
    by_seed = np.array([100.0 * hit.mean() for hit in hits.values()])
    rows = 100.0 * np.mean(list(hits.values()), axis=0)
    se = _seed_se(by_seed) if len(by_seed) >= MIN_SEEDS else float(rows.std(ddof=1) / np.sqrt(len(rows)))
    return Cell(float(by_seed.mean()), se, len(by_seed))


def _seed_se(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
