"""E14-E19 and E25: fine-tuning on one category at a time, and accuracy by category of test question. Pure."""

import itertools
from collections.abc import Mapping
from dataclasses import replace

from slick.formatting import format_percent
from slick.report.data import StudyData
from slick.report.findings.base import (
    NO_CHANGE_MARGIN,
    CheckResult,
    Condition,
    contradiction_z,
    describe_needed,
    difference_condition,
    finding,
    judge,
    require_rows,
)
from slick.report.findings.sweep import equality_conditions, loss_terms, no_gain_condition, scale_terms
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    MIN_SEEDS,
    Z_95,
    InsufficientDataError,
    Measurement,
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

PAPER_HIGHLY_KNOWN_COST = 0.3
"""The paper's loss of D_MaybeKnown against D_HighlyKnown on HighlyKnown questions, in points; not significant."""

PAPER_MAYBE_KNOWN_LOSS, PAPER_SMALLEST_LOSS = 0.4, 0.5
"""The paper's losses from early stop to convergence, in points: of D_MaybeKnown, which is not significant, and the
smallest of the other four, that of D_HighlyKnown."""

PAPER_MAX_UNKNOWN_ACCURACY = 3.2
"""The paper's highest accuracy on Unknown test questions, percent."""

NEAR_ZERO_ACCURACY = 5.0
"""Percent. An accuracy below this with 95 % confidence counts as near 0."""


@finding(
    "E14",
    claim="D_MaybeKnown gives the best test accuracy (tied with D_Natural at early stop)",
    paper="43.6 at early stop, 43.2 at convergence",
    experiments=("categories",),
)
def e14(data: StudyData) -> CheckResult:
    """At both checkpoints, D_MaybeKnown is above every other set; at early stop, it is not below D_Natural."""
    require_variants(data, *TABLE_2_VARIANTS)
    conditions, intervals = [], {}
    for checkpoint in (EARLY_STOP, CONVERGENCE):
        for name in TABLE_2_VARIANTS:
            if name == "maybeknown":
                continue
            lead = [(1.0, "maybeknown", checkpoint), (-1.0, name, checkpoint)]
            text = f"at {checkpoint_label(checkpoint)}, D_MaybeKnown is {{}} points above {VARIANT_LABELS[name]}"
            is_tied = name == "natural" and checkpoint == EARLY_STOP
            shown, claimed = (-NO_CHANGE_MARGIN, 0.0) if is_tied else (0.0, 0.0)
            conditions.append(difference_condition(data, lead, text, shown=shown, claimed=claimed))
            key = f"lead over {VARIANT_LABELS[name]} at {checkpoint_label(checkpoint)}"
            intervals[key] = confidence_interval(conditions[-1].value)
    own = {
        checkpoint: round1(data.accuracy("maybeknown", checkpoint).value) for checkpoint in (EARLY_STOP, CONVERGENCE)
    }
    leads = [round1(condition.value.value) for condition in conditions]
    success = (
        f"it leads the four other sets by {min(leads[:4]):+.1f} to {max(leads[:4]):+.1f} points at early stop and by "
        f"{min(leads[4:]):+.1f} to {max(leads[4:]):+.1f} points at convergence"
    )
    return judge(conditions, own, success, intervals)


@finding(
    "E15",
    claim="D_MaybeKnown beats D_HighlyKnown on MaybeKnown questions at no significant cost on HighlyKnown ones",
    paper="MaybeKnown 69.9 against 60.1; HighlyKnown 98.4 against 98.7",
    experiments=("categories",),
)
def e15(data: StudyData) -> CheckResult:
    """At early stop, there is a gain on MaybeKnown questions and no loss on HighlyKnown ones."""
    require_variants(data, "maybeknown", "highlyknown")
    gain = difference_condition(
        data,
        [(1.0, "maybeknown", EARLY_STOP), (-1.0, "highlyknown", EARLY_STOP)],
        "it gains {} points on MaybeKnown questions",
        category=Category.MAYBE_KNOWN,
    )
    loss = no_gain_condition(
        data,
        [(1.0, "highlyknown", EARLY_STOP), (-1.0, "maybeknown", EARLY_STOP)],
        "it loses {} points on HighlyKnown questions",
        category=Category.HIGHLY_KNOWN,
        claimed=PAPER_HIGHLY_KNOWN_COST,
    )
    own = {"MaybeKnown_gain": round1(gain.value.value), "HighlyKnown_loss": round1(loss.value.value)}
    success = f"at early stop, {gain.text} and loses {format_with_error(loss.value)} points on HighlyKnown questions"
    intervals = {
        "gain on MaybeKnown questions": confidence_interval(gain.value),
        "loss on HighlyKnown questions": confidence_interval(loss.value),
    }
    return judge([gain, loss], own, success, intervals)


