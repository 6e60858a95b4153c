"""E3-E8 and E23: accuracy by share of Unknown rows and training length, with and without the Unknown rows. Pure."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from slick.formatting import format_percent
from slick.report.data import StudyData
from slick.report.findings.base import (
    NO_CHANGE_MARGIN,
    CheckResult,
    Condition,
    difference_condition,
    finding,
    judge,
)
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    CheckpointRef,
    InsufficientDataError,
    checkpoint_label,
    confidence_interval,
    format_with_error,
    round1,
    round1_values,
)
from slick.types import ALL_CATEGORIES

SMALL_LOSS_POINTS = 1.5
"""The largest loss of D_Known between early stop and convergence in the paper, which calls it small."""

LARGEST_NEUTRAL_DIFFERENCE = 0.8
"""The largest difference between D and D_Known at early stop in the paper, which calls them about equal."""

Terms = list[tuple[float, str, CheckpointRef]]


def training_lengths(data: StudyData) -> list[CheckpointRef]:
    """All training lengths that are tested: early stop, the fixed ones, convergence."""
    return [EARLY_STOP, *data.durations[:-1], CONVERGENCE]


def trend_weights(shares: Sequence[float]) -> list[float]:
    """Weights whose sum with the values is their least-squares slope over the range of the shares.

    The result is in points from the smallest to the largest share, and positive for values that rise.

    >>> [round(weight, 2) for weight in trend_weights([0.0, 0.5, 1.0])]
    [-1.0, 0.0, 1.0]
    """
    x = np.asarray(shares) - np.mean(shares)
    return [float(weight) for weight in x * (max(shares) - min(shares)) / np.sum(x**2)]


@finding(
    "E3",
    claim="Accuracy falls with the share of Unknown training rows, at every training length",
    paper="early stop 43.9 to 37.5; convergence 42.6 to 25.8",
    experiments=("unknown_ratio",),
)
def e3(data: StudyData) -> CheckResult:
    """At every training length, the slope of accuracy over the share of Unknown rows is negative.

    The slope allows small rises between neighbours, which the paper has below 25 %.
    """
    sweep = data.sweep_variants("unknown", min_shares=3)
    weights = trend_weights([share for share, _ in sweep])
    conditions, intervals = [], {}
    for checkpoint in training_lengths(data):
        terms = [(-weight, name, checkpoint) for weight, (_, name) in zip(weights, sweep, strict=True)]
        at = checkpoint_label(checkpoint)
        conditions.append(difference_condition(data, terms, f"at {at}, accuracy falls by {{}} points over the shares"))
        intervals[f"fall at {at}"] = confidence_interval(conditions[-1].value)
    own = {
        str(checkpoint): round1_values([data.accuracy(sweep[i][1], checkpoint).value for i in (0, -1)])
        for checkpoint in (EARLY_STOP, CONVERGENCE)
    }
    falls = [condition.value.value for condition in conditions]
    success = (
        f"at all {len(conditions)} training lengths, accuracy falls with the share, by {round1(min(falls)):.1f} to "
        f"{round1(max(falls)):.1f} points from {format_percent(sweep[0][0])} to {format_percent(sweep[-1][0])} Unknown "
        "rows (slope of a line through all shares)"
    )
    return judge(conditions, own, success, intervals)


@finding(
    "E4",
    claim="Early stopping is at least as good as training on, and convergence is worst",
    paper="early stop above convergence by 1.3 to 11.7 at all 7 shares",
    experiments=("unknown_ratio",),
)
def e4(data: StudyData) -> CheckResult:
    """At every share, early stop is above convergence, and no later epoch is above early stop or below convergence.

    The latter two claim no difference in one direction, so that the margin for claims of no change applies.
    """
    sweep = data.sweep_variants("unknown", min_shares=2)
    conditions, losses = [], []
    for share, name in sweep:
        at = f"at {format_percent(share)}"
        text = f"{at}, accuracy falls by {{}} points from early stop to convergence"
        losses.append(difference_condition(data, loss_terms(name), text))
        later = [epoch for epoch in data.durations[:-1] if epoch > data.mean_epoch(name, EARLY_STOP)]
        for epoch in later:
            for above, below in ((epoch, EARLY_STOP), (CONVERGENCE, epoch)):
                text = f"{at}, {checkpoint_label(above)} is above {checkpoint_label(below)} by {{}} points"
                terms: Terms = [(1.0, name, above), (-1.0, name, below)]
                conditions.append(no_gain_condition(data, terms, text))
    own = round1_values([loss.value.value for loss in losses])
    success = (
        f"at all {len(sweep)} shares, accuracy at early stop is above convergence, by {min(own):.1f} to {max(own):.1f} "
        f"points; in {len(conditions)} comparisons, no later epoch is above early stop or below convergence by "
        f"{NO_CHANGE_MARGIN} points or more"
    )
    mean = data.contrast([term for _, name in sweep for term in scale_terms(loss_terms(name), 1 / len(sweep))])
    intervals = {"mean loss": confidence_interval(mean)} | {
        f"loss at {format_percent(share)}": confidence_interval(loss.value)
        for (share, _), loss in zip(sweep, losses, strict=True)
    }
    return judge([*losses, *conditions], own, success, intervals)


@finding(
    "E5",
    claim="The loss from early stop to convergence grows with the share of Unknown rows",
    paper=[1.3, 1.6, 2.7, 4.2, 5.5, 8.0, 11.7],
    experiments=("unknown_ratio",),
)
def e5(data: StudyData) -> CheckResult:
    """The slope of the loss over the share of Unknown rows is positive."""
    sweep = data.sweep_variants("unknown", min_shares=3)
    growth = _growth_condition(
        data, [(share, loss_terms(name)) for share, name in sweep], "the loss from early stop to convergence"
    )
    own = round1_values([data.contrast(loss_terms(name)).value for _, name in sweep])
    return judge([growth], own, growth.text, {"growth": confidence_interval(growth.value)})


@finding(
    "E6",
    claim="At early stop, Unknown rows are neutral: D and D_Known are about equal",
    paper="differences 0.0 to 0.8",
    experiments=("unknown_ratio",),
)
def e6(data: StudyData) -> CheckResult:
    """At every share, the difference at early stop is within the margin; at convergence, D_Known is above D.

    "About equal" is shown if the interval of the difference lies within the margin, and contradicted if it lies beyond
    the paper's largest difference. The harm at convergence shows that the study could have found a difference.
    """
    pairs = known_only_pairs(data)
    conditions, gaps = [], []
    for share, known, unknown in pairs:
        terms: Terms = [(1.0, known, EARLY_STOP), (-1.0, unknown, EARLY_STOP)]
        gaps.append(data.contrast(terms))
        text = f"at {format_percent(share)}, D_Known - D is {{}} points at early stop"
        conditions += equality_conditions(data, terms, text, claimed=LARGEST_NEUTRAL_DIFFERENCE)
    harm = _mean_gap_condition(data, pairs)
    largest = max(gaps, key=lambda gap: abs(gap.value))
    success = (
        f"D_Known - D is within {NO_CHANGE_MARGIN} points at every share at early stop, at most "
        f"{format_with_error(largest)}; at convergence its mean is {format_with_error(harm.value)}"
    )
    own = round1_values([gap.value for gap in gaps])
    intervals = {
        f"at {format_percent(share)}": confidence_interval(gap) for (share, *_), gap in zip(pairs, gaps, strict=True)
    }
    return judge([*conditions, harm], own, success, intervals)


@finding(
    "E7",
    claim="At convergence, D is below D_Known, by a gap that grows with the share of Unknown rows",
    paper=[0.2, 1.1, 2.7, 4.2, 7.8],
    experiments=("unknown_ratio",),
)
def e7(data: StudyData) -> CheckResult:
    """At convergence, the mean of D_Known - D is positive, and so is its slope over the share."""
    pairs = known_only_pairs(data)
    if len(pairs) < 3:
        raise InsufficientDataError("needs runs of D and of D_Known at 3 or more shares of Unknown rows")
    mean = _mean_gap_condition(data, pairs)
    gaps: list[tuple[float, Terms]] = [
        (share, [(1.0, known, CONVERGENCE), (-1.0, unknown, CONVERGENCE)]) for share, known, unknown in pairs
    ]
    growth = _growth_condition(data, gaps, "the gap D_Known - D at convergence")
    own = round1_values([data.contrast(terms).value for _, terms in gaps])
    intervals = {"mean gap": confidence_interval(mean.value), "growth": confidence_interval(growth.value)}
    return judge([mean, growth], own, f"{mean.text}; {growth.text}", intervals)


@finding(
    "E8",
    claim="Without its Unknown rows, D loses little between early stop and convergence, at every share",
    paper="0.9 to 1.5",
    experiments=("unknown_ratio",),
)
def e8(data: StudyData) -> CheckResult:
    """At every share, D_Known loses at most the paper's 1.5 points; D loses more on average.

    "Little" is shown if the loss is significantly below 1.5 points plus the margin, and contradicted
    if it is significantly above 1.5 points. The loss of D shows that the study could have found a difference.
    """
    pairs = known_only_pairs(data)
    conditions = [
        difference_condition(
            data,
            loss_terms(known),
            f"at {format_percent(share)}, D_Known loses {{}} points",
            shown=SMALL_LOSS_POINTS + NO_CHANGE_MARGIN,
            claimed=SMALL_LOSS_POINTS,
            above=False,
        )
        for share, known, _ in pairs
    ]
    spared = difference_condition(
        data,
        [
            term
            for _, known, unknown in pairs
            for sign, name in ((1.0, unknown), (-1.0, known))
            for term in scale_terms(loss_terms(name), sign / len(pairs))
        ],
        "D loses {} points more than D_Known on average",
    )
    losses = [condition.value.value for condition in conditions]
    success = (
        f"D_Known loses {round1(min(losses)):.1f} to {round1(max(losses)):.1f} points, significantly less than "
        f"{SMALL_LOSS_POINTS + NO_CHANGE_MARGIN:.1f} at every share; {spared.text}"
    )
    intervals = {
        f"D_Known's loss at {format_percent(share)}": confidence_interval(condition.value)
        for (share, *_), condition in zip(pairs, conditions, strict=True)
    } | {"D's loss above D_Known's": confidence_interval(spared.value)}
    return judge([*conditions, spared], round1_values(losses), success, intervals)


@finding(
    "E23",
    claim="D with half Unknown rows does lose between early stop and convergence",
    paper="43.0 to 38.8",
    experiments=("unknown_ratio", "idk"),
)
def e23(data: StudyData) -> CheckResult:
    """The loss of the variant with 50 % Unknown rows is positive."""
    name = half_unknown_variant(data)
    loss = difference_condition(data, loss_terms(name), "accuracy falls by {} points from early stop to convergence")
    own = round1_values([data.accuracy(name, EARLY_STOP).value, data.accuracy(name, CONVERGENCE).value])
    return judge([loss], own, loss.text, {"loss": confidence_interval(loss.value)})


def loss_terms(name: str) -> Terms:
    """The terms of the loss of a variant from early stop to convergence, for `StudyData.contrast`."""
    return [(1.0, name, EARLY_STOP), (-1.0, name, CONVERGENCE)]


def scale_terms(terms: Terms, factor: float) -> Terms:
    """The terms of a multiple of a weighted sum."""
    return [(factor * weight, name, checkpoint) for weight, name, checkpoint in terms]


def no_gain_condition(
    data: StudyData, terms: Terms, text: str, category: str = ALL_CATEGORIES, claimed: float = 0.0
) -> Condition:
    """The condition that a difference is not above the claim: shown below the margin, contradicted above the claim."""
    return difference_condition(
        data, terms, text, category=category, shown=NO_CHANGE_MARGIN, claimed=claimed, above=False
    )


def equality_conditions(data: StudyData, terms: Terms, text: str, claimed: float = 0.0) -> list[Condition]:
    """The two conditions that a difference is about 0 (two one-sided tests).

    Source: D. J. Schuirmann 1987, https://doi.org/10.1007/BF01068419.

    Args:
        data: the data of the study.
        terms: the terms of the difference.
        text: with `{}` in place of the value.
        claimed: the largest difference that agrees with the claim; at most the margin.
    """
    upper = difference_condition(data, terms, text, shown=NO_CHANGE_MARGIN, claimed=claimed, above=False)
    return [upper, replace(upper, shown=-NO_CHANGE_MARGIN, claimed=-claimed, above=True)]


def known_only_pairs(data: StudyData) -> list[tuple[float, str, str]]:
    """(share, D_Known, D) for each share at which both variants were run.

    Raises:
        InsufficientDataError: there is none.
    """
    unknown = {round(share, 6): name for share, name in data.sweep_variants("unknown")}
    pairs = [
        (share, name, unknown[round(share, 6)])
        for share, name in data.sweep_variants("known")
        if round(share, 6) in unknown
    ]
    if not pairs:
        raise InsufficientDataError("needs runs of D and of its D_Known at the same share of Unknown rows")
    return pairs


def half_unknown_variant(data: StudyData) -> str:
    """The variant with 50 % Unknown rows.

    Raises:
        InsufficientDataError: it was not run.
    """
    for share, name in data.sweep_variants("unknown"):
        if abs(share - 0.5) < 0.01:
            return name
    raise InsufficientDataError("needs a finished run of the variant with 50 % Unknown rows")


def _mean_gap_condition(data: StudyData, pairs: list[tuple[float, str, str]]) -> Condition:
    terms = [
        (sign / len(pairs), name, CONVERGENCE)
        for _, known, unknown in pairs
        for sign, name in ((1.0, known), (-1.0, unknown))
    ]
    return difference_condition(data, terms, "at convergence, D_Known is above D by {} points on average")


def _growth_condition(data: StudyData, values: Sequence[tuple[float, Terms]], what: str) -> Condition:
    """The condition that a value, given by its terms at each share, grows with the share."""
    shares = [share for share, _ in values]
    terms = [
        term
        for slope, (_, of_share) in zip(trend_weights(shares), values, strict=True)
        for term in scale_terms(of_share, slope)
    ]
    span = f"from {format_percent(shares[0])} to {format_percent(shares[-1])} Unknown rows"
    return difference_condition(data, terms, f"{what} grows by {{}} points {span}")
