"""E14-E19 and E25: fine-tuning on one category at a time, and accuracy by category of test question. Pure."""

import itertools
from collections.abc import Mapping

from slick.report.data import StudyData
from slick.report.findings.base import CheckResult, describe_failures, finding
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    InsufficientDataError,
    Measurement,
    bonferroni_z,
    checkpoint_label,
    confidence_interval,
    format_with_error,
    round1,
    round1_values,
    subtract,
)
from slick.report.statistics.intervals import paired_p_value
from slick.types import Category

TABLE_2_VARIANTS = ("highlyknown", "maybeknown", "weaklyknown", "unknown-100", "natural")
"""The variants of the paper's table 2. D_Unknown is the variant of the sweep with 100 % Unknown rows."""

VARIANT_LABELS = {
    "highlyknown": "D_HighlyKnown",
    "maybeknown": "D_MaybeKnown",
    "weaklyknown": "D_WeaklyKnown",
    "unknown-100": "D_Unknown",
    "natural": "D_Natural",
}

FORGETTING_CATEGORIES = (Category.HIGHLY_KNOWN, Category.MAYBE_KNOWN)
"""The categories of test questions that lose most when the model is trained on WeaklyKnown or Unknown rows."""

PAPER_MAX_UNKNOWN_ACCURACY = 3.2
"""The paper's highest accuracy on Unknown test questions, percent."""


@finding(
    "E14",
    claim="D_MaybeKnown gives the best test accuracy (tied with D_Natural at early stop)",
    paper="43.6 at early stop, 43.2 at convergence",
    experiments=("categories",),
)
def e14(data: StudyData) -> CheckResult:
    """D_MaybeKnown is below no other variant by more than noise at either checkpoint, and above at least one.

    The paper counts a variant as best if it is not significantly (p < 0.05) below the highest, so the bound is two
    standard errors. The second condition fails on data that is too noisy to show any difference.
    """
    require_variants(data, *TABLE_2_VARIANTS)
    failed, intervals = [], {}
    own = {
        checkpoint: round1(data.accuracy("maybeknown", checkpoint).value) for checkpoint in (EARLY_STOP, CONVERGENCE)
    }
    for checkpoint in (EARLY_STOP, CONVERGENCE):
        leads = {
            name: data.difference(("maybeknown", checkpoint), (name, checkpoint))
            for name in TABLE_2_VARIANTS
            if name != "maybeknown"
        }
        for name, lead in leads.items():
            if lead.value < -Z_95 * lead.se:
                gap = format_with_error(negate(lead))
                failed.append(f"at {checkpoint_label(checkpoint)}, {VARIANT_LABELS[name]} is {gap} points higher")
        rival = min(leads, key=lambda name: leads[name].value)
        intervals[f"lead over {VARIANT_LABELS[rival]} at {checkpoint_label(checkpoint)}"] = confidence_interval(
            leads[rival]
        )
        best = max(leads.values(), key=lambda lead: lead.value / max(lead.se, 1e-9))
        if best.value <= Z_95 * best.se:
            failed.append(f"at {checkpoint_label(checkpoint)}, it is above none of the others by more than noise")
    success = (
        "at both checkpoints, no other variant is higher by more than two standard errors, and at least one is lower"
    )
    return CheckResult(not failed, own, describe_failures(failed, success), intervals)


