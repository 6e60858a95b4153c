"""The figures that hold several studies side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from slick.analysis.compare import Side, Spread, accuracies
from slick.analysis.counts import relation_counts, shares, total
from slick.analysis.findings.verdict import when_label
from slick.analysis.terms import EARLY, LAST, NotTestable
from slick.report.figures import CATEGORY_COLOURS
from slick.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, label_ends, share_axis
from slick.types import Category

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
MARKERS = "osD^vPX"
NO_LINE = "none of the studies has finished trainings at two shares of Unknown rows"


def category_bars(sides: Sequence[Side], split: str) -> Callable[[Any], None]:
    """One stacked bar a study: its test questions by category, in (`test`) or out of distribution (`ood`)."""
    bars: list[tuple[str, dict[str, float]]] = []
    for side in sides:
        try:
            bars.append((side.label, shares(total(relation_counts(side.data, split)))))
        except NotTestable:
            continue
    if not bars:
        raise NotTestable("none of the studies is annotated there")

    def plot(axes: Any) -> None:
        for i, (_, values) in enumerate(bars):
            left = 0.0
            for category in Category:
                width, colour = values[category], CATEGORY_COLOURS[category][0]
                axes.barh(-i, width, 0.7, left=left, color=colour, label=str(category) if not i else None)
                if width >= 7:
                    ink = INK if category is Category.WEAKLY_KNOWN else "white"
                    axes.annotate(f"{width:.0f}", (left + width / 2, -i), ha="center", va="center", color=ink)
                left += width
        axes.set_yticks([-i for i in range(len(bars))], [label for label, _ in bars])
        axes.set_ylim(-max(len(bars), 3) + 0.4, 0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"{'Test' if split == 'test' else 'OOD test'} questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=2, fontsize=11)

    return plot


def accuracy_by_share(sides: Sequence[Side]) -> Callable[[Any], None]:
    """Test accuracy by share of Unknown rows: each study at early stop (full) and at convergence (broken).

    Raises:
        NotTestable: no study has two shares, or there are more studies than lines can be told apart.
    """
    _check_number(sides)
    lines: list[tuple[int, str, list[tuple[float, float]]]] = []
    for i, side in enumerate(sides):
        found = accuracies(side)
        for when in (EARLY, LAST):
            points = sorted((100 * share, cell.value) for (share, at), cell in found.items() if at == when)
            if len(points) > 1:
                lines.append((i, when, points))
    if not lines:
        raise NotTestable(NO_LINE)

    def plot(axes: Any) -> None:
        labels = []
        for i, when, points in lines:
            x, y = zip(*points, strict=True)
            full = when == EARLY
            axes.plot(
                x, y, "-" if full else "--", color=COLOURS[i], marker=MARKERS[i],
                markerfacecolor=COLOURS[i] if full else "white",
            )  # fmt: skip
            labels.append((y[-1], f"{sides[i].label}, {'early stop' if full else 'convergence'}", COLOURS[i]))
        ticks = sorted({x for _, _, points in lines for x, _ in points})
        label_ends(axes, ticks[-1], labels)
        share_axis(axes, ticks)
        axes.set_xlim(right=ticks[-1] + 42)
        axes.set_ylabel("Test accuracy (%)")

    return plot


def loss_by_share(sides: Sequence[Side]) -> Callable[[Any], None]:
    """What is lost from early stop to convergence, by share of Unknown rows, one line a study.

    Raises:
        NotTestable: no study has two shares, or there are more studies than lines can be told apart.
    """
    _check_number(sides)
    lines: list[tuple[int, list[tuple[float, float]]]] = []
    for i, side in enumerate(sides):
        found = accuracies(side)
        both = sorted({share for share, _ in found if {(share, EARLY), (share, LAST)} <= found.keys()})
        points = [(100 * share, found[share, EARLY].value - found[share, LAST].value) for share in both]
        if len(points) > 1:
            lines.append((i, points))
    if not lines:
        raise NotTestable(NO_LINE)

    def plot(axes: Any) -> None:
        labels = []
        for i, points in lines:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=COLOURS[i], marker=MARKERS[i])
            labels.append((y[-1], sides[i].label, COLOURS[i]))
        ticks = sorted({x for _, points in lines for x, _ in points})
        axes.axhline(0, color=MUTED, linewidth=1)
        label_ends(axes, ticks[-1], labels)
        share_axis(axes, ticks)
        axes.set_xlim(right=ticks[-1] + 12)
        axes.set_ylabel("Early stop minus convergence (points)")

    return plot


def spread_bands(found: Sequence[Spread]) -> Callable[[Any], None]:
    """Mean over studies at early stop and at convergence, in a band from the lowest to the highest.

    Raises:
        NotTestable: the studies share fewer than two shares.
    """
    rows = {when: [one for one in found if one.when == when] for when in (EARLY, LAST)}
    if max(map(len, rows.values())) < 2:
        raise NotTestable(NO_LINE)

    def plot(axes: Any) -> None:
        labels = []
        for (when, of_one), colour, marker in zip(rows.items(), (BLUE, VERMILLION), "os", strict=True):
            x = [100 * one.share for one in of_one]
            axes.fill_between(
                x, [min(one.values) for one in of_one], [max(one.values) for one in of_one], color=colour, alpha=0.2
            )
            axes.plot(x, [one.mean for one in of_one], color=colour, marker=marker)
            labels.append((of_one[-1].mean, when_label(when), colour))
        label_ends(axes, 100 * found[-1].share, labels)
        share_axis(axes, sorted({100 * one.share for one in found}))
        axes.set_ylabel("Test accuracy (%)")

    return plot


def _check_number(sides: Sequence[Side]) -> None:
    if len(sides) > len(COLOURS):
        raise NotTestable(f"{len(sides)} studies are too many for one figure; its numbers are in the table")
