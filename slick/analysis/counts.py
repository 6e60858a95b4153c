"""Questions by relation and category beside the paper's, and what of both is equal. Pure.

Source: Gekhman et al. 2024, arXiv:2405.05904, tables 3 to 5. Its footnote 5 gives category shares of EntityQuestions
that none of its tables has: 24, 23, 17 and 36 %.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from slick.analysis.data import StudyData
from slick.analysis.terms import NotTestable
from slick.types import Category

FOOTNOTE_5 = {"HighlyKnown": 24.0, "MaybeKnown": 23.0, "WeaklyKnown": 17.0, "Unknown": 36.0}
"""Percent of EntityQuestions as the paper's text has it, against 24 / 25 / 17 / 34 in its table 3."""

SPLITS = {"train": ("id", "train"), "test": ("id", "test"), "ood": ("ood", "test")}
"""The paper's tables 3, 4 and 5: domain and split."""

Counts = Mapping[str, int]
"""Category to number of questions, all four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationCounts:
    """One relation in one split, here and in the paper."""

    relation: str
    own: Counts
    paper: Counts | None
    """None for a relation that the paper's table has not."""


def relation_counts(data: StudyData, split: str) -> list[RelationCounts]:
    """Every annotated relation of a split, by name.

    Args:
        data: the stored rows.
        split: one of `SPLITS`.

    Raises:
        NotTestable: nothing of that split was annotated.
    """
    paper = paper_categories()[split]
    found = [
        RelationCounts(relation=relation, own=counts, paper=paper.get(relation))
        for (relation, *of), counts in sorted(data.counts.items())
        if tuple(of) == SPLITS[split]
    ]
    if not found:
        domain, of_split = SPLITS[split]
        raise NotTestable(f"no {'out-of-distribution ' * (domain == 'ood')}{of_split} questions were annotated")
    return found


def total(rows: list[RelationCounts]) -> Counts:
    """Questions of each category over all relations."""
    return {str(category): sum(row.own[category] for row in rows) for category in Category}


def set_size(rows: list[Counts]) -> int:
    """|D|: the sum of each relation's smallest category (paper: appendix E)."""
    return sum(min(row.values()) for row in rows)


def shares(counts: Counts) -> dict[str, float]:
    """Percent of each category.

    Raises:
        NotTestable: there are no questions.
    """
    num = sum(counts.values())
    if not num:
        raise NotTestable("there are no questions to take shares of")
    return {category: 100.0 * counts[category] / num for category in map(str, Category)}


def paper_categories() -> dict[str, dict[str, Counts]]:
    """Questions by category of each relation in the paper: train, test and ood."""
    value = json.loads(resources.files("slick").joinpath("data/paper_counts.json").read_text(encoding="utf-8"))
    return {
        split: {
            relation: {str(category): int(entry[category]) for category in Category}
            for relation, entry in value[split].items()
        }
        for split in SPLITS
    }


def paper_total(split: str) -> Counts:
    """Questions of each category in the paper, over all relations of a split."""
    rows = paper_categories()[split].values()
    return {str(category): sum(row[category] for row in rows) for category in Category}