@finding(
    "E15",
    claim="D_MaybeKnown beats D_HighlyKnown on MaybeKnown questions at no significant cost on HighlyKnown ones",
    paper="MaybeKnown 69.9 against 60.1; HighlyKnown 98.4 against 98.7",
    experiments=("categories",),
)
def e15(data: StudyData) -> CheckResult:
    """At early stop, the gain on MaybeKnown questions exceeds noise and the loss on HighlyKnown ones does not."""
    require_variants(data, "maybeknown", "highlyknown")
    sides = ("maybeknown", EARLY_STOP), ("highlyknown", EARLY_STOP)
    gain = data.difference(*sides, category=Category.MAYBE_KNOWN)
    loss = negate(data.difference(*sides, category=Category.HIGHLY_KNOWN))
    failed = []
    if gain.value <= Z_95 * gain.se:
        failed.append(f"the gain on MaybeKnown questions, {format_with_error(gain)} points, does not exceed noise")
    if loss.value > Z_95 * loss.se:
        failed.append(f"the loss on HighlyKnown questions, {format_with_error(loss)} points, exceeds noise")
    own = {"MaybeKnown_gain": round1(gain.value), "HighlyKnown_loss": round1(loss.value)}
    success = (
        f"at early stop, it gains {format_with_error(gain)} points on MaybeKnown questions and loses "
        f"{format_with_error(loss)} points on HighlyKnown questions"
    )
    intervals = {"MaybeKnown_gain": confidence_interval(gain), "HighlyKnown_loss": confidence_interval(loss)}
    return CheckResult(not failed, own, describe_failures(failed, success), intervals)


@finding(
    "E16",
    claim="The loss to convergence is ordered Unknown > WeaklyKnown > Natural > HighlyKnown, MaybeKnown",
    paper=[11.7, 3.8, 1.7, 0.5, 0.4],
    experiments=("categories",),
)
def e16(data: StudyData) -> CheckResult:
    """No neighbors of the paper's order are reversed by more than noise, and the first and last differ by more.

    The paper prints no errors of these losses, and its last two are 0.1 points apart. The bound is two standard errors,
    as for every difference; at one standard error, equal neighbors would fail one time in six.
    """
    require_variants(data, *TABLE_2_VARIANTS)
    loss = {name: data.difference((name, EARLY_STOP), (name, CONVERGENCE)) for name in TABLE_2_VARIANTS}
    order = ("unknown-100", "weaklyknown", "natural", "highlyknown", "maybeknown")
    steps = [*itertools.pairwise(order[:4]), ("natural", "maybeknown")]
    failed = []
    for larger, smaller in steps:
        gap = subtract(loss[larger], loss[smaller])
        if gap.value < -Z_95 * gap.se:
            failed.append(
                f"{VARIANT_LABELS[smaller]} loses {format_with_error(negate(gap))} points more than "
                f"{VARIANT_LABELS[larger]}"
            )
    ends = subtract(loss["unknown-100"], loss["maybeknown"])
    if ends.value <= Z_95 * ends.se:
        failed.append(f"D_Unknown loses {format_with_error(ends)} points more than D_MaybeKnown, which is within noise")
    losses = ", ".join(f"{VARIANT_LABELS[name]} {format_with_error(loss[name])}" for name in order)
    own = round1_values([loss[name].value for name in order])
    why = describe_failures(failed, f"losses in points: {losses}")
    return CheckResult(not failed, own, why, {"D_Unknown - D_MaybeKnown": confidence_interval(ends)})


