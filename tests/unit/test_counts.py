"""Questions by relation and category, compared with the paper."""

import pytest

from slick.report.data import StudyData
from slick.report.findings.paper import (
    PAPER_FOOTNOTE_5_PERCENT,
    category_percentages,
    dataset_size,
    paper_category_counts,
    paper_category_totals,
    relation_counts,
    total_counts,
)
from slick.report.measurements import InsufficientDataError
from slick.report.sections.counts import (
    archive_table,
    category_shares_table,
    counts_section,
    counts_table,
    relation_templates_table,
)

CATEGORIES = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")


def counts(*numbers: int) -> dict[str, int]:
    return dict(zip(CATEGORIES, numbers, strict=True))


@pytest.fixture
def data() -> StudyData:
    return StudyData(
        counts={
            ("P17", "id", "train"): counts(40, 30, 20, 10),
            ("mine", "id", "train"): counts(1, 0, 1, 2),
            ("P17", "id", "test"): counts(1, 1, 1, 1),
        }
    )


@pytest.fixture
def paper() -> StudyData:
    """A study with the paper's counts."""
    domains = {"train": ("id", "train"), "test": ("id", "test"), "ood": ("ood", "test")}
    result = paper_category_counts()
    return StudyData(
        counts={(relation, *domains[split]): row for split, rows in result.items() for relation, row in rows.items()},
        filter_counts={
            split: {relation: sum(row.values()) for relation, row in rows.items()} for split, rows in result.items()
        },
    )


def test_paper_tables_add_up_and_differ_from_the_footnote() -> None:
    assert [sum(paper_category_totals(split).values()) for split in ("train", "test", "ood")] == [81700, 10481, 5848]
    assert dataset_size(list(paper_category_counts()["train"].values())) == 6142
    assert [round(value) for value in category_percentages(paper_category_totals("train")).values()] == [24, 25, 17, 34]
    assert list(PAPER_FOOTNOTE_5_PERCENT.values()) == [24, 23, 17, 36]


def test_relations_are_paired_with_the_papers(data: StudyData) -> None:
    p17, mine = relation_counts(data, "train")
    assert p17.paper == counts(4387, 2628, 511, 364)
    assert mine.paper is None
    assert total_counts([p17, mine]) == counts(41, 30, 21, 12)
    rows = category_shares_table(data, "train").rows
    assert rows[0][:3] == ("P17", "100 (7,890)", "40 (56)")
    assert rows[1] == ("mine", "4", "25", "0", "25", "50", "0")
    assert rows[-1][1] == "104", "totals over other relations than the paper's are not compared"
    assert rows[-1][-1] == "10"


def test_totals_include_the_size_of_d_and_the_papers(paper: StudyData) -> None:
    assert category_shares_table(paper, "train").rows[-1] == (
        "all",
        "81,700 (81,700)",
        "24 (24)",
        "25 (25)",
        "17 (17)",
        "34 (34)",
        "6,142 (6,142)",
    )


def test_counts_table_has_numeric_cells(data: StudyData) -> None:
    table = counts_table(data, "train")
    assert table.rows[0] == ("P17", 40, 30, 20, 10, 100, 10, 4387, 2628, 511, 364, 7890, 364)
    assert table.rows[1][-6:] == (None,) * 6
    assert len(table.columns) == len(table.rows[0])


def test_relation_templates_of_shipped_and_other_relations(data: StudyData) -> None:
    assert relation_templates_table(data).rows == (
        ("P17", "id", "Which country is [X] located in?"),
        ("mine", "id", None),
    )


def test_archive_totals_are_compared_with_the_papers(paper: StudyData, data: StudyData) -> None:
    rows = archive_table(paper).rows
    assert rows[0] == ("train", "all", 81700, 81700, "=")
    assert {row[-1] for row in rows} == {"="}
    audit = {**paper.filter_counts, "train": {**paper.filter_counts["train"], "P17": 7889}}
    marks = {row[:2]: row[-1] for row in archive_table(StudyData(filter_counts=audit)).rows}
    assert (marks["train", "all"], marks["train", "P17"], marks["train", "P19"]) == ("differs", "differs", "=")
    with pytest.raises(InsufficientDataError, match="full EntityQuestions archive"):
        archive_table(data)


def test_missing_annotations_are_reported(data: StudyData) -> None:
    with pytest.raises(InsufficientDataError, match="no out-of-distribution test questions were annotated"):
        relation_counts(data, "ood")
    result = counts_section(data)
    assert {exhibit.figure.name for exhibit in result.exhibits if exhibit.figure} == {
        "category_shares",
        "unknown_by_relation",
    }
    assert counts_section(StudyData()).is_empty
