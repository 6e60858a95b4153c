"""Unknown rows relabeled as "I don't know" (paper: table 8)."""

from slick.report.data import StudyData
from slick.report.findings.abstention import abstention_variant, measure_abstention
from slick.report.findings.sweep import half_unknown_variant
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError, checkpoint_label, round1
from slick.report.page import GROUP_PAPER, SectionBody, table_exhibit
from slick.report.sections import section
from slick.report.tables import CellValue, Table


@section("idk", title="Teaching it to say “I don't know”", group=GROUP_PAPER, order=70, experiment="idk")
def abstention_section(data: StudyData) -> SectionBody:
    """The section; without such runs it says what is missing."""
    return SectionBody(
        text="D_IDK is the half Unknown set whose Unknown rows got that phrase as their answer (paper: table 8). "
        "All in percent of the test "
        "questions, accuracy in percent of those answered.",
        exhibits=(table_exhibit("D and D_IDK.", lambda: abstention_table(data)),),
    )


def abstention_table(data: StudyData) -> Table:
    """D beside D_IDK: accuracy on what is answered, share answered, right answers over all (table 8)."""
    name = abstention_variant(data)
    rows: list[tuple[CellValue, ...]] = []
    for checkpoint in (EARLY_STOP, CONVERGENCE):
        try:
            plain: CellValue = round1(data.accuracy(half_unknown_variant(data), checkpoint).value)
        except InsufficientDataError:
            plain = None
        side = measure_abstention(data, name, checkpoint)
        rows.append(("D, 50 % Unknown", checkpoint_label(checkpoint), plain, 100.0, plain))
        rows.append(
            (
                "D_IDK",
                checkpoint_label(checkpoint),
                *(round1(c.value) for c in (side.on_answered, side.answered, side.overall)),
            )
        )
    rows.sort(key=lambda row: row[0] == "D_IDK")
    columns = ("fine-tuned on", "checkpoint", "accuracy on answered", "answered", "right over all")
    return Table(name="idk", columns=columns, rows=tuple(rows))