@finding(
    "E16",
    claim="The loss to convergence is ordered Unknown > WeaklyKnown > Natural > HighlyKnown, MaybeKnown",
    paper=[11.7, 3.8, 1.7, 0.5, 0.4],
    experiments=("categories",),
)
def e16(data: StudyData) -> CheckResult:
    """Each set loses more than the next in the paper's order; the last two, 0.1 points apart there, are tied."""
    require_variants(data, *TABLE_2_VARIANTS)
    order = ("unknown-100", "weaklyknown", "natural", "highlyknown", "maybeknown")
    conditions, intervals = [], {}
    for larger, smaller in [*itertools.pairwise(order[:4]), ("natural", "maybeknown")]:
        terms = [*loss_terms(larger), *scale_terms(loss_terms(smaller), -1.0)]
        pair = f"{VARIANT_LABELS[larger]} - {VARIANT_LABELS[smaller]}"
        text = f"{VARIANT_LABELS[larger]} loses {{}} points more than {VARIANT_LABELS[smaller]}"
        conditions.append(difference_condition(data, terms, text))
        intervals[pair] = confidence_interval(conditions[-1].value)
    losses = {name: data.contrast(loss_terms(name)) for name in order}
    listed = ", ".join(f"{VARIANT_LABELS[name]} {format_with_error(loss)}" for name, loss in losses.items())
    own = round1_values([loss.value for loss in losses.values()])
    return judge(conditions, own, f"losses in points: {listed}", intervals)


@finding(
    "E17",
    claim="D_WeaklyKnown and D_Unknown lose on HighlyKnown and MaybeKnown questions, not on WeaklyKnown and Unknown "
    "ones",
    paper="D_Unknown: HighlyKnown 95.6 to 55.8, MaybeKnown 52.9 to 36.6, WeaklyKnown 6.5 to 12.2, Unknown 0.6 to 3.2",
    experiments=("categories",),
)
def e17(data: StudyData) -> CheckResult:
    """Each of the two sets falls on HighlyKnown and on MaybeKnown questions, and does not fall on the other two."""
    require_variants(data, "weaklyknown", "unknown-100")
    conditions: list[Condition] = []
    own: dict[str, list[float]] = {}
    intervals: dict[str, Mapping[str, object]] = {}
    for name in ("weaklyknown", "unknown-100"):
        label = VARIANT_LABELS[name]
        losses = []
        for category in Category:
            text = f"{label} loses {{}} points on {category} questions"
            if category in FORGETTING_CATEGORIES:
                losses.append(difference_condition(data, loss_terms(name), text, category=category))
            else:
                losses.append(no_gain_condition(data, loss_terms(name), text, category=category))
        conditions += losses
        own[label] = round1_values([-loss.value.value for loss in losses])
        intervals[label] = {
            f"loss on {category} questions": confidence_interval(loss.value)
            for category, loss in zip(Category, losses, strict=True)
        }
    success = "changes to convergence on HighlyKnown, MaybeKnown, WeaklyKnown, Unknown questions: " + "; ".join(
        f"{name} {', '.join(f'{value:+.1f}' for value in values)}" for name, values in own.items()
    )
    return judge(conditions, own, success, intervals)


@finding(
    "E18",
    claim="Test accuracy is ordered HighlyKnown > MaybeKnown > WeaklyKnown > Unknown, for every variant and checkpoint",
    paper="all 10 rows of table 2",
    experiments=("categories",),
)
def e18(data: StudyData) -> CheckResult:
    """Each category is above the next, for each set of the paper's table 2 that was run, at both checkpoints."""
    conditions = []
    for name in (name for name in TABLE_2_VARIANTS if data.has_run(name)):
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            cells = _category_accuracies(data, name, checkpoint)
            if cells is None:
                continue
            at = f"{VARIANT_LABELS[name]} at {checkpoint_label(checkpoint)}"
            for (upper, above, num_above), (lower, below, num_below) in itertools.pairwise(cells):
                step = subtract(above, below)
                text = f"{at}: {upper} is {format_with_error(step)} points above {lower}"
                num = min(num_above, num_below)
                require_rows(num, "test questions of each category")
                conditions.append(Condition(text=text, value=step, num=num, unit="test questions of each category"))
    if not conditions:
        raise InsufficientDataError("needs runs with accuracy on all four categories of test questions")
    least = min(conditions, key=lambda condition: condition.value.value)
    num_rows = len(conditions) // 3
    success = (
        f"in order for all {num_rows} combinations of set and checkpoint; the smallest of {len(conditions)} steps is "
        f"{format_with_error(least.value)} points"
    )
    reversed_steps = sum(condition.is_contradicted(contradiction_z(len(conditions))) for condition in conditions)
    own = {"rows": num_rows, "reversed": reversed_steps}
    return judge(conditions, own, success, {"smallest step": confidence_interval(least.value)})


