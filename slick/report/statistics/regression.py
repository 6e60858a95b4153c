"""The paper's linear model of test accuracy on what was fitted. Pure.

Accuracy = b0 + b_kn * N_kn / |D| + b_unk * N_unk / |D|, in percentage points; N = Known and Unknown training rows that
the model answers right. One point an epoch and run of the %Unknown sweep, unless `Points` says otherwise: the paper
does not say whether D_Known runs and the first epochs are among its own.

Ordinary least squares and the covariance are those of statsmodels. Points that share a fine-tuning set resemble each
other, so the intervals are clustered by set (CR1, t with sets - 1 degrees of freedom; Cameron and Miller 2015,
https://doi.org/10.3368/jhr.50.2.317), which is wider and more honest than one interval over all points. All seeds of
a variant train on the same rows, so their runs are one cluster: counted as three, they tell the same thing thrice.

Source: Gekhman et al. 2024, arXiv:2405.05904, equation 1 and table 1. The paper prints no intervals.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.report.data import Run, StudyData
from slick.report.measurements import ANY_KNOWN, CONVERGENCE, EARLY_STOP, InsufficientDataError, format_percent
from slick.types import ALL_CATEGORIES, Category

TERMS = ("b0", "b_kn", "b_unk")

EARLY_EPOCHS_SHARE = 0.2
"""Share of a training that counts as its first epochs: 10 of the paper's 50, as many as early stop takes there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSelection:
    """Which points the model is fitted to."""

    epochs: Literal["every", "ends", "later"] = "every"
    """`every` epoch; early stop and convergence alone (`ends`); `later`: all but the first fifth of a training."""
    include_known: bool = False
    """The runs of D_Known too. Their fitted rows are counted in units of the |D| that they come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionSample:
    """The points of one fit; P points."""

    x_P2: NDArray[np.float64]
    """Shares of D that are Known and fitted, and Unknown and fitted."""
    y_P: NDArray[np.float64]
    """Accuracy in percent."""
    runs_P: NDArray[np.str_]
    """run_id."""
    sets_P: NDArray[np.str_]
    """Fine-tuning set; the points of one are one cluster."""
    shares_P: NDArray[np.float64]
    """Share of Unknown rows of the set."""


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


def regression_sample(data: StudyData, split: str, points: PointSelection | None = None) -> RegressionSample:
    """The points of the model.

    Args:
        data: the stored rows.
        split: `test` or `ood`.
        points: which; every epoch of every run of the %Unknown sweep if not given.

    Raises:
        NotTestable: nothing was measured on that split.
    """
    points = points or PointSelection()
    sweep = data.sweep_variants("unknown", min_shares=3)
    sizes = {round(share, 6): data.variants[name].num for share, name in sweep}
    sets = [(share, name, 0) for share, name in sweep]
    if points.include_known:
        sets += [(0.0, name, sizes.get(round(share, 6), 0)) for share, name in data.sweep_variants("known")]
    rows = [
        (*row, run.run_id, name, share)
        for share, name, size in sets
        for run in data.runs_for(name)
        for row in _run_points(run, split, points, size)
    ]
    if not rows:
        raise InsufficientDataError(f"the sweep's runs hold no epochs with both train and {split} accuracy")
    known, unknown, y, runs, names, shares = zip(*rows, strict=True)
    return RegressionSample(
        x_P2=np.column_stack([known, unknown]).astype(np.float64),
        y_P=np.array(y, dtype=np.float64),
        runs_P=np.array(runs),
        sets_P=np.array(names),
        shares_P=np.array(shares, dtype=np.float64),
    )


def _run_points(run: Run, split: str, points: PointSelection, size: int) -> list[tuple[float, float, float]]:
    """(Known fitted, Unknown fitted, accuracy) of each chosen epoch; `size` is |D|, 0 for that of the run itself."""
    test = run.accuracy.get((split, ALL_CATEGORIES))
    total = size or run.num.get(("train", ALL_CATEGORIES), 0)
    if test is None or not total:
        return []
    known, unknown = (
        run.accuracy.get(("train", part), np.zeros(len(run.epochs))) * run.num.get(("train", part), 0) / 100 / total
        for part in (ANY_KNOWN, str(Category.UNKNOWN))
    )
    there = np.isfinite(test) & np.isfinite(known) & np.isfinite(unknown)
    if points.epochs == "ends":
        there &= np.isin(run.epochs, [run.epoch(EARLY_STOP), run.epoch(CONVERGENCE)])
    elif points.epochs == "later":
        there &= run.epochs > EARLY_EPOCHS_SHARE * run.epochs[-1]
    return [(float(known[i]), float(unknown[i]), float(test[i])) for i in np.flatnonzero(there)]


def fit_linear_model(data: StudyData, split: str, points: PointSelection | None = None) -> LinearFit:
    """Fit the linear model to one test split.

    Raises:
        NotTestable: fewer than 3 fine-tuning sets, or points that do not determine the coefficients.
    """
    chosen = regression_sample(data, split, points)
    return least_squares(chosen.x_P2, chosen.y_P, chosen.sets_P, len(np.unique(chosen.runs_P)))


def least_squares(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.str_], num_runs: int | None = None
) -> LinearFit:
    """Ordinary least squares with an intercept, intervals clustered by group.

    Args:
        x: shape (N, K).
        y: shape (N,).
        groups: shape (N,), the cluster of each point; at least 3 different ones.
        num_runs: as many as there are groups if not given.

    Raises:
        NotTestable: too few points or groups, or columns that depend on each other.
    """
    found = clustered_ols(x, y, groups)
    ends = found.conf_int(alpha=0.05)
    return LinearFit(
        coefficients=tuple(map(float, found.params)),
        low=tuple(map(float, ends[:, 0])),
        high=tuple(map(float, ends[:, 1])),
        p_values=tuple(map(float, found.pvalues)),
        r_squared=float(found.rsquared),
        num_points=len(y),
        num_runs=len(np.unique(groups)) if num_runs is None else num_runs,
    )


def clustered_ols(x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.str_]) -> Any:
    """The fit as statsmodels gives it (`RegressionResultsWrapper`); arguments and errors as in `least_squares`."""
    design = np.column_stack([np.ones(len(y)), x])
    num, width = design.shape
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < 3 or num <= width + 1:
        raise InsufficientDataError(
            f"the linear model needs 3 fine-tuning sets and {width + 2} points or more, got {len(names)} and {num}"
        )
    if np.linalg.matrix_rank(design) < width:
        raise InsufficientDataError(
            "the numbers of fitted Known and Unknown rows do not vary apart, so no coefficient can be told"
        )
    if float(np.ptp(y)) == 0.0:
        raise InsufficientDataError("the accuracy is the same at every point")
    from statsmodels.regression.linear_model import OLS

    return OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)


LOW_DURBIN_WATSON = 1.0
"""Under this Durbin-Watson neighbouring residuals correlate by about 0.5 or more."""

LOW_R_SQUARED = 0.5
"""Under this the model leaves most of the variance unexplained."""

SPLIT_LABELS = {"test": "in distribution", "ood": "out of distribution"}
EPOCH_SELECTION_LABELS = {"every": "every", "ends": "early stop and convergence", "later": "without the first fifth"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualChecks:
    """What the residuals of a fit say; P points."""

    fitted_P: NDArray[np.float64]
    """Percent."""
    residuals_P: NDArray[np.float64]
    """Accuracy minus fitted value, points."""
    shares_P: NDArray[np.float64]
    r_squared: float
    reset_p: float
    """Of RESET; under 0.05 the residuals bend."""
    breusch_pagan_p: float
    """Of Breusch and Pagan's test; under 0.05 their spread is uneven."""
    durbin_watson: float | None
    """Durbin and Watson's statistic over the epochs of each run; None where a run has fewer than three points."""
    mean_residuals: dict[float, float]
    """Share of Unknown rows to the mean residual there."""


