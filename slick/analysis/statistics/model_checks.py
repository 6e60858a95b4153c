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
from slick.analysis.findings.verdict import percent
from slick.analysis.statistics.regression import LinearFit, Points, Sample, clustered_ols, fit, sample
from slick.analysis.terms import NotTestable

ALIKE = 1.0
"""Under this Durbin-Watson neighbouring residuals correlate by about 0.5 or more."""

LOW_R_SQUARED = 0.5
"""Under this the model leaves most of the variance unexplained."""

SPLITS = {"test": "in distribution", "ood": "out of distribution"}
EPOCHS = {"every": "every", "ends": "early stop and convergence", "later": "without the first fifth"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What the residuals of a fit say; P points."""

    fitted_P: NDArray[np.float64]
    """Percent."""
    residuals_P: NDArray[np.float64]
    """Accuracy minus fitted value, points."""
    shares_P: NDArray[np.float64]
    r_squared: float
    shape_p: float
    """Of RESET; under 0.05 the residuals bend."""
    spread_p: float
    """Of Breusch and Pagan's test; under 0.05 their spread is uneven."""
    serial: float | None
    """Durbin and Watson's statistic over the epochs of each run; None where a run has fewer than three points."""
    offsets: dict[float, float]
    """Share of Unknown rows to the mean residual there."""


class Choice(NamedTuple):
    """One way to choose the points, and what came of it."""

    split: str
    points: Points
    fit: LinearFit | None
    checks: Checks | None
    missing: str


def check(data: StudyData, split: str, points: Points | None = None) -> Checks:
    """Residuals and their tests.

    Raises:
        NotTestable: as `regression.fit`.
    """
    return check_sample(sample(data, split, points))


def check_sample(chosen: Sample) -> Checks:
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
    return Checks(
        fitted_P=np.asarray(model.fittedvalues, dtype=np.float64),
        residuals_P=residuals,
        shares_P=chosen.shares_P,
        r_squared=float(model.rsquared),
        shape_p=float(shape.pvalue),
        spread_p=float(het_breuschpagan(residuals, model.model.exog)[1]),
        serial=_serial(residuals, chosen.runs_P),
        offsets={share: float(residuals[chosen.shares_P == share].mean()) for share in shares},
    )


def _serial(residuals: NDArray[np.float64], runs: NDArray[np.str_]) -> float | None:
    from statsmodels.stats.stattools import durbin_watson

    each = [residuals[runs == run] for run in np.unique(runs)]
    weights = [float((of_run**2).sum()) for of_run in each]
    if min(map(len, each)) < 3 or min(weights) == 0.0:
        return None
    return float(np.average([durbin_watson(of_run) for of_run in each], weights=weights))


def choices(data: StudyData) -> Iterator[Choice]:
    """The model under every choice of points, in and out of distribution; one that cannot be fitted says why."""
    for split in SPLITS:
        for epochs in ("every", "ends", "later"):
            for with_known in (False, True):
                points = Points(epochs=epochs, with_known=with_known)
                try:
                    yield Choice(split, points, fit(data, split, points), check(data, split, points), "")
                except NotTestable as reason:
                    yield Choice(split, points, None, None, str(reason))


def fit_words(checks: Checks) -> str:
    """Whether the model fits, in one sentence without its full stop."""
    explains = f"it explains {percent(checks.r_squared)} of the variance"
    if checks.r_squared < LOW_R_SQUARED:
        return f"the model does not fit: {explains}, so its coefficients say little"
    bends = checks.shape_p < 0.05
    drifts = checks.serial is not None and checks.serial < ALIKE
    faults = []
    if bends:
        faults.append(f"its residuals bend (RESET, p = {checks.shape_p:.2g})")
    if drifts:
        faults.append(f"it misses neighbouring epochs alike (Durbin-Watson {checks.serial:.1f}, 2 where it does not)")
    if checks.spread_p < 0.05:
        faults.append(f"its residuals spread unevenly (Breusch-Pagan, p = {checks.spread_p:.2g})")
    if not faults:
        return f"the model fits: {explains}, and its residuals show no structure"
    share, offset = max(checks.offsets.items(), key=lambda one: abs(one[1]))
    rest = "; the intervals allow for that"
    if bends or drifts:
        rest = (
            f"; at {percent(share)} Unknown rows it is off by {-offset:+.1f} points on average, so read the signs, and "
            "the sizes as averages"
        )
    return f"the model fits roughly: {explains}, but {', '.join(faults)}{rest}"
