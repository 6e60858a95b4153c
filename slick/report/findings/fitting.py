"""E9-E13: how fast Known and Unknown training rows are fitted, and their effect on test accuracy. Pure."""

import numpy as np
from numpy.typing import NDArray

from slick.formatting import format_percent
from slick.report.data import StudyData
from slick.report.findings.base import CheckResult, describe_failures, finding
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import (
    ANY_KNOWN,
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    InsufficientDataError,
    confidence_interval,
    format_with_error,
    rank_correlation,
    round1,
    round1_values,
    subtract,
)
from slick.report.statistics.regression import LinearFit, fit_linear_model, regression_sample
from slick.types import Category

UNKNOWN = str(Category.UNKNOWN)
MIN_EPOCHS = 3
"""Measured epochs that each run needs for the linear model."""

MIN_R_SQUARED = 0.5
"""The paper has 0.86 and 0.95; here, the model must explain half of the variance."""


@finding(
    "E9",
    claim="Unknown training rows are fitted far more slowly than Known ones",
    paper="50 % of Unknown at epoch 19, of Known before 1; at early stop 15-18 % against 78-83 %",
    experiments=("fit",),
)
def e9(data: StudyData) -> CheckResult:
    """Unknown rows take at least twice as many epochs to 50 % train accuracy as Known rows, and trail at early stop."""
    name = half_unknown_variant(data)
    last = int(data.mean_curve(name, "train", ANY_KNOWN)[0][-1])
    known, unknown = (first_epoch_reaching(*data.mean_curve(name, "train", part)) for part in (ANY_KNOWN, UNKNOWN))
    at_known, at_unknown = (data.accuracy(name, EARLY_STOP, "train", part) for part in (ANY_KNOWN, UNKNOWN))
    own = {
        "epoch_known": known,
        "epoch_unknown": unknown,
        "early_stop_known": round1(at_known.value),
        "early_stop_unknown": round1(at_unknown.value),
    }
    if known is None:
        return CheckResult(False, own, f"less than half of the Known rows are fitted within {last} epochs")
    failed = []
    if unknown is not None and unknown < 2 * known:
        failed.append(
            f"half of the Unknown rows are fitted at epoch {unknown}, which is less than twice the epoch of the Known "
            f"rows ({known})"
        )
    lead = subtract(at_known, at_unknown)
    if lead.value <= Z_95 * lead.se:
        failed.append(f"at early stop, the lead of Known rows is {format_with_error(lead)} points")
    when = f"at epoch {unknown}" if unknown is not None else f"not within {last} epochs"
    success = (
        f"half of the Known rows are fitted at epoch {known}, half of the Unknown rows {when}; at early stop, "
        f"{at_known.value:.0f} % of the Known and {at_unknown.value:.0f} % of the Unknown rows are fitted"
    )
    intervals = {"lead_at_early_stop": confidence_interval(lead)}
    return CheckResult(not failed, own, describe_failures(failed, success), intervals)


@finding(
    "E10",
    claim="Dev accuracy peaks early and then falls while Unknown rows are being fitted",
    paper="43.3 near epoch 10, 39.8 at 50",
    experiments=("fit",),
)
def e10(data: StudyData) -> CheckResult:
    """Dev accuracy peaks in the first half, then falls by more than noise while Unknown rows are being fitted."""
    name = half_unknown_variant(data)
    epochs, dev = data.mean_curve(name, "dev")
    if np.isnan(dev).all():
        raise InsufficientDataError(f"the runs of {name} have no dev accuracy")
    peak = int(np.nanargmax(dev))
    fall = data.difference((name, int(epochs[peak])), (name, CONVERGENCE), "dev")
    own = {"peak": round1(dev[peak]), "peak_epoch": int(epochs[peak]), "last": round1(dev[-1])}
    failed = []
    if epochs[peak] > epochs[-1] / 2:
        failed.append(f"the peak is at epoch {epochs[peak]} of {epochs[-1]}, not in the first half")
    if fall.value <= Z_95 * fall.se:
        failed.append(f"the fall from the peak to the end, {format_with_error(fall)} points, is within noise")
    unknown = data.mean_curve(name, "train", UNKNOWN)[1]
    measured = (np.arange(len(dev)) >= peak) & np.isfinite(dev) & np.isfinite(unknown)
    rho = rank_correlation(unknown[measured].tolist(), dev[measured].tolist())
    if not failed and rho >= 0:
        failed.append(
            f"after the peak, dev accuracy does not fall as Unknown rows are fitted (rank correlation {rho:+.2f})"
        )
    success = (
        f"dev accuracy peaks at epoch {epochs[peak]} of {epochs[-1]} and then falls by {format_with_error(fall)} "
        f"points; after the peak, its rank correlation with the share of fitted Unknown rows is {rho:+.2f}"
    )
    return CheckResult(
        not failed, own, describe_failures(failed, success), {"fall_from_peak": confidence_interval(fall)}
    )


