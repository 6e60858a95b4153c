"""The section on how many questions fall into each category, beside the paper's tables 3 to 5."""

from functools import partial

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
from slick.datasets.relations import load_relations
from slick.report.page import PAPER, Exhibit, Section, drawn, linked, numbers, wide
from slick.report.pages.counts_figures import category_shares, unknown_by_relation
from slick.report.tables import Table, Value
from slick.types import Category

NAMES = {"train": "train", "test": "test", "ood": "out-of-distribution test"}
TABLES = {"train": "table 3", "test": "table 4", "ood": "table 5"}
CATEGORIES = tuple(map(str, Category))


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
            *(_shares(data, split) for split in SPLITS),
            wide(
                "Questions that the paper's filters leave of the full EntityQuestions archive, here and in the paper.",
                lambda: archive_table(data),
            ),
            numbers("How the relations are asked.", lambda: relations_table(data)),
            *(
                linked(
                    f"Numbers of {NAMES[split]} questions by category, here and in the paper.",
                    partial(counts_table, data, split),
                )
                for split in SPLITS
            ),
        ),
    )


def _shares(data: StudyData, split: str) -> Exhibit:
    what = ", and the sum of these is the size of D" if split == "train" else ""
    return wide(
        f"{NAMES[split].capitalize()} questions (paper: {TABLES[split]}). Percent of the relation's questions; min is "
        f"its smallest category{what}.",
        lambda: shares_table(data, split),
    )


def shares_table(data: StudyData, split: str) -> Table:
    """Percent of each category by relation, the paper's in brackets."""
    found = relation_counts(data, split)
    rows = [_row(row) for row in found]
    same = all(row.paper for row in found) and len(found) == len(paper_categories()[split])
    whole = RelationCounts(relation="all", own=total(found), paper=paper_total(split) if same else None)
    rows.append(_row(whole, smallest=(set_size([row.own for row in found]), _paper_size(split) if same else None)))
    columns = ("relation", "questions", *CATEGORIES, "min")
    return Table(
        name=f"category_shares_{split}",
        columns=columns,
        rows=tuple(rows),
        total_rows=frozenset({len(rows) - 1}),
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


def relations_table(data: StudyData) -> Table:
    """The annotated relations, and the template of those that are in the shipped list."""
    domains = {relation: domain for relation, domain, _ in sorted(data.counts)}
    if not domains:
        raise NotTestable("needs a finished knowledge table")
    shipped = load_relations()
    rows = tuple(
        (relation, domain, shipped[relation].template if relation in shipped else None)
        for relation, domain in domains.items()
    )
    return Table(name="relations", columns=("relation", "domain", "question"), rows=rows, text_columns=frozenset({2}))


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


def _row(row: RelationCounts, smallest: tuple[int, int | None] | None = None) -> tuple[Value, ...]:
    own, paper = shares(row.own), shares(row.paper) if row.paper else None
    cells = [_beside(f"{own[c]:.0f}", None if paper is None else f"{paper[c]:.0f}") for c in CATEGORIES]
    least, least_paper = smallest or (min(row.own.values()), min(row.paper.values()) if row.paper else None)
    num = sum(row.own.values()), sum(row.paper.values()) if row.paper else None
    return (row.relation, _numbers(*num), *cells, _numbers(least, least_paper))


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
