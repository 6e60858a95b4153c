"""The recommended point of the sweep, the effect of each axis of the grid on test accuracy, and stopping policies."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from slick.formatting import format_percent
from slick.report.charts import plot_share_by_epochs
from slick.report.data import StudyData
from slick.report.labels import policy_label, settings_label
from slick.report.measurements import (
    CheckpointRef,
    InsufficientDataError,
    checkpoint_label,
    interval_ends,
    round1,
    value_or_reason,
)
from slick.report.page import (
    GROUP_RECOMMENDATIONS,
    Exhibit,
    SectionBody,
    collapsed_table_exhibit,
    figure_exhibit,
    table_exhibit,
)
from slick.report.recommendation import (
    Estimate,
    Recommendation,
    RecommendedTrial,
    TrialSpec,
    points_with_common_settings,
    recommend,
)
from slick.report.sections import section
from slick.report.statistics.effects import ResponseSurface, axis_effects, response_surface
from slick.report.tables import Row, Table

ESTIMATES = ("dev", "test", "stop_epoch", "cost_epochs", "gain", "saved", "filtering")
"""Estimates of a `RecommendedTrial`, in the order of the tables."""


@section(
    "choice",
    title="When to stop",
    group=GROUP_RECOMMENDATIONS,
    order=10,
    experiment="unknown_ratio",
)
def recommendation_section(data: StudyData) -> SectionBody:
    """The recommendation, the response surface and the axis effects."""
    recommendation, _ = value_or_reason(recommend, data)
    return SectionBody(
        text="The best point of the sweep has the highest dev accuracy, and of several points, the cheapest. "
        "Accuracies are averaged over the shares and seeds of the sweep.",
        result="" if recommendation is None else " ".join(summary_sentences(data, recommendation)),
        exhibits=(
            figure_exhibit(
                "Test accuracy (%) by share of Unknown rows and epochs trained, averaged over seeds.",
                "response_surface",
                "Test accuracy over share of Unknown rows and epochs trained, as a heat map",
                lambda: response_surface_figure(data, _recommended_surface(data)),
            ),
            replace(
                table_exhibit(
                    "Stopping policies with their budget in epochs, best first; those with the same result share a "
                    "row. Trained: epochs, of the cheapest.",
                    lambda: stopping_table(data),
                ),
                wide=False,
            ),
            collapsed_table_exhibit(
                "The best point at each share of Unknown rows. Accuracies in percent, differences of test accuracy in "
                "points, budgets and stops in epochs, with 95 % intervals over seeds in brackets. Known only: the same "
                "policy without the Unknown rows.",
                lambda: recommendation_table(recommend(data)),
            ),
            collapsed_table_exhibit("Every policy and budget.", lambda: policy_table(data)),
            _axis_effects_exhibit(data),
            collapsed_table_exhibit(
                "The best point at each share, with reasons for missing estimates.",
                lambda: estimates_table(recommend(data)),
            ),
            collapsed_table_exhibit("Data of the figure.", lambda: surface_table(_recommended_surface(data))),
        ),
    )


def _axis_effects_exhibit(data: StudyData) -> Exhibit:
    caption = "Share of the variance of test accuracy that each axis of the grid explains (eta squared)"
    effects, _ = value_or_reason(axis_effects, data)
    note = "the grid is balanced, so the shares add up"
    if effects is not None and not effects.balanced:
        note = (
            "the grid is not balanced, so a share is what the additive model loses without that axis, and the shares "
            "need not add up"
        )
    return collapsed_table_exhibit(f"{caption}; {note}.", lambda: axis_table(data))


def _recommended_surface(data: StudyData) -> ResponseSurface:
    """The response surface of the recommended training settings."""
    trial = recommend(data).overall.trial
    return response_surface(data, trial.settings if trial else "")


def summary_sentences(data: StudyData, recommendation: Recommendation) -> list[str]:
    """One to three sentences: the recommended point, its gain over the longest training, and that of filtering."""
    choice = recommendation.by_share[0] if len(recommendation.by_share) == 1 else recommendation.overall
    trial = choice.trial
    if trial is None:
        return [f"No point can be recommended: {choice.dev.missing_reason}."]
    choice = with_paired_intervals(data, choice, trial)
    sentences = [
        _recommendation_sentence(recommendation, choice, trial),
        *([] if choice.gain.value is None else [_gain_sentence(choice)]),
        *([] if choice.filtering.value is None else [_filtering_sentence(choice)]),
    ]
    return [f"{sentence}." for sentence in sentences]


def with_paired_intervals(data: StudyData, choice: RecommendedTrial, trial: TrialSpec) -> RecommendedTrial:
    """The recommendation with intervals that are paired over test questions, where one seed gives no others."""
    shares = [share for share, _ in data.sweep_variants() if choice.share in (None, share)]
    names = {
        kind: {round(s, 6): name for s, name in data.sweep_variants(kind, min_shares=0)}
        for kind in ("unknown", "known")
    }
    d = [names["unknown"][round(share, 6)] for share in shares]
    pairs = [(names["known"][key], names["unknown"][key]) for s in shares if (key := round(s, 6)) in names["known"]]

    def paired(estimate: Estimate, terms: Callable[[], list[tuple[float, str, CheckpointRef]]]) -> Estimate:
        if estimate.value is None or estimate.low is not None or trial.settings:
            return estimate
        change, _ = value_or_reason(lambda: data.contrast(terms()))
        if change is None or round1(change.value) != round1(estimate.value):
            return estimate
        low, high = interval_ends(change)
        return replace(estimate, low=low, high=high)

    def stop(name: str) -> CheckpointRef:
        return _stopping_checkpoint(data, name, trial)

    gain, filtering = choice.gain, choice.filtering
    if choice.longest is not None:
        end: CheckpointRef = choice.longest
        gain = paired(gain, lambda: [t for n in d for t in ((1 / len(d), n, stop(n)), (-1 / len(d), n, end))])
    if pairs:
        share = 1 / len(pairs)
        filtering = paired(
            filtering, lambda: [t for k, n in pairs for t in ((share, k, stop(k)), (-share, n, stop(n)))]
        )
    return replace(choice, gain=gain, filtering=filtering)


def _stopping_checkpoint(data: StudyData, name: str, trial: TrialSpec) -> CheckpointRef:
    """The checkpoint that a trial keeps of a variant.

    Raises:
        InsufficientDataError: it is another epoch for each seed, or unknown.
    """
    kept = {
        int(point["stop_epoch"])
        for point in data.points
        if (point["variant"], point["policy"], int(point["epochs"])) == (name, trial.policy, trial.budget)
        and not point.get("settings")
    }
    if len(kept) != 1:
        raise InsufficientDataError(f"the trial keeps other epochs of {name} for each seed")
    return kept.pop()


def _recommendation_sentence(recommendation: Recommendation, choice: RecommendedTrial, trial: TrialSpec) -> str:
    accuracy = "" if choice.dev.value is None else f"its dev accuracy, {round1(choice.dev.value):.1f} %, is the best"
    if choice.share is not None:
        return (
            f"At {format_percent(choice.share)} Unknown rows, stop by {_format_trial(trial)}: {accuracy} of the sweep, "
            f"{_stopping_clause(choice)}"
        )
    others = sum(other.trial != trial for other in recommendation.by_share)
    exceptions = (
        f"; at {others} of {len(recommendation.by_share)} shares another point is best (listed under the details)"
        if others
        else ""
    )
    return (
        f"If the share of Unknown rows is not known, stop by {_format_trial(trial)}: {accuracy} on average over all "
        f"{len(recommendation.by_share)} shares, {_stopping_clause(choice)}{exceptions}"
    )


def _format_trial(trial: TrialSpec) -> str:
    epochs = "" if trial.policy.startswith("fixed") else f" within {checkpoint_label(trial.budget)}"
    settings = f" with {settings_label(trial.settings)}" if trial.settings else ""
    return f"{policy_label(trial.policy)}{epochs}{settings}"


def _stopping_clause(choice: RecommendedTrial) -> str:
    stop, cost = (round(estimate.value or 0.0, 1) for estimate in (choice.stop_epoch, choice.cost_epochs))
    return f"and it keeps epoch {stop:g} of {cost:g} trained epochs"


def _gain_sentence(choice: RecommendedTrial) -> str:
    assert choice.longest is not None
    saved = choice.saved.value or 0.0
    if choice.gain.value == 0 == saved:
        return "It equals the longest fixed training in accuracy and length, so early stopping has no benefit here"
    effort = (
        "takes as long"
        if saved == 0
        else f"saves {_format_epochs(saved)}"
        if saved > 0
        else f"takes {_format_epochs(-saved)} more"
    )
    return (
        f"Compared with training for {_format_epochs(choice.longest)}, it {effort} and changes test accuracy by "
        f"{_format_estimate(choice.gain, signed=True)} points{_significance_phrase(choice.gain)}"
    )


def _filtering_sentence(choice: RecommendedTrial) -> str:
    scope = "" if choice.share is not None else ", averaged over the shares with both runs,"
    return (
        f"Filtering out the Unknown rows{scope} changes test accuracy by "
        f"{_format_estimate(choice.filtering, signed=True)} points at the same "
        f"point{_significance_phrase(choice.filtering)}"
    )


def _significance_phrase(estimate: Estimate) -> str:
    """Whether a difference is significant; empty without an interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return " (not significant)" if estimate.low <= 0 <= estimate.high else " (significant)"


