"""E3-E8 and E23: accuracy against the share of Unknown rows, by training length, with and without those rows. Pure."""

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import (
    Verdict,
    Z,
    failures,
    family_z,
    interval,
    mean_cell,
    minus,
    need_power,
    percent,
    points,
    rank_correlation,
    rounded,
    tenths,
    when_label,
)
from slick.analysis.terms import EARLY, LAST, Cell, NotTestable, When

SMALL = 1.5
"""Points that count as a small loss: the largest one of D_Known in the paper."""


def lengths(data: StudyData) -> list[When]:
    """Every training length that is judged: early stop, the fixed ones, convergence."""
    return [EARLY, *data.durations[:-1], LAST]


def e3(data: StudyData) -> Verdict:
    """Accuracy falls with the share of Unknown rows at every training length."""
    sweep = data.sweep("unknown", least=3)
    shares = [share for share, _ in sweep]
    failed: list[str] = []
    rhos: list[float] = []
    own: dict[str, list[float]] = {}
    for when in lengths(data):
        values = [data.accuracy(name, when).value for _, name in sweep]
        rho = rank_correlation(shares, values)
        rhos.append(rho)
        if when in (EARLY, LAST):
            own[str(when)] = rounded([values[0], values[-1]])
        if rho >= 0 or values[-1] >= values[0]:
            first, last = tenths(values[0]), tenths(values[-1])
            failed.append(f"at {when_label(when)} rank correlation {rho:+.2f}, {first:.1f} to {last:.1f}")
    early, fall = (data.difference((sweep[0][1], when), (sweep[-1][1], when)) for when in (EARLY, LAST))
    if fall.value <= Z * fall.se:
        failed.append(f"the fall at convergence, {points(fall)} points, is within noise")
    good = (
        f"rank correlation with the share {min(rhos):+.2f} to {max(rhos):+.2f} at all {len(rhos)} training lengths; "
        f"from {percent(shares[0])} to {percent(shares[-1])} Unknown, convergence falls by {points(fall)} points"
    )
    own_intervals = {"fall_at_early_stop": interval(early), "fall_at_convergence": interval(fall)}
    return Verdict(not failed, own, failures(failed, good), own_intervals)


def e4(data: StudyData) -> Verdict:
    """Early stop is at least as good as every later epoch, and convergence the worst, beyond the noise of all together.

    The paper calls early stop "usually" best, over 7 shares and 5 lengths; its own curves have a reversal of 0.2
    points. Some 60 comparisons at two standard errors each would reverse one by chance alone in most studies, so a
    reversal counts beyond `family_z` of their number; the mean loss from early stop to convergence must be clear at
    two.
    """
    sweep = data.sweep("unknown", least=2)
    gaps, said = [], []
    for share, name in sweep:
        gaps.append(data.difference((name, EARLY), (name, LAST)))
        later: list[When] = [epoch for epoch in data.durations[:-1] if epoch > data.mean_epoch(name, EARLY)]
        pairs: list[tuple[When, When]] = [*((epoch, EARLY) for epoch in [*later, LAST]), *((LAST, e) for e in later)]
        said += [(data.difference((name, a), (name, b)), share, a, b) for a, b in pairs]
    reach = family_z(len(said))
    failed = [
        f"at {percent(share)}, {when_label(above)} is {points(gain)} points above {when_label(below)}"
        for gain, share, above, below in said
        if gain.value > reach * gain.se
    ]
    mean = mean_cell(gaps)
    if mean.value <= Z * mean.se:
        failed.append(f"the mean loss from early stop to convergence, {points(mean)} points, is within noise")
    good = (
        f"no later epoch is above early stop, and none below convergence, by more than the {reach:.1f} standard errors "
        f"that {len(said)} comparisons take; mean loss from early stop to convergence {points(mean)} points over "
        f"{len(sweep)} shares"
    )
    own = rounded([gap.value for gap in gaps])
    return Verdict(not failed, own, failures(failed, good), {"mean_loss": interval(mean)})


def e5(data: StudyData) -> Verdict:
    """The loss from early stop to convergence grows with the share."""
    sweep = data.sweep("unknown", least=3)
    gaps = [data.difference((name, EARLY), (name, LAST)) for _, name in sweep]
    return _grows([share for share, _ in sweep], gaps, "loss from early stop to convergence")


def e6(data: StudyData) -> Verdict:
    """At early stop, |D - D_Known| is within 1.5 points, or within the noise of all shares together, at every share.

    "About equal" is asked of every share, so one difference counts beyond `family_z` of their number.
    """
    pairs = known_pairs(data)
    gaps = [data.difference((known, EARLY), (unknown, EARLY)) for _, known, unknown in pairs]
    need_power(gaps)
    reach = family_z(len(gaps))
    failed = [
        f"at {percent(share)} D_Known - D is {points(gap)} points"
        for (share, _, _), gap in zip(pairs, gaps, strict=True)
        if abs(gap.value) > max(SMALL, reach * gap.se)
    ]
    largest = max(gaps, key=lambda gap: abs(gap.value))
    good = (
        f"D_Known - D is within {SMALL} points or {reach:.1f} standard errors at every share; "
        f"the largest is {points(largest)}"
    )
    own = rounded([gap.value for gap in gaps])
    return Verdict(not failed, own, failures(failed, good), _at_shares(pairs, gaps))


