"""The section that only a planted world can have: the labels and measures beside the truth."""

from collections.abc import Callable
from typing import Any

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.planted import (
    Floats,
    PlantedFacts,
    Proportion,
    by_strength,
    causes,
    false_known,
    false_unknown,
)
from slick.analysis.planted_chance import Ranked, calibration, planted_or_not, rank_recovery, sharpened
from slick.analysis.terms import NotTestable
from slick.analysis.verdict import tenths
from slick.report.figures import CATEGORY_COLOURS
from slick.report.page import PLANTED, Exhibit, Section, drawn, numbers, wide
from slick.report.style import BLUE, INK, MUTED, ORANGE, PURPLE
from slick.report.tables import Table, Value
from slick.types import Category

MEANINGS = {
    "firm": "firm: the answer often, no rival",
    "contested": "contested: answer and a rival about equally often",
    "minority": "minority: a rival about twice as often",
    "never": "never: not in the corpus at all",
}
GREEDY, SAMPLED, P_TRUE = "P_Correct, greedy", "P_Correct, sampled", "P(True)"


def against_the_truth(data: StudyData) -> list[Section]:
    """The section as a list of one; empty for a model whose knowledge nobody planted."""
    facts = data.planted
    if facts is None:
        return []
    return [
        Section(
            name="planted",
            title="Labels and measures against what was planted",
            group=PLANTED,
            text=words(facts),
            exhibits=(*_figures(data, facts), *_tables(data, facts)),
        )
    ]


def words(facts: PlantedFacts) -> str:
    """How far the labels agree with the truth, in three sentences."""
    said = [
        f"This model was trained here on a corpus that names the answer of each of {len(facts.strength):,} questions "
        "as often as was decided beforehand, so its labels can be checked against the truth."
    ]
    try:
        missed = false_unknown(facts)
        if "firm" in missed:
            said.append(f"Of the facts planted firmly, {_of(missed['firm'])} are labelled Unknown.")
        said.append(f"Of those never planted, {_of(false_known(facts))} are labelled Known all the same.")
    except NotTestable:
        pass  # a world may plant everything; the tables say what is missing
    if facts.num_strangers:
        said.append(f"{facts.num_strangers:,} annotated questions are no facts of this world and are left out.")
    return " ".join(said)


def _figures(data: StudyData, facts: PlantedFacts) -> tuple[Exhibit, ...]:
    sharper = (
        f" Dotted: chances sharpened to the sampling temperature, {facts.temperature:g}." if facts.temperature else ""
    )
    return (
        drawn(
            "Categories of the facts of each planted strength, in percent of them.",
            "planted_categories",
            "Stacked bars: categories by planted strength",
            lambda: category_bars(facts),
        ),
        drawn(
            "Measures by the planted chance of the gold answer, its share of all mentions: means over facts with "
            f"95 % intervals. Dashed: as planted.{sharper}",
            "planted_chance",
            "Measured P_Correct and P(True) by planted chance of the gold answer",
            lambda: calibration_curve(data, facts),
        ),
    )


def _tables(data: StudyData, facts: PlantedFacts) -> tuple[Exhibit, ...]:
    return (
        wide("Facts of each category by planted strength.", lambda: strength_table(facts)),
        wide(
            "Labels that are not what was planted: planted facts labelled Unknown, and facts never planted labelled "
            "Known; with 95 % intervals (Wilson).",
            lambda: wrong_table(facts),
        ),
        wide("Why, where the stored answers tell; the first cause that applies.", lambda: causes_table(facts)),
        wide(
            "What each measure recovers. Rank correlation with the planted chance, over all facts and over those with "
            "a rival alone; chance that a planted fact scores above one never planted (area under the ROC curve); "
            "in brackets 95 % intervals.",
            lambda: recovery_table(data, facts),
        ),
        numbers("All numbers of the second figure.", lambda: calibration_table(data, facts)),
    )


def measures(data: StudyData, facts: PlantedFacts) -> dict[str, Floats]:
    """What was measured of each fact, NaN where it was not, by name; what the study does not hold is left out."""
    found = {SAMPLED: facts.sampled, GREEDY: facts.greedy}
    if data.p_true is not None:
        scores = dict(zip(data.p_true.question_ids.tolist(), data.p_true.p_true.tolist(), strict=True))
        found[P_TRUE] = np.array([scores.get(one, np.nan) for one in facts.question_ids.tolist()])
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def category_bars(facts: PlantedFacts) -> Callable[[Any], None]:
    """One bar a strength, stacked by category, in percent."""
    rows = by_strength(facts)

    def plot(axes: Any) -> None:
        y = np.arange(len(rows))[::-1]
        left = np.zeros(len(rows))
        totals = np.array([sum(counts.values()) for counts in rows.values()])
        for category in Category:
            colour, _ = CATEGORY_COLOURS[category]
            width = 100 * np.array([counts[str(category)] for counts in rows.values()]) / totals
            axes.barh(y, width, 0.7, left=left, color=colour, edgecolor="white", linewidth=1.2, label=str(category))
            for at, start, size in zip(y, left, width, strict=True):
                if size >= 6:
                    ink = INK if category is Category.WEAKLY_KNOWN else "white"
                    axes.text(start + size / 2, at, f"{size:.0f}", ha="center", va="center", color=ink, fontsize=11)
            left += width
        axes.set_yticks(y, [f"{name}\n{total:,}" for name, total in zip(rows, totals, strict=True)])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 100)
        axes.set_xlabel("Facts of that strength (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=2, fontsize=11)

    return plot


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


def calibration_curve(data: StudyData, facts: PlantedFacts) -> Callable[[Any], None]:
    """Each measure's mean by planted chance, beside the chance itself."""
    marks = {SAMPLED: (BLUE, "o", "-"), GREEDY: (ORANGE, "s", "--"), P_TRUE: (PURPLE, "^", "-.")}
    curves = {name: calibration(facts, values) for name, values in measures(data, facts).items()}

    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (6, 3)))
        if facts.temperature:
            x = np.linspace(0, 1, 101)
            axes.plot(x, sharpened(x, facts.temperature), color=MUTED, linewidth=1.4, linestyle=":")
        for name, bins in curves.items():
            colour, marker, line = marks[name]
            mean = np.array([one.mean for one in bins])
            reach = np.array([[one.mean - one.low for one in bins], [one.high - one.mean for one in bins]])
            axes.errorbar([one.chance for one in bins], mean, reach, fmt=line, color=colour, marker=marker,
                          linewidth=1.6, elinewidth=1.3, capsize=2.5, label=name)  # fmt: skip
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("Planted chance of the gold answer")
        axes.set_ylabel("Measured, mean over facts")
        axes.legend(loc="upper left", fontsize=11, handlelength=2.6)

    return plot


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
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})", ""


def _of(one: Proportion) -> str:
    low, high = (f"{tenths(100 * end):.1f}" for end in (one.low, one.high))
    return f"{one.num:,} of {one.total:,} ({tenths(100 * one.share):.1f} %, {low} to {high})"
