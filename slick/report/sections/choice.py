"""The section that says which point of the sweep to use: in words, as a table, and what moves the accuracy."""

from collections.abc import Callable
from typing import Any

import numpy as np

from slick.report.charts import INK
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError, checkpoint_label, format_percent, round1
from slick.report.page import (
    GROUP_RECOMMENDATIONS,
    Exhibit,
    SectionBody,
    collapsed_table_exhibit,
    figure_exhibit,
    table_exhibit,
)
from slick.report.recommendation import Estimate, Recommendation, RecommendedTrial, TrialSpec, recommend
from slick.report.sections import section
from slick.report.statistics.effects import ResponseSurface, axis_effects, response_surface
from slick.report.tables import CellValue, Table

ESTIMATES = ("dev", "test", "stop_epoch", "cost_epochs", "gain", "saved", "filtering")
"""Those of a `Choice`, in the order of the tables."""


@section("choice", title="Which point to use", group=GROUP_RECOMMENDATIONS, order=10, experiment="unknown_ratio")
def recommendation_section(data: StudyData) -> SectionBody:
    """The section; without a sweep it says what is missing."""
    try:
        text = " ".join(summary_sentences(recommend(data)))
    except InsufficientDataError:
        text = "The best point of a sweep at each share of Unknown rows, chosen by dev accuracy."
    return SectionBody(
        text=text,
        exhibits=(
            table_exhibit(
                "The best point by dev accuracy, ties to the cheaper. Accuracies in percent, differences of test "
                "accuracy in points, budgets and stops in epochs; in brackets 95 % intervals over seeds. Known only: "
                "the same policy without the Unknown rows.",
                lambda: recommendation_table(recommend(data)),
            ),
            figure_exhibit(
                "Test accuracy (%) by share of Unknown rows and epochs trained, averaged over seeds.",
                "response_surface",
                "Test accuracy over share of Unknown rows and epochs trained, as a heat map",
                lambda: response_surface_figure(data, _recommended_surface(data)),
            ),
            _axis_effects_exhibit(data),
            collapsed_table_exhibit(
                "All numbers of the first table, with reasons for what is missing.",
                lambda: estimates_table(recommend(data)),
            ),
            collapsed_table_exhibit("All numbers of the figure.", lambda: surface_table(_recommended_surface(data))),
        ),
    )


def summary_sentences(found: Recommendation) -> list[str]:
    """One to three sentences: what to use, what it brings against training on, and against filtering."""
    choice = found.by_share[0] if len(found.by_share) == 1 else found.overall
    if choice.trial is None:
        return [f"No point can be named: {choice.dev.missing_reason}."]
    said = [
        _recommendation_sentence(found, choice, choice.trial),
        *([] if choice.gain.value is None else [_gain_sentence(choice)]),
        *([] if choice.filtering.value is None else [_filtering_sentence(choice)]),
    ]
    alone = "; one seed gives no intervals" if choice.test.num_seeds == 1 else ""
    return [*(f"{sentence}." for sentence in said[:-1]), f"{said[-1]}{alone}."]


def recommendation_table(found: Recommendation) -> Table:
    """One row a share, and one for a single point at all shares."""
    choices = _choices_to_show(found)
    longest = {choice.longest for choice in choices if choice.longest is not None}
    against = checkpoint_label(longest.pop()) if len(longest) == 1 else "longest"
    settings = any(choice.trial and choice.trial.settings for choice in choices)
    names = ("dev", "test", "stops at", "spent", f"vs {against}", "saved", "Known only")
    rows: list[tuple[CellValue, ...]] = []
    for choice in choices:
        policy, budget, changed = choice.trial or (None, None, None)
        gaps = ("gain", "filtering")
        shown = [_format_estimate(getattr(choice, name), signed=name in gaps, ends=name in gaps) for name in ESTIMATES]
        share = "all" if choice.share is None else format_percent(choice.share)
        rows.append((share, policy, budget, *([changed] if settings else []), *shown))
    return Table(
        name="which_point",
        columns=("Unknown", "policy", "budget", *(["settings"] if settings else []), *names),
        rows=tuple(rows),
        total_rows=frozenset({len(rows) - 1} if len(found.by_share) > 1 else ()),
    )


