"""Shares of the categories by group and by length of the target, for the page of a curated file. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slick.curation.actions import RowLabel
from slick.curation.page_rows import category_of
from slick.curation.selection import Candidate, Decision
from slick.report.charts import CATEGORY_COLOURS, Figure, plot_stacked_bars, render_figure, shorten_label
from slick.report.measurements import format_with_interval
from slick.report.statistics.intervals import proportion
from slick.report.tables import Row, Table
from slick.types import Category

MAX_GROUPS = 15
"""Groups with a row of their own; smaller ones are counted together."""
LENGTHS = (1, 2, 5, 10, 20, 40)
"""Upper limits in words of the bins of targets; longer ones have a bin of their own."""

CategoryCounts = Mapping[Category, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """Categories of the rows, by a property of theirs."""

    name: str
    """File name of the figure and the table."""
    column: str
    """What the rows are grouped by."""
    counts: Mapping[str, CategoryCounts]
    """By value, in the order to show."""

    def table(self) -> Table:
        """Numbers by category, with 95 % intervals of the share of Unknown rows."""
        rows: list[Row] = []
        for value, counts in self.counts.items():
            numbers = [counts.get(category, 0) for category in Category]
            rows.append((value, *numbers, sum(numbers), percent(numbers[-1], sum(numbers))))
        columns = (self.column, *map(str, Category), "asked", "Unknown (%)")
        return Table(name=self.name, columns=columns, rows=tuple(rows))

    def figure(self) -> Figure:
        """A bar of 100 % for each value."""
        values = list(self.counts)

        def plot(axes: Any) -> None:
            _plot_bars(axes, values, list(self.counts.values()))

        return render_figure(self.name, f"Shares of the four categories by {self.column}", plot)


def by_group(decisions: Sequence[Decision], labels: Sequence[RowLabel], column: str) -> Breakdown:
    """By the column that `--group-by` names, largest groups first."""
    counts = _count((c.group, category) for c, category in _labelled(decisions, labels))
    ranked = sorted(counts, key=lambda group: (-sum(counts[group].values()), group))
    shown = {group: counts[group] for group in ranked[:MAX_GROUPS]}
    if others := ranked[MAX_GROUPS:]:
        rest: Counter[Category] = Counter()
        for group in others:
            rest.update(counts[group])
        shown[f"{len(others):,} other groups"] = rest
    return Breakdown(name="by_group", column=column, counts=shown)


def by_length(decisions: Sequence[Decision], labels: Sequence[RowLabel]) -> Breakdown:
    """By the number of words of the target."""
    bins = _length_bins()
    pairs = ((len(c.target.split()), category) for c, category in _labelled(decisions, labels))
    counts = _count((next(name for name, limit in bins if num <= limit), category) for num, category in pairs)
    ordered = {name: counts[name] for name, _ in bins if name in counts}
    return Breakdown(name="by_length", column="words in the target", counts=ordered)


def percent(num: int, total: int) -> str:
    """A share in percent with Wilson's 95 % interval.

    >>> percent(1, 100)
    '1.0 (0.2 to 5.4)'
    """
    share = proportion(num, total)
    return format_with_interval(100 * share.share, 100 * share.low, 100 * share.high)


def _length_bins() -> list[tuple[str, float]]:
    starts = (1, *(limit + 1 for limit in LENGTHS[:-1]))
    bins: list[tuple[str, float]] = [
        (str(limit) if start == limit else f"{start}–{limit}", limit)
        for start, limit in zip(starts, LENGTHS, strict=True)
    ]
    return [*bins, (f"{LENGTHS[-1] + 1} or more", float("inf"))]


def _labelled(decisions: Sequence[Decision], labels: Sequence[RowLabel]) -> Iterable[tuple[Candidate, Category]]:
    for decision in decisions:
        category = category_of(decision, labels[decision.row])
        if category is not None and isinstance(decision, Candidate):
            yield decision, category


def _count(pairs: Iterable[tuple[str, Category]]) -> dict[str, Counter[Category]]:
    counts: dict[str, Counter[Category]] = {}
    for value, category in pairs:
        counts.setdefault(value, Counter())[category] += 1
    return counts


def _plot_bars(axes: Any, values: Sequence[str], counts: Sequence[CategoryCounts]) -> None:
    totals = [sum(of_value.values()) for of_value in counts]
    parts = {
        str(category): [100 * of_value.get(category, 0) / total for of_value, total in zip(counts, totals, strict=True)]
        for category in Category
    }
    colours = {str(category): CATEGORY_COLOURS[category][0] for category in Category}
    positions = list(range(len(values)))
    plot_stacked_bars(axes, positions, parts, colours, dark_text=(str(Category.WEAKLY_KNOWN),))
    axes.set_yticks(
        positions, [f"{shorten_label(value)} ({total:,})" for value, total in zip(values, totals, strict=True)]
    )
    axes.get_figure().set_size_inches(5.3, 1.5 + 0.34 * len(values))
    axes.invert_yaxis()
    axes.set_xlabel("Rows (%)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=11)
