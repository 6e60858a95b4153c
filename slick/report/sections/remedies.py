"""Remedies against forgetting: Unknown facts learned against HighlyKnown facts lost, and which remedy is worth it."""

from collections.abc import Callable, Sequence
from typing import Any

from slick.report.charts import BLUE, GREEN, INK, MUTED, VERMILLION, separate_values
from slick.report.data import StudyData
from slick.report.measurements import (
    PAIRING_NOTE,
    Z_95,
    Measurement,
    format_change,
    interval_ends,
    round1,
    rounded_with_interval,
    value_or_reason,
)
from slick.report.page import GROUP_EXTENSIONS, SectionBody, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.remedies import (
    ACCURACY_MARGIN,
    LEARNED_MARGIN,
    NO_REMEDY,
    RemedyComparison,
    Verdict,
    compare_remedies,
)
from slick.report.statistics.remedy_runs import load_remedy_runs, needs_labels
from slick.report.tables import CellValue, Row, Table

SHARE = 0.5
_VERDICT_STYLES = {
    Verdict.WORTH_IT: (GREEN, "o"),
    Verdict.TRADE: (BLUE, "s"),
    Verdict.HARMFUL: (VERMILLION, "X"),
    Verdict.INCONCLUSIVE: (MUTED, "D"),
}
_OTHER_VERDICTS = {
    Verdict.TRADE: "Fewer facts lost at the price of facts learned or accuracy",
    Verdict.HARMFUL: "More facts lost",
    Verdict.INCONCLUSIVE: "Inconclusive",
}


@section("remedies", title="Remedies", group=GROUP_EXTENSIONS, order=147, experiment="remedies")
def remedies_section(data: StudyData) -> SectionBody:
    """Facts learned and lost, test accuracy and cost of each remedy, and the verdict on it."""
    return SectionBody(
        result=summary_text(data),
        text="All trainings are on D with 50 % Unknown rows and, but for early stopping, to the last epoch. Learned: "
        "Unknown rows of D that are answered with a gold answer. Lost: HighlyKnown test questions that are answered "
        "wrongly, which includes “I don’t know”; before fine-tuning, all are answered right under every prompt. A "
        "training without the Unknown rows is not asked them, and counts as one that learns none. The verdict follows "
        "a rule that was fixed before any result. Worth it: reliably fewer facts lost (p < 0.05 with Holm's "
        "correction for the number of remedies), and the 95 % intervals exclude a fall of "
        f"{LEARNED_MARGIN:g} points of facts learned and of {ACCURACY_MARGIN:g} points of test accuracy. A trade: "
        "reliably fewer facts lost, and reliably fewer facts learned or a lower test accuracy; it pays if the Unknown "
        "facts matter less. Harmful: reliably more facts lost. Inconclusive: all else. Remedies are compared with no "
        f"remedy, not with each other. {PAIRING_NOTE}",
        exhibits=(
            figure_exhibit(
                "Unknown facts learned and HighlyKnown facts lost, in percent, with 95 % intervals; best is the lower "
                "right. Open: not trained on the Unknown rows.",
                "remedies",
                "Unknown facts learned against HighlyKnown facts lost, one point for each remedy",
                lambda: remedies_figure(compare(data)),
            ),
            table_exhibit(
                "Percentages, and differences from no remedy in points with 95 % intervals. Passes: forward passes of "
                "training rows, relative to no remedy. Time: of training without evaluation, relative to no remedy, as "
                "measured, so it also depends on what else the machine ran. Labels: whether the remedy needs "
                "annotated training rows.",
                lambda: remedies_table(compare(data)),
            ),
            table_exhibit("The reason of each verdict.", lambda: verdicts_table(compare(data))),
            collapsed_table_exhibit("The differences as numbers.", lambda: remedies_numbers_table(compare(data))),
        ),
    )


def summary_text(data: StudyData) -> str:
    """Which remedies are worth it, and the numbers of the one with the fewest facts lost; empty without data."""
    comparisons, _ = value_or_reason(compare, data)
    if not comparisons:
        return ""
    base, *remedies = comparisons
    by_verdict = {verdict: [c for c in remedies if c.verdict is verdict] for verdict in Verdict}
    sentences = [
        f"Without a remedy, {_format_measurement(base.learned)} % of the Unknown facts are learned and "
        f"{_format_measurement(base.lost)} % of the HighlyKnown facts lost."
    ]
    worth_it = by_verdict[Verdict.WORTH_IT]
    if worth_it:
        best = min(worth_it, key=lambda c: c.lost_change.value)
        sentences.append(
            f"Worth it: {_names(worth_it)}. {best.remedy[0].upper()}{best.remedy[1:]} changes facts lost by "
            f"{_format_change(best.lost_change)} points, facts learned by {_format_change(best.learned_change)} "
            f"and test accuracy by {_format_change(best.accuracy_change)}."
        )
    else:
        sentences.append("No remedy is shown to be worth it.")
    for verdict, label in _OTHER_VERDICTS.items():
        if by_verdict[verdict]:
            sentences.append(f"{label}: {_names(by_verdict[verdict])}.")
        if verdict is Verdict.TRADE and by_verdict[verdict]:
            sentences.append(_trade_sentence(by_verdict[verdict]))
    return " ".join(sentences)


def _trade_sentence(trades: Sequence[RemedyComparison]) -> str:
    """The trade that gives up the fewest learned facts."""
    best = max(trades, key=lambda comparison: comparison.learned_change.value)
    return (
        f"Of these, {best.remedy} gives up the fewest learned facts: {_format_change(best.learned_change)} points "
        f"learned for {_format_change(best.lost_change)} lost."
    )