def estimates_table(found: Recommendation) -> Table:
    """Every estimate with its interval, or why there is none."""
    rows: list[tuple[CellValue, ...]] = []
    for choice in _choices_to_show(found):
        share = None if choice.share is None else round(100 * choice.share, 2)
        for name in ESTIMATES:
            one: Estimate = getattr(choice, name)
            values = (None if value is None else round(value, 3) for value in (one.value, one.low, one.high))
            rows.append(
                (
                    "all" if share is None else share,
                    *(choice.trial or (None,) * 3),
                    name,
                    *values,
                    one.num_seeds,
                    one.missing_reason,
                )
            )
    columns = ("unknown_percent", "policy", "epoch_budget", "settings", "quantity", "value", "low", "high", "seeds")
    return Table(name="which_point_numbers", columns=(*columns, "missing"), rows=tuple(rows))


def surface_table(surface: ResponseSurface) -> Table:
    """The cells of the heat map, and those it has no room for."""
    rows: list[tuple[CellValue, ...]] = [
        (round(100 * share, 2), epochs, round(float(surface.accuracy_SE[s, e]), 3), int(surface.num_seeds_SE[s, e]))
        for s, share in enumerate(surface.shares)
        for e, epochs in enumerate(surface.epochs)
        if surface.num_seeds_SE[s, e]
    ]
    columns = ("unknown_percent", "epochs", "accuracy_percent", "seeds")
    return Table(name="response_surface", columns=columns, rows=tuple(rows))


def axis_table(data: StudyData) -> Table:
    """What each axis of the grid explains, most first."""
    effects = axis_effects(data)
    rows: list[tuple[CellValue, ...]] = [
        (
            one.axis,
            one.num_levels,
            _percent(one.share),
            None if one.effect_size is None else round1(one.effect_size),
            one.missing_reason,
        )
        for one in sorted(effects.axes, key=lambda one: -1.0 if one.share is None else one.share, reverse=True)
    ]
    rows.append(("how they act together, and chance", None, _percent(effects.residual_share), None, ""))
    columns = ("axis", "levels", "share of variance (%)", "best to worst level (points)", "missing")
    return Table(name="axis_effects", columns=columns, rows=tuple(rows))


def _axis_effects_exhibit(data: StudyData) -> Exhibit:
    caption = "Share of the variance of test accuracy that each axis of the grid explains (eta squared)"
    try:
        balanced = axis_effects(data).balanced
    except InsufficientDataError:
        balanced = True
    how = (
        "the grid is balanced, so the shares add up"
        if balanced
        else (
            "the grid is not balanced, so a share is what the additive model loses without that axis, and they need "
            "not add up"
        )
    )
    return table_exhibit(f"{caption}; {how}.", lambda: axis_table(data))


def _recommended_surface(data: StudyData) -> ResponseSurface:
    """With the training settings that are recommended."""
    trial = recommend(data).overall.trial
    return response_surface(data, trial.settings if trial else "")


def _recommendation_sentence(found: Recommendation, choice: RecommendedTrial, trial: TrialSpec) -> str:
    what = "" if choice.dev.value is None else f"its dev accuracy, {round1(choice.dev.value):.1f} %, is the best"
    if choice.share is not None:
        return (
            f"At {format_percent(choice.share)} Unknown rows use {_format_trial(trial)}: {what} of the sweep, "
            f"{_stopping_clause(choice)}"
        )
    others = sum(one.trial != trial for one in found.by_share)
    rest = f"; at {others} of {len(found.by_share)} shares the table names another" if others else ""
    return (
        f"Where the share of Unknown rows is not known, use {_format_trial(trial)}: {what} on average over all "
        f"{len(found.by_share)} shares, {_stopping_clause(choice)}{rest}"
    )


def _format_trial(trial: TrialSpec) -> str:
    epochs = "" if trial.policy.startswith("fixed") else f" within {checkpoint_label(trial.budget)}"
    return f"{trial.policy}{epochs}{f' with {trial.settings}' if trial.settings else ''}"


