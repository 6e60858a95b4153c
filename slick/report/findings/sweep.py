"""E3-E8 and E23: accuracy against the share of Unknown rows, by training length, with and without those rows. Pure."""

from slick.report.data import StudyData
from slick.report.findings.base import CheckResult, describe_failures, finding
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    CheckpointRef,
    InsufficientDataError,
    Measurement,
    bonferroni_z,
    checkpoint_label,
    confidence_interval,
    format_percent,
    format_with_error,
    mean_measurement,
    rank_correlation,
    require_power,
    round1,
    round1_values,
    subtract,
)

SMALL_LOSS_POINTS = 1.5
"""Points that count as a small loss: the largest one of D_Known in the paper."""


def training_lengths(data: StudyData) -> list[CheckpointRef]:
    """Every training length that is judged: early stop, the fixed ones, convergence."""
    return [EARLY_STOP, *data.durations[:-1], CONVERGENCE]


@finding(
    "E3",
    claim="Accuracy falls with the share of Unknown training rows, at every training length",
    paper="early stop 43.9 to 37.5; convergence 42.6 to 25.8",
    experiments=("unknown_ratio",),
)
def e3(data: StudyData) -> CheckResult:
    """Accuracy falls with the share of Unknown rows at every training length."""
    sweep = data.sweep_variants("unknown", min_shares=3)
    shares = [share for share, _ in sweep]
    failed: list[str] = []
    rhos: list[float] = []
    own: dict[str, list[float]] = {}
    for checkpoint in training_lengths(data):
        values = [data.accuracy(name, checkpoint).value for _, name in sweep]
        rho = rank_correlation(shares, values)
        rhos.append(rho)
        if checkpoint in (EARLY_STOP, CONVERGENCE):
            own[str(checkpoint)] = round1_values([values[0], values[-1]])
        if rho >= 0 or values[-1] >= values[0]:
            first, last = round1(values[0]), round1(values[-1])
            failed.append(f"at {checkpoint_label(checkpoint)} rank correlation {rho:+.2f}, {first:.1f} to {last:.1f}")
    early, fall = (
        data.difference((sweep[0][1], checkpoint), (sweep[-1][1], checkpoint))
        for checkpoint in (EARLY_STOP, CONVERGENCE)
    )
    if fall.value <= Z_95 * fall.se:
        failed.append(f"the fall at convergence, {format_with_error(fall)} points, is within noise")
    good = (
        f"rank correlation with the share {min(rhos):+.2f} to {max(rhos):+.2f} at all {len(rhos)} training lengths; "
        f"from {format_percent(shares[0])} to {format_percent(shares[-1])} Unknown, convergence falls by "
        f"{format_with_error(fall)} points"
    )
    own_intervals = {"fall_at_early_stop": confidence_interval(early), "fall_at_convergence": confidence_interval(fall)}
    return CheckResult(not failed, own, describe_failures(failed, good), own_intervals)


@finding(
    "E4",
    claim="Early stopping is at least as good as training on, and convergence is worst",
    paper="early stop above convergence by 1.3 to 11.7 at all 7 shares",
    experiments=("unknown_ratio",),
)
def e4(data: StudyData) -> CheckResult:
    """Early stop is at least as good as every later epoch, and convergence the worst, beyond the noise of all together.

    The paper calls early stop "usually" best, over 7 shares and 5 lengths; its own curves have a reversal of 0.2
    points. Some 60 comparisons at two standard errors each would reverse one by chance alone in most studies, so a
    reversal counts beyond `family_z` of their number; the mean loss from early stop to convergence must be clear at
    two.
    """
    sweep = data.sweep_variants("unknown", min_shares=2)
    gaps, said = [], []
    for share, name in sweep:
        gaps.append(data.difference((name, EARLY_STOP), (name, CONVERGENCE)))
        later: list[CheckpointRef] = [
            epoch for epoch in data.durations[:-1] if epoch > data.mean_epoch(name, EARLY_STOP)
        ]
        pairs: list[tuple[CheckpointRef, CheckpointRef]] = [
            *((epoch, EARLY_STOP) for epoch in [*later, CONVERGENCE]),
            *((CONVERGENCE, e) for e in later),
        ]
        said += [(data.difference((name, a), (name, b)), share, a, b) for a, b in pairs]
    reach = bonferroni_z(len(said))
    failed = [
        f"at {format_percent(share)}, {checkpoint_label(above)} is {format_with_error(gain)} points above "
        f"{checkpoint_label(below)}"
        for gain, share, above, below in said
        if gain.value > reach * gain.se
    ]
    mean = mean_measurement(gaps)
    if mean.value <= Z_95 * mean.se:
        failed.append(
            f"the mean loss from early stop to convergence, {format_with_error(mean)} points, is within noise"
        )
    good = (
        f"no later epoch is above early stop, and none below convergence, by more than the {reach:.1f} standard errors "
        f"that {len(said)} comparisons take; mean loss from early stop to convergence {format_with_error(mean)} "
        f"points over "
        f"{len(sweep)} shares"
    )
    own = round1_values([gap.value for gap in gaps])
    return CheckResult(not failed, own, describe_failures(failed, good), {"mean_loss": confidence_interval(mean)})


