"""The figures of what fine-tuning made a model forget."""

from collections.abc import Callable
from typing import Any

from slick.analysis.data import StudyData
from slick.analysis.forgotten import (
    TARGET_SCOPES,
    MatchRate,
    TargetScope,
    forgetting_rate,
    match_rate,
    select_runs_forgetting,
)
from slick.analysis.terms import InsufficientDataError
from slick.report.style import BLUE, GREEN, MUTED, VERMILLION, label_line_ends, set_share_axis


def match_rate_figure(data: StudyData) -> Callable[[Any], None]:
    """Where new answers stand against the share of Unknown rows, beside other wrong answers."""
    if not data.forgetting:
        raise InsufficientDataError(missing_data_message(data))
    points: list[tuple[float, dict[TargetScope, MatchRate]]] = []
    for share, name in data.sweep_variants("unknown"):
        try:
            losses = select_runs_forgetting(data.forgetting, name, "test")
            points.append((100 * share, {where: match_rate(losses, where) for where in TARGET_SCOPES}))
        except InsufficientDataError:
            continue
    if len(points) < 2:
        raise InsufficientDataError("needs lost facts at two or more shares of Unknown rows")
    lines: list[tuple[str, TargetScope, str, str, str]] = [
        ("any row", "any_row", "percent", BLUE, "-"),
        ("Unknown row", "unknown_row", "percent", VERMILLION, "-"),
        ("others, last", "any_row", "chance", MUTED, "--"),
        ("others, best", "any_row", "earlier", MUTED, ":"),
    ]

    def plot(axes: Any) -> None:
        labels = []
        for label, where, key, colour, style in lines:
            shown = [(x, rates[where]) for x, rates in points if getattr(rates[where], key) is not None]
            shown = [(x, one) for x, one in shown if where != "unknown_row" or x > 0]
            if not shown:
                continue
            xs, ys = [x for x, _ in shown], [float(getattr(one, key)) for _, one in shown]
            axes.plot(xs, ys, style, color=colour, marker="o" if key == "percent" else None)
            if key == "percent":
                _draw_error_bars(axes, xs, [(one.percent, one.low, one.high) for _, one in shown], colour)
            labels.append((ys[-1], label, colour))
        axes.set_ylim(0, 100)
        label_line_ends(axes, points[-1][0], labels)
        axes.set_ylim(0, 100)
        set_share_axis(axes, [x for x, _ in points])
        axes.set_ylabel("New answer stands in D (%)")

    return plot


def losses_and_gains_figure(data: StudyData) -> Callable[[Any], None]:
    """Losses and gains against the share of Unknown rows; seeds pooled."""
    if not data.forgetting:
        raise InsufficientDataError(missing_data_message(data))
    points: list[tuple[float, tuple[float, float, float], float]] = []
    for share, name in data.sweep_variants("unknown"):
        try:
            losses = select_runs_forgetting(data.forgetting, name, "test")
            lost = forgetting_rate(losses)
        except InsufficientDataError:
            continue
        won = sum(one.num_gained for one in losses) / sum(one.num_correct_before for one in losses)
        points.append((100 * share, lost, 100 * won))
    if len(points) < 2:
        raise InsufficientDataError("needs test questions answered right at two or more shares of Unknown rows")
    xs, losts, wons = (list(column) for column in zip(*points, strict=True))

    def plot(axes: Any) -> None:
        lost = [value for value, _, _ in losts]
        axes.plot(xs, lost, color=VERMILLION, marker="o")
        _draw_error_bars(axes, xs, losts, VERMILLION)
        axes.plot(xs, wons, color=GREEN, marker="s")
        axes.set_ylim(bottom=0)
        label_line_ends(axes, xs[-1], [(lost[-1], "lost", VERMILLION), (wons[-1], "won", GREEN)])
        axes.set_ylim(bottom=0)
        set_share_axis(axes, xs)
        axes.set_ylabel("Of right answers before (%)")

    return plot


def _draw_error_bars(axes: Any, xs: list[float], values: list[tuple[float, float, float]], colour: str) -> None:
    """Error bars of (value, low, high)."""
    reach = [[value - low for value, low, _ in values], [high - value for value, _, high in values]]
    axes.errorbar(xs, [value for value, _, _ in values], reach, fmt="none", ecolor=colour, elinewidth=1.1, capsize=2)


def missing_data_message(data: StudyData) -> str:
    """Why nothing can be told."""
    if data.runs:
        return "the finished runs have no right_to_wrong.parquet with test questions, or the questions are not there"
    return "needs a finished run"
