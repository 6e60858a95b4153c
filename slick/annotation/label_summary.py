"""Summaries of answers and labels, of some files or relations or of all. No Ray."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

from slick.annotation.knowledge import SampleCounts
from slick.types import Category

StoredTable: TypeAlias = "pa.Table | tuple[str, str]"
"""A table, or the folder and the name of its temporary file."""


@dataclass(slots=True, kw_only=True)
class AnswerSummary:
    """Summary of some or all part files of a store."""

    rows: dict[str, list[StoredTable]] = field(default_factory=dict)
    """Relation -> tables of `EVIDENCE_SCHEMA`."""
    curve: dict[tuple[int, int], Counter[str]] = field(default_factory=dict)
    """Exemplar sets and samples -> questions by category; see `Evidence.convergence_curve`."""
    is_complete: bool = True
    """Whether all samples were generated."""
    undecided: list[str] = field(default_factory=list)
    cost: Counter[str] = field(default_factory=Counter)
    runtimes: list[dict[str, str]] = field(default_factory=list)

    def merge(self, other: "AnswerSummary") -> None:
        """Add the summary of further files."""
        for relation, tables in other.rows.items():
            self.rows.setdefault(relation, []).extend(tables)
        for place, counts in other.curve.items():
            self.curve.setdefault(place, Counter()).update(counts)
        self.is_complete = self.is_complete and other.is_complete
        self.undecided += other.undecided
        self.cost.update(other.cost)
        self.runtimes += [runtime for runtime in other.runtimes if runtime not in self.runtimes]

    def convergence_curve(self) -> list[dict[str, Any]]:
        """As in `Evidence`."""
        names = [str(category) for category in Category]
        return [
            {"exemplar_sets": sets, "samples": samples, "categories": {name: counts[name] for name in names}}
            for (sets, samples), counts in (self.curve.items() if self.is_complete else ())
        ]


@dataclass(slots=True, kw_only=True)
class LabelSummary:
    """The labels of some or all relations, in counts."""

    tables: list[StoredTable] = field(default_factory=list)
    """The knowledge tables, without `chance_known` of Unknown questions."""
    num_questions: Counter[str] = field(default_factory=Counter)
    """Store -> questions with a label."""
    num_answered: int = 0
    """Questions of the main store, also those without a label because they are undecided."""
    categories: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """Relation -> split -> category -> number."""
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    """Category -> numbers of questions and answers."""
    samples: SampleCounts = field(default_factory=SampleCounts)
    repeated: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Categories of the first and the second time -> number."""
    controls: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    undecided: dict[str, pa.Table] = field(default_factory=dict)
    """Store -> `SET_ASIDE_SCHEMA`."""

    def merge(self, other: "LabelSummary") -> None:
        """Add the labels of further relations."""
        self.tables += other.tables
        self.num_questions.update(other.num_questions)
        self.num_answered += other.num_answered
        self.categories |= other.categories
        for category, numbers in other.answers.items():
            self.answers.setdefault(category, Counter()).update(numbers)
        self.samples.merge(other.samples)
        self.repeated.update(other.repeated)
        self.controls |= other.controls
        for store, table in other.undecided.items():
            self.undecided[store] = pa.concat_tables(
                [*([self.undecided[store]] if store in self.undecided else []), table]
            )


def curve_counts(steps: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], Counter[str]]:
    """`Evidence.convergence_curve` as `AnswerSummary.curve`."""
    return {(step["exemplar_sets"], step["samples"]): Counter(step["categories"]) for step in steps}


def answers_by_category(knowledge: pa.Table) -> dict[str, Counter[str]]:
    """Category -> numbers of questions and answers."""
    sums = [("sampled_total", "sum"), ("greedy_total", "sum"), ("question_id", "count")]
    return {
        row["category"]: Counter(
            questions=row["question_id_count"], answers=row["sampled_total_sum"] + row["greedy_total_sum"]
        )
        for row in knowledge.group_by("category").aggregate(sums).to_pylist()
    }
