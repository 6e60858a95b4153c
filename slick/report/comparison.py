"""The sections of the page that holds several studies side by side."""

from collections.abc import Sequence
from functools import partial

from slick.analysis.compare import Side, comparable_pairs, labels_of, same_recipe, spreads, why_not_comparable
from slick.analysis.terms import MIN_SEEDS
from slick.report.comparison_figures import accuracy_by_share, category_bars, loss_by_share, spread_bands
from slick.report.comparison_tables import (
    accuracy_table,
    categories_table,
    choice_table,
    costs_table,
    differences_table,
    findings_table,
    policies_table,
    settings_table,
    spread_table,
    studies_table,
)
from slick.report.page import Exhibit, Section, drawn, numbers, wide


def comparison_sections(sides: Sequence[Side]) -> list[Section]:
    """Every section; what some of the studies lack is said there."""
    return [_studies(sides), _categories(sides), _accuracy(sides), _spread(sides), _findings(sides), _choice(sides),
            _costs(sides)]  # fmt: skip


def _studies(sides: Sequence[Side]) -> Section:
    return Section(
        name="studies",
        title="The studies",
        text="Fingerprints are equal where content is: of weights, config and tokenizer for a model, of all rows for "
        "questions.",
        exhibits=(
            wide("What each study is of, and how far it is.", lambda: studies_table(sides)),
            wide(
                "Settings, inputs and versions that are not the same in all studies, seeds aside. Not stated: by an "
                "earlier version, or because the setting has no effect there.",
                lambda: settings_table(sides),
            ),
        ),
    )


def _categories(sides: Sequence[Side]) -> Section:
    return Section(
        name="categories",
        title="What each model knows",
        text="Categories before any fine-tuning.",
        exhibits=(
            drawn(
                "Test questions by category.",
                "compare_categories",
                "Share of each category of test question, one bar a study",
                lambda: category_bars(sides, "test"),
            ),
            drawn(
                "Out-of-distribution test questions by category.",
                "compare_categories_ood",
                "Share of each category of out-of-distribution test question, one bar a study",
                lambda: category_bars(sides, "ood"),
            ),
            wide("Percent of questions in each category.", lambda: categories_table(sides)),
        ),
    )


def _accuracy(sides: Sequence[Side]) -> Section:
    pairs = comparable_pairs(sides)
    unlike = [
        f"{a.label} and {b.label}: {why_not_comparable(a, b)}"
        for i, a in enumerate(sides)
        for b in sides[i + 1 :]
        if why_not_comparable(a, b)
    ]
    gaps: tuple[Exhibit, ...] = tuple(
        wide(
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
            drawn(
                "Test accuracy by share of Unknown rows, each study at early stop and at convergence.",
                "compare_accuracy",
                "Test accuracy by share of Unknown rows, two lines a study",
                lambda: accuracy_by_share(sides),
            ),
            drawn(
                "What is lost from early stop to convergence.",
                "compare_loss",
                "Accuracy at early stop minus that at convergence, by share of Unknown rows, one line a study",
                lambda: loss_by_share(sides),
            ),
            numbers("All numbers of the first figure.", lambda: accuracy_table(sides)),
            *gaps,
        ),
    )


def _spread(sides: Sequence[Side]) -> Section:
    groups = same_recipe(sides)
    missing = Exhibit(caption="Mean and spread.", missing="no two of these studies differ in their seeds alone")
    return Section(
        name="spread",
        title="How far seeds spread",
        text="Studies of the same model, or of worlds planted alike, with the same settings and other seeds: what "
        "chance alone does to a result.",
        exhibits=tuple(one for number, group in enumerate(groups, 1) for one in _of_group(group, number)) or (missing,),
    )


def _of_group(group: Sequence[Side], number: int) -> tuple[Exhibit, Exhibit]:
    over = f"Test accuracy over {labels_of(group)}"
    return (
        drawn(
            f"{over}: mean, in a band from the lowest to the highest.",
            f"spread_{number}",
            "Mean test accuracy over studies by share of Unknown rows, with lowest and highest",
            lambda: spread_bands(spreads(group)),
        ),
        wide(
            f"{over}: mean, standard deviation between studies, lowest and highest.",
            lambda: spread_table(group, number),
        ),
    )


def _findings(sides: Sequence[Side]) -> Section:
    return Section(
        name="findings",
        title="The paper's findings, study by study",
        text="Each finding in each study: it holds, it fails, or (–) cannot be tested with what the study holds.",
        exhibits=(wide("Findings.", lambda: findings_table(sides)),),
    )


def _choice(sides: Sequence[Side]) -> Section:
    return Section(
        name="choice",
        title="Which point to use",
        text="The one point that is best by dev accuracy over all shares of Unknown rows. Differences of test accuracy "
        "in points, in brackets 95 % intervals over seeds where a study has several.",
        exhibits=(
            wide("The recommended point of each study.", lambda: choice_table(sides)),
            numbers(
                "Test accuracy (%) of every stopping policy and epoch budget, averaged over shares and seeds.",
                lambda: policies_table(sides),
            ),
        ),
    )


def _costs(sides: Sequence[Side]) -> Section:
    return Section(
        name="costs",
        title="What it cost",
        text="Worker time adds up over all workers; wall clock is that of the steps, one after another.",
        exhibits=(wide("Generations, trainings and time.", lambda: costs_table(sides)),),
    )


def _num_seeds(side: Side) -> int:
    return len({run.seed for run in side.data.runs})