def _format_epochs(number: float) -> str:
    return f"{round(number, 1):g} epoch{'' if number == 1 else 's'}"


def response_surface_figure(data: StudyData, surface: ResponseSurface) -> Callable[[Any], None]:
    """Heat map of test accuracy at the training lengths of the other figures."""
    shown = [i for i, epochs in enumerate(surface.epochs) if not data.durations or epochs in data.durations]
    if len(shown) < 2:
        raise InsufficientDataError("fewer than two of the runs' training lengths are points of the sweep")
    values_ES = surface.accuracy_SE[:, shown].T
    epochs = [surface.epochs[i] for i in shown]
    return lambda axes: plot_share_by_epochs(axes, values_ES, surface.shares, epochs, "cividis")


def recommendation_table(recommendation: Recommendation) -> Table:
    """One row per share, and one for the best single point at all shares."""
    choices = _choices_to_show(recommendation)
    longest = {choice.longest for choice in choices if choice.longest is not None}
    longest_label = checkpoint_label(longest.pop()) if len(longest) == 1 else "longest"
    settings = any(choice.trial and choice.trial.settings for choice in choices)
    names = ("dev", "test", "stops at", "spent", f"vs {longest_label}", "saved", "Known only")
    rows: list[Row] = []
    for choice in choices:
        policy, budget, changed = choice.trial or (None, None, None)
        differences = ("gain", "filtering")
        shown = [
            _format_estimate(getattr(choice, name), signed=name in differences, ends=name in differences)
            for name in ESTIMATES
        ]
        share = "all" if choice.share is None else format_percent(choice.share)
        rows.append((share, policy, budget, *([changed] if settings else []), *shown))
    return Table(
        name="which_point",
        columns=("Unknown", "policy", "budget", *(["settings"] if settings else []), *names),
        rows=tuple(rows),
        total_rows=frozenset({len(rows) - 1} if len(recommendation.by_share) > 1 else ()),
    )


