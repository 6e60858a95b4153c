"""Grading sheets of the error audit: wrong answers that a person grades in a spreadsheet, and the shares of the grades.

Spreadsheets reorder rows, change separators and add a byte order mark, so only the columns `sheet`, `answer_id` and
`grade` are used.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from slick import limits
from slick.datasets import read_questions
from slick.errors import DataError, SettingsError, StudyError
from slick.matching import normalize
from slick.report.answers import STORED_ANSWER_COLUMNS, DecodingMode
from slick.report.measurements import InsufficientDataError
from slick.report.statistics.agreement import GradedAnswer
from slick.report.statistics.error_audit import (
    ACCEPTED_GRADES,
    CORRECT_GRADES,
    GRADES,
    PAPER_GRADE_PERCENT,
    ErrorAudit,
)
from slick.report.statistics.intervals import wilson_interval
from slick.report.tables import unescape_cell
from slick.storage import Folder
from slick.study_files import read_answer_part
from slick.user_files import csv_rows, decode, too_large_error

REQUIRED_COLUMNS = ("sheet", "answer_id", "grade")
SHEET_FILE = "error_audit.csv"
GRADED_FOLDER = "graded"
"""Folder inside report/ that the report step keeps."""
_HOW_TO_FIX = "give the table error_audit.csv of this study's report, with its column grade filled in"
_MAX_LISTED = 3
"""Rows that an error message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradingSheet:
    """A parsed sheet that is not yet checked against a study."""

    source: str
    sheet_ids: frozenset[str]
    grades: Mapping[str, str]
    """answer_id to the cell of the column `grade` in lower case, which may be empty."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """answer_id to the cell of the column `answer`, if the sheet has one."""

    @property
    def filled_grades(self) -> dict[str, str]:
        """The grades of the rows that have one."""
        return {answer_id: grade for answer_id, grade in self.grades.items() if grade}


def parse_grading_sheet(content: bytes, source: str) -> GradingSheet:
    """Parse a sheet: CSV in UTF-8, separated by commas, semicolons or tabs.

    Args:
        content: of the file.
        source: the file's name, for messages.

    Raises:
        DataError: the file is not such a sheet, lacks a column, or has an answer twice.
    """
    if len(content) > limits.MAX_SETTINGS_BYTES:
        raise too_large_error(source, len(content), limits.MAX_SETTINGS_BYTES, _HOW_TO_FIX)
    text = decode(content, source)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv_rows(io.StringIO(text, newline=""), source, delimiter=delimiter, strict=False)
    _, columns = next(rows, (1, []))
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise DataError(f"{source} has no column {', '.join(missing)}; {_HOW_TO_FIX}")
    grades: dict[str, str] = {}
    answers: dict[str, str] = {}
    sheet_ids = set()
    for _, cells in rows:
        row = dict(zip(columns, cells, strict=False))
        answer_id = unescape_cell(row.get("answer_id", "").strip())
        if not answer_id:
            continue
        if answer_id in grades:
            raise DataError(f"{source} has the answer {answer_id} twice; delete one of the rows")
        grades[answer_id] = row.get("grade", "").strip().lower()
        sheet_ids.add(row.get("sheet", "").strip())
        if "answer" in row:
            answers[answer_id] = unescape_cell(row["answer"])
    return GradingSheet(source=source, sheet_ids=frozenset(sheet_ids), grades=grades, answers=answers)


def apply_grades(audit: ErrorAudit, sheet: GradingSheet) -> ErrorAudit:
    """The audit with the grades of a completed sheet.

    Raises:
        StudyError: the sheet was not drawn from this study with these settings.
        DataError: a row has no grade or an unknown one.
    """
    ids = {row.answer_id for row in audit.rows}
    if sheet.sheet_ids != {audit.sheet_id} or sheet.grades.keys() != ids:
        unexpected, missing = sorted(sheet.grades.keys() - ids), sorted(ids - sheet.grades.keys())
        raise StudyError(
            f"{sheet.source} is not the grading sheet of this study: it is {_abbreviate(sorted(sheet.sheet_ids))} with "
            f"{len(sheet.grades)} rows, expected {audit.sheet_id} with {len(ids)}; unexpected rows: "
            f"{_abbreviate(unexpected)}; missing rows: {_abbreviate(missing)}. Fill in report/tables/error_audit.csv "
            "of this study, and use the same --audit-greedy, --audit-sampled and --seed as when it was written"
        )
    unknown = [f"{answer_id} ({grade})" for answer_id, grade in sheet.filled_grades.items() if grade not in GRADES]
    if unknown:
        raise DataError(f"{sheet.source} has unknown grades: {_abbreviate(unknown)}; expected {', '.join(GRADES)}")
    ungraded = [answer_id for answer_id, grade in sheet.grades.items() if not grade]
    if ungraded:
        raise DataError(
            f"{sheet.source} is not complete: {len(ungraded)} of {len(ids)} rows have no grade, such as "
            f"{_abbreviate(ungraded)}; fill in each with {', '.join(GRADES)}"
        )
    return replace(audit, grades=dict(sheet.grades), is_graded=True)


def apply_partial_grades(audit: ErrorAudit, sheet: GradingSheet) -> ErrorAudit:
    """The audit with the grades of a sheet in progress, so that a new report keeps them."""
    if sheet.sheet_ids != {audit.sheet_id}:
        return audit
    ids = {row.answer_id for row in audit.rows}
    return replace(audit, grades={i: grade for i, grade in sheet.filled_grades.items() if i in ids})


class GradeShare(NamedTuple):
    """The share of one grade among some answers, in percent."""

    grade: str
    num: int
    total: int
    percent: float
    low: float
    """Lower end of the 95 % Wilson interval."""
    high: float
    paper: int
    """The paper's percentage, over greedy and sampled answers."""


