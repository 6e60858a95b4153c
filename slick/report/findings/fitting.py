"""E9-E13: how fast Known and Unknown training rows are fitted, and their effect on test accuracy. Pure."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from slick.formatting import format_percent
from slick.report.data import StudyData
from slick.report.findings.base import (
    CheckResult,
    Condition,
    contradiction_z,
    difference_condition,
    finding,
    judge,
    require_rows,
)
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import (
    ANY_KNOWN,
    CONVERGENCE,
    EARLY_STOP,
    MIN_SEEDS,
    Z_95,
    CheckpointRef,
    InsufficientDataError,
    Measurement,
    confidence_interval,
    format_with_error,
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

COEFFICIENT_SIGNS = ((1, "b_kn", 1), (2, "b_unk", -1))
"""Index, name and sign of the coefficients in the paper."""


@finding(
    "E9",
    claim="Unknown training rows are fitted far more slowly than Known ones",
    paper="50 % of Unknown at epoch 19, of Known before 1; at early stop 15-18 % against 78-83 %",
    experiments=("fit",),
)
def e9(data: StudyData) -> CheckResult:
    """Half of the Unknown rows take at least twice as many epochs as half of the Known rows, and trail at early stop.

    The first part is tested at the last epoch before twice that of the Known rows: less than half of the Unknown rows
    are fitted.
    """
    name = half_unknown_variant(data)
    epochs = data.mean_curve(name, "train", ANY_KNOWN)[0]
    known, unknown = (first_epoch_reaching(*data.mean_curve(name, "train", part)) for part in (ANY_KNOWN, UNKNOWN))
    at_known, at_unknown = (data.accuracy(name, EARLY_STOP, "train", part) for part in (ANY_KNOWN, UNKNOWN))
    own = {
        "epoch_known": known,
        "epoch_unknown": unknown,
        "early_stop_known": round1(at_known.value),
        "early_stop_unknown": round1(at_unknown.value),
    }
    if known is None:
        return CheckResult(False, own, f"less than half of the Known rows are fitted within {int(epochs[-1])} epochs")
    before = int(epochs[epochs <= max(2 * known - 1, int(epochs[0]))][-1])
    unfitted = _fitted_condition(
        data, name, before, UNKNOWN, f"at epoch {before}, {{}} % of the Unknown rows are fitted"
    )
    lead = subtract(at_known, at_unknown)
    trail = Condition(
        text=f"at early stop, the share of fitted rows is {format_with_error(lead)} points higher for Known rows",
        value=lead,
        num=min(_num_train_rows(data, name, part) for part in (ANY_KNOWN, UNKNOWN)),
        unit="training rows of each kind",
    )
    when = f"at epoch {unknown}" if unknown is not None else f"not within {int(epochs[-1])} epochs"
    success = (
        f"half of the Known rows are fitted at epoch {known}, half of the Unknown rows {when}; at early stop, "
        f"{at_known.value:.0f} % of the Known and {at_unknown.value:.0f} % of the Unknown rows are fitted"
    )
    low, high = unfitted.interval(Z_95)
    intervals = {
        "lead at early stop": confidence_interval(lead),
        f"Unknown rows fitted at epoch {before}": [round(low, 2), round(high, 2)],
    }
    return judge([unfitted, trail], own, success, intervals)


@finding(
    "E10",
    claim="Dev accuracy peaks early and then falls while Unknown rows are being fitted",
    paper="43.3 near epoch 10, 39.8 at 50",
    experiments=("fit",),
)
def e10(data: StudyData) -> CheckResult:
    """Dev accuracy falls from its peak, which is in the first half; meanwhile, more Unknown rows become fitted.

    The peak is the highest of several epochs, so the bound of its fall has Bonferroni's correction for their number. A
    peak in the second half contradicts the claim if it exceeds all epochs of the first half by that bound.
    """
    name = half_unknown_variant(data)
    epochs, dev = data.mean_curve(name, "dev")
    if np.isnan(dev).all():
        raise InsufficientDataError(f"the runs of {name} have no dev accuracy")
    peak = int(epochs[int(np.nanargmax(dev))])
    middle = epochs[-1] / 2
    num_measured = int(np.isfinite(dev).sum())
    own = {"peak": round1(float(np.nanmax(dev))), "peak_epoch": peak, "last": round1(dev[-1])}
    fall = difference_condition(
        data,
        [(1.0, name, peak), (-1.0, name, CONVERGENCE)],
        f"dev accuracy falls by {{}} points from epoch {peak} to the end",
        split="dev",
    )
    widened = fall.value._replace(se=fall.value.se * contradiction_z(num_measured - 1) / Z_95)
    conditions = [replace(fall, value=widened)]
    early = [int(epoch) for epoch in epochs[(epochs <= middle) & np.isfinite(dev)]]
    if peak > middle and early:
        best = max(early, key=lambda epoch: dev[int(np.flatnonzero(epochs == epoch)[0])])
        late = difference_condition(
            data,
            [(1.0, name, best), (-1.0, name, peak)],
            f"the peak is at epoch {peak} of {int(epochs[-1])}; the best early epoch differs from it by {{}} points",
            split="dev",
        )
        conditions.append(
            replace(late, value=late.value._replace(se=late.value.se * contradiction_z(num_measured) / Z_95))
        )
    fitted = subtract(data.accuracy(name, CONVERGENCE, "train", UNKNOWN), data.accuracy(name, peak, "train", UNKNOWN))
    conditions.append(
        Condition(
            text=f"meanwhile, the share of fitted Unknown rows grows by {format_with_error(fitted)} points",
            value=fitted,
            num=_num_train_rows(data, name, UNKNOWN),
            unit="Unknown training rows",
        )
    )
    success = (
        f"dev accuracy peaks at epoch {peak} of {int(epochs[-1])} and then falls by {format_with_error(fall.value)} "
        f"points, while the share of fitted Unknown rows grows by {format_with_error(fitted)} points"
    )
    return judge(conditions, own, success, {"fall from the peak": confidence_interval(widened)})


@finding(
    "E11",
    claim="At early stop most Known and few Unknown training rows are fitted, at every share",
    paper="Known 59-91 %, Unknown 1-24 %",
    experiments=("fit",),
)
def e11(data: StudyData) -> CheckResult:
    """At early stop, more than half of the Known and less than half of the Unknown rows are fitted, at every share."""
    sweep = data.sweep_variants("unknown", min_shares=2)
    all_known, all_unknown = [], []
    for share, name in sweep:
        at = f"at {format_percent(share)}, "
        if share < 1:
            text = at + "{} % of the Known rows are fitted"
            all_known.append(_fitted_condition(data, name, EARLY_STOP, ANY_KNOWN, text, above=True))
        if share > 0:
            all_unknown.append(
                _fitted_condition(data, name, EARLY_STOP, UNKNOWN, at + "{} % of the Unknown rows are fitted")
            )
    if not all_known or not all_unknown:
        raise InsufficientDataError("needs runs with Known and runs with Unknown training rows")
    known, unknown = ([part.value.value for part in parts] for parts in (all_known, all_unknown))
    success = (
        f"at early stop, {min(known):.0f}-{max(known):.0f} % of the Known and {min(unknown):.0f}-{max(unknown):.0f} % "
        f"of the Unknown rows are fitted, over {len(sweep)} shares"
    )
    ends = [part.interval(Z_95) for part in (*all_known, *all_unknown)]
    intervals = {
        "fewest Known rows": [round(end, 2) for end in min(ends[: len(known)])],
        "most Unknown rows": [round(end, 2) for end in max(ends[len(known) :], key=lambda pair: pair[1])],
    }
    own = {"known": round1_values(known), "unknown": round1_values(unknown)}
    return judge([*all_known, *all_unknown], own, success, intervals)


@finding(
    "E12",
    claim="In a linear model of test accuracy, fitted Known rows help and fitted Unknown rows hurt",
    paper="b_kn 7.3, b_unk -8.3, R2 0.86",
    experiments=("linear_model",),
)
def e12(data: StudyData) -> CheckResult:
    """b_kn > 0 and b_unk < 0, both by more than their errors, and R2 is at least 0.5, in distribution."""
    model = _fit_whole_curves(data, "test")
    return _linear_model_result(model, _sign_conditions(model))


@finding(
    "E13",
    claim="The same holds out of distribution, with smaller effects",
    paper="b_kn 3.2, b_unk -3.0, R2 0.95",
    experiments=("linear_model", "ood"),
)
def e13(data: StudyData) -> CheckResult:
    """As E12 out of distribution, with both coefficients nearer to 0 than in distribution."""
    outside, inside = _fit_whole_curves(data, "ood"), _fit_whole_curves(data, "test")
    conditions = _sign_conditions(outside)
    for i, name, sign in COEFFICIENT_SIGNS:
        gap = subtract(_coefficient(inside, i), _coefficient(outside, i))
        gap = gap._replace(value=sign * gap.value)
        text = f"{name} is {outside.coefficients[i]:+.1f}, and {inside.coefficients[i]:+.1f} in distribution"
        conditions.append(Condition(text=text, value=gap, num=outside.num_runs, unit="runs"))
    return _linear_model_result(outside, conditions)


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
        InsufficientDataError: see `fit_linear_model`, or a run has fewer than `MIN_EPOCHS` measured epochs.
    """
    runs, num = np.unique(regression_sample(data, split).runs_P, return_counts=True)
    if num.min() < MIN_EPOCHS:
        raise InsufficientDataError(
            f"the linear model needs at least {MIN_EPOCHS} epochs with both train and {split} accuracy per run; "
            f"run {runs[num.argmin()]} has {num.min()} epochs"
        )
    return fit_linear_model(data, split)


