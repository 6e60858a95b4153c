"""Harm of Unknown rows that fill whole relations, compared with as many that are spread over all relations.

Both fine-tuning sets have the same number of rows per relation and the same number of Unknown rows in total.
`unknown-X` has the share X of Unknown rows in every relation; `concentrated-X` fills whole relations with them and has
only Known rows in the others. Positive differences favour the concentrated set.

Source: arXiv:2511.02626 (Understanding New-Knowledge-Induced Factual Hallucinations), where entirely new kinds of
knowledge harm more than a larger share of new rows spread over kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.formatting import format_percent
from slick.report.charts import BLUE, VERMILLION, format_dot_axes, plot_interval_dots
from slick.report.data import StudyData, Variant, share_nearest_to_half
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    PAIRING_NOTE,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    format_difference,
    is_significant,
    round1,
    rounded_with_interval,
    value_or_reason,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.intervals import SubsetComparison, compare_on_questions
from slick.report.tables import Row, Table
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_knowledge
from slick.types import Category

ALL_TEST, UNKNOWN_RELATIONS, KNOWN_RELATIONS, OOD = "all test", "wholly Unknown", "wholly Known", "out of distribution"
"""Groups of questions: all ID test questions, those of relations with only Unknown rows in the concentrated set, those
of relations with only Known rows, and OOD test questions."""

QUESTION_GROUPS = (ALL_TEST, UNKNOWN_RELATIONS, KNOWN_RELATIONS, OOD)
CHECKPOINT_MARKERS = {EARLY_STOP: (BLUE, "o"), CONVERGENCE: (VERMILLION, "s")}
GROUP_LABELS = {
    ALL_TEST: "All test\nquestions",
    UNKNOWN_RELATIONS: "Relations made\nwholly Unknown",
    KNOWN_RELATIONS: "Relations left\nwholly Known",
    OOD: "Out of\ndistribution",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupComparison:
    """The concentrated set (first) compared with the spread one (second) on one group of questions."""

    group: str
    checkpoint: str
    """`EARLY_STOP` or `CONVERGENCE`."""
    comparison: SubsetComparison | None
    missing_reason: str = ""
    """Why there is no comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcentrationResult:
    """One concentrated set compared with the set of the sweep with the same share."""

    name: str
    baseline: str
    """Variant of the sweep."""
    share: float
    unknown_relations: tuple[str, ...]
    """Relations with only Unknown rows in the concentrated set."""
    known_relations: tuple[str, ...]
    """Relations with only Known rows."""
    mixed_relations: tuple[str, ...]
    """Relations with both; they count in the group of all test questions only."""
    comparisons: tuple[GroupComparison, ...]
    """Sorted by group, then early stop before convergence."""

    def comparison_for(self, group: str, checkpoint: str) -> GroupComparison:
        """The comparison on one group at one checkpoint."""
        return next(
            comparison
            for comparison in self.comparisons
            if (comparison.group, comparison.checkpoint) == (group, checkpoint)
        )


@section(
    "concentration",
    title="Unknown rows concentrated in a few relations",
    group=GROUP_EXTENSIONS,
    order=140,
    experiment="concentration",
)
def concentration_section(data: StudyData) -> SectionBody:
    """Differences between concentrated and spread Unknown rows, by group of test questions."""
    return SectionBody(
        result=summary_text(data),
        text="The concentrated set has as many rows per relation, and as many Unknown rows in total, as the set of "
        "the sweep. Its Unknown rows fill whole relations, chosen at random by the seed; the other relations have "
        f"only Known rows. arXiv:2511.02626 finds that entirely new kinds of knowledge harm most. {PAIRING_NOTE}",
        exhibits=(
            figure_exhibit(
                "Test accuracy of the concentrated set minus that of the spread set, in points, with 95 % intervals.",
                "concentration",
                "Difference in accuracy between concentrated and spread Unknown rows, by group of test questions",
                lambda: concentration_figure(_nearest_to_half(compare_concentrated_sets(data))),
            ),
            table_exhibit(
                "Accuracies in percent and their difference in points, with 95 % intervals. Relations with both Known "
                "and Unknown rows count in the group of all test questions only.",
                lambda: concentration_table(compare_concentrated_sets(data)),
            ),
            collapsed_table_exhibit(
                "Relations of each group, and reasons for missing differences.",
                lambda: concentration_numbers_table(compare_concentrated_sets(data)),
            ),
        ),
    )


def summary_text(data: StudyData) -> str:
    """The difference at convergence, by group of questions; empty without data."""
    results, _ = value_or_reason(compare_concentrated_sets, data)
    if not results:
        return ""
    result = _nearest_to_half(results)
    overall = result.comparison_for(ALL_TEST, CONVERGENCE)
    if overall.comparison is None:
        return ""
    num = len(result.unknown_relations) + len(result.known_relations) + len(result.mixed_relations)
    change = overall.comparison.change
    by_group = [
        f"{format_difference(comparison.comparison.change)} on questions of relations with only {kind} rows"
        for group, kind in ((UNKNOWN_RELATIONS, "Unknown"), (KNOWN_RELATIONS, "Known"))
        if (comparison := result.comparison_for(group, CONVERGENCE)).comparison is not None
    ]
    details = f" The change is {' and '.join(by_group)}." if by_group else ""
    return (
        f"If the same {format_percent(result.share)} of Unknown rows fill {len(result.unknown_relations)} of {num} "
        f"relations instead of being spread over all, accuracy at {checkpoint_label(CONVERGENCE)} changes by "
        f"{format_difference(change)} points on all test questions "
        f"({'' if is_significant(change) else 'not '}significant).{details}"
    )


