"""The figures of what fine-tuning made a model forget."""

from collections.abc import Callable
from typing import Any

from slick.analysis.data import StudyData
from slick.analysis.forgotten import WHERE, Rate, Where, losses_of, lost_share, rate
from slick.analysis.terms import NotTestable
from slick.report.style import BLUE, GREEN, MUTED, VERMILLION, label_ends, share_axis


def by_share(data: StudyData) -> Callable[[Any], None]:
    """Where new answers stand against the share of Unknown rows, beside other wrong answers."""
    if not data.forgotten:
        raise NotTestable(missing(data))
    points: list[tuple[float, dict[Where, Rate]]] = []
    for share, name in data.sweep("unknown"):
        try:
            losses = losses_of(data.forgotten, name, "test")
            points.append((100 * share, {where: rate(losses, where) for where in WHERE}))
        except NotTestable:
            continue
    if len(points) < 2:
        raise NotTestable("needs lost facts at two or more shares of Unknown rows")
    lines: list[tuple[str, Where, str, str, str]] = [
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
                _intervals(axes, xs, [(one.percent, one.low, one.high) for _, one in shown], colour)
            labels.append((ys[-1], label, colour))
        axes.set_ylim(0, 100)
        label_ends(axes, points[-1][0], labels)
        axes.set_ylim(0, 100)
        share_axis(axes, [x for x, _ in points])
        axes.set_ylabel("New answer stands in D (%)")

    return plot


def lost_and_won(data: StudyData) -> Callable[[Any], None]:
    """Losses and gains against the share of Unknown rows; seeds pooled."""
    if not data.forgotten:
        raise NotTestable(missing(data))
    points: list[tuple[float, tuple[float, float, float], float]] = []
    for share, name in data.sweep("unknown"):
        try:
            losses = losses_of(data.forgotten, name, "test")
            lost = lost_share(losses)
        except NotTestable:
            continue
        won = sum(one.num_gained for one in losses) / sum(one.right_before for one in losses)
        points.append((100 * share, lost, 100 * won))
    if len(points) < 2:
        raise NotTestable("needs test questions answered right at two or more shares of Unknown rows")
    xs, losts, wons = (list(column) for column in zip(*points, strict=True))

    def plot(axes: Any) -> None:
        lost = [value for value, _, _ in losts]
        axes.plot(xs, lost, color=VERMILLION, marker="o")
        _intervals(axes, xs, losts, VERMILLION)
        axes.plot(xs, wons, color=GREEN, marker="s")
        axes.set_ylim(bottom=0)
        label_ends(axes, xs[-1], [(lost[-1], "lost", VERMILLION), (wons[-1], "won", GREEN)])
        axes.set_ylim(bottom=0)
        share_axis(axes, xs)
        axes.set_ylabel("Of right answers before (%)")

    return plot


def _intervals(axes: Any, xs: list[float], values: list[tuple[float, float, float]], colour: str) -> None:
    """Error bars of (value, low, high)."""
    reach = [[value - low for value, low, _ in values], [high - value for value, _, high in values]]
    axes.errorbar(xs, [value for value, _, _ in values], reach, fmt="none", ecolor=colour, elinewidth=1.1, capsize=2)


def missing(data: StudyData) -> str:
    """Why nothing can be told."""
    if data.runs:
        return "the finished runs have no right_to_wrong.parquet with test questions, or the questions are not there"
    return "needs a finished run"
