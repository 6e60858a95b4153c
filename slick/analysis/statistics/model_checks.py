"""Does the linear model fit? Its residuals, two tests of them, other choices of points, and a plain word. Pure.

Ramsey's RESET asks whether the square of the fitted value explains what is left: whether a plane is the wrong shape.
Its covariance is clustered as that of the model. Breusch and Pagan's test asks whether the spread of the residuals
changes with the regressors; it takes the points as independent, which the epochs of one run are not, so its p is a
lower bound. Durbin and Watson's statistic, pooled over runs, asks whether the model misses neighbouring epochs of a run
alike: it is 2 where it does not and falls to 0 where one epoch's residual tells the next. All are those of statsmodels.

Source: J. B. Ramsey 1969, https://doi.org/10.1111/j.2517-6161.1969.tb00796.x; T. S. Breusch and A. R. Pagan 1979,
https://doi.org/10.2307/1911963; A. Bhargava, L. Franzini, W. Narendranathan 1982, https://doi.org/10.2307/2297285
(Durbin-Watson over runs).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import format_percent
from slick.analysis.statistics.regression import (
    LinearFit,
    PointSelection,
    RegressionSample,
    clustered_ols,
    fit_linear_model,
    regression_sample,
)
from slick.analysis.terms import InsufficientDataError

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
            f"signs, and "
            "the sizes as averages"
        )
    return f"the model fits roughly: {explains}, but {', '.join(faults)}{rest}"
