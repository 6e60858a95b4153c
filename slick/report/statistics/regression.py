"""The paper's linear model of test accuracy on the numbers of fitted rows, and whether it fits. Pure.

Accuracy = b0 + b_kn * N_kn / |D| + b_unk * N_unk / |D|, in percentage points, where N_kn and N_unk are the numbers of
Known and Unknown training rows that the model answers correctly. There is one point per evaluated epoch and run of the
%Unknown sweep unless a `PointSelection` says otherwise; the paper does not state whether its points include D_Known
runs and the first epochs.

The least-squares fit and its covariance are those of statsmodels. Points of the same fine-tuning set are correlated, so
the intervals are clustered by set (CR1, t distribution with sets - 1 degrees of freedom; Cameron and Miller 2015,
https://doi.org/10.3368/jhr.50.2.317). All seeds of a variant train on the same rows, so their runs are one cluster.

Ramsey's RESET tests whether the square of the fitted value explains the residuals, that is whether a plane is the wrong
shape; its covariance is clustered like that of the model. Breusch and Pagan's test asks whether the variance of the
residuals depends on the regressors; it assumes independent points, which the epochs of a run are not, so its p-value is
a lower bound. The Durbin-Watson statistic, pooled over runs, is 2 without autocorrelation between epochs and falls to 0
if the residual of an epoch determines that of the next.

Source: Gekhman et al. 2024, arXiv:2405.05904, equation 1 and table 1, which has no intervals; J. B. Ramsey 1969,
https://doi.org/10.1111/j.2517-6161.1969.tb00796.x; T. S. Breusch and A. R. Pagan 1979,
https://doi.org/10.2307/1911963; A. Bhargava, L. Franzini, W. Narendranathan 1982, https://doi.org/10.2307/2297285
(Durbin-Watson over runs).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.formatting import format_percent
from slick.report.data import Run, StudyData
from slick.report.measurements import (
    ANY_KNOWN,
    CONVERGENCE,
    EARLY_STOP,
    InsufficientDataError,
)
from slick.types import ALL_CATEGORIES, Category

TERMS = ("b0", "b_kn", "b_unk")
EARLY_EPOCHS_SHARE = 0.2
"""Share of the epochs that counts as the first ones: 10 of the paper's 50, the early-stopping epoch there."""

LOW_DURBIN_WATSON = 1.0
"""Below this Durbin-Watson statistic, residuals of successive evaluated epochs correlate by about 0.5 or more."""

LOW_R_SQUARED = 0.5
"""Below this the model leaves most of the variance unexplained."""

