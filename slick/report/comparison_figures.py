"""The figures that hold several studies side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from slick.analysis.compare import ComparedStudy, SeedSpread, sweep_accuracies
from slick.analysis.counts import category_percentages, relation_counts, total_counts
from slick.analysis.findings.verdict import checkpoint_label
from slick.analysis.terms import CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.figures import CATEGORY_COLOURS
from slick.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, label_line_ends, set_share_axis
from slick.types import Category

STUDY_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
STUDY_MARKERS = "osD^vPX"
NO_SWEEP_MESSAGE = "none of the studies has finished trainings at two shares of Unknown rows"


def study_category_bars(sides: Sequence[ComparedStudy], split: str) -> Callable[[Any], None]:
    """One stacked bar a study: its test questions by category, in (`test`) or out of distribution (`ood`)."""
    bars: list[tuple[str, dict[str, float]]] = []
    for side in sides:
        try:
            bars.append((side.label, category_percentages(total_counts(relation_counts(side.data, split)))))
        except InsufficientDataError:
            continue
    if not bars:
        raise InsufficientDataError("none of the studies is annotated there")

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


def study_accuracy_by_share(sides: Sequence[ComparedStudy]) -> Callable[[Any], None]:
    """Test accuracy by share of Unknown rows: each study at early stop (full) and at convergence (broken).

    Raises:
        NotTestable: no study has two shares, or there are more studies than lines can be told apart.
    """
    _check_num_studies(sides)
    lines: list[tuple[int, str, list[tuple[float, float]]]] = []
    for i, side in enumerate(sides):
        found = sweep_accuracies(side)
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            points = sorted((100 * share, cell.value) for (share, at), cell in found.items() if at == checkpoint)
            if len(points) > 1:
                lines.append((i, checkpoint, points))
    if not lines:
        raise InsufficientDataError(NO_SWEEP_MESSAGE)

    def plot(axes: Any) -> None:
        labels = []
        for i, checkpoint, points in lines:
            x, y = zip(*points, strict=True)
            full = checkpoint == EARLY_STOP
            axes.plot(
                x,
                y,
                "-" if full else "--",
                color=STUDY_COLOURS[i],
                marker=STUDY_MARKERS[i],
                markerfacecolor=STUDY_COLOURS[i] if full else "white",
            )
            labels.append((y[-1], f"{sides[i].label}, {'early stop' if full else 'convergence'}", STUDY_COLOURS[i]))
        ticks = sorted({x for _, _, points in lines for x, _ in points})
        label_line_ends(axes, ticks[-1], labels)
        set_share_axis(axes, ticks)
        axes.set_xlim(right=ticks[-1] + 42)
        axes.set_ylabel("Test accuracy (%)")

    return plot


def loss_by_share(sides: Sequence[ComparedStudy]) -> Callable[[Any], None]:
    """What is lost from early stop to convergence, by share of Unknown rows, one line a study.

    Raises:
        NotTestable: no study has two shares, or there are more studies than lines can be told apart.
    """
    _check_num_studies(sides)
    lines: list[tuple[int, list[tuple[float, float]]]] = []
    for i, side in enumerate(sides):
        found = sweep_accuracies(side)
        both = sorted({share for share, _ in found if {(share, EARLY_STOP), (share, CONVERGENCE)} <= found.keys()})
        points = [(100 * share, found[share, EARLY_STOP].value - found[share, CONVERGENCE].value) for share in both]
        if len(points) > 1:
            lines.append((i, points))
    if not lines:
        raise InsufficientDataError(NO_SWEEP_MESSAGE)

    def plot(axes: Any) -> None:
        labels = []
        for i, points in lines:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=STUDY_COLOURS[i], marker=STUDY_MARKERS[i])
            labels.append((y[-1], sides[i].label, STUDY_COLOURS[i]))
        ticks = sorted({x for _, points in lines for x, _ in points})
        axes.axhline(0, color=MUTED, linewidth=1)
        label_line_ends(axes, ticks[-1], labels)
        set_share_axis(axes, ticks)
        axes.set_xlim(right=ticks[-1] + 12)
        axes.set_ylabel("Early stop minus convergence (points)")

    return plot


def spread_bands(found: Sequence[SeedSpread]) -> Callable[[Any], None]:
    """Mean over studies at early stop and at convergence, in a band from the lowest to the highest.

    Raises:
        NotTestable: the studies share fewer than two shares.
    """
    rows = {
        checkpoint: [one for one in found if one.checkpoint == checkpoint] for checkpoint in (EARLY_STOP, CONVERGENCE)
    }
    if max(map(len, rows.values())) < 2:
        raise InsufficientDataError(NO_SWEEP_MESSAGE)

    def plot(axes: Any) -> None:
        labels = []
        for (checkpoint, of_one), colour, marker in zip(rows.items(), (BLUE, VERMILLION), "os", strict=True):
            x = [100 * one.share for one in of_one]
            axes.fill_between(
                x, [min(one.values) for one in of_one], [max(one.values) for one in of_one], color=colour, alpha=0.2
            )
            axes.plot(x, [one.mean for one in of_one], color=colour, marker=marker)
            labels.append((of_one[-1].mean, checkpoint_label(checkpoint), colour))
        label_line_ends(axes, 100 * found[-1].share, labels)
        set_share_axis(axes, sorted({100 * one.share for one in found}))
        axes.set_ylabel("Test accuracy (%)")

    return plot


def _check_num_studies(sides: Sequence[ComparedStudy]) -> None:
    if len(sides) > len(STUDY_COLOURS):
        raise InsufficientDataError(f"{len(sides)} studies are too many for one figure; its numbers are in the table")
