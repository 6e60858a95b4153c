"""The section that only a planted world can have: the labels and measures beside the truth."""

from collections.abc import Callable
from typing import Any

import numpy as np

from slick.analysis.data import StudyData
from slick.analysis.findings.verdict import round1
from slick.analysis.planted import PlantedFacts, Proportion, counts_by_strength, false_known_rate, false_unknown_rates
from slick.analysis.planted_chance import apply_temperature, calibration_bins, planted_rank_correlation
from slick.analysis.terms import InsufficientDataError
from slick.report.figures import CATEGORY_COLOURS
from slick.report.page import GROUP_PLANTED, Exhibit, Section, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.report.pages.planted_tables import (
    GREEDY,
    P_TRUE,
    SAMPLED,
    calibration_table,
    causes_table,
    false_labels_table,
    measured_values,
    recovery_table,
    strength_table,
)
from slick.report.style import BLUE, INK, MUTED, ORANGE, PURPLE
from slick.types import Category


def planted_sections(data: StudyData) -> list[Section]:
    """The section as a list of one; empty for a model whose knowledge nobody planted."""
    facts = data.planted
    if facts is None:
        return []
    return [
        Section(
            name="planted",
            title="Labels and measures against what was planted",
            group=GROUP_PLANTED,
            text=summary_text(data, facts),
            exhibits=(*_figure_exhibits(data, facts), *_table_exhibits(data, facts)),
        )
    ]


def summary_text(data: StudyData, facts: PlantedFacts) -> str:
    """How far the labels agree with the truth, in a few sentences."""
    said = [
        f"This model was trained here on a corpus that names the answer of each of {len(facts.strength):,} questions "
        "as often as was decided beforehand, so its labels can be checked against the truth."
    ]
    try:
        missed = false_unknown_rates(facts)
        if "firm" in missed:
            said.append(f"Of the facts planted firmly, {_format_proportion(missed['firm'])} are labelled Unknown.")
        said.append(
            f"Of those never planted, {_format_proportion(false_known_rate(facts))} are labelled Known all the same."
        )
    except InsufficientDataError:
        pass  # a world may plant everything; the tables say what is missing
    said += _rank_sentences(data, facts)
    if facts.num_unmatched_questions:
        said.append(
            f"{facts.num_unmatched_questions:,} annotated questions are no facts of this world and are left out."
        )
    return " ".join(said)


def _rank_sentences(data: StudyData, facts: PlantedFacts) -> list[str]:
    """How well sampled answers and P(True) order the facts, on the same facts where both are there."""
    found = measured_values(data, facts)
    shared = np.ones(len(facts.strength), dtype=bool)
    for name in (SAMPLED, P_TRUE):
        shared &= np.isfinite(found.get(name, np.zeros(len(shared))))
    told = []
    for name in (SAMPLED, P_TRUE):
        try:
            one = planted_rank_correlation(facts, found[name], shared)
        except (KeyError, InsufficientDataError):
            continue  # the table of measures says why
        value, low, high = (f"{round(part, 2) + 0.0:.2f}" for part in one[:3])
        told.append(f"{name}, with a rank correlation of {value} ({low} to {high})")
    return [f"How the measures order {shared.sum():,} facts as they were planted: {'; '.join(told)}."] if told else []


def _figure_exhibits(data: StudyData, facts: PlantedFacts) -> tuple[Exhibit, ...]:
    sharper = (
        f" Dotted: chances sharpened to the sampling temperature, {facts.temperature:g}." if facts.temperature else ""
    )
    return (
        figure_exhibit(
            "Categories of the facts of each planted strength, in percent of them.",
            "planted_categories",
            "Stacked bars: categories by planted strength",
            lambda: planted_category_bars(facts),
        ),
        figure_exhibit(
            "Measures by the planted chance of the gold answer, its share of all mentions: means over facts with "
            f"95 % intervals. Dashed: as planted.{sharper}",
            "planted_chance",
            "Measured P_Correct and P(True) by planted chance of the gold answer",
            lambda: calibration_curve(data, facts),
        ),
    )


def _table_exhibits(data: StudyData, facts: PlantedFacts) -> tuple[Exhibit, ...]:
    return (
        table_exhibit("Facts of each category by planted strength.", lambda: strength_table(facts)),
        table_exhibit(
            "Labels that are not what was planted: planted facts labelled Unknown, and facts never planted labelled "
            "Known; with 95 % intervals (Wilson).",
            lambda: false_labels_table(facts),
        ),
        table_exhibit("Why, where the stored answers tell; the first cause that applies.", lambda: causes_table(facts)),
        table_exhibit(
            "What each measure recovers. Rank correlation with the planted chance, over all facts and over those with "
            "a rival alone; chance that a planted fact scores above one never planted (area under the ROC curve); "
            "in brackets 95 % intervals.",
            lambda: recovery_table(data, facts),
        ),
        collapsed_table_exhibit("All numbers of the second figure.", lambda: calibration_table(data, facts)),
    )


def planted_category_bars(facts: PlantedFacts) -> Callable[[Any], None]:
    """One bar a strength, stacked by category, in percent."""
    rows = counts_by_strength(facts)

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


def calibration_curve(data: StudyData, facts: PlantedFacts) -> Callable[[Any], None]:
    """Each measure's mean by planted chance, beside the chance itself."""
    marks = {SAMPLED: (BLUE, "o", "-"), GREEDY: (ORANGE, "s", "--"), P_TRUE: (PURPLE, "^", "-.")}
    curves = {name: calibration_bins(facts, values) for name, values in measured_values(data, facts).items()}

    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (6, 3)))
        if facts.temperature:
            x = np.linspace(0, 1, 101)
            axes.plot(x, apply_temperature(x, facts.temperature), color=MUTED, linewidth=1.4, linestyle=":")
        for name, bins in curves.items():
            colour, marker, line = marks[name]
            mean = np.array([one.mean for one in bins])
            reach = np.array([[one.mean - one.low for one in bins], [one.high - one.mean for one in bins]])
            axes.errorbar(
                [one.planted_probability for one in bins],
                mean,
                reach,
                fmt=line,
                color=colour,
                marker=marker,
                linewidth=1.6,
                elinewidth=1.3,
                capsize=2.5,
                label=name,
            )
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("Planted chance of the gold answer")
        axes.set_ylabel("Measured, mean over facts")
        axes.legend(loc="upper left", fontsize=11, handlelength=2.6)

    return plot


def _format_proportion(one: Proportion) -> str:
    low, high = (f"{round1(100 * end):.1f}" for end in (one.low, one.high))
    return f"{one.num:,} of {one.total:,} ({round1(100 * one.share):.1f} %, {low} to {high})"
