"""The figures: one style, drawn from `StudyData`, as SVG with text as text and as PNG.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which stay apart for colour-blind readers; no
line is told by its colour alone.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from slick.analysis.data import EARLY, LAST, POOLED, Cell, NotTestable, StudyData
from slick.analysis.outcomes_data import prefix_curve
from slick.analysis.outcomes_fit import fitted
from slick.analysis.outcomes_sweep import half_unknown, lengths
from slick.analysis.verdict import when_label
from slick.types import ALL, Category

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
INK, MUTED, GRID = "#1b1f24", "#5b6470", "#e3e6ea"
CATEGORY_COLOURS = {
    Category.HIGHLY_KNOWN: (GREEN, "-"),
    Category.MAYBE_KNOWN: (BLUE, "--"),
    Category.WEAKLY_KNOWN: (ORANGE, "-."),
    Category.UNKNOWN: (VERMILLION, ":"),
}

STYLE = {
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
    """One drawn figure."""

    name: str
    svg: str
    """Ready to stand inside a page: no prologue, ids that begin with the figure's name, width left to the page."""
    png: bytes


def draw(name: str, alt: str, plot: Callable[[Any], None]) -> Figure:
    """Draw one figure.

    Args:
        name: file name, and prefix of its SVG ids.
        alt: what it shows, for those who cannot see it.
        plot: draws on the axes it is given.

    Raises:
        NotTestable: the study does not hold what the figure shows.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Canvas()
        FigureCanvasAgg(figure)
        plot(figure.add_subplot())
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    return Figure(name=name, svg=_inline(svg.getvalue(), name, alt), png=png.getvalue())


def _inline(svg: str, name: str, alt: str) -> str:
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(alt)}">{rest}'


def accuracy_by_share(data: StudyData, split: str) -> Callable[[Any], None]:
    """Test accuracy against the share of Unknown rows, one line a training length (paper: figures 3a and 7)."""
    sweep = data.sweep("unknown", least=2)
    x = [100 * share for share, _ in sweep]
    rows = {when: [data.accuracy(name, when, split) for _, name in sweep] for when in lengths(data)}

    def plot(axes: Any) -> None:
        inner = [when for when in rows if when not in (EARLY, LAST)]
        labels = []
        for i, when in enumerate(inner):
            grey = str(round(0.62 - 0.27 * i / max(len(inner) - 1, 1), 2))
            axes.plot(x, [cell.value for cell in rows[when]], color=grey, linewidth=1.3)
            labels.append((rows[when][-1].value, when_label(when), MUTED))
        for when, colour, marker in ((EARLY, BLUE, "o"), (LAST, VERMILLION, "s")):
            _band(axes, x, rows[when], colour, marker)
            labels.append((rows[when][-1].value, when_label(when), colour))
        _label_ends(axes, x[-1], labels)
        _share_axis(axes, x)
        axes.set_ylabel(f"{'Test' if split == 'test' else 'OOD test'} accuracy (%)")

    return plot


def known_ablation(data: StudyData) -> Callable[[Any], None]:
    """D and D_Known at early stop and at convergence (paper: figure 3b)."""
    sweep, known = data.sweep("unknown", least=2), data.sweep("known", least=2)
    start = [(share, name) for share, name in sweep if share == 0.0]  # D_Known of 0 % is D itself

    def plot(axes: Any) -> None:
        for kind, names, line, full in (("D", sweep, "-", True), ("D_Known", [*start, *known], "--", False)):
            for when, colour, marker in ((EARLY, BLUE, "o"), (LAST, VERMILLION, "s")):
                cells = [data.accuracy(name, when) for _, name in names]
                x = [100 * share for share, _ in names]
                _band(axes, x, cells, colour, marker, line, full, label=f"{kind}, {when_label(when)}")
        axes.legend(loc="lower left", fontsize=11, handlelength=2.6)
        _share_axis(axes, [100 * share for share, _ in sweep], room=False)
        axes.set_ylabel("Test accuracy (%)")

    return plot


def fit_curves(data: StudyData) -> Callable[[Any], None]:
    """Known and Unknown training rows fitted, and dev accuracy, by epoch, for the 50 % variant (paper: figure 1)."""
    name = half_unknown(data)
    curves = {
        "Known, train": (*data.mean_curve(name, "train", POOLED), BLUE, "-"),
        "Unknown, train": (*data.mean_curve(name, "train", str(Category.UNKNOWN)), VERMILLION, "-"),
        "dev": (*data.mean_curve(name, "dev"), INK, "--"),
    }
    early = data.mean_epoch(name, EARLY)

    def plot(axes: Any) -> None:
        labels = []
        for label, (epochs, values, colour, line) in curves.items():
            seen = np.isfinite(values)
            axes.plot(epochs[seen], values[seen], line, color=colour, marker="o", markersize=3)
            labels.append((float(values[seen][-1]), label, colour))
        axes.axvline(early, color=MUTED, linewidth=1, linestyle=":")
        axes.annotate("early stop", (early, 101), ha="left", va="bottom", fontsize=11, color=MUTED, xytext=(3, 0),
                      textcoords="offset points", annotation_clip=False)  # fmt: skip
        _label_ends(axes, float(next(iter(curves.values()))[0][-1]), labels)
        _epoch_axis(axes, next(iter(curves.values()))[0])

    return plot


def category_curves(data: StudyData) -> Callable[[Any], None]:
    """Training rows fitted by epoch and category, for the 50 % variant (paper: figure 6)."""
    name = half_unknown(data)
    curves = {
        category: data.mean_curve(name, "train", str(category))
        for category in Category
        if any(("train", str(category)) in run.accuracy for run in data.runs_of(name))
    }
    if len(curves) < 2:
        raise NotTestable(f"the runs of {name} have no train accuracy by category")

    def plot(axes: Any) -> None:
        for category, (epochs, values) in curves.items():
            colour, line = CATEGORY_COLOURS[category]
            axes.plot(epochs, values, line, color=colour, label=str(category))
        axes.legend(loc="lower right", fontsize=11, handlelength=2.6)
        _epoch_axis(axes, next(iter(curves.values()))[0], room=False)

    return plot


def early_stop_state(data: StudyData) -> Callable[[Any], None]:
    """What of D is fitted at early stop, stacked: Known and Unknown, fitted or not (paper: figure 4)."""
    sweep = data.sweep("unknown", least=1)
    stacks = [early_parts(data, share, name) for share, name in sweep]

    def plot(axes: Any) -> None:
        x = np.arange(len(sweep))
        bottom = np.zeros(len(sweep))
        parts = (
            ("Known, fitted", BLUE, ""),
            ("Known, not fitted", "#b5d3e7", "///"),
            ("Unknown, fitted", VERMILLION, ""),
            ("Unknown, not fitted", "#f4cdb2", "\\\\\\"),
        )
        for i, (label, colour, hatch) in enumerate(parts):
            height = np.array([stack[i] for stack in stacks])
            axes.bar(
                x, height, 0.74, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label
            )
            for at, low, tall in zip(x, bottom, height, strict=True):
                if tall >= 8 and not hatch:
                    axes.annotate(
                        f"{tall:.0f}", (at, low + tall / 2), ha="center", va="center", color="white", fontsize=10.5
                    )
            bottom += height
        axes.set_xticks(x, [f"{100 * share:.0f}" for share, _ in sweep])
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0, 100)
        axes.set_xlabel("Unknown rows in D (%)")
        axes.set_ylabel("Rows of D at early stop (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=2, fontsize=11)

    return plot


def early_parts(data: StudyData, share: float, name: str) -> tuple[float, float, float, float]:
    """Percent of D at early stop: Known fitted, Known not, Unknown fitted, Unknown not."""
    num = data.runs_of(name)[0].num
    unknown_share = num.get(("train", str(Category.UNKNOWN)), 0) / num["train", ALL] if ("train", ALL) in num else share
    known = fitted(data, name, EARLY, POOLED).value / 100 if unknown_share < 1 else 0.0
    unknown = fitted(data, name, EARLY, str(Category.UNKNOWN)).value / 100 if unknown_share > 0 else 0.0
    whole = (
        (1 - unknown_share) * known,
        (1 - unknown_share) * (1 - known),
        unknown_share * unknown,
        unknown_share * (1 - unknown),
    )
    return tuple(100 * part for part in whole)  # type: ignore[return-value]


def exemplar_curve(data: StudyData) -> Callable[[Any], None]:
    """Accuracy on the Unknown set against its size, one point for each number of exemplar sets (paper: figure 5)."""
    curve = prefix_curve(data)

    def plot(axes: Any) -> None:
        x, y = [share for _, share, _ in curve], [cell.value for _, _, cell in curve]
        down = [min(cell.se, cell.value) for _, _, cell in curve]  # an accuracy is never below 0
        axes.errorbar(
            x, y, [down, [cell.se for _, _, cell in curve]], color=BLUE, marker="o", elinewidth=1.2, capsize=2
        )
        for i, place, side in ((0, (8, -14), "left"), (len(curve) - 1, (-8, 8), "right")):
            n = curve[i][0]
            label = f"{n} set{'s' if n > 1 else ''}"
            axes.annotate(label, (x[i], y[i]), xytext=place, textcoords="offset points", ha=side, fontsize=11)
        axes.set_xlabel("Test questions labelled Unknown (%)")
        axes.set_ylabel("Accuracy on them (%)")
        axes.margins(x=0.22, y=0.1)
        axes.set_ylim(bottom=-0.04 * max(y))

    return plot


def _band(
    axes: Any,
    x: list[float],
    cells: list[Cell],
    colour: str,
    marker: str,
    line: str = "-",
    full: bool = True,
    label: str = "",
) -> None:
    values, errors = np.array([cell.value for cell in cells]), np.array([cell.se for cell in cells])
    face = colour if full else "white"
    axes.fill_between(x, values - errors, values + errors, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, values, line, color=colour, marker=marker, markerfacecolor=face, label=label or None)


def _label_ends(axes: Any, x: float, labels: list[tuple[float, str, str]]) -> None:
    """Names at the right ends of lines, pushed apart where they would overlap."""
    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    least = 0.07 * (high - low)
    ordered = sorted(labels)
    for y, (_, text, colour) in zip(spread_out([value for value, _, _ in ordered], least), ordered, strict=True):
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


def spread_out(values: list[float], least: float) -> list[float]:
    """Move ascending values as little as can be, so that neighbours are `least` apart.

    Pool adjacent violators (Barlow et al. 1972) on the values less their room.

    >>> spread_out([0.0, 2.0, 2.0, 5.0], 1.0)
    [0.0, 1.5, 2.5, 5.0]
    """
    blocks: list[tuple[float, int]] = []
    for i, value in enumerate(values):
        mean, size = value - i * least, 1
        while blocks and blocks[-1][0] > mean:
            before, num = blocks.pop()
            mean, size = (before * num + mean * size) / (num + size), num + size
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    return [mean + i * least for i, mean in enumerate(flat)]


def _share_axis(axes: Any, x: list[float], room: bool = True) -> None:
    axes.set_xticks(x, [f"{value:.0f}" for value in x])
    axes.set_xlim(min(x) - 3, max(x) + (34 if room else 3))
    axes.set_xlabel("Unknown rows in D (%)")
    if room:
        axes.spines["bottom"].set_bounds(min(x) - 3, max(x))


def _epoch_axis(axes: Any, epochs: Any, room: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = int(epochs[0]), int(epochs[-1])
    span = max(last - first, 1)
    axes.set_xlim(first - 0.03 * span, last + (0.42 if room else 0.03) * span)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xticks([tick for tick in axes.get_xticks() if first <= tick <= last])
    axes.set_ylim(-2, 104)
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Accuracy (%)")