@finding(
    "E5",
    claim="The loss from early stop to convergence grows with the share of Unknown rows",
    paper=[1.3, 1.6, 2.7, 4.2, 5.5, 8.0, 11.7],
    experiments=("unknown_ratio",),
)
def e5(data: StudyData) -> CheckResult:
    """The loss from early stop to convergence grows with the share."""
    sweep = data.sweep_variants("unknown", min_shares=3)
    gaps = [data.difference((name, EARLY_STOP), (name, CONVERGENCE)) for _, name in sweep]
    return _check_growth([share for share, _ in sweep], gaps, "loss from early stop to convergence")


@finding(
    "E6",
    claim="At early stop, Unknown rows are neutral: D and D_Known are about equal",
    paper="differences 0.0 to 0.8",
    experiments=("unknown_ratio",),
)
def e6(data: StudyData) -> CheckResult:
    """At early stop, |D - D_Known| is within 1.5 points, or within the noise of all shares together, at every share.

    "About equal" is asked of every share, so one difference counts beyond `family_z` of their number.
    """
    pairs = known_only_pairs(data)
    gaps = [data.difference((known, EARLY_STOP), (unknown, EARLY_STOP)) for _, known, unknown in pairs]
    require_power(gaps)
    reach = bonferroni_z(len(gaps))
    failed = [
        f"at {format_percent(share)} D_Known - D is {format_with_error(gap)} points"
        for (share, _, _), gap in zip(pairs, gaps, strict=True)
        if abs(gap.value) > max(SMALL_LOSS_POINTS, reach * gap.se)
    ]
    largest = max(gaps, key=lambda gap: abs(gap.value))
    good = (
        f"D_Known - D is within {SMALL_LOSS_POINTS} points or {reach:.1f} standard errors at every share; "
        f"the largest is {format_with_error(largest)}"
    )
    own = round1_values([gap.value for gap in gaps])
    return CheckResult(not failed, own, describe_failures(failed, good), _intervals_by_share(pairs, gaps))


@finding(
    "E7",
    claim="At convergence, D is below D_Known, by a gap that grows with the share of Unknown rows",
    paper=[0.2, 1.1, 2.7, 4.2, 7.8],
    experiments=("unknown_ratio",),
)
def e7(data: StudyData) -> CheckResult:
    """At convergence D_Known - D is positive and grows with the share."""
    pairs = known_only_pairs(data)
    if len(pairs) < 2:
        raise InsufficientDataError("needs D and D_Known at two shares or more")
    gaps = [data.difference((known, CONVERGENCE), (unknown, CONVERGENCE)) for _, known, unknown in pairs]
    grown = _check_growth([share for share, _, _ in pairs], gaps, "gap D_Known - D at convergence")
    mean = mean_measurement(gaps)
    if mean.value <= Z_95 * mean.se:
        why = f"the mean gap D_Known - D at convergence, {format_with_error(mean)} points, is not above noise"
        return CheckResult(False, grown.own, why, {"mean_gap": confidence_interval(mean)})
    intervals = {"rise": confidence_interval(subtract(gaps[-1], gaps[0])), "mean_gap": confidence_interval(mean)}
    return CheckResult(grown.holds, grown.own, f"{grown.why}; its mean is {format_with_error(mean)}", intervals)


