"""The tables of labels and measures against what was planted."""

from collections.abc import Callable

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import tenths
from slick.analysis.planted import Floats, PlantedFacts, by_strength, causes, false_known, false_unknown
from slick.analysis.planted_chance import Ranked, calibration, planted_or_not, rank_recovery
from slick.analysis.terms import NotTestable
from slick.report.tables import Table, Value
from slick.types import Category

MEANINGS = {
    "firm": "firm: the answer often, no rival",
    "contested": "contested: answer and a rival about equally often",
    "minority": "minority: a rival about twice as often",
    "never": "never: not in the corpus at all",
}
GREEDY, SAMPLED, P_TRUE = "P_Correct, greedy", "P_Correct, sampled", "P(True)"


def measures(data: StudyData, facts: PlantedFacts) -> dict[str, Floats]:
    """What was measured of each fact, NaN where it was not, by name; what the study does not hold is left out."""
    found = {SAMPLED: facts.sampled, GREEDY: facts.greedy}
    if data.p_true is not None:
        scores = dict(zip(data.p_true.question_ids.tolist(), data.p_true.p_true.tolist(), strict=True))
        found[P_TRUE] = np.array([scores.get(one, np.nan) for one in facts.question_ids.tolist()])
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def strength_table(facts: PlantedFacts) -> Table:
    """Counts and percent of each category by planted strength."""
    rows: list[tuple[Value, ...]] = []
    for strength, counts in by_strength(facts).items():
        total = sum(counts.values())
        shares = (f"{num:,} ({100 * num / total:.1f} %)" for num in counts.values())
        rows.append((MEANINGS[strength], *shares, total))
    return Table(name="planted_categories", columns=("planted", *map(str, Category), "facts"), rows=tuple(rows))


def wrong_table(facts: PlantedFacts) -> Table:
    """False Unknowns by strength, and false Knowns, with intervals."""
    found = [(f"planted {name}, labelled Unknown", one) for name, one in false_unknown(facts).items()]
    try:
        found.append(("never planted, labelled Known", false_known(facts)))
    except NotTestable:
        if not found:
            raise
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (name, one.num, one.total, *(tenths(100 * part) for part in (one.share, one.low, one.high)))
        for name, one in found
    )
    return Table(
        name="planted_wrong", columns=("label against truth", "facts", "of", "percent", "low", "high"), rows=rows
    )


def causes_table(facts: PlantedFacts) -> Table:
    """Causes of labels that are not what was planted, most first within each strength."""
    rows: list[tuple[Value, ...]] = []
    for strength in by_strength(facts):
        found = causes(facts, strength)
        label = "never planted, Known" if strength == "never" else f"planted {strength}, Unknown"
        rows += [(label, cause, num) for cause, num in sorted(found.items(), key=lambda one: -one[1])]
    if not rows:
        raise NotTestable("every label is what was planted")
    return Table(name="planted_causes", columns=("label against truth", "why", "facts"), rows=tuple(rows),
                 text_columns=frozenset({1}))  # fmt: skip


def calibration_table(data: StudyData, facts: PlantedFacts) -> Table:
    """The points of the curve."""
    rows: tuple[tuple[Value, ...], ...] = tuple(
        (name, *(round(value, 4) for value in (one.chance, one.mean, one.low, one.high)), one.num)
        for name, values in measures(data, facts).items()
        for one in calibration(facts, values)
    )
    return Table(
        name="planted_chance", columns=("measure", "planted_chance", "mean", "low", "high", "facts"), rows=rows
    )


def recovery_table(data: StudyData, facts: PlantedFacts) -> Table:
    """Rank correlations and areas of each measure, and why one is missing."""
    found = measures(data, facts)
    if P_TRUE in found:
        # P(True) may be scored for fewer questions; what P_Correct recovers of just those can be compared with it.
        scored = np.isfinite(found[P_TRUE])
        for name in [name for name in (SAMPLED, GREEDY) if name in found and scored.sum() < len(scored)]:
            found[f"{name}, where P(True) was scored"] = np.where(scored, found[name], np.nan)
    rows: list[tuple[Value, ...]] = [_recovery_row(facts, name, values) for name, values in found.items()]
    if P_TRUE not in found:
        rows.append((P_TRUE, None, None, None, None, "it was not scored; run `slick annotate PRESET --p-true`"))
    columns = ("measure", "rank correlation", "with a rival only", "planted above never", "facts", "missing")
    return Table(name="planted_recovery", columns=columns, rows=tuple(rows), text_columns=frozenset({5}))


def _recovery_row(facts: PlantedFacts, name: str, values: Floats) -> tuple[Value, ...]:
    rivals = np.isin(facts.strength, ["contested", "minority"])
    makers = (
        lambda: rank_recovery(facts, values),
        lambda: rank_recovery(facts, values, rivals),
        lambda: planted_or_not(facts, values),
    )
    cells, reasons = zip(*(_try(make) for make in makers), strict=True)
    return (name, *cells, int(np.isfinite(values).sum()), "; ".join(dict.fromkeys(filter(None, reasons))))


def _try(make: Callable[[], Ranked]) -> tuple[str | None, str]:
    try:
        found = make()
    except NotTestable as reason:
        return None, str(reason)
    value, low, high = (f"{round(part, 2) + 0.0:.2f}" for part in found[:3])  # + 0.0: there is no minus nought
    return f"{value} ({low} to {high})", ""
