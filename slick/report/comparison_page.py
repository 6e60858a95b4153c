"""Sections and figures of a comparison of studies."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from slick.report.charts import (
    BLUE,
    CATEGORY_COLOURS,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    label_line_ends,
    set_share_axis,
)
from slick.report.comparison import (
    ComparedStudy,
    SeedSpread,
    comparable_pairs,
    format_labels,
    group_by_settings,
    incomparability_reason,
    seed_spreads,
    sweep_accuracies,
)
from slick.report.comparison_tables import (
    costs_table,
    differences_table,
    findings_table,
    policies_table,
    settings_table,
    spread_table,
    studies_table,
    study_accuracy_table,
    study_categories_table,
    study_recommendation_table,
)
from slick.report.findings.paper import category_percentages, relation_counts, total_counts
from slick.report.measurements import CONVERGENCE, EARLY_STOP, MIN_SEEDS, InsufficientDataError, checkpoint_label
from slick.report.page import Exhibit, Section, collapsed_table_exhibit, figure_exhibit, table_exhibit
from slick.types import Category

STUDY_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
STUDY_MARKERS = "osD^vPX"
NO_SWEEP_MESSAGE = "none of the studies has finished trainings at two shares of Unknown rows"


def study_category_bars(sides: Sequence[ComparedStudy], split: str) -> Callable[[Any], None]:
    """One stacked bar a study: its test questions by category, in (`test`) or out of distribution (`ood`)."""
    bars: list[tuple[str, dict[str, float]]] = []
    for side in sides:
        try:
            bars.append((side.label, category_percentages(total_counts(relation_counts(side.data, split)))))
        except InsufficientDataError:
            continue
    if not bars:
        raise InsufficientDataError("none of the studies is annotated there")

    def plot(axes: Any) -> None:
        for i, (_, values) in enumerate(bars):
            left = 0.0
            for category in Category:
                width, colour = values[category], CATEGORY_COLOURS[category][0]
                axes.barh(-i, width, 0.7, left=left, color=colour, label=str(category) if not i else None)
                if width >= 7:
                    ink = INK if category is Category.WEAKLY_KNOWN else "white"
                    axes.annotate(f"{width:.0f}", (left + width / 2, -i), ha="center", va="center", color=ink)
                left += width
        axes.set_yticks([-i for i in range(len(bars))], [label for label, _ in bars])
        axes.set_ylim(-max(len(bars), 3) + 0.4, 0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"{'Test' if split == 'test' else 'OOD test'} questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=2, fontsize=11)

    return plot


def study_accuracy_by_share(sides: Sequence[ComparedStudy]) -> Callable[[Any], None]:
    """Test accuracy by share of Unknown rows: each study at early stop (full) and at convergence (broken).

    Raises:
        NotTestable: no study has two shares, or there are more studies than lines can be told apart.
    """
    _check_num_studies(sides)
    lines: list[tuple[int, str, list[tuple[float, float]]]] = []
    for i, side in enumerate(sides):
        found = sweep_accuracies(side)
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            points = sorted((100 * share, cell.value) for (share, at), cell in found.items() if at == checkpoint)
            if len(points) > 1:
                lines.append((i, checkpoint, points))
    if not lines:
        raise InsufficientDataError(NO_SWEEP_MESSAGE)

    def plot(axes: Any) -> None:
        labels = []
        for i, checkpoint, points in lines:
            x, y = zip(*points, strict=True)
            full = checkpoint == EARLY_STOP
            axes.plot(
                x,
                y,
                "-" if full else "--",
                color=STUDY_COLOURS[i],
                marker=STUDY_MARKERS[i],
                markerfacecolor=STUDY_COLOURS[i] if full else "white",
            )
            labels.append((y[-1], f"{sides[i].label}, {'early stop' if full else 'convergence'}", STUDY_COLOURS[i]))
        ticks = sorted({x for _, _, points in lines for x, _ in points})
        label_line_ends(axes, ticks[-1], labels)
        set_share_axis(axes, ticks)
        axes.set_xlim(right=ticks[-1] + 42)
        axes.set_ylabel("Test accuracy (%)")

    return plot


def loss_by_share(sides: Sequence[ComparedStudy]) -> Callable[[Any], None]:
    """What is lost from early stop to convergence, by share of Unknown rows, one line a study.

    Raises:
        NotTestable: no study has two shares, or there are more studies than lines can be told apart.
    """
    _check_num_studies(sides)
    lines: list[tuple[int, list[tuple[float, float]]]] = []
    for i, side in enumerate(sides):
        found = sweep_accuracies(side)
        both = sorted({share for share, _ in found if {(share, EARLY_STOP), (share, CONVERGENCE)} <= found.keys()})
        points = [(100 * share, found[share, EARLY_STOP].value - found[share, CONVERGENCE].value) for share in both]
        if len(points) > 1:
            lines.append((i, points))
    if not lines:
        raise InsufficientDataError(NO_SWEEP_MESSAGE)

    def plot(axes: Any) -> None:
        labels = []
        for i, points in lines:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=STUDY_COLOURS[i], marker=STUDY_MARKERS[i])
            labels.append((y[-1], sides[i].label, STUDY_COLOURS[i]))
        ticks = sorted({x for _, points in lines for x, _ in points})
        axes.axhline(0, color=MUTED, linewidth=1)
        label_line_ends(axes, ticks[-1], labels)
        set_share_axis(axes, ticks)
        axes.set_xlim(right=ticks[-1] + 12)
        axes.set_ylabel("Early stop minus convergence (points)")

    return plot


def spread_bands(found: Sequence[SeedSpread]) -> Callable[[Any], None]:
    """Mean over studies at early stop and at convergence, in a band from the lowest to the highest.

    Raises:
        NotTestable: the studies share fewer than two shares.
    """
    rows = {
        checkpoint: [one for one in found if one.checkpoint == checkpoint] for checkpoint in (EARLY_STOP, CONVERGENCE)
    }
    if max(map(len, rows.values())) < 2:
        raise InsufficientDataError(NO_SWEEP_MESSAGE)

    def plot(axes: Any) -> None:
        labels = []
        for (checkpoint, of_one), colour, marker in zip(rows.items(), (BLUE, VERMILLION), "os", strict=True):
            x = [100 * one.share for one in of_one]
            axes.fill_between(
                x, [min(one.values) for one in of_one], [max(one.values) for one in of_one], color=colour, alpha=0.2
            )
            axes.plot(x, [one.mean for one in of_one], color=colour, marker=marker)
            labels.append((of_one[-1].mean, checkpoint_label(checkpoint), colour))
        label_line_ends(axes, 100 * found[-1].share, labels)
        set_share_axis(axes, sorted({100 * one.share for one in found}))
        axes.set_ylabel("Test accuracy (%)")

    return plot


def _check_num_studies(sides: Sequence[ComparedStudy]) -> None:
    if len(sides) > len(STUDY_COLOURS):
        raise InsufficientDataError(f"{len(sides)} studies are too many for one figure; its numbers are in the table")


def comparison_sections(sides: Sequence[ComparedStudy]) -> list[Section]:
    """Every section; what some of the studies lack is said there."""
    return [
        _studies_section(sides),
        _categories_section(sides),
        _accuracy_section(sides),
        _seed_spread_section(sides),
        _findings_section(sides),
        _recommendation_section(sides),
        _costs_section(sides),
    ]


def _studies_section(sides: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="studies",
        title="The studies",
        text="Fingerprints are equal where content is: of weights, config and tokenizer for a model, of all rows for "
        "questions.",
        exhibits=(
            table_exhibit("What each study is of, and how far it is.", lambda: studies_table(sides)),
            table_exhibit(
                "Settings, inputs and versions that are not the same in all studies, seeds aside. Not stated: by an "
                "earlier version, or because the setting has no effect there.",
                lambda: settings_table(sides),
            ),
        ),
    )


def _categories_section(sides: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="categories",
        title="What each model knows",
        text="Categories before any fine-tuning.",
        exhibits=(
            figure_exhibit(
                "Test questions by category.",
                "compare_categories",
                "Share of each category of test question, one bar a study",
                lambda: study_category_bars(sides, "test"),
            ),
            figure_exhibit(
                "Out-of-distribution test questions by category.",
                "compare_categories_ood",
                "Share of each category of out-of-distribution test question, one bar a study",
                lambda: study_category_bars(sides, "ood"),
            ),
            table_exhibit("Percent of questions in each category.", lambda: study_categories_table(sides)),
        ),
    )


def _accuracy_section(sides: Sequence[ComparedStudy]) -> Section:
    pairs = comparable_pairs(sides)
    unlike = [
        f"{a.label} and {b.label}: {incomparability_reason(a, b)}"
        for i, a in enumerate(sides)
        for b in sides[i + 1 :]
        if incomparability_reason(a, b)
    ]
    gaps: tuple[Exhibit, ...] = tuple(
        table_exhibit(
            f"Test accuracy of {b.label} minus that of {a.label}, in points, with 95 % intervals over test questions"
            f"{'' if min(_num_seeds(a), _num_seeds(b)) >= MIN_SEEDS else '; other trainings would vary more'}. "
            "Bold: the interval leaves out 0, as one in twenty does by chance.",
            partial(differences_table, a, b),
        )
        for a, b in pairs
    )
    if unlike:
        gaps += (Exhibit(caption="Differences.", missing=f"not comparable: {'; '.join(unlike)}"),)
    return Section(
        name="accuracy",
        title="Accuracy and the share of Unknown rows",
        text="Test accuracy at early stop (full lines) and at convergence (broken lines).",
        exhibits=(
            figure_exhibit(
                "Test accuracy by share of Unknown rows, each study at early stop and at convergence.",
                "compare_accuracy",
                "Test accuracy by share of Unknown rows, two lines a study",
                lambda: study_accuracy_by_share(sides),
            ),
            figure_exhibit(
                "What is lost from early stop to convergence.",
                "compare_loss",
                "Accuracy at early stop minus that at convergence, by share of Unknown rows, one line a study",
                lambda: loss_by_share(sides),
            ),
            collapsed_table_exhibit("All numbers of the first figure.", lambda: study_accuracy_table(sides)),
            *gaps,
        ),
    )


def _seed_spread_section(sides: Sequence[ComparedStudy]) -> Section:
    groups = group_by_settings(sides)
    missing = Exhibit(caption="Mean and spread.", missing="no two of these studies differ in their seeds alone")
    return Section(
        name="spread",
        title="How far seeds spread",
        text="Studies of the same model, or of worlds planted alike, with the same settings and other seeds: what "
        "chance alone does to a result.",
        exhibits=tuple(one for number, group in enumerate(groups, 1) for one in _group_exhibits(group, number))
        or (missing,),
    )


def _group_exhibits(group: Sequence[ComparedStudy], number: int) -> tuple[Exhibit, Exhibit]:
    over = f"Test accuracy over {format_labels(group)}"
    return (
        figure_exhibit(
            f"{over}: mean, in a band from the lowest to the highest.",
            f"spread_{number}",
            "Mean test accuracy over studies by share of Unknown rows, with lowest and highest",
            lambda: spread_bands(seed_spreads(group)),
        ),
        table_exhibit(
            f"{over}: mean, standard deviation between studies, lowest and highest.",
            lambda: spread_table(group, number),
        ),
    )


def _findings_section(sides: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="findings",
        title="The paper's findings, study by study",
        text="Each finding in each study: it holds, it fails, or (–) cannot be tested with what the study holds.",
        exhibits=(table_exhibit("Findings.", lambda: findings_table(sides)),),
    )


def _recommendation_section(sides: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="choice",
        title="Which point to use",
        text="The one point that is best by dev accuracy over all shares of Unknown rows. Differences of test accuracy "
        "in points, in brackets 95 % intervals over seeds where a study has several.",
        exhibits=(
            table_exhibit("The recommended point of each study.", lambda: study_recommendation_table(sides)),
            collapsed_table_exhibit(
                "Test accuracy (%) of every stopping policy and epoch budget, averaged over shares and seeds.",
                lambda: policies_table(sides),
            ),
        ),
    )


def _costs_section(sides: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="costs",
        title="What it cost",
        text="Worker time adds up over all workers; wall clock is that of the steps, one after another.",
        exhibits=(table_exhibit("Generations, trainings and time.", lambda: costs_table(sides)),),
    )


def _num_seeds(side: ComparedStudy) -> int:
    return len({run.seed for run in side.data.runs})
