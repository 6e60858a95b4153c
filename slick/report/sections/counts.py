"""Questions by relation and category, compared with the paper.

Source: Gekhman et al. 2024, arXiv:2405.05904, tables 3 to 5. Its footnote 5 gives category shares of EntityQuestions
that match none of its tables: 24, 23, 17 and 36 %.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from slick.datasets.relations import load_relations
from slick.formatting import format_percent
from slick.report.charts import CATEGORY_COLOURS, INK, MUTED, shorten_label
from slick.report.data import StudyData
from slick.report.decision import unknown_rows_table
from slick.report.findings.paper import (
    PAPER_FOOTNOTE_5_PERCENT,
    PAPER_SPLITS,
    CategoryCounts,
    RelationCounts,
    category_percentages,
    dataset_size,
    paper_category_counts,
    paper_category_totals,
    relation_counts,
    total_counts,
)
from slick.report.measurements import InsufficientDataError, value_or_reason
from slick.report.page import (
    GROUP_PAPER,
    Exhibit,
    SectionBody,
    collapsed_table_exhibit,
    figure_exhibit,
    linked_table_exhibit,
)
from slick.report.sections import section
from slick.report.tables import Row, Table
from slick.types import Category

SPLIT_TITLES = {"train": "train", "test": "test", "ood": "out-of-distribution test"}
PAPER_TABLES = {"train": "table 3", "test": "table 4", "ood": "table 5"}
CATEGORIES = tuple(map(str, Category))
DARK_CATEGORIES = {Category.HIGHLY_KNOWN, Category.MAYBE_KNOWN, Category.UNKNOWN}
"""Categories whose colour needs white text."""


@section("counts", title="Questions by knowledge category", group=GROUP_PAPER, order=100, experiment="counts")
def counts_section(data: StudyData) -> SectionBody:
    """Category counts and shares by split and relation, with the paper's."""
    return SectionBody(
        text="Questions by relation and category before fine-tuning, with the paper's values in brackets. The paper "
        "annotates another model, so only the totals of the archive are expected to agree, not the categories. The "
        f"paper's text gives {' / '.join(f'{value:.0f}' for value in PAPER_FOOTNOTE_5_PERCENT.values())} % for "
        "EntityQuestions (footnote 5), which matches none of its tables.",
        result=counts_sentence(data),
        exhibits=(
            figure_exhibit(
                "Categories of the questions, here and in the paper (paper: tables 3 to 5 and footnote 5).",
                "category_shares",
                "Share of each category in train, test and out-of-distribution questions, here and in the paper",
                lambda: category_shares_figure(data),
            ),
            figure_exhibit(
                "Share of Unknown questions by relation, here and in the paper.",
                "unknown_by_relation",
                "Share of Unknown questions by relation, here and in the paper",
                lambda: unknown_by_relation(data),
            ),
            *(_shares_exhibit(data, split) for split in PAPER_SPLITS),
            collapsed_table_exhibit(
                "Questions of the full EntityQuestions archive that pass the paper's filters, here and in the paper.",
                lambda: archive_table(data),
            ),
            collapsed_table_exhibit("Question templates of the relations.", lambda: relation_templates_table(data)),
            *(
                linked_table_exhibit(
                    f"Number of {SPLIT_TITLES[split]} questions by category, here and in the paper.",
                    partial(counts_table, data, split),
                )
                for split in PAPER_SPLITS
            ),
            linked_table_exhibit(
                "Unknown train questions: the rows to drop, or to relabel.", lambda: unknown_rows_table(data)
            ),
        ),
    )


def counts_sentence(data: StudyData) -> str:
    """The share of Unknown train questions, and the relations with the fewest and the most; empty without data."""
    return value_or_reason(_counts_sentence, data)[0] or ""


def _counts_sentence(data: StudyData) -> str:
    unknown = str(Category.UNKNOWN)
    rows = relation_counts(data, "train")
    total = total_counts(rows)
    shares = sorted((row.observed[unknown] / sum(row.observed.values()), row.relation) for row in rows)
    (low, fewest), (high, most) = shares[0], shares[-1]
    by_relation = (
        f", from {format_percent(low)} of {fewest} to {format_percent(high)} of {most}" if len(rows) > 1 else ""
    )
    return (
        f"The model never answered {total[unknown]:,} of {sum(total.values()):,} train questions correctly under any "
        f"prompt: {format_percent(total[unknown] / sum(total.values()))} are Unknown{by_relation}."
    )


def _shares_exhibit(data: StudyData, split: str) -> Exhibit:
    size_note = "; the sum of these minima is the size of D" if split == "train" else ""
    return collapsed_table_exhibit(
        f"{SPLIT_TITLES[split].capitalize()} questions (paper: {PAPER_TABLES[split]}). Percent of the relation's "
        f"questions. Min: questions in its smallest category{size_note}.",
        lambda: category_shares_table(data, split),
    )


