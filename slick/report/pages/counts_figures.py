"""The figures of the counts section: categories, and Unknown questions by relation, beside the paper's."""

from collections.abc import Callable
from typing import Any

from slick.analysis.counts import (
    PAPER_FOOTNOTE_5_PERCENT,
    PAPER_SPLITS,
    RelationCounts,
    category_percentages,
    paper_category_totals,
    relation_counts,
    total_counts,
)
from slick.analysis.data import StudyData
from slick.analysis.terms import InsufficientDataError
from slick.report.figures import CATEGORY_COLOURS
from slick.report.style import INK, MUTED
from slick.types import Category

DARK_CATEGORIES = {Category.HIGHLY_KNOWN, Category.MAYBE_KNOWN, Category.UNKNOWN}
"""Categories whose colour is dark enough for white numbers."""


def category_shares_figure(data: StudyData) -> Callable[[Any], None]:
    """One stacked bar a split, here and in the paper, and the footnote's."""
    bars: list[tuple[str, dict[str, float], bool]] = []
    for split in PAPER_SPLITS:
        try:
            observed = category_percentages(total_counts(relation_counts(data, split)))
        except InsufficientDataError:
            continue
        label = {"ood": "OOD test"}.get(split, split)
        bars += [
            (f"{label}, here", observed, True),
            (f"{label}, paper", category_percentages(paper_category_totals(split)), False),
        ]
    if not bars:
        raise InsufficientDataError("needs a finished knowledge table")
    bars.append(("paper's footnote", dict(PAPER_FOOTNOTE_5_PERCENT), False))

    def plot(axes: Any) -> None:
        ys = [-(i + 0.45 * (i // 2)) for i in range(len(bars))]
        for y, (_, values, observed) in zip(ys, bars, strict=True):
            left = 0.0
            for category in Category:
                width = values[category]
                axes.barh(
                    y, width, 0.82, left=left, color=CATEGORY_COLOURS[category][0], alpha=1.0 if observed else 0.55
                )
                if width >= 7:
                    colour = "white" if observed and category in DARK_CATEGORIES else INK
                    axes.annotate(
                        f"{width:.0f}", (left + width / 2, y), ha="center", va="center", color=colour, fontsize=11
                    )
                left += width
        axes.set_yticks(ys, [label for label, _, _ in bars])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 100)
        axes.set_xlabel("Questions (%)")
        handles = [axes.barh(0, 0, color=CATEGORY_COLOURS[category][0], label=str(category)) for category in Category]
        axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.36, 1.0), ncols=2, fontsize=11)

    return plot


def unknown_by_relation(data: StudyData) -> Callable[[Any], None]:
    """Percent Unknown of each relation's test questions, here and in the paper, joined by a line."""
    found: list[RelationCounts] = []
    for split in ("test", "ood"):
        try:
            found += relation_counts(data, split)
        except InsufficientDataError:
            continue
    if not found:
        raise InsufficientDataError("no test questions were annotated")
    if len(found) > 40:
        raise InsufficientDataError(
            f"{len(found)} relations are too many for one figure; the tables below have them all"
        )
    unknown = str(Category.UNKNOWN)
    rows = sorted(
        ((row.relation, category_percentages(row.observed)[unknown], row.paper) for row in found),
        key=lambda row: row[1],
    )

    def plot(axes: Any) -> None:
        colour, _ = CATEGORY_COLOURS[Category.UNKNOWN]
        for y, (_, observed, paper) in enumerate(rows):
            if paper is not None:
                there = category_percentages(paper)[unknown]
                axes.plot([observed, there], [y, y], color=MUTED, linewidth=1.0)
                axes.plot(there, y, "o", color=MUTED, markerfacecolor="white", label="paper" if not y else None)
            axes.plot(observed, y, "o", color=colour, label="here" if not y else None)
        axes.set_yticks(range(len(rows)), [relation for relation, _, _ in rows], fontsize=min(11, 200 / len(rows)))
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlim(left=0)
        axes.set_xlabel("Unknown test questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=2, fontsize=11)

    return plot