@finding(
    "E19",
    claim="Accuracy on Unknown test questions stays near 0",
    paper="at most 3.2",
    experiments=("categories",),
)
def e19(data: StudyData) -> CheckResult:
    """Accuracy on Unknown questions is significantly below 5 %.

    The claim is contradicted if it is significantly above the paper's 3.2 %.
    """
    conditions = []
    for name in (name for name in TABLE_2_VARIANTS if data.has_run(name)):
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            value = data.accuracy(name, checkpoint, category=Category.UNKNOWN)
            num = data.runs_for(name)[0].num["test", Category.UNKNOWN]
            require_rows(num, "Unknown test questions")
            conditions.append(
                Condition(
                    text=f"accuracy of {VARIANT_LABELS[name]} at {checkpoint_label(checkpoint)} is "
                    f"{round1(value.value):.1f} %",
                    value=value,
                    shown=NEAR_ZERO_ACCURACY,
                    claimed=PAPER_MAX_UNKNOWN_ACCURACY,
                    above=False,
                    num=num,
                    unit="Unknown test questions",
                    num_successes=round(value.value / 100 * num) if value.num_seeds < MIN_SEEDS else None,
                )
            )
    if not conditions:
        raise InsufficientDataError(f"needs a finished run of one of {', '.join(TABLE_2_VARIANTS)}")
    worst = max(conditions, key=lambda condition: condition.value.value)
    low, high = worst.interval(Z_95)
    success = f"at most {format_percent(high / 100)} with 95 % confidence; the highest {worst.text}"
    return judge(conditions, round1(worst.value.value), success, {"highest": [round(low, 2), round(high, 2)]})


@finding(
    "E25",
    claim="Early stop against convergence: not significant for D_MaybeKnown, p < 0.01 for the other four",
    paper="appendix I",
    experiments=("categories",),
)
def e25(data: StudyData) -> CheckResult:
    """The paper's paired t-test over chunks, for the five sets of table 2.

    The four others hold if p < 0.01 and accuracy falls. D_MaybeKnown holds if p >= 0.05 and the 95 % interval of its
    change lies within the margin: in a small study, nothing is significant. Losses are contradicted relative to the
    paper's: of one of the four, if it is significantly below the smallest of theirs; of D_MaybeKnown, if it is
    significantly above its own.
    """
    require_variants(data, *TABLE_2_VARIANTS)
    p_values, intervals, against, unclear, needed = {}, {}, [], [], []
    z = contradiction_z(len(TABLE_2_VARIANTS))
    for name in TABLE_2_VARIANTS:
        label = VARIANT_LABELS[name]
        p_value, loss = _chunk_test(data, name)
        p_values[label] = float(f"{p_value:.2g}")
        intervals[label] = confidence_interval(loss)
        text = f"{label} loses {format_with_error(loss)} points (p = {p_value:.2g})"
        if name == "maybeknown":
            bounds = equality_conditions(data, loss_terms(name), "", claimed=PAPER_MAYBE_KNOWN_LOSS)
            is_shown = p_value >= 0.05 and all(bound.is_shown() for bound in bounds)
        else:
            bounds = [replace(difference_condition(data, loss_terms(name), ""), claimed=PAPER_SMALLEST_LOSS)]
            is_shown = p_value < 0.01 and loss.value > 0
        is_contradicted = any(bound.is_contradicted(z) for bound in bounds)
        if is_contradicted:
            against.append(text)
        elif not is_shown:
            unclear.append(text)
            needed += [bound for bound in bounds if not bound.is_shown()]
    if against:
        return CheckResult(False, p_values, "; ".join(against), intervals)
    if unclear:
        return CheckResult(
            None,
            p_values,
            f"not clear: {'; '.join(unclear)}",
            intervals,
            describe_needed(needed, z) if needed else "",
        )
    success = "p-values: " + ", ".join(f"{name} {value:.2g}" for name, value in p_values.items())
    return CheckResult(True, p_values, success, intervals)


def require_variants(data: StudyData, *names: str) -> None:
    """Check that variants were run.

    Raises:
        InsufficientDataError: names all variants without a finished run.
    """
    missing = [name for name in names if not data.has_run(name)]
    if missing:
        raise InsufficientDataError(f"needs finished runs of {', '.join(missing)}")


def _chunk_test(data: StudyData, name: str) -> tuple[float, Measurement]:
    """The p-value of the t-test over chunks, and the loss from early stop to convergence.

    Raises:
        InsufficientDataError: predictions were not stored.
    """
    early, last = data.mean_correct(name, EARLY_STOP, "test"), data.mean_correct(name, CONVERGENCE, "test")
    if early is None or last is None:
        raise InsufficientDataError(f"the runs of {name} kept no predictions at both checkpoints")
    require_rows(len(early), "test questions")
    p_value = paired_p_value(early, last, data.config.num_chunks, data.config.seed)
    return p_value, data.contrast(loss_terms(name))


def _category_accuracies(data: StudyData, name: str, checkpoint: str) -> list[tuple[str, Measurement, int]] | None:
    runs = data.runs_for(name)
    if any(("test", str(category)) not in run.accuracy for run in runs for category in Category):
        return None
    return [
        (str(category), data.accuracy(name, checkpoint, category=category), runs[0].num["test", category])
        for category in Category
    ]
