"""What the page shows, in its order."""

from slick.analysis.data import StudyData
from slick.report import figures, tables
from slick.report.page import PAPER, TO_DO, Section, drawn, numbers, wide
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
from slick.report.pages.choices import which_point
from slick.report.pages.planted import against_the_truth


def sections(data: StudyData, num_chunks: int, seed: int) -> list[Section]:
    """Every section; those without their runs say what is missing."""
    return [
        which_point(data),
        _by_share(data),
        _fitting(data),
        categories.section(data, num_chunks, seed),
        linear.section(data),
        _ood(data),
        _idk(data),
        _stopping(data),
        p_true.section(data),
        counts.section(data),
        fit_times.section(data),
        retention.section(data),
        stability.section(data),
        concentration.section(data),
        popularity.section(data),
        error_audit.section(data),
        error_kinds.section(data),
        forgotten.section(data),
        *against_the_truth(data),
    ]


def _by_share(data: StudyData) -> Section:
    return Section(
        name="share",
        group=PAPER,
        title="Accuracy and the share of Unknown rows",
        text="D is a fine-tuning set of fixed size; a growing share of its rows are questions whose answer the "
        "model does not know. "
        "D_Known is D without those rows. "
        "Bands are one standard error of each accuracy; all lines share their test questions, so "
        "differences between lines are surer than the bands suggest.",
        exhibits=(
            drawn(
                "Test accuracy by share of Unknown rows, one line a training length (paper: figure 3a).",
                "accuracy_by_share",
                "Test accuracy falls with the share of Unknown rows, by training length",
                lambda: figures.accuracy_by_share(data, "test"),
            ),
            drawn(
                "D against D_Known at early stop and at convergence (paper: figure 3b).",
                "known_ablation",
                "Test accuracy of D and of D_Known, by share of Unknown rows",
                lambda: figures.known_ablation(data),
            ),
            numbers("All numbers of the first figure.", lambda: tables.accuracy_table(data, "test")),
            numbers("All numbers of the second figure.", lambda: tables.ablation_table(data)),
        ),
    )


def _fitting(data: StudyData) -> Section:
    return Section(
        name="fitting",
        group=PAPER,
        title="How fast Known and Unknown rows are fitted",
        text="A training row is fitted when the model answers its question right. Early stop is the epoch with the "
        "best dev accuracy.",
        exhibits=(
            drawn(
                "Fitted training rows and dev accuracy by epoch; half of D is Unknown (paper: figure 1).",
                "fit_curves",
                "Known rows are fitted before Unknown rows; dev accuracy by epoch",
                lambda: figures.fit_curves(data),
            ),
            drawn(
                "Fitted training rows by epoch and category; half of D is Unknown (paper: figure 6).",
                "category_curves",
                "Fitted training rows by epoch and category",
                lambda: figures.category_curves(data),
            ),
            drawn(
                "What of D is fitted at early stop, in percent of D (paper: figure 4).",
                "early_stop_state",
                "Fitted and unfitted Known and Unknown rows at early stop",
                lambda: figures.early_stop_state(data),
            ),
            numbers("All numbers of the last figure.", lambda: tables.early_stop_table(data)),
        ),
    )


def _ood(data: StudyData) -> Section:
    return Section(
        name="ood",
        group=PAPER,
        title="Out of distribution",
        text="The same fine-tuned models, tested on relations that none of them was fine-tuned on.",
        exhibits=(
            drawn(
                "Accuracy on out-of-distribution relations by share of Unknown rows (paper: figure 7).",
                "ood_accuracy_by_share",
                "Out-of-distribution accuracy by share of Unknown rows",
                lambda: figures.accuracy_by_share(data, "ood"),
            ),
            numbers("All numbers of the figure.", lambda: tables.accuracy_table(data, "ood")),
        ),
    )


def _idk(data: StudyData) -> Section:
    return Section(
        name="idk",
        group=PAPER,
        title="Teaching it to say “I don't know”",
        text="D_IDK is the half Unknown set whose Unknown rows got that phrase as their answer (paper: table 8). "
        "All in percent of the test "
        "questions, accuracy in percent of those answered.",
        exhibits=(wide("D and D_IDK.", lambda: tables.idk_table(data)),),
    )


def _stopping(data: StudyData) -> Section:
    return Section(
        name="stopping",
        group=TO_DO,
        title="When to stop",
        text="Each stopping policy within each epoch budget, averaged over the shares and seeds of the sweep.",
        exhibits=(wide("Policies, best first.", lambda: tables.policy_table(data)),),
    )