def _names(comparisons: Sequence[RemedyComparison]) -> str:
    return ", ".join(comparison.remedy for comparison in comparisons)


def _format_measurement(cell: Measurement | None) -> str:
    return "–" if cell is None else f"{round1(cell.value):.1f}"


def _format_change(change: Measurement) -> str:
    """A difference of percentages with its 95 % interval, which ends at -100 and 100.

    >>> _format_change(Measurement(-99.0, 1.0, 1))
    '-99.0 (-100.0 to -97.0)'
    """
    low, high = interval_ends(change)
    return format_change(change.value, max(low, -100.0), min(high, 100.0))


def remedies_figure(comparisons: Sequence[RemedyComparison]) -> Callable[[Any], None]:
    """Facts learned (x) against facts lost (y), with intervals; thin lines lead to the names."""

    def plot(axes: Any) -> None:
        points = []
        for comparison in comparisons:
            learned = comparison.learned or Measurement(0.0, 0.0, 1)
            is_base = comparison.remedy == NO_REMEDY
            colour, marker = (INK, "*") if is_base else _VERDICT_STYLES[comparison.verdict]
            axes.errorbar(
                learned.value,
                comparison.lost.value,
                xerr=Z_95 * learned.se,
                yerr=Z_95 * comparison.lost.se,
                fmt=marker,
                color=colour,
                elinewidth=0.8,
                markersize=11 if is_base else 6,
                markerfacecolor=colour if comparison.learned else "white",
            )
            name = "no remedy" if is_base else comparison.remedy.partition(" (")[0]
            points.append((comparison.lost.value, learned.value, name, colour))
        _name_points(axes, sorted(points))
        axes.set_xlim(-4, 220)
        axes.grid(visible=False, axis="y")
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.spines["bottom"].set_bounds(-4, 104)
        axes.set_xlabel("Unknown facts learned (%)", loc="left")
        axes.set_ylabel("HighlyKnown facts lost (%)")

    return plot


def _name_points(axes: Any, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Name points right of the plot, in the order of their heights.

    Args:
        axes: of the points.
        points: y, x, name and colour of each, by ascending y.
    """
    low, high = axes.get_ylim()
    heights = separate_values([y for y, *_ in points], 0.085 * (high - low))
    for height, (y, x, name, colour) in zip(heights, points, strict=True):
        axes.plot([x, 108], [y, height], color=colour, linewidth=0.5, alpha=0.6, zorder=0.5)
        axes.text(110, height, name, va="center", color=colour, fontsize=10)
    axes.set_ylim(min(low, heights[0] - 1), max(high, heights[-1] + 1))


def remedies_table(comparisons: Sequence[RemedyComparison]) -> Table:
    """One row per remedy; no remedy comes first."""
    rows: list[Row] = []
    for comparison in comparisons:
        is_base = comparison.remedy == NO_REMEDY
        changes: list[CellValue] = [
            None if is_base else _format_change(change)
            for change in (comparison.learned_change, comparison.lost_change, comparison.accuracy_change)
        ]
        time = comparison.relative_time
        rows.append(
            (
                comparison.remedy,
                "not trained" if comparison.learned is None else f"{round1(comparison.learned.value):.1f}",
                changes[0],
                round1(comparison.lost.value),
                changes[1],
                round1(comparison.accuracy.value),
                changes[2],
                f"{comparison.relative_passes:.2f}",
                None if time is None else f"{time:.2f}",
                "yes" if needs_labels(comparison.remedy) else "no",
                None if is_base else str(comparison.verdict),
            )
        )
    columns = ("remedy", "learned", "learned - none", "lost", "lost - none", "test", "test - none")
    return Table(name="remedies", columns=(*columns, "passes", "time", "labels", "verdict"), rows=tuple(rows))


def verdicts_table(comparisons: Sequence[RemedyComparison]) -> Table:
    """The verdict on each remedy, with its reason."""
    rows: tuple[Row, ...] = tuple(
        (comparison.remedy, str(comparison.verdict), comparison.explanation())
        for comparison in comparisons
        if comparison.remedy != NO_REMEDY
    )
    return Table(name="remedies_verdicts", columns=("remedy", "verdict", "reason"), rows=rows)


def remedies_numbers_table(comparisons: Sequence[RemedyComparison]) -> Table:
    """The differences from no remedy and their intervals as numbers."""
    rows: list[Row] = []
    for comparison in comparisons[1:]:
        for name, change, num in (
            ("learned", comparison.learned_change, comparison.num_unknown),
            ("lost", comparison.lost_change, comparison.num_highly_known),
            ("test_accuracy", comparison.accuracy_change, comparison.num_test),
        ):
            p_value = float(f"{comparison.lost_p:.2g}") if name == "lost" else None
            rows.append((comparison.remedy, name, *rounded_with_interval(change), p_value, num, len(comparison.seeds)))
    columns = ("remedy", "quantity", "difference_points", "low", "high", "holm_p", "questions", "seeds")
    return Table(name="remedies_numbers", columns=columns, rows=tuple(rows))


def compare(data: StudyData) -> list[RemedyComparison]:
    """The remedies of the study, no remedy first; see `compare_remedies`.

    Raises:
        InsufficientDataError: see `compare_remedies`.
    """
    names = {variant.kind: name for name, variant in data.variants.items() if variant.share == SHARE}
    runs = [run for run in data.runs if run.variant in names.values()]
    kinds = {name: kind for kind, name in names.items()}
    return compare_remedies(data.load_cached(load_remedy_runs, [], runs, kinds, data.idk_phrase))