def category_shares_figure(data: StudyData) -> Callable[[Any], None]:
    """One stacked bar per split, here and in the paper, and one for footnote 5."""
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
    """Percent of Unknown test questions by relation, here and in the paper, joined by a line."""
    relations: list[RelationCounts] = []
    for split in ("test", "ood"):
        try:
            relations += relation_counts(data, split)
        except InsufficientDataError:
            continue
    if not relations:
        raise InsufficientDataError("no test questions were annotated")
    if len(relations) > 40:
        raise InsufficientDataError(
            f"{len(relations)} relations are too many for one figure; the tables below list all"
        )
    unknown = str(Category.UNKNOWN)
    rows = sorted(
        ((row.relation, category_percentages(row.observed)[unknown], row.paper) for row in relations),
        key=lambda row: row[1],
    )

    def plot(axes: Any) -> None:
        colour, _ = CATEGORY_COLOURS[Category.UNKNOWN]
        for y, (_, observed, paper) in enumerate(rows):
            if paper is not None:
                paper_percent = category_percentages(paper)[unknown]
                axes.plot([observed, paper_percent], [y, y], color=MUTED, linewidth=1.0)
                axes.plot(paper_percent, y, "o", color=MUTED, markerfacecolor="white", label="paper" if not y else None)
            axes.plot(observed, y, "o", color=colour, label="here" if not y else None)
        axes.set_yticks(range(len(rows)), [shorten_label(row[0]) for row in rows], fontsize=min(11, 200 / len(rows)))
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlim(left=0)
        axes.set_xlabel("Unknown test questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=2, fontsize=11)

    return plot


def category_shares_table(data: StudyData, split: str) -> Table:
    """Percent of each category by relation, with the paper's in brackets."""
    relations = relation_counts(data, split)
    rows = [_shares_row(row) for row in relations]
    same_relations = all(row.paper for row in relations) and len(relations) == len(paper_category_counts()[split])
    total = RelationCounts(
        relation="all", observed=total_counts(relations), paper=paper_category_totals(split) if same_relations else None
    )
    rows.append(
        _shares_row(
            total,
            smallest=(
                dataset_size([row.observed for row in relations]),
                _paper_size(split) if same_relations else None,
            ),
        )
    )
    columns = ("relation", "questions", *CATEGORIES, "min")
    return Table(
        name=f"category_shares_{split}", columns=columns, rows=tuple(rows), total_rows=frozenset({len(rows) - 1})
    )


def _shares_row(row: RelationCounts, smallest: tuple[int, int | None] | None = None) -> Row:
    observed, paper = category_percentages(row.observed), category_percentages(row.paper) if row.paper else None
    cells = [_with_paper_value(f"{observed[c]:.0f}", None if paper is None else f"{paper[c]:.0f}") for c in CATEGORIES]
    minimum, paper_minimum = smallest or (min(row.observed.values()), min(row.paper.values()) if row.paper else None)
    num = sum(row.observed.values()), sum(row.paper.values()) if row.paper else None
    return (row.relation, _format_counts(*num), *cells, _format_counts(minimum, paper_minimum))


def _format_counts(observed: int, paper: int | None) -> str:
    return _with_paper_value(f"{observed:,}", None if paper is None else f"{paper:,}")


def _with_paper_value(observed: str, paper: str | None) -> str:
    return observed if paper is None else f"{observed} ({paper})"


def _paper_size(split: str) -> int:
    return dataset_size(list(paper_category_counts()[split].values()))


def counts_table(data: StudyData, split: str) -> Table:
    """Number of questions by relation and category, here and in the paper."""
    relations = relation_counts(data, split)
    rows: list[Row] = [
        (
            row.relation,
            *row.observed.values(),
            sum(row.observed.values()),
            min(row.observed.values()),
            *_paper_cells(row.paper),
        )
        for row in relations
    ]
    total = total_counts(relations)
    rows.append(
        (
            "total",
            *total.values(),
            sum(total.values()),
            dataset_size([row.observed for row in relations]),
            *_paper_cells(None),
        )
    )
    names = (*CATEGORIES, "total", "min")
    domain, of_split = PAPER_SPLITS[split]
    return Table(
        name=f"categories_{domain}_{of_split}",
        columns=("relation", *names, *(f"paper_{name}" for name in names)),
        rows=tuple(rows),
        total_rows=frozenset({len(rows) - 1}),
    )


def _paper_cells(paper: CategoryCounts | None) -> Row:
    return (None,) * 6 if paper is None else (*paper.values(), sum(paper.values()), min(paper.values()))


def relation_templates_table(data: StudyData) -> Table:
    """The annotated relations, with the question templates of those in the shipped list."""
    domains = {relation: domain for relation, domain, _ in sorted(data.counts)}
    if not domains:
        raise InsufficientDataError("needs a finished knowledge table")
    shipped = load_relations()
    rows = tuple(
        (relation, domain, shipped[relation].template if relation in shipped else None)
        for relation, domain in domains.items()
    )
    return Table(name="relations", columns=("relation", "domain", "question"), rows=rows, text_columns=frozenset({2}))


def archive_table(data: StudyData) -> Table:
    """Totals of the filtered archive compared with the paper's, by relation."""
    if data.filter_counts is None:
        raise InsufficientDataError(
            "the paper's totals are those of the full EntityQuestions archive; these questions are from another source"
        )
    rows: list[Row] = []
    sums: list[Row] = []
    for split, relations in paper_category_counts().items():
        observed = data.filter_counts.get(split, {})
        for relation in sorted({*relations, *observed}):
            expected = sum(relations[relation].values()) if relation in relations else None
            rows.append(
                (
                    SPLIT_TITLES[split],
                    relation,
                    observed.get(relation),
                    expected,
                    _equality_mark(observed.get(relation), expected),
                )
            )
        total, paper_total = sum(observed.values()), sum(paper_category_totals(split).values())
        sums.append((SPLIT_TITLES[split], "all", total, paper_total, _equality_mark(total, paper_total)))
    columns = ("split", "relation", "here", "paper", "equal")
    return Table(name="archive_totals", columns=columns, rows=(*sums, *rows), total_rows=frozenset(range(len(sums))))


def _equality_mark(observed: int | None, expected: int | None) -> str:
    return "=" if observed == expected else "differs"