def grade_shares(audit: ErrorAudit, decodings: Sequence[DecodingMode]) -> list[GradeShare]:
    """The share of each grade among the answers of some decoding modes.

    Raises:
        InsufficientDataError: the sheet is not graded, or has no such answers.
    """
    if not audit.is_graded:
        raise InsufficientDataError(
            "needs grades: fill in the column grade of `report/tables/error_audit.csv` and run `slick report` with "
            "`--graded` and that file"
        )
    grades = [audit.grades[row.answer_id] for row in audit.rows if row.decoding in decodings]
    if not grades:
        raise InsufficientDataError(f"the sheet has no {' or '.join(decodings)} answers")
    shares, total = [], len(grades)
    for grade in GRADES:
        num = grades.count(grade)
        low, high = (100 * end for end in wilson_interval(num, total))
        shares.append(GradeShare(grade, num, total, 100 * num / total, low, high, PAPER_GRADE_PERCENT[grade]))
    return shares


def read_graded_answers(study: Folder, path: str) -> list[GradedAnswer]:
    """The graded rows of a sheet, with the stored answers that they name. Rows without a grade are skipped.

    Args:
        study: a study with stored answers.
        path: path or URI of the sheet. It may have rows for any stored answer, and the grades `ACCEPTED_GRADES`.

    Raises:
        SettingsError: the sheet does not exist.
        DataError: it is not a grading sheet, or has no grade or an unknown one.
        StudyError: its answers are not those of this study.
    """
    sheet = parse_grading_sheet(_read_graded_file(path, "--judge.graded"), path)
    grades = sheet.filled_grades
    unknown = [f"{answer_id} ({grade})" for answer_id, grade in grades.items() if grade not in ACCEPTED_GRADES]
    if unknown or not grades:
        found = f"unknown grades: {_abbreviate(unknown)}" if unknown else "no grades"
        raise DataError(f"{path} has {found}; expected {', '.join(ACCEPTED_GRADES)} in the column grade")
    stored = _stored_answers(study, grades)
    other = [
        answer_id
        for answer_id in grades
        if answer_id not in stored or normalize(stored[answer_id].answer) != normalize(sheet.answers.get(answer_id, ""))
    ]
    if other:
        raise StudyError(
            f"{path}: {len(other)} of {len(grades)} graded rows have another text in the column answer than the study, "
            f"such as {_abbreviate(other)}; the sheet is of another study, or a program changed its texts: grade "
            "report/tables/error_audit.csv of this study"
        )
    return [row._replace(is_correct=grades[answer_id] in CORRECT_GRADES) for answer_id, row in stored.items()]


_ANSWER_ID = re.compile(
    r"(?P<question_id>.+)/(?:greedy/(?P<greedy>\d+)|sampled/(?P<set>\d+)/(?P<sample>\d+))", re.DOTALL
)