def concentration_figure(result: ConcentrationResult) -> Callable[[Any], None]:
    """Differences with intervals by group of questions and checkpoint."""
    rows = {
        group: [result.comparison_for(group, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE)]
        for group in QUESTION_GROUPS
    }
    shown = {
        group: comparisons
        for group, comparisons in rows.items()
        if any(comparison.comparison for comparison in comparisons)
    }
    if not shown:
        raise InsufficientDataError(
            "; ".join(dict.fromkeys(comparison.missing_reason for comparison in result.comparisons))
        )

    def plot(axes: Any) -> None:
        for checkpoint, (colour, marker) in CHECKPOINT_MARKERS.items():
            cells = [_difference_or_none(result.comparison_for(group, checkpoint)) for group in shown]
            plot_interval_dots(
                axes,
                cells,
                colour,
                marker,
                shift=-0.16 if checkpoint == EARLY_STOP else 0.16,
                label=checkpoint_label(checkpoint),
            )
        format_dot_axes(axes, [GROUP_LABELS[group] for group in shown], "Concentrated minus spread (points)")

    return plot


def _difference_or_none(group_comparison: GroupComparison) -> Measurement | None:
    return None if group_comparison.comparison is None else group_comparison.comparison.change


def _nearest_to_half(results: list[ConcentrationResult]) -> ConcentrationResult:
    """The result at the share nearest to 50 %, shown in the figure and the text."""
    share = share_nearest_to_half(result.share for result in results)
    return next(result for result in results if result.share == share)


def concentration_table(results: list[ConcentrationResult]) -> Table:
    """One row per group of questions and checkpoint."""
    rows: list[Row] = []
    for result in results:
        for comparison in result.comparisons:
            cells: Row = (None,) * 5
            if comparison.comparison is not None:
                first, second, change, num = comparison.comparison
                cells = (num, round1(first.value), round1(second.value), format_difference(change), change.num_seeds)
            rows.append(
                (format_percent(result.share), comparison.group, checkpoint_label(comparison.checkpoint), *cells)
            )
    columns = ("Unknown", "questions of", "checkpoint", "questions", "concentrated", "spread", "difference", "seeds")
    return Table(name="concentration", columns=columns, rows=tuple(rows))


def concentration_numbers_table(results: list[ConcentrationResult]) -> Table:
    """The differences as numbers, with the relations of each group and reasons for missing ones."""
    rows: list[Row] = []
    for result in results:
        relations_by_group = {
            ALL_TEST: (*result.unknown_relations, *result.known_relations, *result.mixed_relations),
            UNKNOWN_RELATIONS: result.unknown_relations,
            KNOWN_RELATIONS: result.known_relations,
        }
        for comparison in result.comparisons:
            values: Row = (None,) * 3
            if comparison.comparison is not None:
                values = rounded_with_interval(comparison.comparison.change)
            relations = " ".join(sorted(relations_by_group.get(comparison.group, ())))
            share = round(100 * result.share, 2)
            rows.append(
                (
                    share,
                    comparison.group,
                    checkpoint_label(comparison.checkpoint),
                    *values,
                    relations,
                    comparison.missing_reason,
                )
            )
    columns = ("unknown_percent", "questions", "checkpoint", "difference_points", "low", "high", "relations", "missing")
    return Table(name="concentration_numbers", columns=columns, rows=tuple(rows))


def compare_concentrated_sets(data: StudyData) -> list[ConcentrationResult]:
    """Compare every concentrated set with the set of the sweep with the same share, by ascending share.

    Raises:
        InsufficientDataError: there is no such pair of finished runs.
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
            comparison, missing_reason = value_or_reason(
                compare_on_questions, data, (name, checkpoint), (baseline, checkpoint), split, ids.get(group)
            )
            comparisons.append(
                GroupComparison(
                    group=group, checkpoint=checkpoint, comparison=comparison, missing_reason=missing_reason
                )
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
    """Relations whose rows are all Unknown ({False}), all Known ({True}) or mixed ({False, True})."""
    knowledge = {
        relation: {category != Category.UNKNOWN for category, num in mix.items() if num}
        for relation, mix in variant.relations.items()
    }
    return tuple(sorted(relation for relation, kinds in knowledge.items() if kinds == known))


def _test_ids(data: StudyData, relations: Sequence[str]) -> NDArray[np.str_]:
    test_ids = data.load_cached(load_test_ids, {})
    ids = [test_ids[relation] for relation in relations if relation in test_ids]
    return np.concatenate(ids) if ids else np.array([], dtype=str)


def load_test_ids(study: Folder) -> dict[str, NDArray[np.str_]]:
    """Load the sorted question_ids of the ID test questions by relation; empty without a knowledge table."""
    folder = study.child("annotate")
    if read_manifest(folder) is None:
        return {}
    table = read_knowledge(study, ["question_id", "relation", "domain", "split"])
    table = table.filter(pc.and_(pc.equal(table["domain"], "id"), pc.equal(table["split"], "test")))
    ids: dict[str, list[str]] = {}
    for question_id, relation in zip(table["question_id"].to_pylist(), table["relation"].to_pylist(), strict=True):
        ids.setdefault(relation, []).append(question_id)
    return {relation: np.array(sorted(question_ids), dtype=str) for relation, question_ids in sorted(ids.items())}