def _stopping_clause(choice: RecommendedTrial) -> str:
    stop, cost = (round(estimate.value or 0.0, 1) for estimate in (choice.stop_epoch, choice.cost_epochs))
    return f"and it keeps epoch {stop:g} of {cost:g} trained"


def _gain_sentence(choice: RecommendedTrial) -> str:
    assert choice.longest is not None
    saved = choice.saved.value or 0.0
    if choice.gain.value == 0 == saved:
        return "It is as good and as long as the longest fixed training, so stopping early buys nothing here"
    effort = (
        "takes as long"
        if saved == 0
        else f"saves {_format_epochs(saved)}"
        if saved > 0
        else f"takes {_format_epochs(-saved)} more"
    )
    return (
        f"Against training all {_format_epochs(choice.longest)} it {effort} and changes test accuracy by "
        f"{_format_estimate(choice.gain, signed=True)} points{_chance_phrase(choice.gain)}"
    )


def _filtering_sentence(choice: RecommendedTrial) -> str:
    where = "" if choice.share is not None else ", over the shares where both were run,"
    return (
        f"Leaving the Unknown rows out{where} changes test accuracy by "
        f"{_format_estimate(choice.filtering, signed=True)} points at the same point{_chance_phrase(choice.filtering)}"
    )


def _chance_phrase(estimate: Estimate) -> str:
    """How sure a difference is."""
    if estimate.low is None or estimate.high is None:
        return ""
    return ", no more than chance explains" if estimate.low <= 0 <= estimate.high else ", more than chance explains"


def _format_epochs(number: float) -> str:
    return f"{round(number, 1):g} epoch{'' if number == 1 else 's'}"


def _choices_to_show(found: Recommendation) -> tuple[RecommendedTrial, ...]:
    """One share needs no summary."""
    return found.by_share if len(found.by_share) == 1 else (*found.by_share, found.overall)


def _format_estimate(estimate: Estimate, *, signed: bool, ends: bool = True) -> str | None:
    if estimate.value is None:
        return None
    value, *interval = (
        f"{round1(number):{'+' if signed else ''}.1f}"
        for number in (estimate.value, *([estimate.low, estimate.high] if ends else []))
        if number is not None
    )
    return f"{value} ({' to '.join(interval)})" if interval else value


def _percent(share: float | None) -> float | None:
    return None if share is None else round1(100 * share)


def response_surface_figure(data: StudyData, surface: ResponseSurface) -> Callable[[Any], None]:
    """Test accuracy over share of Unknown rows and epochs, each cell with its number; the lengths of other figures.

    Raises:
        NotTestable: the surface has fewer than two of those lengths.
    """
    shown = [i for i, epochs in enumerate(surface.epochs) if not data.durations or epochs in data.durations]
    if len(shown) < 2:
        raise InsufficientDataError("fewer than two of the runs' training lengths are points of the sweep")
    values_ES = surface.accuracy_SE[:, shown].T

    def plot(axes: Any) -> None:
        num_epochs, num_shares = values_ES.shape
        low, high = float(np.nanmin(values_ES)), float(np.nanmax(values_ES))
        edges = (np.arange(num_shares + 1) - 0.5, np.arange(num_epochs + 1) - 0.5)
        # Cividis reads alike with and without red-green blindness: https://doi.org/10.1371/journal.pone.0199239.
        axes.pcolormesh(
            *edges, np.ma.masked_invalid(values_ES), cmap="cividis", vmin=low, vmax=high, edgecolor="white", linewidth=2
        )
        for (y, x), value in np.ndenumerate(values_ES):
            light = np.isnan(value) or value > (low + high) / 2
            text = "–" if np.isnan(value) else f"{round1(value):.1f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=11, color=INK if light else "white")
        axes.set_xticks(range(num_shares), [f"{100 * share:.0f}" for share in surface.shares])
        axes.set_yticks(range(num_epochs), [str(surface.epochs[i]) for i in shown])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("Unknown rows in D (%)")
        axes.set_ylabel("Epochs trained")

    return plot
