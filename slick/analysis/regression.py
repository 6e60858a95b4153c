"""The paper's linear model of test accuracy on what was fitted. Pure.

Accuracy = b0 + b_kn * N_kn / |D| + b_unk * N_unk / |D|, in percentage points; N = Known and Unknown training rows that
the model answers right. One point an epoch and run of the %Unknown sweep.

Source: Gekhman et al. 2024, arXiv:2405.05904, equation 1 and table 1. The paper prints no intervals. Epochs of one run
resemble each other, so the intervals here are clustered by run (CR1, t with runs - 1 degrees of freedom; Cameron and
Miller 2015, https://doi.org/10.3368/jhr.50.2.317), which is wider and more honest than one interval over all points.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.terms import POOLED, NotTestable
from slick.types import ALL, Category

TERMS = ("b0", "b_kn", "b_unk")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearFit:
    """A least-squares fit; each tuple is in the order of `TERMS`."""

    coefficients: tuple[float, ...]
    low: tuple[float, ...]
    """Lower ends of the 95 % intervals."""
    high: tuple[float, ...]
    p_values: tuple[float, ...]
    r_squared: float
    num_points: int
    num_runs: int


def fitted_points(data: StudyData, split: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.str_]]:
    """The points of the model: every epoch of every run of the %Unknown sweep.

    Args:
        data: the stored rows.
        split: `test` or `ood`.

    Returns:
        x of shape (points, 2), shares of D that are Known and fitted, and Unknown and fitted; y of shape (points,),
        accuracy in percent; the run_id of each point.

    Raises:
        NotTestable: nothing was measured on that split.
    """
    x: list[tuple[float, float]] = []
    y: list[float] = []
    run_ids: list[str] = []
    for _, name in data.sweep("unknown", least=3):
        for run in data.runs_of(name):
            test = run.accuracy.get((split, ALL))
            total = run.num.get(("train", ALL), 0)
            if test is None or not total:
                continue
            known, unknown = (
                run.accuracy.get(("train", part), np.zeros(len(run.epochs)))
                * run.num.get(("train", part), 0)
                / 100
                / total
                for part in (POOLED, str(Category.UNKNOWN))
            )
            for i in np.flatnonzero(np.isfinite(test) & np.isfinite(known) & np.isfinite(unknown)):
                x.append((float(known[i]), float(unknown[i])))
                y.append(float(test[i]))
                run_ids.append(run.run_id)
    if not y:
        raise NotTestable(f"the sweep's runs hold no epochs with both train and {split} accuracy")
    return np.array(x), np.array(y), np.array(run_ids)


def fit(data: StudyData, split: str) -> LinearFit:
    """Fit the linear model to one test split.

    Raises:
        NotTestable: fewer than 3 runs, or points that do not determine the coefficients.
    """
    x, y, run_ids = fitted_points(data, split)
    return least_squares(x, y, run_ids)


def least_squares(x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.str_]) -> LinearFit:
    """Ordinary least squares with an intercept, intervals clustered by group.

    Args:
        x: shape (N, K).
        y: shape (N,).
        groups: shape (N,), the cluster of each point; at least 3 different ones.

    Raises:
        NotTestable: too few points or groups, or columns that depend on each other.
    """
    design = np.column_stack([np.ones(len(y)), x])
    num, width = design.shape
    names = np.unique(groups)
    if len(names) < 3 or num <= width + 1:
        raise NotTestable(f"the linear model needs 3 runs and {width + 2} points or more, got {len(names)} and {num}")
    if np.linalg.matrix_rank(design) < width:
        raise NotTestable(
            "the numbers of fitted Known and Unknown rows do not vary apart, so no coefficient can be told"
        )
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0.0:
        raise NotTestable("the accuracy is the same at every point")
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    residuals = y - design @ beta
    errors = _clustered_errors(design, residuals, groups)
    from scipy.stats import t

    reach = float(t.ppf(0.975, len(names) - 1)) * errors
    p_values = 2.0 * t.sf(np.abs(beta / errors), len(names) - 1)
    return LinearFit(
        coefficients=tuple(map(float, beta)),
        low=tuple(map(float, beta - reach)),
        high=tuple(map(float, beta + reach)),
        p_values=tuple(map(float, p_values)),
        r_squared=1.0 - float((residuals**2).sum()) / total,
        num_points=num,
        num_runs=len(names),
    )


def _clustered_errors(
    design: NDArray[np.float64], residuals: NDArray[np.float64], groups: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Standard errors of the coefficients, CR1."""
    num, width = design.shape
    names = np.unique(groups)
    bread = np.linalg.inv(design.T @ design)
    scores = [design[groups == name].T @ residuals[groups == name] for name in names]
    meat = np.sum([np.outer(score, score) for score in scores], axis=0)
    correction = len(names) / (len(names) - 1) * (num - 1) / (num - width)
    return np.asarray(np.sqrt(np.maximum(np.diag(correction * bread @ meat @ bread), 1e-18)))
