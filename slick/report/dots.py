"""Dot plots of differences with their intervals, and the same as text."""

from collections.abc import Sequence
from typing import Any

from slick.analysis.findings.verdict import Z_95, round1
from slick.analysis.terms import Measurement
from slick.report.style import INK


def plot_interval_dots(
    axes: Any,
    cells: Sequence[Measurement | None],
    colour: str,
    marker: str,
    *,
    shift: float,
    label: str,
    full: bool = True,
) -> None:
    """One dot a row, from the top, with a 95 % interval and the value beside it; None leaves a row out.

    Args:
        axes: row i is at height i.
        cells: in points.
        colour: of dots and intervals.
        marker: of the dots; open unless `full`.
        shift: of all dots, downwards in rows, so that several series share a row.
        label: for the legend.
        full: fill the markers.
    """
    seen = [(row, cell) for row, cell in enumerate(cells) if cell is not None]
    values, heights = [cell.value for _, cell in seen], [row + shift for row, _ in seen]
    face = colour if full else "white"
    axes.errorbar(
        values,
        heights,
        xerr=[Z_95 * cell.se for _, cell in seen],
        fmt=marker,
        color=colour,
        elinewidth=1.6,
        capsize=3,
        markersize=6.5,
        markerfacecolor=face,
        label=label,
    )
    for value, height, (_, cell) in zip(values, heights, seen, strict=True):
        axes.annotate(
            f"{round1(cell.value):+.1f}",
            (value + Z_95 * cell.se, height),
            xytext=(6, 0),
            va="center",
            textcoords="offset points",
            fontsize=10.5,
            color=colour,
            annotation_clip=False,
        )


def format_dot_axes(axes: Any, labels: Sequence[str], title: str) -> None:
    """The axes around them: a line at no difference, a name for each row, a legend above."""
    axes.axvline(0, color=INK, linewidth=1, zorder=0.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.18)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=11)
    axes.set_xlabel(title)


def format_difference(cell: Measurement) -> str:
    """A difference in points and its 95 % interval.

    >>> format_difference(Measurement(-1.25, 0.5, 3))
    '-1.3 (-2.2 to -0.3)'
    """
    value, low, high = (
        round1(number) for number in (cell.value, cell.value - Z_95 * cell.se, cell.value + Z_95 * cell.se)
    )
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