def e7(data: StudyData) -> Verdict:
    """At convergence D_Known - D is positive and grows with the share."""
    pairs = known_pairs(data)
    if len(pairs) < 2:
        raise NotTestable("needs D and D_Known at two shares or more")
    gaps = [data.difference((known, LAST), (unknown, LAST)) for _, known, unknown in pairs]
    grown = _grows([share for share, _, _ in pairs], gaps, "gap D_Known - D at convergence")
    mean = mean_cell(gaps)
    if mean.value <= Z * mean.se:
        why = f"the mean gap D_Known - D at convergence, {points(mean)} points, is not above noise"
        return Verdict(False, grown.own, why, {"mean_gap": interval(mean)})
    intervals = {"rise": interval(minus(gaps[-1], gaps[0])), "mean_gap": interval(mean)}
    return Verdict(grown.holds, grown.own, f"{grown.why}; its mean is {points(mean)}", intervals)


def e8(data: StudyData) -> Verdict:
    """D_Known loses little: not clearly over half of D's mean loss (or 1.5 points), and clearly less than D.

    Half of D's loss is the judgement's own bound, as "little" has no size on another model. The bound is held to noise
    like any other; in return the mean must be clearly below D's, or data that tell nothing would pass. From 50 % on, no
    share may lose clearly more than D.
    """
    pairs = known_pairs(data)
    known_loss = [data.difference((known, EARLY), (known, LAST)) for _, known, _ in pairs]
    d_loss = [data.difference((unknown, EARLY), (unknown, LAST)) for _, _, unknown in pairs]
    mean_known, mean_d = mean_cell(known_loss), mean_cell(d_loss)
    limit = max(mean_d.value / 2, SMALL)
    failed = []
    if mean_known.value - limit > Z * mean_known.se:
        failed.append(
            f"D_Known loses {points(mean_known)} points on average, over {limit:.1f} (D loses {points(mean_d)})"
        )
    healed = minus(mean_d, mean_known)
    if healed.value <= Z * healed.se:
        failed.append(f"D loses {points(mean_d)} points on average and D_Known {points(mean_known)}, not clearly less")
    for (share, _, _), known, whole in zip(pairs, known_loss, d_loss, strict=True):
        excess = minus(known, whole)
        if share >= 0.5 and excess.value > Z * excess.se:
            failed.append(f"at {percent(share)} D_Known loses {points(excess)} points more than D")
    good = f"D_Known loses {points(mean_known)} points on average, D {points(mean_d)}; limit {limit:.1f}"
    intervals = {"D_Known_loses": interval(mean_known), "D_loses": interval(mean_d), "D - D_Known": interval(healed)}
    return Verdict(not failed, rounded([cell.value for cell in known_loss]), failures(failed, good), intervals)


def e23(data: StudyData) -> Verdict:
    """The 50 % variant loses between early stop and convergence."""
    name = half_unknown(data)
    loss = data.difference((name, EARLY), (name, LAST))
    own = rounded([data.accuracy(name, EARLY).value, data.accuracy(name, LAST).value])
    holds = loss.value > Z * loss.se
    verb = "loses" if holds else "loses only"
    why = f"{verb} {points(loss)} points between early stop and convergence; two standard errors are needed"
    return Verdict(holds, own, why, {"loss": interval(loss)})


def known_pairs(data: StudyData) -> list[tuple[float, str, str]]:
    """(share, D_Known, D) of each share at which both were run.

    Raises:
        NotTestable: there is none.
    """
    unknown = {round(share, 6): name for share, name in data.sweep("unknown")}
    pairs = [
        (share, name, unknown[round(share, 6)]) for share, name in data.sweep("known") if round(share, 6) in unknown
    ]
    if not pairs:
        raise NotTestable("needs runs of D and of its D_Known at the same share of Unknown rows")
    return pairs


def half_unknown(data: StudyData) -> str:
    """The variant with half of its rows Unknown.

    Raises:
        NotTestable: it was not run.
    """
    for share, name in data.sweep("unknown"):
        if abs(share - 0.5) < 0.01:
            return name
    raise NotTestable("needs a finished run of the variant with 50 % Unknown rows")


def _grows(shares: list[float], gaps: list[Cell], what: str) -> Verdict:
    """The gaps rise in rank with the share, and the last is above the first by more than noise."""
    rho = rank_correlation(shares, [gap.value for gap in gaps])
    rise = minus(gaps[-1], gaps[0])
    span = f"from {percent(shares[0])} to {percent(shares[-1])}"
    failed = []
    if rho <= 0:
        failed.append(f"rank correlation of the {what} with the share is {rho:+.2f}")
    if rise.value <= Z * rise.se:
        failed.append(f"{span} the {what} rises by {points(rise)} points, not above noise")
    good = f"rank correlation of the {what} with the share {rho:+.2f}; {span} it rises by {points(rise)} points"
    return Verdict(not failed, rounded([gap.value for gap in gaps]), failures(failed, good), {"rise": interval(rise)})


def _at_shares(pairs: list[tuple[float, str, str]], gaps: list[Cell]) -> dict[str, list[float]]:
    return {f"at {percent(share)}": interval(gap) for (share, _, _), gap in zip(pairs, gaps, strict=True)}
