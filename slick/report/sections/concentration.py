"""Does it harm more when some relations are wholly Unknown than when the same Unknown rows are spread over all? Pure.

Two fine-tuning sets of as many rows of each relation and as many Unknown rows in all: `unknown-X` has the share X of
Unknown rows in every relation, `concentrated-X` fills whole relations with them and leaves the others wholly Known.
Positive differences favour the concentrated set.

Source: arXiv:2511.02626 (Understanding New-Knowledge-Induced Factual Hallucinations), where a kind of knowledge that is
wholly new harms more than a larger share of new rows spread over kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.report.charts import BLUE, VERMILLION, format_difference, format_dot_axes, plot_interval_dots
from slick.report.data import StudyData, Variant
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    InsufficientDataError,
    Measurement,
    checkpoint_label,
    format_percent,
    round1,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.intervals import SubsetComparison, compare_on_questions
from slick.report.tables import CellValue, Table
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_knowledge
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
    test_ids = data.part(load_test_ids, {})
    found = [test_ids[relation] for relation in relations if relation in test_ids]
    return np.concatenate(found) if found else np.array([], dtype=str)


def load_test_ids(study: Folder) -> dict[str, NDArray[np.str_]]:
    """The question_ids of each relation's ID test questions, sorted; empty without a knowledge table."""
    folder = study.child("annotate")
    if read_manifest(folder) is None:
        return {}
    table = read_knowledge(study, ["question_id", "relation", "domain", "split"])
    table = table.filter(pc.and_(pc.equal(table["domain"], "id"), pc.equal(table["split"], "test")))
    ids: dict[str, list[str]] = {}
    for question_id, relation in zip(table["question_id"].to_pylist(), table["relation"].to_pylist(), strict=True):
        ids.setdefault(relation, []).append(question_id)
    return {relation: np.array(sorted(found), dtype=str) for relation, found in sorted(ids.items())}


CHECKPOINT_MARKERS = {EARLY_STOP: (BLUE, "o"), CONVERGENCE: (VERMILLION, "s")}

GROUP_LABELS = {
    ALL_TEST: "All test\nquestions",
    UNKNOWN_RELATIONS: "Relations made\nwholly Unknown",
    KNOWN_RELATIONS: "Relations left\nwholly Known",
    OOD: "Out of\ndistribution",
}


@section(
    "concentration",
    title="Unknown rows in a few relations, or in all",
    group=GROUP_EXTENSIONS,
    order=140,
    experiment="concentration",
)
def concentration_section(data: StudyData) -> SectionBody:
    """The section; without a trained set whose Unknown rows fill whole relations it says what is missing."""
    return SectionBody(
        text=f"{summary_text(data)}The concentrated set has as many rows of each relation, and as many Unknown rows "
        f"in all, "
        "as the set of the sweep, but they fill whole relations, drawn by the seed; the others stay wholly Known "
        "(compare arXiv:2511.02626, which finds that kinds of knowledge that are wholly new harm most). Differences "
        "are paired over the same questions; with three seeds or more their error is no smaller than the one over "
        "seeds.",
        exhibits=(
            figure_exhibit(
                "Test accuracy after the concentrated set minus that after the spread one, in points, with 95 % "
                "intervals.",
                "concentration",
                "Change of accuracy when Unknown rows fill whole relations, by group of test questions",
                lambda: concentration_figure(_nearest_to_half(compare_concentrated_sets(data))),
            ),
            table_exhibit(
                "Accuracies in percent and their difference in points, with 95 % intervals. A relation that is filled "
                "in part counts among all test questions only.",
                lambda: concentration_table(compare_concentrated_sets(data)),
            ),
            collapsed_table_exhibit(
                "Which relations are in each group, and why a difference is missing.",
                lambda: concentration_numbers_table(compare_concentrated_sets(data)),
            ),
        ),
    )