@finding(
    "E11",
    claim="At early stop most Known and few Unknown training rows are fitted, at every share",
    paper="Known 59-91 %, Unknown 1-24 %",
    experiments=("fit",),
)
def e11(data: StudyData) -> CheckResult:
    """At early stop, more than half of the Known and less than half of the Unknown rows are fitted, at every share."""
    sweep = data.sweep_variants("unknown", min_shares=2)
    failed, all_known, all_unknown, leads = [], [], [], []
    for share, name in sweep:
        known = data.accuracy(name, EARLY_STOP, "train", ANY_KNOWN) if share < 1 else None
        unknown = data.accuracy(name, EARLY_STOP, "train", UNKNOWN) if share > 0 else None
        at = f"at {format_percent(share)}"
        if known is not None:
            all_known.append(known.value)
            if known.value <= 50:
                failed.append(f"{at}, only {known.value:.0f} % of the Known rows are fitted")
        if unknown is not None:
            all_unknown.append(unknown.value)
            if unknown.value >= 50:
                failed.append(f"{at}, {unknown.value:.0f} % of the Unknown rows are already fitted")
        if known is not None and unknown is not None:
            leads.append(subtract(known, unknown))
            if leads[-1].value <= Z_95 * leads[-1].se:
                failed.append(f"{at}, Known rows do not lead Unknown rows by more than noise")
    if not all_known or not all_unknown:
        raise InsufficientDataError("needs runs with Known and runs with Unknown training rows")
    success = (
        f"at early stop, {min(all_known):.0f}-{max(all_known):.0f} % of the Known and "
        f"{min(all_unknown):.0f}-{max(all_unknown):.0f} % of the Unknown rows are fitted, over {len(sweep)} shares"
    )
    own = {"known": round1_values(all_known), "unknown": round1_values(all_unknown)}
    least = {"smallest_lead": confidence_interval(min(leads, key=lambda lead: lead.value))} if leads else None
    return CheckResult(not failed, own, describe_failures(failed, success), least)


@finding(
    "E12",
    claim="In a linear model of test accuracy, fitted Known rows help and fitted Unknown rows hurt",
    paper="b_kn 7.3, b_unk -8.3, R2 0.86",
    experiments=("linear_model",),
)
def e12(data: StudyData) -> CheckResult:
    """b_kn > 0 and b_unk < 0, both with p < 0.05, and R2 is at least 0.5, in distribution."""
    model = _fit_whole_curves(data, "test")
    return _linear_model_result(model, _sign_failures(model))


@finding(
    "E13",
    claim="The same holds out of distribution, with smaller effects",
    paper="b_kn 3.2, b_unk -3.0, R2 0.95",
    experiments=("linear_model", "ood"),
)
def e13(data: StudyData) -> CheckResult:
    """As E12 out of distribution, with both coefficients smaller in absolute value."""
    outside, inside = _fit_whole_curves(data, "ood"), _fit_whole_curves(data, "test")
    failed = _sign_failures(outside)
    for i, name in ((1, "b_kn"), (2, "b_unk")):
        if abs(outside.coefficients[i]) >= abs(inside.coefficients[i]):
            failed.append(f"{name} is {outside.coefficients[i]:+.1f}, not smaller than in distribution")
    return _linear_model_result(outside, failed)


def first_epoch_reaching(epochs: NDArray[np.int64], curve: NDArray[np.float64], level: float = 50.0) -> int | None:
    """The first epoch at which the curve reaches the level; None if it never does.

    >>> first_epoch_reaching(np.array([1, 2, 3]), np.array([10.0, 60.0, 80.0]))
    2
    """
    reached = np.flatnonzero(curve >= level)
    return int(epochs[reached[0]]) if len(reached) else None


def _fit_whole_curves(data: StudyData, split: str) -> LinearFit:
    """The linear model with one data point per epoch and run.

    Raises:
        InsufficientDataError: as `fit_linear_model`, or a run has fewer than `MIN_EPOCHS` measured epochs.
    """
    runs, num = np.unique(regression_sample(data, split).runs_P, return_counts=True)
    if num.min() < MIN_EPOCHS:
        raise InsufficientDataError(
            f"the linear model needs at least {MIN_EPOCHS} epochs with both train and {split} accuracy per run; "
            f"run {runs[num.argmin()]} has {num.min()} epochs"
        )
    return fit_linear_model(data, split)


def _sign_failures(model: LinearFit) -> list[str]:
    failed = []
    for i, name, sign in ((1, "b_kn", 1), (2, "b_unk", -1)):
        value, p_value = model.coefficients[i], model.p_values[i]
        if sign * value <= 0 or p_value >= 0.05:
            failed.append(f"{name} is {value:+.1f} (p = {p_value:.2g})")
    if model.r_squared < MIN_R_SQUARED:
        failed.append(f"R2 is {model.r_squared:.2f}, below {MIN_R_SQUARED}")
    return failed


def _linear_model_result(model: LinearFit, failed: list[str]) -> CheckResult:
    own = dict(zip(("b0", "b_kn", "b_unk"), round1_values(model.coefficients), strict=True))
    parts = [
        f"{name} {model.coefficients[i]:+.1f} (95 % interval {model.low[i]:+.1f} to {model.high[i]:+.1f})"
        for i, name in ((1, "b_kn"), (2, "b_unk"))
    ]
    success = f"{', '.join(parts)}, R2 {model.r_squared:.2f}, over {model.num_points} epochs of {model.num_runs} runs"
    intervals = {name: [round(model.low[i], 2), round(model.high[i], 2)] for i, name in ((1, "b_kn"), (2, "b_unk"))}
    own["r_squared"] = round(model.r_squared, 2)
    return CheckResult(not failed, own, describe_failures(failed, success), intervals)
