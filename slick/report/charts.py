"""Style and building blocks of the figures, which are rendered as SVG (with text elements) and PNG.

Colors are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which color-blind readers can distinguish. Lines
also differ in markers, line style or labels.
"""

import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.report.measurements import Z_95, Measurement, round1
from slick.types import Category

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
INK, MUTED, GRID = "#1b1f24", "#5b6470", "#e3e6ea"

FIGURE_STYLE = {
    "figure.figsize": (5.3, 4.0),
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 12.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A rendered figure."""

    name: str
    svg: str
    """For inline use in HTML: without prologue, width and height; ids are prefixed with the figure's name."""
    png: bytes


def render_figure(name: str, alt: str, plot: Callable[[Any], None]) -> Figure:
    """Render one figure.

    Args:
        name: file name without suffix, and prefix of its SVG ids.
        alt: the alternative text.
        plot: draws on the given Matplotlib axes.

    Raises:
        InsufficientDataError: by `plot`, if the study lacks the data.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context({**FIGURE_STYLE, "svg.hashsalt": name}):
        figure = Canvas()
        FigureCanvasAgg(figure)
        plot(figure.add_subplot())
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return Figure(name=name, svg=_inline_svg(svg.getvalue(), name, alt), png=png.getvalue())


def _inline_svg(svg: str, name: str, alt: str) -> str:
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(alt)}">{rest}'


def shorten_label(text: str, limit: int = 24) -> str:
    """A text of the user as a label that leaves room for the axes.

    >>> shorten_label("P17"), shorten_label("a name of a relation that is long")
    ('P17', 'a name of a relation th…')
    """
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def plot_with_error_band(
    axes: Any,
    x: list[float],
    cells: list[Measurement],
    colour: str,
    marker: str,
    line: str = "-",
    full: bool = True,
    label: str = "",
) -> None:
    """A line of percentages in a band of one standard error; markers are open unless `full`."""
    values, errors = np.array([cell.value for cell in cells]), np.array([cell.se for cell in cells])
    face = colour if full else "white"
    axes.fill_between(x, values - errors, values + errors, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, values, line, color=colour, marker=marker, markerfacecolor=face, label=label or None)


def label_line_ends(axes: Any, x: float, labels: list[tuple[float, str, str]]) -> None:
    """Label the right ends of lines without overlap.

    Args:
        axes: of the lines.
        x: where the lines end.
        labels: height, text and color of each label.
    """
    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    distance = 0.07 * (high - low)
    ordered = sorted(labels)
    heights = separate_values([height for height, _, _ in ordered], distance)
    for y, (_, text, colour) in zip(heights, ordered, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=11,
            annotation_clip=False,
        )


def separate_values(values: list[float], distance: float) -> list[float]:
    """Move ascending values as little as possible (in squared distance) so that neighbors are `distance` apart.

    Source: pool adjacent violators (Barlow et al. 1972), applied to the values minus their offsets.

    >>> separate_values([0.0, 2.0, 2.0, 5.0], 1.0)
    [0.0, 1.5, 2.5, 5.0]
    """
    blocks: list[tuple[float, int]] = []
    for i, value in enumerate(values):
        mean, size = value - i * distance, 1
        while blocks and blocks[-1][0] > mean:
            before, num = blocks.pop()
            mean, size = (before * num + mean * size) / (num + size), num + size
        blocks.append((mean, size))
    means = [mean for mean, size in blocks for _ in range(size)]
    return [mean + i * distance for i, mean in enumerate(means)]


def set_share_axis(axes: Any, x: list[float], room: bool = True) -> None:
    """An x axis of the percentage of Unknown rows; `room` leaves space for labels of line ends."""
    axes.set_xticks(x, [f"{value:.0f}" for value in x])
    axes.set_xlim(min(x) - 3, max(x) + (34 if room else 3))
    axes.set_xlabel("Unknown rows in D (%)")
    if room:
        axes.spines["bottom"].set_bounds(min(x) - 3, max(x))


def set_epoch_axis(axes: Any, epochs: Any, room: bool = True) -> None:
    """Axes of epochs and percentages; `room` leaves space for labels of line ends."""
    from matplotlib.ticker import MaxNLocator

    first, last = int(epochs[0]), int(epochs[-1])
    span = max(last - first, 1)
    axes.set_xlim(first - 0.03 * span, last + (0.42 if room else 0.03) * span)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xticks([tick for tick in axes.get_xticks() if first <= tick <= last])
    axes.set_ylim(-2, 104)
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Accuracy (%)")


CATEGORY_COLOURS = {
    Category.HIGHLY_KNOWN: (GREEN, "-"),
    Category.MAYBE_KNOWN: (BLUE, "--"),
    Category.WEAKLY_KNOWN: (ORANGE, "-."),
    Category.UNKNOWN: (VERMILLION, ":"),
}


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
    """A dot plot of differences with 95 % intervals and values, one row per difference.

    Args:
        axes: row i is at height i.
        cells: in percentage points; None leaves the row empty.
        colour: of dots and intervals.
        marker: of the dots.
        shift: vertical offset in rows, so that several series share a row.
        label: for the legend.
        full: whether markers are filled.
    """
    shown = [(row, cell) for row, cell in enumerate(cells) if cell is not None]
    values, heights = [cell.value for _, cell in shown], [row + shift for row, _ in shown]
    face = colour if full else "white"
    axes.errorbar(
        values,
        heights,
        xerr=[Z_95 * cell.se for _, cell in shown],
        fmt=marker,
        color=colour,
        elinewidth=1.6,
        capsize=3,
        markersize=6.5,
        markerfacecolor=face,
        label=label,
    )
    for value, height, (_, cell) in zip(values, heights, shown, strict=True):
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
    """The axes of a dot plot: a line at 0, one label per row, and the legend above."""
    axes.axvline(0, color=INK, linewidth=1, zorder=0.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.18)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=11)
    axes.set_xlabel(title)


def plot_share_by_epochs(
    axes: Any, values_ES: NDArray[np.float64], shares: Sequence[float], epochs: Sequence[int], colour_map: str
) -> None:
    """A heat map over shares of Unknown rows (x) and epochs trained (y), with the value in each cell; NaN is a dash.

    Args:
        axes: of the figure.
        values_ES: shape (epochs, shares).
        shares: of Unknown rows, in [0, 1].
        epochs: of the rows.
        colour_map: `cividis` or its reverse. Cividis looks the same with and without red-green colour blindness:
            https://doi.org/10.1371/journal.pone.0199239.
    """
    edges = (np.arange(len(shares) + 1) - 0.5, np.arange(len(epochs) + 1) - 0.5)
    axes.pcolormesh(*edges, np.ma.masked_invalid(values_ES), cmap=colour_map, edgecolor="white", linewidth=2)
    middle = (np.nanmin(values_ES) + np.nanmax(values_ES)) / 2
    for (y, x), value in np.ndenumerate(values_ES):
        light = np.isnan(value) or (value <= middle if colour_map.endswith("_r") else value > middle)
        text = "–" if np.isnan(value) else f"{round1(value):.1f}"
        axes.text(x, y, text, ha="center", va="center", fontsize=11, color=INK if light else "white")
    axes.set_xticks(range(len(shares)), [f"{100 * share:.0f}" for share in shares])
    axes.set_yticks(range(len(epochs)), [str(epoch) for epoch in epochs])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("Unknown rows in D (%)")
    axes.set_ylabel("Epochs trained")


def plot_stacked_bars(
    axes: Any,
    positions: Any,
    parts: Mapping[str, Sequence[float] | NDArray[np.float64]],
    colours: Mapping[str, str],
    *,
    height: float = 0.7,
    min_label: float = 6.0,
    dark_text: Collection[str] = (),
    **bar_style: Any,
) -> None:
    """Horizontal bars of percentages, stacked to the right, with numbers in the parts that have room.

    Args:
        axes: of the figure.
        positions: of the bars along y, N.
        parts: name of each part to its percentages, N.
        colours: of the parts.
        height: of the bars.
        min_label: parts below this percentage show no number.
        dark_text: parts whose number is dark; the others are white.
        bar_style: for matplotlib's `barh`.
    """
    left = np.zeros(len(positions))
    for name, part in parts.items():
        width = np.asarray(part, dtype=np.float64)
        axes.barh(positions, width, height, left=left, color=colours[name], edgecolor="white", label=name, **bar_style)
        for at, start, size in zip(positions, left, width, strict=True):
            if size >= min_label:
                colour = INK if name in dark_text else "white"
                axes.text(start + size / 2, at, f"{size:.0f}", ha="center", va="center", color=colour, fontsize=11)
        left += width
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