class SelectionFit(NamedTuple):
    """One way to choose the points, and what came of it."""

    split: str
    points: PointSelection
    fit: LinearFit | None
    checks: ResidualChecks | None
    missing: str


def check_residuals(data: StudyData, split: str, points: PointSelection | None = None) -> ResidualChecks:
    """Residuals and their tests.

    Raises:
        NotTestable: as `regression.fit`.
    """
    return check_sample_residuals(regression_sample(data, split, points))


def check_sample_residuals(chosen: RegressionSample) -> ResidualChecks:
    """The same for points at hand.

    Raises:
        NotTestable: as `regression.clustered_ols`.
    """
    model = clustered_ols(chosen.x_P2, chosen.y_P, chosen.sets_P)
    from statsmodels.stats.diagnostic import het_breuschpagan, linear_reset

    codes = np.unique(chosen.sets_P, return_inverse=True)[1]
    shape = linear_reset(model, power=2, use_f=True, cov_type="cluster", cov_kwds={"groups": codes})
    residuals = np.asarray(model.resid, dtype=np.float64)
    shares = sorted(set(chosen.shares_P.tolist()))
    return ResidualChecks(
        fitted_P=np.asarray(model.fittedvalues, dtype=np.float64),
        residuals_P=residuals,
        shares_P=chosen.shares_P,
        r_squared=float(model.rsquared),
        reset_p=float(shape.pvalue),
        breusch_pagan_p=float(het_breuschpagan(residuals, model.model.exog)[1]),
        durbin_watson=_pooled_durbin_watson(residuals, chosen.runs_P),
        mean_residuals={share: float(residuals[chosen.shares_P == share].mean()) for share in shares},
    )


