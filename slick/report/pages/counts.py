"""The section on how many questions fall into each category, beside the paper's tables 3 to 5."""

from collections.abc import Callable
from functools import partial
from typing import Any

from slick.analysis.counts import (
    FOOTNOTE_5,
    SPLITS,
    Counts,
    RelationCounts,
    paper_categories,
    paper_total,
    relation_counts,
    set_size,
    shares,
    total,
)
from slick.analysis.data import StudyData
from slick.analysis.terms import NotTestable
from slick.questions.relations import load_relations
from slick.report.figures import CATEGORY_COLOURS
from slick.report.page import PAPER, Section, drawn, numbers, wide
from slick.report.style import INK, MUTED
from slick.report.tables import Table, Value
from slick.types import Category

NAMES = {"train": "train", "test": "test", "ood": "out-of-distribution test"}
TABLES = {"train": "table 3", "test": "table 4", "ood": "table 5"}
CATEGORIES = tuple(map(str, Category))
WHITE_ON = {Category.HIGHLY_KNOWN, Category.MAYBE_KNOWN, Category.UNKNOWN}
"""Categories whose colour is dark enough for white numbers."""


def section(data: StudyData) -> Section:
    """The section; without an annotation it says what is missing."""
    return Section(
        name="counts",
        group=PAPER,
        title="What the model knows",
        text="Questions by relation and category before any fine-tuning. In brackets the paper's, whose model is "
        "another one: only the totals of the archive are to be equal, not the categories. The paper's text gives "
        f"{' / '.join(f'{value:.0f}' for value in FOOTNOTE_5.values())} % for EntityQuestions (footnote 5), which none "
        "of its own tables has.",
        exhibits=(
            drawn(
                "Categories of the questions, here and in the paper (paper: tables 3 to 5 and footnote 5).",
                "category_shares",
                "Share of each category in train, test and out-of-distribution questions, here and in the paper",
                lambda: category_shares(data),
            ),
            drawn(
                "Unknown questions of each relation, here and in the paper.",
                "unknown_by_relation",
                "Share of Unknown questions of each relation, here and in the paper",
                lambda: unknown_by_relation(data),
            ),
            *(
                wide(
                    f"{NAMES[split].capitalize()} questions (paper: {TABLES[split]}). Percent of the relation's "
                    "questions; min is its smallest category"
                    + (", and the sum of these is the size of D." if split == "train" else "."),
                    partial(shares_table, data, split),
                )
                for split in SPLITS
            ),
            wide(
                "Questions that the paper's filters leave of the full EntityQuestions archive, here and in the paper.",
                lambda: archive_table(data),
            ),
            *(
                numbers(f"Numbers of {NAMES[split]} questions by category.", partial(counts_table, data, split))
                for split in SPLITS
            ),
        ),
    )


def shares_table(data: StudyData, split: str) -> Table:
    """Percent of each category by relation, the paper's in brackets."""
    found = relation_counts(data, split)
    templates = {name: (one.template or "").replace("[X]", "…") for name, one in load_relations().items()}
    rows = [(_row(row, templates.get(row.relation, ""))) for row in found]
    same = all(row.paper for row in found) and len(found) == len(paper_categories()[split])
    whole = RelationCounts(relation="all", own=total(found), paper=paper_total(split) if same else None)
    rows.append(_row(whole, "", smallest=(set_size([row.own for row in found]), _paper_size(split) if same else None)))
    columns = ("relation", "question", "questions", *CATEGORIES, "min")
    return Table(
        name=f"category_shares_{split}", columns=columns, rows=tuple(rows), total_rows=frozenset({len(rows) - 1})
    )


def counts_table(data: StudyData, split: str) -> Table:
    """Numbers by relation and category, here and in the paper, for programs."""
    found = relation_counts(data, split)
    rows: list[tuple[Value, ...]] = [
        (row.relation, *row.own.values(), sum(row.own.values()), min(row.own.values()), *_paper_cells(row.paper))
        for row in found
    ]
    numbers_of = total(found)
    rows.append(
        (
            "total",
            *numbers_of.values(),
            sum(numbers_of.values()),
            set_size([row.own for row in found]),
            *_paper_cells(None),
        )
    )
    names = (*CATEGORIES, "total", "min")
    domain, of_split = SPLITS[split]
    return Table(
        name=f"categories_{domain}_{of_split}",
        columns=("relation", *names, *(f"paper_{name}" for name in names)),
        rows=tuple(rows),
        total_rows=frozenset({len(rows) - 1}),
    )


