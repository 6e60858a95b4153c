"""The section on Unknown rows that fill whole relations, against as many that are spread over all of them."""

from collections.abc import Callable
from typing import Any

from slick.analysis.concentration import (
    ALL_TEST,
    KNOWN_RELATIONS,
    OOD,
    QUESTION_GROUPS,
    UNKNOWN_RELATIONS,
    ConcentrationResult,
    GroupComparison,
    compare_concentrated_sets,
    is_significant,
)
from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import Z_95, checkpoint_label, format_percent, round1
from slick.analysis.terms import CONVERGENCE, EARLY_STOP, InsufficientDataError, Measurement
from slick.report.dots import format_difference, format_dot_axes, plot_interval_dots
from slick.report.page import Section, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.style import BLUE, VERMILLION
from slick.report.tables import CellValue, Table

CHECKPOINT_MARKERS = {EARLY_STOP: (BLUE, "o"), CONVERGENCE: (VERMILLION, "s")}

GROUP_LABELS = {
    ALL_TEST: "All test\nquestions",
    UNKNOWN_RELATIONS: "Relations made\nwholly Unknown",
    KNOWN_RELATIONS: "Relations left\nwholly Known",
    OOD: "Out of\ndistribution",
}


def concentration_section(data: StudyData) -> Section:
    """The section; without a trained set whose Unknown rows fill whole relations it says what is missing."""
    return Section(
        name="concentration",
        title="Unknown rows in a few relations, or in all",
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
        f"relations instead of "
        f"being spread over all, accuracy at {checkpoint_label(CONVERGENCE)} changes by {format_difference(change)} "
        f"points on all test "
        f"questions, {'' if is_significant(change) else 'no '}more than chance explains{': ' if parts else ''}"
        f"{' and '.join(parts)}. "
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