def _pooled_durbin_watson(residuals: NDArray[np.float64], runs: NDArray[np.str_]) -> float | None:
    from statsmodels.stats.stattools import durbin_watson

    each = [residuals[runs == run] for run in np.unique(runs)]
    weights = [float((of_run**2).sum()) for of_run in each]
    if min(map(len, each)) < 3 or min(weights) == 0.0:
        return None
    return float(np.average([durbin_watson(of_run) for of_run in each], weights=weights))


def fit_all_selections(data: StudyData) -> Iterator[SelectionFit]:
    """The model under every choice of points, in and out of distribution; one that cannot be fitted says why."""
    for split in SPLIT_LABELS:
        for epochs in ("every", "ends", "later"):
            for include_known in (False, True):
                points = PointSelection(epochs=epochs, include_known=include_known)
                try:
                    yield SelectionFit(
                        split, points, fit_linear_model(data, split, points), check_residuals(data, split, points), ""
                    )
                except InsufficientDataError as reason:
                    yield SelectionFit(split, points, None, None, str(reason))


def describe_fit(checks: ResidualChecks) -> str:
    """Whether the model fits, in one sentence without its full stop."""
    explains = f"it explains {format_percent(checks.r_squared)} of the variance"
    if checks.r_squared < LOW_R_SQUARED:
        return f"the model does not fit: {explains}, so its coefficients say little"
    bends = checks.reset_p < 0.05
    drifts = checks.durbin_watson is not None and checks.durbin_watson < LOW_DURBIN_WATSON
    faults = []
    if bends:
        faults.append(f"its residuals bend (RESET, p = {checks.reset_p:.2g})")
    if drifts:
        faults.append(
            f"it misses neighbouring epochs alike (Durbin-Watson {checks.durbin_watson:.1f}, 2 where it does not)"
        )
    if checks.breusch_pagan_p < 0.05:
        faults.append(f"its residuals spread unevenly (Breusch-Pagan, p = {checks.breusch_pagan_p:.2g})")
    if not faults:
        return f"the model fits: {explains}, and its residuals show no structure"
    share, offset = max(checks.mean_residuals.items(), key=lambda one: abs(one[1]))
    rest = "; the intervals allow for that"
    if bends or drifts:
        rest = (
            f"; at {format_percent(share)} Unknown rows it is off by {-offset:+.1f} points on average, so read the "
            "signs, and the sizes as averages"
        )
    return f"the model fits roughly: {explains}, but {', '.join(faults)}{rest}"
