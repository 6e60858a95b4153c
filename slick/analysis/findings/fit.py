"""E9-E13: how fast Known and Unknown training rows are fitted, and what each fitted row does to test accuracy. Pure."""

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData
from slick.analysis.findings.sweep import half_unknown
from slick.analysis.findings.verdict import (
    Verdict,
    Z,
    failures,
    interval,
    minus,
    percent,
    points,
    rank_correlation,
    rounded,
    tenths,
)
from slick.analysis.statistics.regression import LinearFit, fit, sample
from slick.analysis.terms import EARLY, LAST, POOLED, Cell, NotTestable, When
from slick.types import Category

UNKNOWN = str(Category.UNKNOWN)
MIN_EPOCHS = 3
"""Measured epochs of each run for the linear model to be judged."""

HIGH_R_SQUARED = 0.5
"""The paper's are 0.86 and 0.95; half of the variance is asked for here."""


def e9(data: StudyData) -> Verdict:
    """Unknown rows pass 50 % train accuracy in at least twice the epochs of Known rows, and trail at early stop."""
    name = half_unknown(data)
    last = int(data.mean_curve(name, "train", POOLED)[0][-1])
    known, unknown = (crossing(*data.mean_curve(name, "train", part)) for part in (POOLED, UNKNOWN))
    at_known, at_unknown = fitted(data, name, EARLY, POOLED), fitted(data, name, EARLY, UNKNOWN)
    own = {
        "epoch_known": known,
        "epoch_unknown": unknown,
        "early_stop_known": tenths(at_known.value),
        "early_stop_unknown": tenths(at_unknown.value),
    }
    if known is None:
        return Verdict(False, own, f"not even half of the Known rows are fitted within {last} epochs")
    failed = []
    if unknown is not None and unknown < 2 * known:
        failed.append(
            f"half of the Unknown rows are fitted at epoch {unknown}, less than twice that of the Known ones ({known})"
        )
    lead = minus(at_known, at_unknown)
    if lead.value <= Z * lead.se:
        failed.append(f"at early stop the lead of Known rows is {points(lead)} points")
    said = f"at epoch {unknown}" if unknown is not None else f"not within {last} epochs"
    good = (
        f"half of the Known rows are fitted at epoch {known}, half of the Unknown ones {said}; at early stop "
        f"{at_known.value:.0f} % of Known and {at_unknown.value:.0f} % of Unknown are fitted"
    )
    return Verdict(not failed, own, failures(failed, good), {"lead_at_early_stop": interval(lead)})


def e10(data: StudyData) -> Verdict:
    """Dev accuracy peaks in the first half and ends below by more than noise, falling as Unknown rows are fitted."""
    name = half_unknown(data)
    epochs, dev = data.mean_curve(name, "dev")
    if np.isnan(dev).all():
        raise NotTestable(f"the runs of {name} have no dev accuracy")
    peak = int(np.nanargmax(dev))
    fall = data.difference((name, int(epochs[peak])), (name, LAST), "dev")
    own = {"peak": tenths(dev[peak]), "peak_epoch": int(epochs[peak]), "last": tenths(dev[-1])}
    failed = []
    if epochs[peak] > epochs[-1] / 2:
        failed.append(f"the peak is at epoch {epochs[peak]} of {epochs[-1]}, not in the first half")
    if fall.value <= Z * fall.se:
        failed.append(f"the fall from the peak to the end, {points(fall)} points, is within noise")
    _, unknown = data.mean_curve(name, "train", UNKNOWN)
    both = [i for i in range(peak, len(epochs)) if np.isfinite(dev[i]) and np.isfinite(unknown[i])]
    rho = rank_correlation([unknown[i] for i in both], [dev[i] for i in both])
    if not failed and rho >= 0:
        failed.append(
            f"after the peak, dev accuracy does not fall as Unknown rows are fitted (rank correlation {rho:+.2f})"
        )
    good = (
        f"dev accuracy peaks at epoch {epochs[peak]} of {epochs[-1]} and then falls by {points(fall)} points; "
        f"after the peak its rank correlation with fitted Unknown rows is {rho:+.2f}"
    )
    return Verdict(not failed, own, failures(failed, good), {"fall_from_peak": interval(fall)})


