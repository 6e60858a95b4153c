"""E14-E19 and E25: fine-tuning on one category at a time, and what is answered of each. Pure."""

import itertools

from slick.analysis.data import StudyData
from slick.analysis.significance import paired_p_value
from slick.analysis.terms import EARLY, LAST, Cell, NotTestable
from slick.analysis.verdict import Verdict, Z, failures, minus, points, rounded, when_label
from slick.types import Category

TABLE_2 = ("highlyknown", "maybeknown", "weaklyknown", "unknown-100", "natural")
"""The variants of the paper's table 2; D_Unknown is the sweep's last."""

LABELS = {
    "highlyknown": "D_HighlyKnown",
    "maybeknown": "D_MaybeKnown",
    "weaklyknown": "D_WeaklyKnown",
    "unknown-100": "D_Unknown",
    "natural": "D_Natural",
}

UNKNOWN_BOUND = 3.2
"""The paper's highest accuracy on Unknown test questions, percent."""


def e14(data: StudyData) -> Verdict:
    """D_MaybeKnown is within one standard error of the best at both checkpoints, and clearly above the worst."""
    need(data, *TABLE_2)
    failed = []
    own = {when: round(data.accuracy("maybeknown", when).value, 1) for when in (EARLY, LAST)}
    for when in (EARLY, LAST):
        leads = {name: data.difference(("maybeknown", when), (name, when)) for name in TABLE_2 if name != "maybeknown"}
        for name, lead in leads.items():
            if lead.value < -lead.se:
                failed.append(f"at {when_label(when)} {LABELS[name]} is {points(negative(lead))} points higher")
        best = max(leads.values(), key=lambda lead: lead.value / max(lead.se, 1e-9))
        if best.value <= Z * best.se:
            failed.append(f"at {when_label(when)} it is above none of the others by more than noise")
    good = "at both checkpoints no other variant is higher by more than one standard error, and some are clearly lower"
    return Verdict(not failed, own, failures(failed, good))


def e15(data: StudyData) -> Verdict:
    """At early stop D_MaybeKnown beats D_HighlyKnown on MaybeKnown rows, with no clear loss on HighlyKnown ones."""
    need(data, "maybeknown", "highlyknown")
    sides = ("maybeknown", EARLY), ("highlyknown", EARLY)
    gain = data.difference(*sides, category=Category.MAYBE_KNOWN)
    loss = negative(data.difference(*sides, category=Category.HIGHLY_KNOWN))
    failed = []
    if gain.value <= Z * gain.se:
        failed.append(f"the gain on MaybeKnown questions is {points(gain)} points, not above noise")
    if loss.value > Z * loss.se:
        failed.append(f"the loss on HighlyKnown questions is {points(loss)} points, above noise")
    own = {"MaybeKnown_gain": round(gain.value, 1), "HighlyKnown_loss": round(loss.value, 1)}
    good = f"at early stop it gains {points(gain)} points on MaybeKnown questions, loses {points(loss)} on HighlyKnown"
    return Verdict(not failed, own, failures(failed, good))


def e16(data: StudyData) -> Verdict:
    """Losses to convergence are in the paper's order; ties within one standard error pass, the ends differ."""
    need(data, *TABLE_2)
    loss = {name: data.difference((name, EARLY), (name, LAST)) for name in TABLE_2}
    order = ("unknown-100", "weaklyknown", "natural", "highlyknown", "maybeknown")
    steps = [*itertools.pairwise(order[:4]), ("natural", "maybeknown")]
    failed = []
    for larger, smaller in steps:
        gap = minus(loss[larger], loss[smaller])
        if gap.value < -gap.se:
            failed.append(f"{LABELS[smaller]} loses {points(negative(gap))} points more than {LABELS[larger]}")
    ends = minus(loss["unknown-100"], loss["maybeknown"])
    if ends.value <= Z * ends.se:
        failed.append(f"D_Unknown loses {points(ends)} points more than D_MaybeKnown, which is within noise")
    said = ", ".join(f"{LABELS[name]} {points(loss[name])}" for name in order)
    return Verdict(not failed, rounded([loss[name].value for name in order]), failures(failed, f"losses: {said}"))