def archive_table(data: StudyData) -> Table:
    """Totals of the filtered archive against the paper's, relation by relation."""
    if data.audit is None:
        raise NotTestable("the paper's totals belong to the full EntityQuestions archive; these questions are not it")
    rows: list[tuple[Value, ...]] = []
    sums: list[tuple[Value, ...]] = []
    for split, relations in paper_categories().items():
        own = data.audit.get(split, {})
        for relation in sorted({*relations, *own}):
            wanted = sum(relations[relation].values()) if relation in relations else None
            rows.append((NAMES[split], relation, own.get(relation), wanted, _mark(own.get(relation), wanted)))
        here, there = sum(own.values()), sum(paper_total(split).values())
        sums.append((NAMES[split], "all", here, there, _mark(here, there)))
    columns = ("split", "relation", "here", "paper", "equal")
    return Table(name="archive_totals", columns=columns, rows=(*sums, *rows), total_rows=frozenset(range(len(sums))))


def category_shares(data: StudyData) -> Callable[[Any], None]:
    """One stacked bar a split, here and in the paper, and the footnote's."""
    bars: list[tuple[str, dict[str, float], bool]] = []
    for split in SPLITS:
        try:
            own = shares(total(relation_counts(data, split)))
        except NotTestable:
            continue
        label = {"ood": "OOD test"}.get(split, split)
        bars += [(f"{label}, here", own, True), (f"{label}, paper", shares(paper_total(split)), False)]
    if not bars:
        raise NotTestable("needs a finished knowledge table")
    bars.append(("paper's footnote", dict(FOOTNOTE_5), False))

    def plot(axes: Any) -> None:
        ys = [-(i + 0.45 * (i // 2)) for i in range(len(bars))]
        for y, (_, values, own) in zip(ys, bars, strict=True):
            left = 0.0
            for category in Category:
                width = values[category]
                axes.barh(y, width, 0.82, left=left, color=CATEGORY_COLOURS[category][0], alpha=1.0 if own else 0.55)
                if width >= 7:
                    colour = "white" if own and category in WHITE_ON else INK
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
        except NotTestable:
            continue
    if not found:
        raise NotTestable("no test questions were annotated")
    if len(found) > 40:
        raise NotTestable(f"{len(found)} relations are too many for one figure; the tables below have them all")
    unknown = str(Category.UNKNOWN)
    rows = sorted(((row.relation, shares(row.own)[unknown], row.paper) for row in found), key=lambda row: row[1])

    def plot(axes: Any) -> None:
        colour, _ = CATEGORY_COLOURS[Category.UNKNOWN]
        for y, (_, own, paper) in enumerate(rows):
            if paper is not None:
                there = shares(paper)[unknown]
                axes.plot([own, there], [y, y], color=MUTED, linewidth=1.0)
                axes.plot(there, y, "o", color=MUTED, markerfacecolor="white", label="paper" if not y else None)
            axes.plot(own, y, "o", color=colour, label="here" if not y else None)
        axes.set_yticks(range(len(rows)), [relation for relation, _, _ in rows], fontsize=min(11, 200 / len(rows)))
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlim(left=0)
        axes.set_xlabel("Unknown test questions (%)")
        axes.legend(loc="lower right", fontsize=11, frameon=True, framealpha=0.9, edgecolor="none")

    return plot


def _row(row: RelationCounts, template: str, smallest: tuple[int, int | None] | None = None) -> tuple[Value, ...]:
    own, paper = shares(row.own), shares(row.paper) if row.paper else None
    cells = [_beside(f"{own[c]:.1f}", None if paper is None else f"{paper[c]:.1f}") for c in CATEGORIES]
    least, least_paper = smallest or (min(row.own.values()), min(row.paper.values()) if row.paper else None)
    num = sum(row.own.values()), sum(row.paper.values()) if row.paper else None
    return (row.relation, template, _numbers(*num), *cells, _numbers(least, least_paper))


def _numbers(own: int, paper: int | None) -> str:
    return _beside(f"{own:,}", None if paper is None else f"{paper:,}")


def _beside(own: str, paper: str | None) -> str:
    return own if paper is None else f"{own} ({paper})"


def _paper_cells(paper: Counts | None) -> tuple[Value, ...]:
    return (None,) * 6 if paper is None else (*paper.values(), sum(paper.values()), min(paper.values()))


def _paper_size(split: str) -> int:
    return set_size(list(paper_categories()[split].values()))


def _mark(own: int | None, wanted: int | None) -> str:
    return "=" if own == wanted else "differs"
