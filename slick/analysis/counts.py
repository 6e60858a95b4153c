"""Questions by relation and category beside the paper's, and what of both is equal. Pure.

Source: Gekhman et al. 2024, arXiv:2405.05904, tables 3 to 5. Its footnote 5 gives category shares of EntityQuestions
that none of its tables has: 24, 23, 17 and 36 %.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from slick.analysis.data import StudyData
from slick.analysis.terms import InsufficientDataError
from slick.types import Category

PAPER_FOOTNOTE_5_PERCENT = {"HighlyKnown": 24.0, "MaybeKnown": 23.0, "WeaklyKnown": 17.0, "Unknown": 36.0}
"""Percent of EntityQuestions as the paper's text has it, against 24 / 25 / 17 / 34 in its table 3."""

PAPER_SPLITS = {"train": ("id", "train"), "test": ("id", "test"), "ood": ("ood", "test")}
"""The paper's tables 3, 4 and 5: domain and split."""

CategoryCounts = Mapping[str, int]
"""Category to number of questions, all four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationCounts:
    """One relation in one split, here and in the paper."""

    relation: str
    observed: CategoryCounts
    paper: CategoryCounts | None
    """None for a relation that the paper's table has not."""


def relation_counts(data: StudyData, split: str) -> list[RelationCounts]:
    """Every annotated relation of a split, by name.

    Args:
        data: the stored rows.
        split: one of `SPLITS`.

    Raises:
        NotTestable: nothing of that split was annotated.
    """
    paper = paper_category_counts()[split]
    found = [
        RelationCounts(relation=relation, observed=counts, paper=paper.get(relation))
        for (relation, *of), counts in sorted(data.counts.items())
        if tuple(of) == PAPER_SPLITS[split]
    ]
    if not found:
        domain, of_split = PAPER_SPLITS[split]
        raise InsufficientDataError(
            f"no {'out-of-distribution ' * (domain == 'ood')}{of_split} questions were annotated"
        )
    return found


def total_counts(rows: list[RelationCounts]) -> CategoryCounts:
    """Questions of each category over all relations."""
    return {str(category): sum(row.observed[category] for row in rows) for category in Category}


def dataset_size(rows: list[CategoryCounts]) -> int:
    """|D|: the sum of each relation's smallest category (paper: appendix E)."""
    return sum(min(row.values()) for row in rows)


def category_percentages(counts: CategoryCounts) -> dict[str, float]:
    """Percent of each category.

    Raises:
        NotTestable: there are no questions.
    """
    num = sum(counts.values())
    if not num:
        raise InsufficientDataError("there are no questions to take shares of")
    return {category: 100.0 * counts[category] / num for category in map(str, Category)}


def paper_category_counts() -> dict[str, dict[str, CategoryCounts]]:
    """Questions by category of each relation in the paper: train, test and ood."""
    value = json.loads(resources.files("slick").joinpath("data/paper_counts.json").read_text(encoding="utf-8"))
    return {
        split: {
            relation: {str(category): int(entry[category]) for category in Category}
            for relation, entry in value[split].items()
        }
        for split in PAPER_SPLITS
    }


def paper_category_totals(split: str) -> CategoryCounts:
    """Questions of each category in the paper, over all relations of a split."""
    rows = paper_category_counts()[split].values()
    return {str(category): sum(row[category] for row in rows) for category in Category}
