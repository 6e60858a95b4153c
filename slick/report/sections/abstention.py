"""Unknown rows relabeled as "I don't know" (paper: table 8)."""

from slick.report.data import StudyData
from slick.report.findings.abstention import abstention_variant, measure_abstention
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError, checkpoint_label, round1
from slick.report.page import GROUP_PAPER, SectionBody, table_exhibit
from slick.report.sections import section
from slick.report.tables import CellValue, Row, Table


@section("idk", title="Relabelling Unknown rows as “I don't know”", group=GROUP_PAPER, order=70, experiment="idk")
def abstention_section(data: StudyData) -> SectionBody:
    """Accuracy and share answered of D and D_IDK."""
    return SectionBody(
        text="D_IDK is D with 50 % Unknown rows, whose answers are replaced by that phrase (paper: table 8). Accuracy "
        "is in percent of the answered questions, the other columns in percent of all test questions.",
        exhibits=(table_exhibit("D and D_IDK.", lambda: abstention_table(data)),),
    )


def abstention_table(data: StudyData) -> Table:
    """D and D_IDK: accuracy on answered questions, share answered, correct answers over all (table 8)."""
    name = abstention_variant(data)
    rows: list[Row] = []
    for checkpoint in (EARLY_STOP, CONVERGENCE):
        try:
            plain: CellValue = round1(data.accuracy(half_unknown_variant(data), checkpoint).value)
        except InsufficientDataError:
            plain = None
        abstention = measure_abstention(data, name, checkpoint)
        rows.append(("D, 50 % Unknown", checkpoint_label(checkpoint), plain, 100.0, plain))
        rows.append(
            (
                "D_IDK",
                checkpoint_label(checkpoint),
                *(round1(cell.value) for cell in (abstention.on_answered, abstention.answered, abstention.overall)),
            )
        )
    rows.sort(key=lambda row: row[0] == "D_IDK")
    columns = ("fine-tuned on", "checkpoint", "accuracy on answered", "answered", "right over all")
    return Table(name="idk", columns=columns, rows=tuple(rows))
