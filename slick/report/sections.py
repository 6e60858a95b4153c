"""What the page shows, in its order."""

from slick.analysis.data import StudyData
from slick.report import figures, tables
from slick.report.page import (
    GROUP_PAPER,
    GROUP_RECOMMENDATIONS,
    Section,
    collapsed_table_exhibit,
    figure_exhibit,
    table_exhibit,
)
from slick.report.pages import (
    categories,
    concentration,
    counts,
    error_audit,
    error_kinds,
    fit_times,
    forgotten,
    linear,
    p_true,
    popularity,
    retention,
    stability,
)
from slick.report.pages.choices import recommendation_section
from slick.report.pages.planted import planted_sections


def all_sections(data: StudyData, num_chunks: int, seed: int) -> list[Section]:
    """Every section; those without their runs say what is missing."""
    return [
        recommendation_section(data),
        _share_section(data),
        _fitting_section(data),
        categories.categories_section(data, num_chunks, seed),
        linear.linear_model_section(data),
        _ood_section(data),
        _abstention_section(data),
        _stopping_section(data),
        p_true.p_true_section(data),
        counts.counts_section(data),
        fit_times.time_to_fit_section(data),
        retention.retention_section(data),
        stability.stability_section(data),
        concentration.concentration_section(data),
        popularity.popularity_section(data),
        error_audit.error_audit_section(data),
        error_kinds.error_kinds_section(data),
        forgotten.forgetting_section(data),
        *planted_sections(data),
    ]


def _share_section(data: StudyData) -> Section:
    return Section(
        name="share",
        group=GROUP_PAPER,
        title="Accuracy and the share of Unknown rows",
        text="D is a fine-tuning set of fixed size; a growing share of its rows are questions whose answer the "
        "model does not know. "
        "D_Known is D without those rows. "
        "Bands are one standard error of each accuracy; all lines share their test questions, so "
        "differences between lines are surer than the bands suggest.",
        exhibits=(
            figure_exhibit(
                "Test accuracy by share of Unknown rows, one line a training length (paper: figure 3a).",
                "accuracy_by_share",
                "Test accuracy falls with the share of Unknown rows, by training length",
                lambda: figures.accuracy_by_share(data, "test"),
            ),
            figure_exhibit(
                "D against D_Known at early stop and at convergence (paper: figure 3b).",
                "known_ablation",
                "Test accuracy of D and of D_Known, by share of Unknown rows",
                lambda: figures.known_ablation(data),
            ),
            collapsed_table_exhibit("All numbers of the first figure.", lambda: tables.accuracy_table(data, "test")),
            collapsed_table_exhibit("All numbers of the second figure.", lambda: tables.ablation_table(data)),
        ),
    )


def _fitting_section(data: StudyData) -> Section:
    return Section(
        name="fitting",
        group=GROUP_PAPER,
        title="How fast Known and Unknown rows are fitted",
        text="A training row is fitted when the model answers its question right. Early stop is the epoch with the "
        "best dev accuracy.",
        exhibits=(
            figure_exhibit(
                "Fitted training rows and dev accuracy by epoch; half of D is Unknown (paper: figure 1).",
                "fit_curves",
                "Known rows are fitted before Unknown rows; dev accuracy by epoch",
                lambda: figures.fitted_rows_by_epoch(data),
            ),
            figure_exhibit(
                "Fitted training rows by epoch and category; half of D is Unknown (paper: figure 6).",
                "category_curves",
                "Fitted training rows by epoch and category",
                lambda: figures.category_curves(data),
            ),
            figure_exhibit(
                "What of D is fitted at early stop, in percent of D (paper: figure 4).",
                "early_stop_state",
                "Fitted and unfitted Known and Unknown rows at early stop",
                lambda: figures.early_stop_state(data),
            ),
            collapsed_table_exhibit("All numbers of the last figure.", lambda: tables.early_stop_table(data)),
        ),
    )


def _ood_section(data: StudyData) -> Section:
    return Section(
        name="ood",
        group=GROUP_PAPER,
        title="Out of distribution",
        text="The same fine-tuned models, tested on relations that none of them was fine-tuned on.",
        exhibits=(
            figure_exhibit(
                "Accuracy on out-of-distribution relations by share of Unknown rows (paper: figure 7).",
                "ood_accuracy_by_share",
                "Out-of-distribution accuracy by share of Unknown rows",
                lambda: figures.accuracy_by_share(data, "ood"),
            ),
            collapsed_table_exhibit("All numbers of the figure.", lambda: tables.accuracy_table(data, "ood")),
        ),
    )


def _abstention_section(data: StudyData) -> Section:
    return Section(
        name="idk",
        group=GROUP_PAPER,
        title="Teaching it to say “I don't know”",
        text="D_IDK is the half Unknown set whose Unknown rows got that phrase as their answer (paper: table 8). "
        "All in percent of the test "
        "questions, accuracy in percent of those answered.",
        exhibits=(table_exhibit("D and D_IDK.", lambda: tables.abstention_table(data)),),
    )


def _stopping_section(data: StudyData) -> Section:
    return Section(
        name="stopping",
        group=GROUP_RECOMMENDATIONS,
        title="When to stop",
        text="Each stopping policy within each epoch budget, averaged over the shares and seeds of the sweep.",
        exhibits=(table_exhibit("Policies, best first.", lambda: tables.policy_table(data)),),
    )
