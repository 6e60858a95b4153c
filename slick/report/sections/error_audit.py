"""Manual audit of answers that fail exact match: wrong, or correct in other words (paper: table 6)."""

from collections import Counter

from slick.annotation.judge import Judgements, stored_judgements, with_outcomes
from slick.report.answers import DECODING_MODES, answer_collector, collected
from slick.report.data import StudyData
from slick.report.grading import apply_grades, apply_partial_grades, grade_shares, read_grading_sheets
from slick.report.measurements import InsufficientDataError, format_interval, value_or_reason
from slick.report.page import GROUP_PAPER, Exhibit, SectionBody, collapsed_table_exhibit, table_exhibit
from slick.report.sections import section
from slick.report.statistics.agreement import GradedAnswer, Kappa, matcher_kappas
from slick.report.statistics.error_audit import (
    ANSWER_GROUPS,
    CORRECT_GRADES,
    GRADES,
    SUGGESTED_GRADES,
    AuditCollector,
    ErrorAudit,
    matcher_agreement,
)
from slick.report.tables import Row, Table
from slick.study import Manifest


@section("error_audit", title="Manual audit of wrong answers", group=GROUP_PAPER, order=160, experiment="error_audit")
def error_audit_section(data: StudyData) -> SectionBody:
    """The grading sheet, its grades, and the agreement of exact match with F1."""
    return SectionBody(
        text=_audit_text(data),
        result=graded_sentence(_load_audit(data)),
        exhibits=(
            table_exhibit(
                "Percent of the graded answers per grade, with Wilson's 95 % intervals, and the paper's 100 answers "
                "(paper: table 6).",
                lambda: grade_shares_table(_require_audit(data)),
            ),
            collapsed_table_exhibit(
                "Suggested grades of the same answers. Finer? and coarser?: the answer contains the gold answer, or "
                "the gold answer contains it, as whole words. Paraphrase?: one contains the other ignoring spaces, or "
                "their word F1 is high.",
                lambda: presorted_table(_require_audit(data)),
            ),
            collapsed_table_exhibit(
                "Pearson's correlation of exact match with word F1 over all stored answers, with a 95 % interval by a "
                "bootstrap over questions (paper: footnote 2, without a number).",
                lambda: agreement_table(_require_audit(data)),
            ),
            *_kappa_exhibits(data),
            collapsed_table_exhibit("The grading sheet.", lambda: sheet_table(_require_audit(data))),
        ),
    )


def _kappa_exhibits(data: StudyData) -> tuple[Exhibit, ...]:
    """The agreement of the matchers with the grades; nothing as long as no answer is graded."""
    audit, study = _load_audit(data), data.study
    if audit is None or study is None or not any(audit.grades.values()):
        return ()
    return (
        collapsed_table_exhibit(
            "Cohen's kappa of each matcher with the grades, with a 95 % interval. Paraphrases and finer answers "
            "count as correct. Exact match accepts no answer of the sheet, so its kappa is 0.",
            lambda: kappa_table(audit, stored_judgements(study)),
        ),
    )


def graded_sentence(audit: ErrorAudit | None) -> str:
    """The share of graded answers that are wrong, or the number of ungraded answers; empty without an audit."""
    if audit is None or not audit.rows:
        return ""
    shares, _ = value_or_reason(grade_shares, audit, dict(ANSWER_GROUPS)["all"])
    if shares is None:
        return f"No answer is graded yet; `tables/error_audit.csv` has {len(audit.rows):,} to grade."
    wrong = shares[GRADES.index("wrong")]
    interval = format_interval(wrong.low, wrong.high, ".1f")
    return f"Of {wrong.total:,} graded answers, {wrong.percent:.0f} % ({interval}) are wrong."


def _audit_text(data: StudyData) -> str:
    text = (
        "Answers that fail exact match may be correct in other words, or more or less specific than the gold answer. "
        "Only a person can grade them."
    )
    audit = _load_audit(data)
    if audit is None:
        return text
    drawn = Counter(row.decoding for row in audit.rows)
    parts = [
        f"{drawn[decoding]} of {audit.num_wrong[decoding]:,} wrong {decoding} answers (T = "
        f"{audit.temperatures[decoding]:g})"
        for decoding in DECODING_MODES
        if drawn[decoding]
    ]
    if parts:
        text += (
            f" The sheet, `tables/error_audit.csv`, has a uniform sample of {' and '.join(parts)}. Fill in its column "
            f"grade with {', '.join(GRADES[:-1])} or {GRADES[-1]} and run `slick report` again with `--graded` and the "
            "path of the sheet; the grades are kept in `report/graded/`. A single quote before text that looks like a "
            "formula prevents spreadsheets from executing it."
        )
    if audit.num_unstored["sampled"]:
        text += (
            f" The sheet has no sampled answers: {audit.num_unstored['sampled']:,} samples were not generated or not "
            "stored completely (annotate with `--mode full`), so the stored ones are not a uniform sample. The "
            "correlation is over the stored answers."
        )
    return text