@finding(
    "E8",
    claim="Without its Unknown rows, D loses little between early stop and convergence, at every share",
    paper="0.9 to 1.5",
    experiments=("unknown_ratio",),
)
def e8(data: StudyData) -> CheckResult:
    """D_Known loses little: not clearly over half of D's mean loss (or 1.5 points), and clearly less than D.

    Half of D's loss is the judgement's own bound, as "little" has no size on another model. The bound is held to noise
    like any other; in return the mean must be clearly below D's, or data that tell nothing would pass. From 50 % on, no
    share may lose clearly more than D.
    """
    pairs = known_only_pairs(data)
    known_loss = [data.difference((known, EARLY_STOP), (known, CONVERGENCE)) for _, known, _ in pairs]
    d_loss = [data.difference((unknown, EARLY_STOP), (unknown, CONVERGENCE)) for _, _, unknown in pairs]
    mean_known, mean_d = mean_measurement(known_loss), mean_measurement(d_loss)
    limit = max(mean_d.value / 2, SMALL_LOSS_POINTS)
    failed = []
    if mean_known.value - limit > Z_95 * mean_known.se:
        failed.append(
            f"D_Known loses {format_with_error(mean_known)} points on average, over {limit:.1f} (D loses "
            f"{format_with_error(mean_d)})"
        )
    healed = subtract(mean_d, mean_known)
    if healed.value <= Z_95 * healed.se:
        failed.append(
            f"D loses {format_with_error(mean_d)} points on average and D_Known {format_with_error(mean_known)}, "
            f"not clearly less"
        )
    for (share, _, _), known, whole in zip(pairs, known_loss, d_loss, strict=True):
        excess = subtract(known, whole)
        if share >= 0.5 and excess.value > Z_95 * excess.se:
            failed.append(f"at {format_percent(share)} D_Known loses {format_with_error(excess)} points more than D")
    good = (
        f"D_Known loses {format_with_error(mean_known)} points on average, "
        f"D {format_with_error(mean_d)}; limit {limit:.1f}"
    )
    intervals = {
        "D_Known_loses": confidence_interval(mean_known),
        "D_loses": confidence_interval(mean_d),
        "D - D_Known": confidence_interval(healed),
    }
    return CheckResult(
        not failed, round1_values([cell.value for cell in known_loss]), describe_failures(failed, good), intervals
    )


@finding(
    "E23",
    claim="D with half Unknown rows does lose between early stop and convergence",
    paper="43.0 to 38.8",
    experiments=(
        "unknown_ratio",
        "idk",
    ),
)
def e23(data: StudyData) -> CheckResult:
    """The 50 % variant loses between early stop and convergence."""
    name = half_unknown_variant(data)
    loss = data.difference((name, EARLY_STOP), (name, CONVERGENCE))
    own = round1_values([data.accuracy(name, EARLY_STOP).value, data.accuracy(name, CONVERGENCE).value])
    holds = loss.value > Z_95 * loss.se
    verb = "loses" if holds else "loses only"
    why = f"{verb} {format_with_error(loss)} points between early stop and convergence; two standard errors are needed"
    return CheckResult(holds, own, why, {"loss": confidence_interval(loss)})


def known_only_pairs(data: StudyData) -> list[tuple[float, str, str]]:
    """(share, D_Known, D) of each share at which both were run.

    Raises:
        NotTestable: there is none.
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
    """The variant with half of its rows Unknown.

    Raises:
        NotTestable: it was not run.
    """
    for share, name in data.sweep_variants("unknown"):
        if abs(share - 0.5) < 0.01:
            return name
    raise InsufficientDataError("needs a finished run of the variant with 50 % Unknown rows")


def _check_growth(shares: list[float], gaps: list[Measurement], what: str) -> CheckResult:
    """The gaps rise in rank with the share, and the last is above the first by more than noise."""
    rho = rank_correlation(shares, [gap.value for gap in gaps])
    rise = subtract(gaps[-1], gaps[0])
    span = f"from {format_percent(shares[0])} to {format_percent(shares[-1])}"
    failed = []
    if rho <= 0:
        failed.append(f"rank correlation of the {what} with the share is {rho:+.2f}")
    if rise.value <= Z_95 * rise.se:
        failed.append(f"{span} the {what} rises by {format_with_error(rise)} points, not above noise")
    good = (
        f"rank correlation of the {what} with the share {rho:+.2f}; {span} it rises by {format_with_error(rise)} points"
    )
    return CheckResult(
        not failed,
        round1_values([gap.value for gap in gaps]),
        describe_failures(failed, good),
        {"rise": confidence_interval(rise)},
    )


def _intervals_by_share(pairs: list[tuple[float, str, str]], gaps: list[Measurement]) -> dict[str, list[float]]:
    return {
        f"at {format_percent(share)}": confidence_interval(gap) for (share, _, _), gap in zip(pairs, gaps, strict=True)
    }
