"""The tables of labels and measures against what was planted."""

from collections.abc import Callable

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import round1
from slick.analysis.planted import (
    FloatArray,
    PlantedFacts,
    cause_counts,
    counts_by_strength,
    false_known_rate,
    false_unknown_rates,
)
from slick.analysis.planted_chance import RankStatistic, calibration_bins, planted_auroc, planted_rank_correlation
from slick.analysis.terms import InsufficientDataError
from slick.report.tables import CellValue, Table
from slick.types import Category

STRENGTH_LABELS = {
    "firm": "firm: the answer often, no rival",
    "contested": "contested: answer and a rival about equally often",
    "minority": "minority: a rival about twice as often",
    "never": "never: not in the corpus at all",
}
GREEDY, SAMPLED, P_TRUE = "P_Correct, greedy", "P_Correct, sampled", "P(True)"


def measured_values(data: StudyData, facts: PlantedFacts) -> dict[str, FloatArray]:
    """What was measured of each fact, NaN where it was not, by name; what the study does not hold is left out."""
    found = {SAMPLED: facts.sampled, GREEDY: facts.greedy}
    if data.p_true is not None:
        scores = dict(zip(data.p_true.question_ids.tolist(), data.p_true.p_true.tolist(), strict=True))
        found[P_TRUE] = np.array([scores.get(one, np.nan) for one in facts.question_ids.tolist()])
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def strength_table(facts: PlantedFacts) -> Table:
    """Counts and percent of each category by planted strength."""
    rows: list[tuple[CellValue, ...]] = []
    for strength, counts in counts_by_strength(facts).items():
        total = sum(counts.values())
        shares = (f"{num:,} ({100 * num / total:.1f} %)" for num in counts.values())
        rows.append((STRENGTH_LABELS[strength], *shares, total))
    return Table(name="planted_categories", columns=("planted", *map(str, Category), "facts"), rows=tuple(rows))


def false_labels_table(facts: PlantedFacts) -> Table:
    """False Unknowns by strength, and false Knowns, with intervals."""
    found = [(f"planted {name}, labelled Unknown", one) for name, one in false_unknown_rates(facts).items()]
    try:
        found.append(("never planted, labelled Known", false_known_rate(facts)))
    except InsufficientDataError:
        if not found:
            raise
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (name, one.num, one.total, *(round1(100 * part) for part in (one.share, one.low, one.high)))
        for name, one in found
    )
    return Table(
        name="planted_wrong", columns=("label against truth", "facts", "of", "percent", "low", "high"), rows=rows
    )


def causes_table(facts: PlantedFacts) -> Table:
    """Causes of labels that are not what was planted, most first within each strength."""
    rows: list[tuple[CellValue, ...]] = []
    for strength in counts_by_strength(facts):
        found = cause_counts(facts, strength)
        label = "never planted, Known" if strength == "never" else f"planted {strength}, Unknown"
        rows += [(label, cause, num) for cause, num in sorted(found.items(), key=lambda one: -one[1])]
    if not rows:
        raise InsufficientDataError("every label is what was planted")
    return Table(
        name="planted_causes",
        columns=("label against truth", "why", "facts"),
        rows=tuple(rows),
        text_columns=frozenset({1}),
    )


def calibration_table(data: StudyData, facts: PlantedFacts) -> Table:
    """The points of the curve."""
    rows: tuple[tuple[CellValue, ...], ...] = tuple(
        (name, *(round(value, 4) for value in (one.planted_probability, one.mean, one.low, one.high)), one.num)
        for name, values in measured_values(data, facts).items()
        for one in calibration_bins(facts, values)
    )
    return Table(
        name="planted_chance", columns=("measure", "planted_chance", "mean", "low", "high", "facts"), rows=rows
    )


def recovery_table(data: StudyData, facts: PlantedFacts) -> Table:
    """Rank correlations and areas of each measure, and why one is missing."""
    found = measured_values(data, facts)
    if P_TRUE in found:
        # P(True) may be scored for fewer questions; what P_Correct recovers of just those can be compared with it.
        scored = np.isfinite(found[P_TRUE])
        for name in [name for name in (SAMPLED, GREEDY) if name in found and scored.sum() < len(scored)]:
            found[f"{name}, where P(True) was scored"] = np.where(scored, found[name], np.nan)
    rows: list[tuple[CellValue, ...]] = [_recovery_row(facts, name, values) for name, values in found.items()]
    if P_TRUE not in found:
        rows.append((P_TRUE, None, None, None, None, "it was not scored; run `slick annotate PRESET --p-true`"))
    columns = ("measure", "rank correlation", "with a rival only", "planted above never", "facts", "missing")
    return Table(name="planted_recovery", columns=columns, rows=tuple(rows), text_columns=frozenset({5}))


def _recovery_row(facts: PlantedFacts, name: str, values: FloatArray) -> tuple[CellValue, ...]:
    rivals = np.isin(facts.strength, ["contested", "minority"])
    makers = (
        lambda: planted_rank_correlation(facts, values),
        lambda: planted_rank_correlation(facts, values, rivals),
        lambda: planted_auroc(facts, values),
    )
    cells, reasons = zip(*(_cell_or_reason(make) for make in makers), strict=True)
    return (name, *cells, int(np.isfinite(values).sum()), "; ".join(dict.fromkeys(filter(None, reasons))))


def _cell_or_reason(make: Callable[[], RankStatistic]) -> tuple[str | None, str]:
    try:
        found = make()
    except InsufficientDataError as reason:
        return None, str(reason)
    value, low, high = (f"{round(part, 2) + 0.0:.2f}" for part in found[:3])  # + 0.0: there is no minus nought
    return f"{value} ({low} to {high})", ""
