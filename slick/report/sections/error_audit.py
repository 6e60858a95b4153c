"""Section: what answers that do not match are: wrong, or right in other words (paper: table 6)."""

from collections import Counter

from slick.report.answers import DECODING_MODES, answer_collector, collected
from slick.report.data import StudyData
from slick.report.grading import apply_grades, apply_partial_grades, grade_shares, read_grading_sheets
from slick.report.measurements import InsufficientDataError
from slick.report.page import GROUP_PAPER, SectionBody, collapsed_table_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.error_audit import (
    _ANSWER_GROUPS,
    _SUGGESTED_GRADES,
    GRADES,
    AuditCollector,
    ErrorAudit,
    matcher_agreement,
)
from slick.report.tables import CellValue, Table
from slick.study import Manifest


@answer_collector
def collect_error_audit(data: StudyData, annotate: Manifest) -> AuditCollector:
    """Draws the answers that a person grades."""
    temperature = float(annotate.settings.get("sampling", {}).get("temperature", 0.5))
    return AuditCollector(data.config.audit_plan(), {"greedy": 0.0, "sampled": temperature})


def _load_audit(data: StudyData) -> ErrorAudit | None:
    """The error audit, with the grades of the sheet that was handed in, or else of the one in the report's folder.

    Raises:
        StudyError: the graded sheet belongs to another study.
        DataError: the graded sheet is incomplete or malformed.
    """
    audit: ErrorAudit | None = collected(data, collect_error_audit)
    if audit is None or data.study is None:
        return audit
    sheets = read_grading_sheets(data.study.child("report"), data.config.graded)
    if sheets.graded is not None:
        return apply_grades(audit, sheets.graded)
    return audit if sheets.in_progress is None else apply_partial_grades(audit, sheets.in_progress)


@section("error_audit", title="Is a miss really wrong?", group=GROUP_PAPER, order=160, experiment="error_audit")
def error_audit_section(data: StudyData) -> SectionBody:
    """The section; without stored answers it says what is missing."""
    return SectionBody(
        text=_audit_text(data),
        exhibits=(
            table_exhibit(
                "What the graded answers are, in percent, with Wilson's 95 % intervals, beside the paper's 100 answers "
                "(paper: table 6).",
                lambda: grade_shares_table(_require_audit(data)),
            ),
            table_exhibit(
                "The same answers as a program sorts them. Finer? and coarser?: one of answer and gold answer stands "
                "in the other as whole words; paraphrase?: one stands in the other but for spaces, or enough words "
                "agree.",
                lambda: presorted_table(_require_audit(data)),
            ),
            table_exhibit(
                "Exact match beside word F1 over all stored answers: Pearson's correlation, with a 95 % interval from "
                "a bootstrap over questions (paper: footnote 2, without a number).",
                lambda: agreement_table(_require_audit(data)),
            ),
            collapsed_table_exhibit("The sheet to grade.", lambda: sheet_table(_require_audit(data))),
        ),
    )


def grade_shares_table(audit: ErrorAudit) -> Table:
    """Shares of the grades of all, greedy and sampled answers."""
    found = {
        name: grade_shares(audit, decodings)
        for name, decodings in _ANSWER_GROUPS
        if name == "all" or _has_answers(audit, name)
    }
    rows: list[tuple[CellValue, ...]] = []
    for i, grade in enumerate(GRADES):
        cells = [f"{one[i].percent:.0f} ({one[i].low:.1f} to {one[i].high:.1f})" for one in found.values()]
        rows.append((grade, found["all"][i].num, *cells, found["all"][i].paper))
    names = tuple(f"{name} (n = {one[0].total})" for name, one in found.items())
    return Table(name="error_audit_shares", columns=("grade", "answers", *names, "paper (n = 100)"), rows=tuple(rows))


