"""The sections of the page that holds several studies side by side."""

from collections.abc import Sequence
from functools import partial

from slick.analysis.compare import (
    ComparedStudy,
    comparable_pairs,
    format_labels,
    group_by_settings,
    incomparability_reason,
    seed_spreads,
)
from slick.analysis.terms import MIN_SEEDS
from slick.report.comparison_figures import loss_by_share, spread_bands, study_accuracy_by_share, study_category_bars
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
from slick.report.page import Exhibit, Section, collapsed_table_exhibit, figure_exhibit, table_exhibit


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