def summary_text(data: StudyData) -> str:
    """What was found, in one sentence; nothing where nothing can be told."""
    try:
        found = _nearest_to_half(compare_concentrated_sets(data))
    except InsufficientDataError:
        return ""
    every = found.comparison_for(ALL_TEST, CONVERGENCE)
    if every.comparison is None:
        return ""
    num = len(found.unknown_relations) + len(found.known_relations) + len(found.mixed_relations)
    change = every.comparison.change
    parts = [
        f"by {format_difference(one.comparison.change)} on questions of the relations {what}"
        for group, what in ((UNKNOWN_RELATIONS, "made wholly Unknown"), (KNOWN_RELATIONS, "left wholly Known"))
        if (one := found.comparison_for(group, CONVERGENCE)).comparison is not None
    ]
    return (
        f"Where the same {format_percent(found.share)} of Unknown rows fill {len(found.unknown_relations)} of {num} "
        f"relations instead of being spread over all, accuracy at {checkpoint_label(CONVERGENCE)} changes by "
        f"{format_difference(change)} points on all test questions, {'' if is_significant(change) else 'no '}more than "
        f"chance explains{': ' if parts else ''}{' and '.join(parts)}. "
    )


def concentration_figure(found: ConcentrationResult) -> Callable[[Any], None]:
    """A dot for each group of questions and checkpoint, its interval and its value.

    Raises:
        NotTestable: no group could be compared.
    """
    rows = {
        group: [found.comparison_for(group, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE)]
        for group in QUESTION_GROUPS
    }
    shown = {group: comparisons for group, comparisons in rows.items() if any(one.comparison for one in comparisons)}
    if not shown:
        raise InsufficientDataError("; ".join(dict.fromkeys(one.missing_reason for one in found.comparisons)))

    def plot(axes: Any) -> None:
        for checkpoint, (colour, marker) in CHECKPOINT_MARKERS.items():
            cells = [_difference_or_none(found.comparison_for(group, checkpoint)) for group in shown]
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


def concentration_table(found: list[ConcentrationResult]) -> Table:
    """One row a group of questions and checkpoint, for people."""
    rows: list[tuple[CellValue, ...]] = []
    for one in found:
        for contrast in one.comparisons:
            cells: tuple[CellValue, ...] = (None,) * 5
            if contrast.comparison is not None:
                first, second, change, num = contrast.comparison
                cells = (num, round1(first.value), round1(second.value), format_difference(change), change.num_seeds)
            rows.append((format_percent(one.share), contrast.group, checkpoint_label(contrast.checkpoint), *cells))
    columns = ("Unknown", "questions of", "checkpoint", "questions", "concentrated", "spread", "difference", "seeds")
    return Table(name="concentration", columns=columns, rows=tuple(rows))


def concentration_numbers_table(found: list[ConcentrationResult]) -> Table:
    """The same unrounded, with the relations of each group and reasons for what is missing."""
    rows: list[tuple[CellValue, ...]] = []
    for one in found:
        named = {
            ALL_TEST: (*one.unknown_relations, *one.known_relations, *one.mixed_relations),
            UNKNOWN_RELATIONS: one.unknown_relations,
            KNOWN_RELATIONS: one.known_relations,
        }
        for contrast in one.comparisons:
            ends: tuple[CellValue, ...] = (None,) * 3
            if contrast.comparison is not None:
                change = contrast.comparison.change
                values = (change.value, change.value - Z_95 * change.se, change.value + Z_95 * change.se)
                ends = tuple(round(value, 3) for value in values)
            relations = " ".join(sorted(named.get(contrast.group, ())))
            share = round(100 * one.share, 2)
            rows.append(
                (
                    share,
                    contrast.group,
                    checkpoint_label(contrast.checkpoint),
                    *ends,
                    relations,
                    contrast.missing_reason,
                )
            )
    columns = ("unknown_percent", "questions", "checkpoint", "difference_points", "low", "high", "relations", "missing")
    return Table(name="concentration_numbers", columns=columns, rows=tuple(rows))


def _nearest_to_half(found: list[ConcentrationResult]) -> ConcentrationResult:
    """The one at the share nearest to a half, which the figure and the sentence are about."""
    return min(found, key=lambda one: abs(one.share - 0.5))


def _difference_or_none(contrast: GroupComparison) -> Measurement | None:
    return None if contrast.comparison is None else contrast.comparison.change