def e17(data: StudyData) -> Verdict:
    """D_WeaklyKnown and D_Unknown lose on HighlyKnown and MaybeKnown rows, and not on the other two, beyond noise."""
    need(data, "weaklyknown", "unknown-100")
    failed, own = [], {}
    for name in ("weaklyknown", "unknown-100"):
        changes = {str(c): data.difference((name, LAST), (name, EARLY), category=c) for c in Category}
        own[LABELS[name]] = rounded([change.value for change in changes.values()])
        for category, change in changes.items():
            must_fall = category in (Category.HIGHLY_KNOWN, Category.MAYBE_KNOWN)
            falls = change.value < -Z * change.se
            if must_fall != falls:
                verb = "does not clearly fall" if must_fall else "falls"
                failed.append(f"{LABELS[name]} {verb} on {category} questions ({change.value:+.1f} ± {change.se:.1f})")
    good = "changes to convergence on HighlyKnown, MaybeKnown, WeaklyKnown, Unknown questions: " + "; ".join(
        f"{name} {', '.join(f'{value:+.1f}' for value in values)}" for name, values in own.items()
    )
    return Verdict(not failed, own, failures(failed, good))


def e18(data: StudyData) -> Verdict:
    """Accuracy is in the order of the categories for every variant and checkpoint; reversals within noise pass."""
    beside = {n for n, v in data.variants.items() if v.kind in ("idk", "concentrated")}
    names = sorted({run.variant for run in data.runs} - beside)
    failed, rows = [], 0
    for name in names:
        for when in (EARLY, LAST):
            cells = _by_category(data, name, when)
            if cells is None:
                continue
            rows += 1
            for (upper, above), (lower, below) in itertools.pairwise(cells):
                gap = minus(below, above)
                if gap.value > Z * gap.se:
                    failed.append(f"{name} at {when_label(when)}: {lower} is {points(gap)} points above {upper}")
    if not rows:
        raise NotTestable("needs runs with accuracy on all four categories of test questions")
    good = f"in order, up to two standard errors, in all {rows} rows (variant x checkpoint)"
    return Verdict(not failed, {"rows": rows, "reversed": len(failed)}, failures(failed, good))


def e19(data: StudyData) -> Verdict:
    """Accuracy on Unknown rows is at most the paper's 3.2 % plus 1.64 binomial standard errors."""
    worst: tuple[float, str, float] | None = None
    for name in (name for name in TABLE_2 if data.has(name)):
        for when in (EARLY, LAST):
            value = data.accuracy(name, when, category=Category.UNKNOWN).value
            rows = data.runs_of(name)[0].num["test", Category.UNKNOWN]
            bound = UNKNOWN_BOUND + 1.64 * (UNKNOWN_BOUND * (100 - UNKNOWN_BOUND) / rows) ** 0.5
            if worst is None or value - bound > worst[0]:
                worst = (value - bound, f"{LABELS[name]} at {when_label(when)}", value)
    if worst is None:
        raise NotTestable(f"needs a finished run of one of {', '.join(TABLE_2)}")
    excess, where, value = worst
    said = (
        f"the highest is {value:.1f} % ({where}); the bound, the paper's 3.2 % and its noise, is {value - excess:.1f} %"
    )
    return Verdict(excess <= 0, round(value, 1), failures([said] if excess > 0 else [], said))


def e25(data: StudyData, num_chunks: int = 100, seed: int = 0) -> Verdict:
    """Early stop against convergence, t-test over chunks: p >= 0.05 for D_MaybeKnown, p < 0.01 for the others."""
    need(data, *TABLE_2)
    failed, p_values = [], {}
    for name in TABLE_2:
        early, last = data.mean_hits(name, EARLY, "test"), data.mean_hits(name, LAST, "test")
        if early is None or last is None or len(early) < 2:
            raise NotTestable(f"the runs of {name} kept no predictions at both checkpoints")
        p_value = paired_p_value(early, last, num_chunks, seed)
        p_values[LABELS[name]] = float(f"{p_value:.2g}")
        fell = early.mean() > last.mean()
        if name == "maybeknown" and p_value < 0.05:
            failed.append(f"{LABELS[name]} differs (p = {p_value:.2g})")
        if name != "maybeknown" and not (p_value < 0.01 and fell):
            failed.append(f"{LABELS[name]} {'does not fall' if not fell else 'falls'} with p = {p_value:.2g}")
    good = "p of each: " + ", ".join(f"{name} {value:.2g}" for name, value in p_values.items())
    return Verdict(not failed, p_values, failures(failed, good))


def need(data: StudyData, *names: str) -> None:
    """Raise NotTestable that names all variants without a finished run."""
    missing = [name for name in names if not data.has(name)]
    if missing:
        raise NotTestable(f"needs finished runs of {', '.join(missing)}")


def negative(cell: Cell) -> Cell:
    """The same difference, seen from the other side."""
    return Cell(-cell.value, cell.se, cell.num_seeds)


def _by_category(data: StudyData, name: str, when: str) -> list[tuple[str, Cell]] | None:
    if any(("test", str(category)) not in run.accuracy for run in data.runs_of(name) for category in Category):
        return None
    return [(str(category), data.accuracy(name, when, category=category)) for category in Category]