def e11(data: StudyData) -> Verdict:
    """At early stop over half of the Known rows and under half of the Unknown are fitted, at every share."""
    sweep = data.sweep("unknown", least=2)
    failed, all_known, all_unknown, leads = [], [], [], []
    for share, name in sweep:
        known = fitted(data, name, EARLY, POOLED) if share < 1 else None
        unknown = fitted(data, name, EARLY, UNKNOWN) if share > 0 else None
        if known is not None:
            all_known.append(known.value)
            if known.value <= 50:
                failed.append(f"at {percent(share)} only {known.value:.0f} % of Known rows are fitted")
        if unknown is not None:
            all_unknown.append(unknown.value)
            if unknown.value >= 50:
                failed.append(f"at {percent(share)} already {unknown.value:.0f} % of Unknown rows are fitted")
        if known is not None and unknown is not None:
            leads.append(minus(known, unknown))
            if leads[-1].value <= Z * leads[-1].se:
                failed.append(f"at {percent(share)} Known rows are not ahead of Unknown ones")
    if not all_known or not all_unknown:
        raise NotTestable("needs runs with Known and runs with Unknown training rows")
    good = (
        f"at early stop {min(all_known):.0f}-{max(all_known):.0f} % of Known and "
        f"{min(all_unknown):.0f}-{max(all_unknown):.0f} % of Unknown rows are fitted, over {len(sweep)} shares"
    )
    own = {"known": rounded(all_known), "unknown": rounded(all_unknown)}
    least = {"smallest_lead": interval(min(leads, key=lambda lead: lead.value))} if leads else None
    return Verdict(not failed, own, failures(failed, good), least)


def e12(data: StudyData) -> Verdict:
    """b_kn > 0 and b_unk < 0, both with p < 0.05, and R2 of at least 0.5, in distribution."""
    model = _fit(data, "test")
    failed = _wrong_signs(model)
    return Verdict(not failed, _coefficients(model), failures(failed, _fit_words(model)), _intervals(model))


def e13(data: StudyData) -> Verdict:
    """The same out of distribution, both coefficients smaller in size."""
    outside, inside = _fit(data, "ood"), _fit(data, "test")
    failed = _wrong_signs(outside)
    for i, name in ((1, "b_kn"), (2, "b_unk")):
        if abs(outside.coefficients[i]) >= abs(inside.coefficients[i]):
            failed.append(f"{name} is {outside.coefficients[i]:+.1f}, not smaller than in distribution")
    return Verdict(not failed, _coefficients(outside), failures(failed, _fit_words(outside)), _intervals(outside))


def _fit(data: StudyData, split: str) -> LinearFit:
    """The model over whole curves.

    Raises:
        NotTestable: as `regression.fit`, or a run was measured at a few epochs only: the model takes a point an epoch.
    """
    runs, num = np.unique(sample(data, split).runs_P, return_counts=True)
    if num.min() < MIN_EPOCHS:
        raise NotTestable(
            f"the model takes a point an epoch, and run {runs[num.argmin()]} holds {num.min()} epochs with both train "
            f"and {split} accuracy; {MIN_EPOCHS} are the least that make a curve"
        )
    return fit(data, split)


def fitted(data: StudyData, name: str, when: When, part: str) -> Cell:
    """Percentage of a variant's own training rows of one part that the model answers right."""
    return data.accuracy(name, when, "train", part)


def crossing(epochs: NDArray[np.int64], curve: NDArray[np.float64], level: float = 50.0) -> int | None:
    """The first epoch at which the curve reaches the level; None if it never does.

    >>> crossing(np.array([1, 2, 3]), np.array([10.0, 60.0, 80.0]))
    2
    """
    reached = np.flatnonzero(curve >= level)
    return int(epochs[reached[0]]) if len(reached) else None


def _wrong_signs(model: LinearFit) -> list[str]:
    failed = []
    for i, name, sign in ((1, "b_kn", 1), (2, "b_unk", -1)):
        value, p_value = model.coefficients[i], model.p_values[i]
        if sign * value <= 0 or p_value >= 0.05:
            failed.append(f"{name} is {value:+.1f} (p = {p_value:.2g})")
    if model.r_squared < HIGH_R_SQUARED:
        failed.append(f"R2 is {model.r_squared:.2f}, under {HIGH_R_SQUARED}")
    return failed


def _coefficients(model: LinearFit) -> dict[str, float]:
    names = ("b0", "b_kn", "b_unk")
    return dict(zip(names, rounded(model.coefficients), strict=True)) | {"r_squared": round(model.r_squared, 2)}


def _intervals(model: LinearFit) -> dict[str, list[float]]:
    return {name: [round(model.low[i], 2), round(model.high[i], 2)] for i, name in ((1, "b_kn"), (2, "b_unk"))}


def _fit_words(model: LinearFit) -> str:
    parts = [
        f"{name} {model.coefficients[i]:+.1f} (95 % interval {model.low[i]:+.1f} to {model.high[i]:+.1f})"
        for i, name in ((1, "b_kn"), (2, "b_unk"))
    ]
    return f"{', '.join(parts)}, R2 {model.r_squared:.2f}, over {model.num_points} epochs of {model.num_runs} runs"