SPLIT_LABELS = {"test": "in distribution", "ood": "out of distribution"}
EPOCH_SELECTION_LABELS = {"every": "every", "ends": "early stop and convergence", "later": "without the first fifth"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSelection:
    """The points that the model is fitted to."""

    epochs: Literal["every", "ends", "later"] = "every"
    """`every` evaluated epoch; early stop and convergence alone (`ends`); `later`: without the first fifth of a
    training."""
    include_known: bool = False
    """Include the runs of D_Known. Their fitted rows are divided by the |D| that they come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionSample:
    """The points of one fit; P points."""

    x_P2: NDArray[np.float64]
    """Share of D that is Known and fitted, and share that is Unknown and fitted."""
    y_P: NDArray[np.float64]
    """Accuracy in percent."""
    runs_P: NDArray[np.str_]
    """run_id."""
    sets_P: NDArray[np.str_]
    """Fine-tuning set, the cluster of the point."""
    shares_P: NDArray[np.float64]
    """Share of Unknown rows in the set."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualChecks:
    """Residuals of a fit and their tests; P points."""

    fitted_P: NDArray[np.float64]
    """Percent."""
    residuals_P: NDArray[np.float64]
    """Accuracy minus fitted value, points."""
    shares_P: NDArray[np.float64]
    r_squared: float
    reset_p: float
    """p-value of RESET; below 0.05 the residuals are curved."""
    breusch_pagan_p: float
    """p-value of Breusch and Pagan's test; below 0.05 the residuals are heteroscedastic."""
    durbin_watson: float | None
    """Durbin-Watson statistic over the epochs of each run; None if a run has fewer than three points."""
    mean_residuals: dict[float, float]
    """Share of Unknown rows -> its mean residual."""


class SelectionFit(NamedTuple):
    """A selection of points and the fit to them, or why there is none."""

    split: str
    points: PointSelection
    fit: LinearFit | None
    checks: ResidualChecks | None
    missing_reason: str


def regression_sample(data: StudyData, split: str, points: PointSelection | None = None) -> RegressionSample:
    """The points of the model.

    Args:
        data: the study.
        split: `test` or `ood`.
        points: by default every evaluated epoch of every run of the %Unknown sweep.

    Raises:
        InsufficientDataError: nothing was measured on that split.
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
        raise InsufficientDataError(f"the sweep's runs have no epochs with both train and {split} accuracy")
    known, unknown, y, runs, names, shares = zip(*rows, strict=True)
    return RegressionSample(
        x_P2=np.column_stack([known, unknown]).astype(np.float64),
        y_P=np.array(y, dtype=np.float64),
        runs_P=np.array(runs),
        sets_P=np.array(names),
        shares_P=np.array(shares, dtype=np.float64),
    )


def _run_points(run: Run, split: str, points: PointSelection, size: int) -> list[tuple[float, float, float]]:
    """(Known fitted, Unknown fitted, accuracy) of each selected epoch; `size` is |D|, 0 for that of the run itself."""
    test = run.accuracy.get((split, ALL_CATEGORIES))
    total = size or run.num.get(("train", ALL_CATEGORIES), 0)
    if test is None or not total:
        return []
    known, unknown = (
        run.accuracy.get(("train", category), np.zeros(len(run.epochs)))
        * run.num.get(("train", category), 0)
        / 100
        / total
        for category in (ANY_KNOWN, str(Category.UNKNOWN))
    )
    is_measured = np.isfinite(test) & np.isfinite(known) & np.isfinite(unknown)
    if points.epochs == "ends":
        is_measured &= np.isin(run.epochs, [run.epoch(EARLY_STOP), run.epoch(CONVERGENCE)])
    elif points.epochs == "later":
        is_measured &= run.epochs > EARLY_EPOCHS_SHARE * run.epochs[-1]
    return [(float(known[i]), float(unknown[i]), float(test[i])) for i in np.flatnonzero(is_measured)]


def fit_linear_model(data: StudyData, split: str, points: PointSelection | None = None) -> LinearFit:
    """Fit the linear model to one test split.

    Raises:
        InsufficientDataError: there are fewer than 3 fine-tuning sets, or the coefficients are not determined.
    """
    chosen = regression_sample(data, split, points)
    return least_squares(chosen.x_P2, chosen.y_P, chosen.sets_P, len(np.unique(chosen.runs_P)))


def least_squares(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.str_], num_runs: int | None = None
) -> LinearFit:
    """Ordinary least squares with an intercept; intervals are clustered by group.

    Args:
        x: shape (N, K).
        y: shape (N,).
        groups: shape (N,), the cluster of each point; at least 3 clusters.
        num_runs: for `LinearFit`; by default the number of groups.

    Raises:
        InsufficientDataError: there are too few points or groups, or the columns are linearly dependent.
    """
    results = clustered_ols(x, y, groups)
    intervals = results.conf_int(alpha=0.05)
    return LinearFit(
        coefficients=tuple(map(float, results.params)),
        low=tuple(map(float, intervals[:, 0])),
        high=tuple(map(float, intervals[:, 1])),
        p_values=tuple(map(float, results.pvalues)),
        r_squared=float(results.rsquared),
        num_points=len(y),
        num_runs=len(np.unique(groups)) if num_runs is None else num_runs,
    )


def clustered_ols(x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.str_]) -> Any:
    """The results of statsmodels (`RegressionResultsWrapper`); arguments and errors as in `least_squares`."""
    design = np.column_stack([np.ones(len(y)), x])
    num, width = design.shape
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < 3 or num <= width + 1:
        raise InsufficientDataError(
            f"the linear model needs 3 fine-tuning sets and {width + 2} points or more, got {len(names)} and {num}"
        )
    if np.linalg.matrix_rank(design) < width:
        raise InsufficientDataError(
            "the numbers of fitted Known and Unknown rows are collinear, so the coefficients are not determined"
        )
    if float(np.ptp(y)) == 0.0:
        raise InsufficientDataError("the accuracy is the same at every point")
    from statsmodels.regression.linear_model import OLS

    return OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)


def check_residuals(data: StudyData, split: str, points: PointSelection | None = None) -> ResidualChecks:
    """Residuals and their tests.

    Raises:
        InsufficientDataError: see `fit_linear_model`.
    """
    return check_sample_residuals(regression_sample(data, split, points))


def check_sample_residuals(chosen: RegressionSample) -> ResidualChecks:
    """Residuals and their tests for given points.

    Raises:
        InsufficientDataError: see `least_squares`.
    """
    model = clustered_ols(chosen.x_P2, chosen.y_P, chosen.sets_P)
    from statsmodels.stats.diagnostic import het_breuschpagan, linear_reset

    codes = np.unique(chosen.sets_P, return_inverse=True)[1]
    reset = linear_reset(model, power=2, use_f=True, cov_type="cluster", cov_kwds={"groups": codes})
    residuals = np.asarray(model.resid, dtype=np.float64)
    shares = sorted(set(chosen.shares_P.tolist()))
    return ResidualChecks(
        fitted_P=np.asarray(model.fittedvalues, dtype=np.float64),
        residuals_P=residuals,
        shares_P=chosen.shares_P,
        r_squared=float(model.rsquared),
        reset_p=float(reset.pvalue),
        breusch_pagan_p=float(het_breuschpagan(residuals, model.model.exog)[1]),
        durbin_watson=_pooled_durbin_watson(residuals, chosen.runs_P),
        mean_residuals={share: float(residuals[chosen.shares_P == share].mean()) for share in shares},
    )


def _pooled_durbin_watson(residuals: NDArray[np.float64], runs: NDArray[np.str_]) -> float | None:
    from statsmodels.stats.stattools import durbin_watson

    residuals_by_run = [residuals[runs == run] for run in np.unique(runs)]
    weights = [float((of_run**2).sum()) for of_run in residuals_by_run]
    if min(map(len, residuals_by_run)) < 3 or min(weights) == 0.0:
        return None
    return float(np.average([durbin_watson(of_run) for of_run in residuals_by_run], weights=weights))


def fit_all_selections(data: StudyData) -> Iterator[SelectionFit]:
    """The fit for every selection of points, in and out of distribution."""
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
    """Whether the model fits, as a sentence without its full stop."""
    explains = f"it explains {format_percent(checks.r_squared)} of the variance"
    if checks.r_squared < LOW_R_SQUARED:
        return f"the model does not fit: {explains}, so its coefficients are not informative"
    bends = checks.reset_p < 0.05
    drifts = checks.durbin_watson is not None and checks.durbin_watson < LOW_DURBIN_WATSON
    faults = []
    if bends:
        faults.append(f"the residuals are curved (RESET, p = {checks.reset_p:.2g})")
    if drifts:
        faults.append(
            f"residuals of successive evaluated epochs are correlated (Durbin-Watson {checks.durbin_watson:.1f}, 2 if "
            "they are not)"
        )
    if checks.breusch_pagan_p < 0.05:
        faults.append(f"the residuals are heteroscedastic (Breusch-Pagan, p = {checks.breusch_pagan_p:.2g})")
    if not faults:
        return f"the model fits: {explains}, and the residuals show no structure"
    share, offset = max(checks.mean_residuals.items(), key=lambda item: abs(item[1]))
    consequence = "; the intervals account for that"
    if bends or drifts:
        consequence = (
            f"; at {format_percent(share)} Unknown rows its mean error is {-offset:+.1f} points, so the signs of the "
            "coefficients are reliable, but their sizes are only averages"
        )
    return f"the model fits roughly: {explains}, but {' and '.join(faults)}{consequence}"
