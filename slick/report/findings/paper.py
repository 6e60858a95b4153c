"""Questions by relation and category, in the study and in the paper. Pure.

Source: Gekhman et al. 2024, arXiv:2405.05904, tables 3 to 5.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError
from slick.types import Category

PAPER_FOOTNOTE_5_PERCENT = {"HighlyKnown": 24.0, "MaybeKnown": 23.0, "WeaklyKnown": 17.0, "Unknown": 36.0}
"""Category shares of EntityQuestions in footnote 5; no table of the paper has them (table 3: 24 / 25 / 17 / 34)."""

PAPER_SPLITS = {"train": ("id", "train"), "test": ("id", "test"), "ood": ("ood", "test")}
"""(domain, split) of the paper's tables 3, 4 and 5."""

CategoryCounts = Mapping[str, int]
"""Number of questions in each of the four categories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationCounts:
    """One relation in one split, in the study and in the paper."""

    relation: str
    observed: CategoryCounts
    paper: CategoryCounts | None
    """None for a relation that is not in the paper's table."""


def relation_counts(data: StudyData, split: str) -> list[RelationCounts]:
    """Every annotated relation of a split, by name.

    Args:
        data: the data of the study.
        split: a key of `PAPER_SPLITS`.

    Raises:
        InsufficientDataError: no question of that split was annotated.
    """
    paper = paper_category_counts()[split]
    relations = [
        RelationCounts(relation=relation, observed=counts, paper=paper.get(relation))
        for (relation, *part), counts in sorted(data.counts.items())
        if tuple(part) == PAPER_SPLITS[split]
    ]
    if not relations:
        kind = "out-of-distribution test" if split == "ood" else split
        raise InsufficientDataError(f"no {kind} questions were annotated")
    return relations


def total_counts(rows: list[RelationCounts]) -> CategoryCounts:
    """Questions of each category over all relations."""
    return {str(category): sum(row.observed[category] for row in rows) for category in Category}


def dataset_size(rows: list[CategoryCounts]) -> int:
    """|D|, the sum over relations of the size of the smallest category (paper: appendix E)."""
    return sum(min(row.values()) for row in rows)


def category_percentages(counts: CategoryCounts) -> dict[str, float]:
    """Percentage of each category.

    Raises:
        InsufficientDataError: there are no questions.
    """
    num = sum(counts.values())
    if not num:
        raise InsufficientDataError("there are no questions")
    return {category: 100.0 * counts[category] / num for category in map(str, Category)}


def paper_category_counts() -> dict[str, dict[str, CategoryCounts]]:
    """The paper's questions by split (train, test, ood), relation and category (tables 3 to 5)."""
    counts: dict[str, Any] = json.loads(
        resources.files("slick").joinpath("data/paper_counts.json").read_text(encoding="utf-8")
    )
    return {
        split: {
            relation: {str(category): int(entry[category]) for category in Category}
            for relation, entry in counts[split].items()
        }
        for split in PAPER_SPLITS
    }


def paper_relation_totals() -> dict[str, dict[str, int]]:
    """The paper's questions by split (train, test, ood) and relation."""
    return {
        split: {relation: sum(row.values()) for relation, row in relations.items()}
        for split, relations in paper_category_counts().items()
    }


def paper_category_totals(split: str) -> CategoryCounts:
    """The paper's questions of each category, over all relations of a split."""
    rows = paper_category_counts()[split].values()
    return {str(category): sum(row[category] for row in rows) for category in Category}