def _coefficient(model: LinearFit, i: int) -> Measurement:
    """A coefficient; its error is that of its interval, which allows for the small number of runs."""
    return Measurement(model.coefficients[i], (model.high[i] - model.low[i]) / (2 * Z_95), model.num_runs)


def _sign_conditions(model: LinearFit) -> list[Condition]:
    return [
        Condition(
            text=f"{name} is {model.coefficients[i]:+.1f} (p = {model.p_values[i]:.2g})",
            value=_coefficient(model, i),
            above=sign > 0,
            num=model.num_runs,
            unit="runs",
        )
        for i, name, sign in COEFFICIENT_SIGNS
    ]


def _num_train_rows(data: StudyData, name: str, part: str) -> int:
    return data.runs_for(name)[0].num["train", part]


def _fitted_condition(
    data: StudyData, name: str, checkpoint: CheckpointRef, part: str, text: str, above: bool = False
) -> Condition:
    """The condition that less (or more) than half of the training rows are fitted."""
    value, num = data.accuracy(name, checkpoint, "train", part), _num_train_rows(data, name, part)
    kind = "Known" if part == ANY_KNOWN else part
    require_rows(num, f"{kind} training rows of {name}")
    return Condition(
        text=text.format(format_with_error(value)),
        value=value,
        shown=50.0,
        claimed=50.0,
        above=above,
        num=num,
        unit=f"{kind} training rows",
        num_successes=round(value.value / 100 * num) if value.num_seeds < MIN_SEEDS else None,
    )


def _linear_model_result(model: LinearFit, conditions: list[Condition]) -> CheckResult:
    own = dict(zip(("b0", "b_kn", "b_unk"), round1_values(model.coefficients), strict=True))
    own["r_squared"] = round(model.r_squared, 2)
    parts = [
        f"{name} {model.coefficients[i]:+.1f} (95 % interval {model.low[i]:+.1f} to {model.high[i]:+.1f})"
        for i, name, _ in COEFFICIENT_SIGNS
    ]
    success = f"{', '.join(parts)}, R2 {model.r_squared:.2f}, over {model.num_points} epochs of {model.num_runs} runs"
    intervals = {name: [round(model.low[i], 2), round(model.high[i], 2)] for i, name, _ in COEFFICIENT_SIGNS}
    result = judge(conditions, own, success, intervals)
    if result.holds and model.r_squared < MIN_R_SQUARED:
        return result._replace(holds=False, why=f"R2 is {model.r_squared:.2f}, below {MIN_R_SQUARED}")
    return result