def _stored_answers(study: Folder, answer_ids: Iterable[str]) -> dict[str, GradedAnswer]:
    """The stored answers with these ids, without a grade; unknown ids are omitted."""
    positions = {answer_id: match for answer_id in answer_ids if (match := _ANSWER_ID.fullmatch(answer_id))}
    names = pa.array({match["question_id"] for match in positions.values()}, pa.string())
    questions = read_questions(study, ["question_id", "question", "answers"])
    questions = questions.filter(pc.is_in(questions["question_id"], value_set=names))
    texts = {row["question_id"]: row for row in questions.to_pylist()}
    generations: dict[str, dict[str, Any]] = {}
    folder = study.child("annotate", "generations")
    for name in folder.names(".parquet"):
        part = read_answer_part(folder, name, STORED_ANSWER_COLUMNS)
        part = part.filter(pc.is_in(part["question_id"], value_set=names))
        generations |= {row["question_id"]: row for row in part.to_pylist() if row["question_id"] in texts}
    found = {}
    for answer_id, match in positions.items():
        row = generations.get(match["question_id"])
        answer = None if row is None else _answer_at(row, match)
        if answer is not None:
            question = texts[match["question_id"]]
            found[answer_id] = GradedAnswer(question["question"], question["answers"], answer, is_correct=False)
    return found


def _answer_at(row: Mapping[str, Any], position: re.Match[str]) -> str | None:
    """The text of an answer of a row of generations; None if there is none."""
    try:
        if position["greedy"] is not None:
            text = row["greedy_text"][int(position["greedy"])]
        else:
            text = row["sampled_text"][int(position["set"])][int(position["sample"])]
    except (IndexError, TypeError):
        return None
    return None if text is None else str(text)


def _abbreviate(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{', '.join(names[:_MAX_LISTED])}{more}" if names else "none"


class GradingSheets(NamedTuple):
    """Sheets of the error audit with grades."""

    graded: GradingSheet | None = None
    """The completed sheet of `--graded`."""
    in_progress: GradingSheet | None = None
    """The sheet in the report folder."""


def read_grading_sheets(report: Folder, graded: str) -> GradingSheets:
    """The sheet of `--graded`, and the one in the report folder.

    Args:
        report: the report's folder.
        graded: path or URI of the sheet of `--graded`; empty for none.

    Raises:
        SettingsError: the sheet does not exist.
        DataError: it is not a grading sheet.
    """
    completed = parse_grading_sheet(_read_graded_file(graded, "--graded"), graded) if graded else None
    return GradingSheets(completed, _sheet_in_progress(report))


def preserve_grading_sheets(report: Folder, graded: str) -> list[str]:
    """Copy sheets with grades to report/graded/, with a hash of their content in the file name.

    Returns:
        The names of all copies, including existing ones.
    """
    tables, copies = report.child("tables"), []
    contents = [tables.read_bytes(SHEET_FILE)] if tables.exists(SHEET_FILE) else []
    if graded:
        contents.append(_read_graded_file(graded, "--graded"))
    for content in contents:
        try:
            if not parse_grading_sheet(content, SHEET_FILE).filled_grades:
                continue
        except DataError:
            pass  # a sheet that cannot be parsed may still contain a person's work
        name = f"error_audit-{hashlib.sha256(content).hexdigest()[:8]}.csv"
        if not report.child(GRADED_FOLDER).exists(name):
            report.child(GRADED_FOLDER).write_bytes(name, content)
        copies.append(name)
    return copies


def _read_graded_file(path: str, flag: str) -> bytes:
    parent, _, name = path.rpartition("/")
    folder = Folder(parent or ("/" if path.startswith("/") else "."))
    if not name or not folder.exists(name):
        raise SettingsError(f"{flag} {path} does not exist; {_HOW_TO_FIX}")
    size, _ = folder.version(name)
    if size > limits.MAX_SETTINGS_BYTES:
        raise too_large_error(f"{flag} {path}", size, limits.MAX_SETTINGS_BYTES, _HOW_TO_FIX)
    return folder.read_bytes(name)


def _sheet_in_progress(report: Folder) -> GradingSheet | None:
    tables = report.child("tables")
    if not tables.exists(SHEET_FILE):
        return None
    try:
        return parse_grading_sheet(tables.read_bytes(SHEET_FILE), f"{tables}/{SHEET_FILE}")
    except DataError:
        return None  # preserve_grading_sheets still copies it
