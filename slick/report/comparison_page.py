"""Sections and figures of the page that compares studies."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
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
    plot_stacked_bars,
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
NO_SWEEP_MESSAGE = "needs a study with finished runs at 2 or more shares of Unknown rows"


def study_category_bars(studies: Sequence[ComparedStudy], split: str) -> Callable[[Any], None]:
    """Stacked bars of test questions by category, one per study, in (`test`) or out of distribution (`ood`)."""
    bars: list[tuple[str, dict[str, float]]] = []
    for study in studies:
        try:
            bars.append((study.label, category_percentages(total_counts(relation_counts(study.data, split)))))
        except InsufficientDataError:
            continue
    if not bars:
        raise InsufficientDataError("none of the studies has annotated questions of this split")

    def plot(axes: Any) -> None:
        parts = {str(category): [values[category] for _, values in bars] for category in Category}
        colours = {str(category): CATEGORY_COLOURS[category][0] for category in Category}
        plot_stacked_bars(
            axes, range(len(bars)), parts, colours, min_label=7.0, dark_text=(str(Category.WEAKLY_KNOWN),)
        )
        axes.set_yticks(range(len(bars)), [label for label, _ in bars])
        axes.set_ylim(max(len(bars), 3) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{'Test' if split == 'test' else 'OOD test'} questions (%)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.46, 1.0), ncols=2, fontsize=11)

    return plot


def study_accuracy_by_share(studies: Sequence[ComparedStudy]) -> Callable[[Any], None]:
    """Test accuracy by share of Unknown rows, for each study at early stop (solid) and at convergence (dashed).

    Raises:
        InsufficientDataError: no study has two shares, or there are more studies than distinguishable lines.
    """
    _check_num_studies(studies)
    lines: list[tuple[int, str, list[tuple[float, float]]]] = []
    for i, study in enumerate(studies):
        accuracies = sweep_accuracies(study)
        for checkpoint in (EARLY_STOP, CONVERGENCE):
            points = sorted((100 * share, cell.value) for (share, at), cell in accuracies.items() if at == checkpoint)
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
            labels.append((y[-1], f"{studies[i].label}, {'early stop' if full else 'convergence'}", STUDY_COLOURS[i]))
        ticks = sorted({x for _, _, points in lines for x, _ in points})
        label_line_ends(axes, ticks[-1], labels)
        set_share_axis(axes, ticks)
        axes.set_xlim(right=ticks[-1] + 42)
        axes.set_ylabel("Test accuracy (%)")

    return plot


def loss_by_share(studies: Sequence[ComparedStudy]) -> Callable[[Any], None]:
    """The loss from early stop to convergence by share of Unknown rows, one line per study.

    Raises:
        InsufficientDataError: no study has two shares, or there are more studies than distinguishable lines.
    """
    _check_num_studies(studies)
    lines: list[tuple[int, list[tuple[float, float]]]] = []
    for i, study in enumerate(studies):
        early, last = (
            {share: cell.value for (share, at), cell in sweep_accuracies(study).items() if at == checkpoint}
            for checkpoint in (EARLY_STOP, CONVERGENCE)
        )
        points = [(100 * share, early[share] - last[share]) for share in sorted(early.keys() & last.keys())]
        if len(points) > 1:
            lines.append((i, points))
    if not lines:
        raise InsufficientDataError(NO_SWEEP_MESSAGE)

    def plot(axes: Any) -> None:
        labels = []
        for i, points in lines:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=STUDY_COLOURS[i], marker=STUDY_MARKERS[i])
            labels.append((y[-1], studies[i].label, STUDY_COLOURS[i]))
        ticks = sorted({x for _, points in lines for x, _ in points})
        axes.axhline(0, color=MUTED, linewidth=1)
        label_line_ends(axes, ticks[-1], labels)
        set_share_axis(axes, ticks)
        axes.set_xlim(right=ticks[-1] + 12)
        axes.set_ylabel("Early stop minus convergence (points)")

    return plot


def spread_bands(spreads: Sequence[SeedSpread]) -> Callable[[Any], None]:
    """Mean accuracy over studies at early stop and at convergence, in a band from the lowest to the highest.

    Raises:
        InsufficientDataError: there are fewer than two shares.
    """
    by_checkpoint = {
        checkpoint: [spread for spread in spreads if spread.checkpoint == checkpoint]
        for checkpoint in (EARLY_STOP, CONVERGENCE)
    }
    if max(map(len, by_checkpoint.values())) < 2:
        raise InsufficientDataError(NO_SWEEP_MESSAGE)

    def plot(axes: Any) -> None:
        labels = []
        for (checkpoint, rows), colour, marker in zip(by_checkpoint.items(), (BLUE, VERMILLION), "os", strict=True):
            x, lowest, highest = zip(*((100 * r.share, min(r.values), max(r.values)) for r in rows), strict=True)
            axes.fill_between(x, lowest, highest, color=colour, alpha=0.2)
            axes.plot(x, [row.mean for row in rows], color=colour, marker=marker)
            labels.append((rows[-1].mean, checkpoint_label(checkpoint), colour))
        label_line_ends(axes, 100 * spreads[-1].share, labels)
        set_share_axis(axes, sorted({100 * spread.share for spread in spreads}))
        axes.set_ylabel("Test accuracy (%)")

    return plot


def _check_num_studies(studies: Sequence[ComparedStudy]) -> None:
    if len(studies) > len(STUDY_COLOURS):
        raise InsufficientDataError(f"{len(studies)} studies are too many for one figure; the numbers are in the table")


def comparison_sections(studies: Sequence[ComparedStudy]) -> list[Section]:
    """All sections of the page. Each says what data is missing."""
    return [
        _studies_section(studies),
        _categories_section(studies),
        _accuracy_section(studies),
        _seed_spread_section(studies),
        _findings_section(studies),
        _recommendation_section(studies),
        _costs_section(studies),
    ]


def _studies_section(studies: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="studies",
        title="The studies",
        text="The fingerprint of a model is computed from weights, config and tokenizer, that of questions from all "
        "rows.",
        exhibits=(
            table_exhibit("Model, questions, seeds and state of each study.", lambda: studies_table(studies)),
            table_exhibit(
                "Settings, inputs and versions that differ between studies, without seeds. Not stated: the manifest "
                "is of an earlier version, or the setting has no effect in that study.",
                lambda: settings_table(studies),
            ),
        ),
    )


def _categories_section(studies: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="categories",
        title="What each model knows",
        text="Categories before fine-tuning.",
        exhibits=(
            figure_exhibit(
                "Test questions by category.",
                "compare_categories",
                "Share of test questions in each category, one bar per study",
                lambda: study_category_bars(studies, "test"),
            ),
            figure_exhibit(
                "Out-of-distribution test questions by category.",
                "compare_categories_ood",
                "Share of out-of-distribution test questions in each category, one bar per study",
                lambda: study_category_bars(studies, "ood"),
            ),
            table_exhibit("Percentage of questions in each category.", lambda: study_categories_table(studies)),
        ),
    )


def _accuracy_section(studies: Sequence[ComparedStudy]) -> Section:
    pairs = comparable_pairs(studies)
    incomparable = [
        f"{a.label} and {b.label}: {reason}"
        for a, b in combinations(studies, 2)
        if (reason := incomparability_reason(a, b))
    ]
    gaps: tuple[Exhibit, ...] = tuple(
        table_exhibit(
            f"Test accuracy of {b.label} minus that of {a.label}, in points, with 95 % intervals over test questions"
            f"{'' if min(_num_seeds(a), _num_seeds(b)) >= MIN_SEEDS else ', without the variance between seeds'}. "
            "Bold: the interval excludes 0, as 1 in 20 does by chance.",
            partial(differences_table, a, b),
        )
        for a, b in pairs
    )
    if incomparable:
        gaps += (Exhibit(caption="Differences.", missing=f"not comparable: {'; '.join(incomparable)}"),)
    return Section(
        name="accuracy",
        title="Accuracy and the share of Unknown rows",
        text="Test accuracy at early stop (solid lines) and at convergence (dashed lines).",
        exhibits=(
            figure_exhibit(
                "Test accuracy by share of Unknown rows, each study at early stop and at convergence.",
                "compare_accuracy",
                "Test accuracy by share of Unknown rows, two lines per study",
                lambda: study_accuracy_by_share(studies),
            ),
            figure_exhibit(
                "Loss of test accuracy from early stop to convergence.",
                "compare_loss",
                "Accuracy at early stop minus that at convergence, by share of Unknown rows, one line per study",
                lambda: loss_by_share(studies),
            ),
            collapsed_table_exhibit("All numbers of the first figure.", lambda: study_accuracy_table(studies)),
            *gaps,
        ),
    )


def _seed_spread_section(studies: Sequence[ComparedStudy]) -> Section:
    groups = group_by_settings(studies)
    missing = Exhibit(caption="Mean and spread.", missing="no two of these studies differ only in their seeds")
    return Section(
        name="spread",
        title="Variance between seeds",
        text="Studies of the same model, or of worlds with the same settings, that differ only in their seeds.",
        exhibits=tuple(exhibit for number, group in enumerate(groups, 1) for exhibit in _group_exhibits(group, number))
        or (missing,),
    )


def _group_exhibits(group: Sequence[ComparedStudy], number: int) -> tuple[Exhibit, Exhibit]:
    over = f"Test accuracy over {format_labels(group)}"
    return (
        figure_exhibit(
            f"{over}: mean, with a band from the lowest to the highest.",
            f"spread_{number}",
            "Mean test accuracy over studies by share of Unknown rows, with lowest and highest",
            lambda: spread_bands(seed_spreads(group)),
        ),
        table_exhibit(
            f"{over}: mean, standard deviation between studies, lowest and highest.",
            lambda: spread_table(group, number),
        ),
    )


def _findings_section(studies: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="findings",
        title="The paper's findings by study",
        text="Each finding holds, fails, is undecided, or (–) is not testable with the data of the study.",
        exhibits=(table_exhibit("Findings.", lambda: findings_table(studies)),),
    )


def _recommendation_section(studies: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="choice",
        title="Recommended stopping policy",
        text="The policy and epoch budget with the highest dev accuracy over all shares of Unknown rows. Differences "
        "of test accuracy are in points, with 95 % intervals over seeds for studies with several seeds.",
        exhibits=(
            table_exhibit("The recommendation of each study.", lambda: study_recommendation_table(studies)),
            collapsed_table_exhibit(
                "Test accuracy (%) of every stopping policy and epoch budget, averaged over shares and seeds.",
                lambda: policies_table(studies),
            ),
        ),
    )


def _costs_section(studies: Sequence[ComparedStudy]) -> Section:
    return Section(
        name="costs",
        title="Cost",
        text="Worker time is the sum over all workers. Wall-clock time is the sum over all steps.",
        exhibits=(table_exhibit("Generations, trainings and time.", lambda: costs_table(studies)),),
    )


def _num_seeds(study: ComparedStudy) -> int:
    return len({run.seed for run in study.data.runs})
