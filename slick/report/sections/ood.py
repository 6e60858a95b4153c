"""Accuracy on relations without any fine-tuning rows (paper: figure 7)."""

from slick.report.data import StudyData
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_table_exhibit, figure_exhibit
from slick.report.sections import section
from slick.report.sections.share import accuracy_by_share, accuracy_table


@section("ood", title="Out of distribution", group=GROUP_PAPER, order=60, experiment="ood")
def ood_section(data: StudyData) -> SectionBody:
    """The section; without such runs it says what is missing."""
    return SectionBody(
        text="The same fine-tuned models, tested on relations that none of them was fine-tuned on.",
        exhibits=(
            figure_exhibit(
                "Accuracy on out-of-distribution relations by share of Unknown rows (paper: figure 7).",
                "ood_accuracy_by_share",
                "Out-of-distribution accuracy by share of Unknown rows",
                lambda: accuracy_by_share(data, "ood"),
            ),
            collapsed_table_exhibit("All numbers of the figure.", lambda: accuracy_table(data, "ood")),
        ),
    )