def estimates_table(recommendation: Recommendation) -> Table:
    """Every estimate with its interval, or the reason why it is missing."""
    rows: list[Row] = []
    for choice in _choices_to_show(recommendation):
        share = None if choice.share is None else round(100 * choice.share, 2)
        for name in ESTIMATES:
            estimate: Estimate = getattr(choice, name)
            values = (
                None if value is None else round(value, 3) for value in (estimate.value, estimate.low, estimate.high)
            )
            rows.append(
                (
                    "all" if share is None else share,
                    *(choice.trial or (None,) * 3),
                    name,
                    *values,
                    estimate.num_seeds,
                    estimate.missing_reason,
                )
            )
    columns = ("unknown_percent", "policy", "epoch_budget", "settings", "quantity", "value", "low", "high", "seeds")
    return Table(name="which_point_numbers", columns=(*columns, "missing"), rows=tuple(rows))


def _choices_to_show(recommendation: Recommendation) -> tuple[RecommendedTrial, ...]:
    """The recommendations by share, and the overall one if there are several shares."""
    return (
        recommendation.by_share
        if len(recommendation.by_share) == 1
        else (*recommendation.by_share, recommendation.overall)
    )


def _format_estimate(estimate: Estimate, *, signed: bool, ends: bool = True) -> str | None:
    if estimate.value is None:
        return None
    value, *interval = (
        f"{round1(number):{'+' if signed else ''}.1f}"
        for number in (estimate.value, *([estimate.low, estimate.high] if ends else []))
        if number is not None
    )
    return f"{value} ({' to '.join(interval)})" if interval else value