@finding(
    "E17",
    claim="D_WeaklyKnown and D_Unknown lose on HighlyKnown and MaybeKnown questions, not on WeaklyKnown and Unknown "
    "ones",
    paper="D_Unknown: HighlyKnown 95.6 to 55.8, MaybeKnown 52.9 to 36.6, WeaklyKnown 6.5 to 12.2, Unknown 0.6 to 3.2",
    experiments=("categories",),
)
def e17(data: StudyData) -> CheckResult:
    """Accuracy falls on HighlyKnown and on MaybeKnown questions, and on no other category by more than noise.

    The paper says that the loss is "mostly" on HighlyKnown and MaybeKnown questions. Both must fall, and the two
    together by more than noise: a small MaybeKnown set could not show it alone. That the other two do not fall is one
    claim of four comparisons, so its bound is Bonferroni's.
    """
    require_variants(data, "weaklyknown", "unknown-100")
    failed, own, intervals = [], {}, {}
    for name in ("weaklyknown", "unknown-100"):
        label = VARIANT_LABELS[name]
        changes = {c: data.difference((name, CONVERGENCE), (name, EARLY_STOP), category=c) for c in Category}
        own[label] = round1_values([change.value for change in changes.values()])
        intervals[label] = {str(category): confidence_interval(change) for category, change in changes.items()}
        both = _pooled_change(data, name, {c: changes[c] for c in FORGETTING_CATEGORIES})
        failed += [
            f"{label} changes by {format_with_error(changes[c])} points on {c} questions"
            for c in FORGETTING_CATEGORIES
            if changes[c].value >= 0
        ]
        if both.value >= -Z_95 * both.se:
            failed.append(
                f"{label} changes by {format_with_error(both)} points on HighlyKnown and MaybeKnown questions together"
            )
        failed += [
            f"{label} falls by {format_with_error(negate(change))} points on {category} questions"
            for category, change in changes.items()
            if category not in FORGETTING_CATEGORIES and change.value < -bonferroni_z(4) * change.se
        ]
    success = "changes to convergence on HighlyKnown, MaybeKnown, WeaklyKnown, Unknown questions: " + "; ".join(
        f"{name} {', '.join(f'{value:+.1f}' for value in values)}" for name, values in own.items()
    )
    return CheckResult(not failed, own, describe_failures(failed, success), intervals)


def _pooled_change(data: StudyData, name: str, changes: Mapping[Category, Measurement]) -> Measurement:
    """The change on all questions of several categories. Categories are disjoint, so their errors are independent."""
    num = {category: data.runs_for(name)[0].num["test", category] for category in changes}
    weights = {category: num[category] / sum(num.values()) for category in changes}
    return Measurement(
        sum(weights[category] * change.value for category, change in changes.items()),
        sum((weights[category] * change.se) ** 2 for category, change in changes.items()) ** 0.5,
        min(change.num_seeds for change in changes.values()),
    )


@finding(
    "E18",
    claim="Test accuracy is ordered HighlyKnown > MaybeKnown > WeaklyKnown > Unknown, for every variant and checkpoint",
    paper="all 10 rows of table 2",
    experiments=("categories",),
)
def e18(data: StudyData) -> CheckResult:
    """No neighboring categories are reversed, for any variant and checkpoint, by more than the Bonferroni bound.

    With two standard errors for each pair, 1 in 20 equal neighbors would fail.
    """
    excluded = {name for name, variant in data.variants.items() if variant.kind in ("idk", "concentrated")}
    names = sorted({run.variant for run in data.runs} - excluded)
    rows, gaps = 0, []
    for name in names:
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            cells = _category_accuracies(data, name, checkpoint)
            if cells is None:
                continue
            rows += 1
            for (upper, above), (lower, below) in itertools.pairwise(cells):
                gaps.append(
                    (subtract(below, above), f"{name} at {checkpoint_label(checkpoint)}: {lower} is", f"above {upper}")
                )
    if not rows:
        raise InsufficientDataError("needs runs with accuracy on all four categories of test questions")
    bound = bonferroni_z(len(gaps))
    failed = [
        f"{lower} {format_with_error(gap)} points {upper}" for gap, lower, upper in gaps if gap.value > bound * gap.se
    ]
    success = (
        f"in order for all {rows} combinations of variant and checkpoint; no pair of {len(gaps)} is reversed by more "
        f"than {bound:.1f} standard errors"
    )
    least = {"smallest_step": confidence_interval(negate(max((gap for gap, _, _ in gaps), key=lambda gap: gap.value)))}
    return CheckResult(not failed, {"rows": rows, "reversed": len(failed)}, describe_failures(failed, success), least)


