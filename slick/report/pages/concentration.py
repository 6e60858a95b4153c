"""The section on Unknown rows that fill whole relations, against as many that are spread over all of them."""

from collections.abc import Callable
from typing import Any

from slick.analysis.concentration import (
    ALL_TEST,
    FILLED,
    GROUPS,
    OOD,
    SPARED,
    Concentration,
    Contrast,
    certain,
    concentrations,
)
from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import Z, percent, tenths, when_label
from slick.analysis.terms import EARLY, LAST, Cell, NotTestable
from slick.report.dots import change_text, dots, rows_of_dots
from slick.report.page import Section, drawn, numbers, wide
from slick.report.style import BLUE, VERMILLION
from slick.report.tables import Table, Value

MARKS = {EARLY: (BLUE, "o"), LAST: (VERMILLION, "s")}

GROUP_LABELS = {
    ALL_TEST: "All test\nquestions",
    FILLED: "Relations made\nwholly Unknown",
    SPARED: "Relations left\nwholly Known",
    OOD: "Out of\ndistribution",
}


def section(data: StudyData) -> Section:
    """The section; without a trained set whose Unknown rows fill whole relations it says what is missing."""
    return Section(
        name="concentration",
        title="Unknown rows in a few relations, or in all",
        text=f"{words(data)}The concentrated set has as many rows of each relation, and as many Unknown rows in all, "
        "as the set of the sweep, but they fill whole relations, drawn by the seed; the others stay wholly Known "
        "(compare arXiv:2511.02626, which finds that kinds of knowledge that are wholly new harm most). Differences "
        "are paired over the same questions; with three seeds or more their error is no smaller than the one over "
        "seeds.",
        exhibits=(
            drawn(
                "Test accuracy after the concentrated set minus that after the spread one, in points, with 95 % "
                "intervals.",
                "concentration",
                "Change of accuracy when Unknown rows fill whole relations, by group of test questions",
                lambda: contrast_figure(_main(concentrations(data))),
            ),
            wide(
                "Accuracies in percent and their difference in points, with 95 % intervals. A relation that is filled "
                "in part counts among all test questions only.",
                lambda: contrast_table(concentrations(data)),
            ),
            numbers(
                "Which relations are in each group, and why a difference is missing.",
                lambda: numbers_table(concentrations(data)),
            ),
        ),
    )


def words(data: StudyData) -> str:
    """What was found, in one sentence; nothing where nothing can be told."""
    try:
        found = _main(concentrations(data))
    except NotTestable:
        return ""
    every = found.at(ALL_TEST, LAST)
    if every.compared is None:
        return ""
    num = len(found.filled) + len(found.spared) + len(found.mixed)
    change = every.compared.change
    parts = [
        f"by {change_text(one.compared.change)} on questions of the relations {what}"
        for group, what in ((FILLED, "made wholly Unknown"), (SPARED, "left wholly Known"))
        if (one := found.at(group, LAST)).compared is not None
    ]
    return (
        f"Where the same {percent(found.share)} of Unknown rows fill {len(found.filled)} of {num} relations instead of "
        f"being spread over all, accuracy at {when_label(LAST)} changes by {change_text(change)} points on all test "
        f"questions, {'' if certain(change) else 'no '}more than chance explains{': ' if parts else ''}"
        f"{' and '.join(parts)}. "
    )


def contrast_figure(found: Concentration) -> Callable[[Any], None]:
    """A dot for each group of questions and checkpoint, its interval and its value.

    Raises:
        NotTestable: no group could be compared.
    """
    rows = {group: [found.at(group, when) for when in (EARLY, LAST)] for group in GROUPS}
    shown = {group: contrasts for group, contrasts in rows.items() if any(one.compared for one in contrasts)}
    if not shown:
        raise NotTestable("; ".join(dict.fromkeys(one.why for one in found.contrasts)))

    def plot(axes: Any) -> None:
        for when, (colour, marker) in MARKS.items():
            cells = [_change(found.at(group, when)) for group in shown]
            dots(axes, cells, colour, marker, shift=-0.16 if when == EARLY else 0.16, label=when_label(when))
        rows_of_dots(axes, [GROUP_LABELS[group] for group in shown], "Concentrated minus spread (points)")

    return plot


def contrast_table(found: list[Concentration]) -> Table:
    """One row a group of questions and checkpoint, for people."""
    rows: list[tuple[Value, ...]] = []
    for one in found:
        for contrast in one.contrasts:
            cells: tuple[Value, ...] = (None,) * 5
            if contrast.compared is not None:
                first, second, change, num = contrast.compared
                cells = (num, tenths(first.value), tenths(second.value), change_text(change), change.num_seeds)
            rows.append((percent(one.share), contrast.group, when_label(contrast.when), *cells))
    columns = ("Unknown", "questions of", "checkpoint", "questions", "concentrated", "spread", "difference", "seeds")
    return Table(name="concentration", columns=columns, rows=tuple(rows))


def numbers_table(found: list[Concentration]) -> Table:
    """The same unrounded, with the relations of each group and reasons for what is missing."""
    rows: list[tuple[Value, ...]] = []
    for one in found:
        named = {ALL_TEST: (*one.filled, *one.spared, *one.mixed), FILLED: one.filled, SPARED: one.spared}
        for contrast in one.contrasts:
            ends: tuple[Value, ...] = (None,) * 3
            if contrast.compared is not None:
                change = contrast.compared.change
                values = (change.value, change.value - Z * change.se, change.value + Z * change.se)
                ends = tuple(round(value, 3) for value in values)
            relations = " ".join(sorted(named.get(contrast.group, ())))
            share = round(100 * one.share, 2)
            rows.append((share, contrast.group, when_label(contrast.when), *ends, relations, contrast.why))
    columns = ("unknown_percent", "questions", "checkpoint", "difference_points", "low", "high", "relations", "missing")
    return Table(name="concentration_numbers", columns=columns, rows=tuple(rows))


def _main(found: list[Concentration]) -> Concentration:
    """The one at the share nearest to a half, which the figure and the sentence are about."""
    return min(found, key=lambda one: abs(one.share - 0.5))


def _change(contrast: Contrast) -> Cell | None:
    return None if contrast.compared is None else contrast.compared.change