def grade_shares_table(audit: ErrorAudit) -> Table:
    """Shares of the grades among all, greedy and sampled answers."""
    shares = {
        name: grade_shares(audit, decodings)
        for name, decodings in ANSWER_GROUPS
        if name == "all" or _has_answers(audit, name)
    }
    rows: list[Row] = []
    for i, grade in enumerate(GRADES):
        cells = [f"{grades[i].percent:.0f} ({grades[i].low:.1f} to {grades[i].high:.1f})" for grades in shares.values()]
        rows.append((grade, shares["all"][i].num, *cells, shares["all"][i].paper))
    names = tuple(f"{name} (n = {grades[0].total})" for name, grades in shares.items())
    return Table(name="error_audit_shares", columns=("grade", "answers", *names, "paper (n = 100)"), rows=tuple(rows))


def presorted_table(audit: ErrorAudit) -> Table:
    """Number of answers per suggested grade and decoding mode."""
    tally = Counter((row.decoding, row.presorted) for row in audit.rows)
    rows: list[Row] = [
        (
            decoding,
            *(tally[decoding, grade] for grade in SUGGESTED_GRADES),
            sum(tally[decoding, grade] for grade in SUGGESTED_GRADES),
            audit.num_wrong[decoding],
        )
        for decoding in DECODING_MODES
        if _has_answers(audit, decoding)
    ]
    if not rows:
        raise InsufficientDataError("there is no answer to grade: none is wrong, or none was stored completely")
    columns = ("answers", *SUGGESTED_GRADES, "in the sheet", "drawn from")
    return Table(name="error_audit_presorted", columns=columns, rows=tuple(rows))


def agreement_table(audit: ErrorAudit) -> Table:
    """Correlation of exact match with F1 by decoding mode."""
    rows: list[Row] = []
    reasons = []
    for name, decodings in ANSWER_GROUPS:
        agreement, reason = value_or_reason(matcher_agreement, audit, decodings)
        if agreement is None:
            reasons.append(reason)
            continue
        interval = (None if end is None else round(end, 4) for end in (agreement.low, agreement.high))
        rows.append(
            (
                name,
                round(agreement.r, 4),
                *interval,
                agreement.num_answers,
                agreement.num_questions,
                round(agreement.mean_f1_of_misses, 3),
            )
        )
    if not rows:
        raise InsufficientDataError(reasons[0])
    columns = ("answers", "r", "low", "high", "answers counted", "questions", "mean F1 of misses")
    return Table(name="em_f1_agreement", columns=columns, rows=tuple(rows))


def kappa_table(audit: ErrorAudit, judgements: Judgements | None) -> Table:
    """Cohen's kappa of the matchers with the grades.

    Args:
        audit: with grades.
        judgements: the outcomes behind the labels; None without the matcher `judge`.
    """
    answers = [
        GradedAnswer(row.question, row.gold, row.answer, audit.grades[row.answer_id] in CORRECT_GRADES)
        for row in audit.rows
        if audit.grades.get(row.answer_id) in GRADES
    ]
    if not answers:
        raise InsufficientDataError("no answer is graded yet")
    kappas = matcher_kappas(answers if judgements is None else with_outcomes(answers, judgements))
    rows: list[Row] = [
        (
            matcher,
            round(kappa.kappa, 3),
            round(kappa.low, 3),
            round(kappa.high, 3),
            kappa.num,
            round(kappa.agreement, 3),
        )
        for matcher, kappa in kappas.items()
        if isinstance(kappa, Kappa)
    ]
    if not rows:
        raise InsufficientDataError(str(next(iter(kappas.values()))))
    columns = ("matcher", "kappa", "low", "high", "answers", "share that agrees")
    return Table(name="grade_agreement", columns=columns, rows=tuple(rows))


def sheet_table(audit: ErrorAudit) -> Table:
    """The grading sheet with the grades entered so far."""
    if not audit.rows:
        raise InsufficientDataError("there is no answer to grade: none is wrong, or none was stored completely")
    columns = ("answer_id", "relation", "category", "temperature", "question", "gold", "answer")
    rows: list[Row] = [
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


def _has_answers(audit: ErrorAudit, decoding: str) -> bool:
    return any(row.decoding == decoding for row in audit.rows)


def _require_audit(data: StudyData) -> ErrorAudit:
    audit = _load_audit(data)
    if audit is None:
        raise InsufficientDataError(
            "needs the questions and the answers of an annotation that stores texts (--estimator sampled)"
        )
    return audit


def _load_audit(data: StudyData) -> ErrorAudit | None:
    """The error audit with the grades of the given sheet, or else those entered in the sheet of the report's folder.

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


@answer_collector
def collect_error_audit(data: StudyData, annotate: Manifest) -> AuditCollector:
    """Collect the answers for a person to grade."""
    temperature = float(annotate.settings.get("sampling", {}).get("temperature", 0.5))
    return AuditCollector(data.config.audit_plan(), {"greedy": 0.0, "sampled": temperature})