@finding(
    "E19",
    claim="Accuracy on Unknown test questions stays near 0",
    paper="at most 3.2",
    experiments=("categories",),
)
def e19(data: StudyData) -> CheckResult:
    """Accuracy on Unknown questions is at most the paper's 3.2 % plus 1.64 binomial standard errors."""
    worst: tuple[float, str, float, int] | None = None
    for name in (name for name in TABLE_2_VARIANTS if data.has_run(name)):
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            value = data.accuracy(name, checkpoint, category=Category.UNKNOWN).value
            rows = data.runs_for(name)[0].num["test", Category.UNKNOWN]
            bound = (
                PAPER_MAX_UNKNOWN_ACCURACY
                + 1.64 * (PAPER_MAX_UNKNOWN_ACCURACY * (100 - PAPER_MAX_UNKNOWN_ACCURACY) / rows) ** 0.5
            )
            if worst is None or value - bound > worst[0]:
                worst = (value - bound, f"{VARIANT_LABELS[name]} at {checkpoint_label(checkpoint)}", value, rows)
    if worst is None:
        raise InsufficientDataError(f"needs a finished run of one of {', '.join(TABLE_2_VARIANTS)}")
    excess, where, value, rows = worst
    why = (
        f"the highest accuracy is {round1(value):.1f} % ({where}); the bound, the paper's 3.2 % plus noise, is "
        f"{round1(value - excess):.1f} %"
    )
    from scipy.stats import binomtest

    ends = binomtest(round(value / 100 * rows), rows).proportion_ci()  # Clopper-Pearson
    highest = {"highest": [round(100 * float(ends.low), 2), round(100 * float(ends.high), 2)]}
    return CheckResult(excess <= 0, round1(value), why, highest)


@finding(
    "E25",
    claim="Early stop against convergence: not significant for D_MaybeKnown, p < 0.01 for the other four",
    paper="appendix I",
    experiments=("categories",),
)
def e25(data: StudyData) -> CheckResult:
    """Paired t-test over chunks: p >= 0.05 for D_MaybeKnown; p < 0.01 and a fall for the others."""
    require_variants(data, *TABLE_2_VARIANTS)
    failed, p_values, intervals = [], {}, {}
    for name in TABLE_2_VARIANTS:
        early, last = data.mean_correct(name, EARLY_STOP, "test"), data.mean_correct(name, CONVERGENCE, "test")
        if early is None or last is None or len(early) < 2:
            raise InsufficientDataError(f"the runs of {name} kept no predictions at both checkpoints")
        p_value = paired_p_value(early, last, data.config.num_chunks, data.config.seed)
        p_values[VARIANT_LABELS[name]] = float(f"{p_value:.2g}")
        intervals[VARIANT_LABELS[name]] = confidence_interval(data.difference((name, EARLY_STOP), (name, CONVERGENCE)))
        fell = early.mean() > last.mean()
        if name == "maybeknown" and p_value < 0.05:
            failed.append(f"{VARIANT_LABELS[name]} differs (p = {p_value:.2g})")
        if name != "maybeknown" and not (p_value < 0.01 and fell):
            failed.append(f"{VARIANT_LABELS[name]} {'falls' if fell else 'does not fall'} (p = {p_value:.2g})")
    success = "p-values: " + ", ".join(f"{name} {value:.2g}" for name, value in p_values.items())
    return CheckResult(not failed, p_values, describe_failures(failed, success), intervals)


def require_variants(data: StudyData, *names: str) -> None:
    """Check that variants were run.

    Raises:
        InsufficientDataError: names all variants without a finished run.
    """
    missing = [name for name in names if not data.has_run(name)]
    if missing:
        raise InsufficientDataError(f"needs finished runs of {', '.join(missing)}")


def negate(cell: Measurement) -> Measurement:
    """The difference with the opposite sign."""
    return Measurement(-cell.value, cell.se, cell.num_seeds)


def _category_accuracies(data: StudyData, name: str, checkpoint: str) -> list[tuple[str, Measurement]] | None:
    if any(("test", str(category)) not in run.accuracy for run in data.runs_for(name) for category in Category):
        return None
    return [(str(category), data.accuracy(name, checkpoint, category=category)) for category in Category]