def presorted_table(audit: ErrorAudit) -> Table:
    """How many answers of the sheet look like what, by how they were made."""
    tally = Counter((row.decoding, row.presorted) for row in audit.rows)
    rows: list[tuple[CellValue, ...]] = [
        (
            decoding,
            *(tally[decoding, grade] for grade in _SUGGESTED_GRADES),
            sum(tally[decoding, grade] for grade in _SUGGESTED_GRADES),
            audit.num_wrong[decoding],
        )
        for decoding in DECODING_MODES
        if _has_answers(audit, decoding)
    ]
    if not rows:
        raise InsufficientDataError("no answer could be drawn: none misses, or none was kept whole")
    columns = ("answers", *_SUGGESTED_GRADES, "in the sheet", "drawn from")
    return Table(name="error_audit_presorted", columns=columns, rows=tuple(rows))


def agreement_table(audit: ErrorAudit) -> Table:
    """The correlation of exact match with F1."""
    rows: list[tuple[CellValue, ...]] = []
    reasons = []
    for name, decodings in _ANSWER_GROUPS:
        try:
            one = matcher_agreement(audit, decodings)
        except InsufficientDataError as reason:
            reasons.append(str(reason))
            continue
        ends = (None if end is None else round(end, 4) for end in (one.low, one.high))
        rows.append((name, round(one.r, 4), *ends, one.num_answers, one.num_questions, round(one.mean_f1_of_misses, 3)))
    if not rows:
        raise InsufficientDataError(reasons[0])
    columns = ("answers", "r", "low", "high", "answers counted", "questions", "mean F1 of misses")
    return Table(name="em_f1_agreement", columns=columns, rows=tuple(rows))


def sheet_table(audit: ErrorAudit) -> Table:
    """The sheet, with the grades that are known already."""
    if not audit.rows:
        raise InsufficientDataError("no answer could be drawn: none misses, or none was kept whole")
    columns = ("answer_id", "relation", "category", "temperature", "question", "gold", "answer")
    rows: list[tuple[CellValue, ...]] = [
        (
            row.answer_id,
            row.relation,
            row.category,
            audit.temperatures[row.decoding],
            row.question,
            " | ".join(row.gold),
            row.answer,
            row.presorted,
            audit.sheet_id,
            audit.grades.get(row.answer_id),
        )
        for row in audit.rows
    ]
    return Table(
        name="error_audit",
        columns=(*columns, "presorted", "sheet", "grade"),
        rows=tuple(rows),
        text_columns=frozenset({4, 5, 6}),
    )


def _audit_text(data: StudyData) -> str:
    said = (
        "Answers that miss by exact match may still be right in other words, or finer or coarser than the gold answer. "
        "How many are, only a person can tell."
    )
    audit = _load_audit(data)
    if audit is None:
        return said
    drawn = Counter(row.decoding for row in audit.rows)
    parts = [
        f"{drawn[decoding]} of {audit.num_wrong[decoding]:,} {decoding} answers that miss (T = "
        f"{audit.temperatures[decoding]:g})"
        for decoding in DECODING_MODES
        if drawn[decoding]
    ]
    if parts:
        said += (
            f" The sheet, `tables/error_audit.csv`, holds {' and '.join(parts)}, drawn uniformly. Fill in its column "
            f"grade with {', '.join(GRADES[:-1])} or {GRADES[-1]} and run `slick report` again with `--graded` and the "
            "sheet; what was filled in is kept in `report/graded/`. A single quote before text that begins like a "
            "formula keeps spreadsheets from running it."
        )
    if audit.num_unstored["sampled"]:
        said += (
            f" No sampled answers are in it: {audit.num_unstored['sampled']:,} samples were not made or not kept whole "
            "(annotate with `--mode full`), so what is left is no fair sample; the correlation is over what is left."
        )
    return said


def _has_answers(audit: ErrorAudit, decoding: str) -> bool:
    return any(row.decoding == decoding for row in audit.rows)


def _require_audit(data: StudyData) -> ErrorAudit:
    audit = _load_audit(data)
    if audit is None:
        raise InsufficientDataError(
            "needs the questions and the answers of an annotation that stores texts (--estimator sampled)"
        )
    return audit