def surface_table(surface: ResponseSurface) -> Table:
    """All cells of the response surface, including those that the figure omits."""
    rows: list[Row] = [
        (round(100 * share, 2), epochs, round(float(surface.accuracy_SE[s, e]), 3), int(surface.num_seeds_SE[s, e]))
        for s, share in enumerate(surface.shares)
        for e, epochs in enumerate(surface.epochs)
        if surface.num_seeds_SE[s, e]
    ]
    columns = ("unknown_percent", "epochs", "accuracy_percent", "seeds")
    return Table(name="response_surface", columns=columns, rows=tuple(rows))


def axis_table(data: StudyData) -> Table:
    """Share of variance and effect of each axis, largest first."""
    effects = axis_effects(data)
    rows: list[Row] = [
        (
            effect.axis,
            effect.num_levels,
            _percent(effect.share),
            None if effect.effect_size is None else round1(effect.effect_size),
            effect.missing_reason,
        )
        for effect in sorted(
            effects.axes, key=lambda effect: -1.0 if effect.share is None else effect.share, reverse=True
        )
    ]
    rows.append(("how they act together, and chance", None, _percent(effects.residual_share), None, ""))
    columns = ("axis", "levels", "share of variance (%)", "best to worst level (points)", "missing")
    return Table(name="axis_effects", columns=columns, rows=tuple(rows))


def _percent(share: float | None) -> float | None:
    return None if share is None else round1(100 * share)


def policy_table(data: StudyData) -> Table:
    """Mean accuracy and epochs spent of every stopping policy and budget, for settings that were run at every share."""
    sweep = {name: share for share, name in data.sweep_variants("unknown")}
    cells: dict[tuple[str, int, str], list[tuple[float, float, float]]] = {}
    for point in points_with_common_settings(data):
        if point["variant"] in sweep and point.get("test_all") is not None:
            value = (100.0 * point["test_all"], float(point["stop_epoch"]), float(point["cost_epochs"]))
            key = (str(point["policy"]), int(point["epochs"]), point.get("settings") or "")
            cells.setdefault(key, []).append(value)
    if not cells:
        raise InsufficientDataError("needs a finished sweep")
    rows: list[Row] = []
    varied = any(settings for _, _, settings in cells)
    for (policy, budget, settings), values in cells.items():
        means = [sum(column) / len(values) for column in zip(*values, strict=True)]
        rows.append((policy, budget, *(round1(mean) for mean in means), len(values), *([settings] * varied)))
    rows.sort(key=lambda row: -float(row[2] or 0))
    return Table(
        name="policies",
        columns=(
            "policy",
            "budget",
            "test accuracy (%)",
            "stops at epoch",
            "epochs spent",
            "runs",
            *["settings"] * varied,
        ),
        rows=tuple(rows),
    )


def stopping_table(data: StudyData) -> Table:
    """Stopping policies and budgets, best first; those that stop at the same epochs with the same accuracy are one row.

    Budgets are listed from the cheapest on.
    """
    table = policy_table(data)
    varied = "settings" in table.columns
    groups: dict[Row, list[Row]] = {}
    for row in table.rows:
        groups.setdefault((row[2], row[3], *row[6:]), []).append(row)
    rows: list[Row] = []
    for (accuracy, stop, *settings), members in groups.items():
        names = " or ".join(dict.fromkeys(policy_label(str(row[0])) for row in members))
        budgets = sorted({int(str(row[1])) for row in members})
        span = f"{budgets[0]}" if len(budgets) == 1 else f"{budgets[0]} to {budgets[-1]}"
        cheapest = min(float(str(row[4])) for row in members)
        rows.append((names, span, accuracy, stop, cheapest, *(settings_label(str(s)) for s in settings)))
    columns = ("stop by", "budget", "accuracy (%)", "at epoch", "trained", *["settings"] * varied)
    return Table(name="stopping", columns=columns, rows=tuple(rows), text_columns=frozenset({0}))
