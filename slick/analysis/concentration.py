"""Does it harm more when some relations are wholly Unknown than when the same Unknown rows are spread over all? Pure.

Two fine-tuning sets of as many rows of each relation and as many Unknown rows in all: `unknown-X` has the share X of
Unknown rows in every relation, `concentrated-X` fills whole relations with them and leaves the others wholly Known.
Positive differences favour the concentrated set.

Source: arXiv:2511.02626 (Understanding New-Knowledge-Induced Factual Hallucinations), where a kind of knowledge that is
wholly new harms more than a larger share of new rows spread over kinds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slick.analysis.data import StudyData, Variant
from slick.analysis.findings.verdict import Z_95
from slick.analysis.statistics.subset import SubsetComparison, compare_on_questions
from slick.analysis.terms import CONVERGENCE, EARLY_STOP, InsufficientDataError, Measurement
from slick.types import Category

ALL_TEST, UNKNOWN_RELATIONS, KNOWN_RELATIONS, OOD = "all test", "wholly Unknown", "wholly Known", "out of distribution"
"""The questions that are looked at: all ID test questions, those of relations that the concentrated set fills with
Unknown rows, those of relations it leaves wholly Known, and OOD test questions."""
QUESTION_GROUPS = (ALL_TEST, UNKNOWN_RELATIONS, KNOWN_RELATIONS, OOD)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupComparison:
    """The concentrated set (first) against the spread one (second) on one group of questions."""

    group: str
    checkpoint: str
    """`EARLY` or `LAST`."""
    comparison: SubsetComparison | None
    missing_reason: str = ""
    """What is missing, where there is no comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcentrationResult:
    """One concentrated set against the set of the sweep with the same share."""

    name: str
    baseline: str
    """Name of the set of the sweep."""
    share: float
    unknown_relations: tuple[str, ...]
    """Relations that the concentrated set fills with Unknown rows."""
    known_relations: tuple[str, ...]
    """Relations that it leaves wholly Known."""
    mixed_relations: tuple[str, ...]
    """Relations that it fills in part: they count among all test questions only."""
    comparisons: tuple[GroupComparison, ...]
    """Groups outermost, early stop before convergence."""

    def comparison_for(self, group: str, checkpoint: str) -> GroupComparison:
        """The contrast on one group at one checkpoint."""
        return next(one for one in self.comparisons if (one.group, one.checkpoint) == (group, checkpoint))


def compare_concentrated_sets(data: StudyData) -> list[ConcentrationResult]:
    """Every concentrated set that was trained beside the set of the sweep with the same share, by ascending share.

    Raises:
        NotTestable: there is none.
    """
    baseline = dict(data.sweep_variants("unknown", min_shares=0))
    pairs = [
        (share, name, baseline[share])
        for share, name in data.sweep_variants("concentrated", min_shares=0)
        if share in baseline
    ]
    if not pairs:
        raise InsufficientDataError(
            "needs finished runs of a set whose Unknown rows fill whole relations and of the sweep's set with the same "
            "share, such as concentrated-050 and unknown-050 (--concentrated-shares 0.5)"
        )
    return [_compare_concentrated_set(data, share, name, other) for share, name, other in pairs]


def is_significant(change: Measurement) -> bool:
    """True if a difference is more than chance explains: 0 is outside its 95 % interval."""
    return abs(change.value) > Z_95 * change.se


def _compare_concentrated_set(data: StudyData, share: float, name: str, baseline: str) -> ConcentrationResult:
    variant = data.variants[name]
    unknown_relations, known_relations, mixed_relations = (
        _relations_by_knowledge(variant, known) for known in ({False}, {True}, {True, False})
    )
    ids = {UNKNOWN_RELATIONS: _test_ids(data, unknown_relations), KNOWN_RELATIONS: _test_ids(data, known_relations)}
    comparisons = []
    for group in QUESTION_GROUPS:
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            split = "ood" if group == OOD else "test"
            try:
                found = compare_on_questions(data, (name, checkpoint), (baseline, checkpoint), split, ids.get(group))
                comparisons.append(GroupComparison(group=group, checkpoint=checkpoint, comparison=found))
            except InsufficientDataError as reason:
                comparisons.append(
                    GroupComparison(group=group, checkpoint=checkpoint, comparison=None, missing_reason=str(reason))
                )
    return ConcentrationResult(
        name=name,
        baseline=baseline,
        share=share,
        unknown_relations=unknown_relations,
        known_relations=known_relations,
        mixed_relations=mixed_relations,
        comparisons=tuple(comparisons),
    )


def _relations_by_knowledge(variant: Variant, known: set[bool]) -> tuple[str, ...]:
    """Relations whose rows are all Unknown ({False}), all Known ({True}) or both."""
    sorts = {
        relation: {category != Category.UNKNOWN for category, num in mix.items() if num}
        for relation, mix in variant.relations.items()
    }
    return tuple(sorted(relation for relation, found in sorts.items() if found == known))


def _test_ids(data: StudyData, relations: Sequence[str]) -> NDArray[np.str_]:
    found = [data.test_ids[relation] for relation in relations if relation in data.test_ids]
    return np.concatenate(found) if found else np.array([], dtype=str)
