"""Grading sheets of the error audit: drawn answers that a person grades, read back and kept."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from slick import limits
from slick.errors import DataError, SettingsError, StudyError
from slick.report.answers import DecodingMode
from slick.report.measurements import InsufficientDataError
from slick.report.statistics.error_audit import GRADES, PAPER_GRADE_PERCENT, ErrorAudit
from slick.report.tables import unescape_cell
from slick.storage import Folder
from slick.user_files import csv_rows, decode, too_large_error

REQUIRED_COLUMNS = ("sheet", "answer_id", "grade")
_MAX_LISTED = 3
"""Rows that an error names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradingSheet:
    """A sheet as read: nothing of it is checked against a study."""

    source: str
    sheet_ids: frozenset[str]
    grades: Mapping[str, str]
    """answer_id to what stands in the column `grade`, in lower case; empty where nothing does."""

    @property
    def filled_grades(self) -> dict[str, str]:
        """The rows that have a grade."""
        return {answer_id: grade for answer_id, grade in self.grades.items() if grade}


def parse_grading_sheet(content: bytes, source: str) -> GradingSheet:
    """Parse a sheet: CSV in UTF-8, separated by commas, semicolons or tabs.

    Args:
        content: of the file.
        where: the file's name, for messages.

    Raises:
        DataError: it is no such file, lacks a column, or has an answer twice.
    """
    if len(content) > limits.MAX_SETTINGS_BYTES:
        mend = "wanted the table error_audit.csv of a report, with its column grade filled in"
        raise too_large_error(source, len(content), limits.MAX_SETTINGS_BYTES, mend)
    text = decode(content, source)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = csv_rows(io.StringIO(text, newline=""), source, delimiter=delimiter, strict=False)
    _, columns = next(rows, (1, []))
    lacking = [name for name in REQUIRED_COLUMNS if name not in columns]
    if lacking:
        raise DataError(
            f"{source} has no column {', '.join(lacking)}; wanted the table error_audit.csv of a report, with its "
            "column grade filled in"
        )
    found: dict[str, str] = {}
    sheet_ids = set()
    for _, cells in rows:
        row = dict(zip(columns, cells, strict=False))
        answer_id = unescape_cell(row.get("answer_id", "").strip())
        if not answer_id:
            continue
        if answer_id in found:
            raise DataError(f"{source} has the answer {answer_id} twice; leave one of the rows")
        found[answer_id] = row.get("grade", "").strip().lower()
        sheet_ids.add(row.get("sheet", "").strip())
    return GradingSheet(source=source, sheet_ids=frozenset(sheet_ids), grades=found)


def apply_grades(audit: ErrorAudit, sheet: GradingSheet) -> ErrorAudit:
    """The audit with the grades of a whole sheet.

    Raises:
        StudyError: the sheet was not drawn from these answers with these settings.
        DataError: a row has no grade, or one that is not known.
    """
    ids = {row.answer_id for row in audit.rows}
    if sheet.sheet_ids != {audit.sheet_id} or sheet.grades.keys() != ids:
        strange, absent = sorted(sheet.grades.keys() - ids), sorted(ids - sheet.grades.keys())
        raise StudyError(
            f"{sheet.source} is not this study's sheet of wrong answers: it is "
            f"{_abbreviated_list(sorted(sheet.sheet_ids))} with "
            f"{len(sheet.grades)} rows, wanted {audit.sheet_id} with {len(ids)}; rows that are not of the study: "
            f"{_abbreviated_list(strange)}; rows that lack: {_abbreviated_list(absent)}. Fill in "
            f"report/tables/error_audit.csv of this study, "
            "and give --audit-greedy, --audit-sampled and --seed as when it was drawn"
        )
    bad = [f"{i} ({grade})" for i, grade in sheet.filled_grades.items() if grade not in GRADES]
    if bad:
        raise DataError(
            f"{sheet.source} has grades that are not known: {_abbreviated_list(bad)}; wanted {', '.join(GRADES)}"
        )
    open_rows = [i for i, grade in sheet.grades.items() if not grade]
    if open_rows:
        raise DataError(
            f"{sheet.source} is not graded to the end: {len(open_rows)} of {len(ids)} rows have no grade, such as "
            f"{_abbreviated_list(open_rows)}; fill in each with {', '.join(GRADES)}"
        )
    return replace(audit, grades=dict(sheet.grades), is_graded=True)


def apply_partial_grades(audit: ErrorAudit, sheet: GradingSheet) -> ErrorAudit:
    """The audit with those grades that belong to its rows: what a person has begun is not lost when a report is made
    anew.
    """
    if sheet.sheet_ids != {audit.sheet_id}:
        return audit
    ids = {row.answer_id for row in audit.rows}
    return replace(audit, grades={i: grade for i, grade in sheet.filled_grades.items() if i in ids})


class GradeShare(NamedTuple):
    """How many of some answers got a grade; percentages."""

    grade: str
    num: int
    total: int
    percent: float
    low: float
    """End of Wilson's 95 % interval."""
    high: float
    paper: int
    """Of the paper's answers, greedy and sampled together."""


def grade_shares(audit: ErrorAudit, decodings: Sequence[DecodingMode]) -> list[GradeShare]:
    """The share of each grade among the answers of these ways.

    Raises:
        NotTestable: the sheet is not graded, or holds no such answer.
    """
    from scipy.stats import binomtest

    if not audit.is_graded:
        raise InsufficientDataError(
            "needs the sheet below, graded: fill in the column grade of `report/tables/error_audit.csv` and run "
            "`slick report` with `--graded` and that file"
        )
    grades = [audit.grades[row.answer_id] for row in audit.rows if row.decoding in decodings]
    if not grades:
        raise InsufficientDataError(f"the sheet holds no {' or '.join(decodings)} answers")
    found = []
    for grade in GRADES:
        num, total = grades.count(grade), len(grades)
        interval = binomtest(num, total).proportion_ci(confidence_level=0.95, method="wilson")
        low, high = (100 * float(end) for end in interval)
        found.append(GradeShare(grade, num, total, 100 * num / total, low, high, PAPER_GRADE_PERCENT[grade]))
    return found


def _abbreviated_list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{', '.join(names[:_MAX_LISTED])}{more}" if names else "none"


SHEET_FILE = "error_audit.csv"
GRADED_FOLDER = "graded"
"""Folder inside report/ that no report clears."""


class GradingSheets(NamedTuple):
    """Sheets of the error audit that a person has worked on."""

    graded: GradingSheet | None = None
    """The one whose shares are to be shown."""
    in_progress: GradingSheet | None = None
    """The one that lies in the report."""


def read_grading_sheets(report: Folder, graded: str) -> GradingSheets:
    """The sheet that is handed in, and the one that lies in the report.

    Args:
        report: the report's folder.
        graded: path or URI of the sheet handed in; empty for none.

    Raises:
        SettingsError: the sheet handed in is not there.
        DataError: it is no such sheet.
    """
    handed_in = None
    if graded:
        handed_in = parse_grading_sheet(_read_graded_file(graded), graded)
    return GradingSheets(handed_in, _sheet_in_progress(report))


def preserve_grading_sheets(report: Folder, graded: str) -> list[str]:
    """Copy what was filled in to report/graded/, under a name of its content.

    Returns:
        The names of the copies, those that were there already too.
    """
    tables, kept = report.child("tables"), []
    found = [tables.read_bytes(SHEET_FILE)] if tables.exists(SHEET_FILE) else []
    if graded:
        found.append(_read_graded_file(graded))
    for content in found:
        try:
            worth = bool(parse_grading_sheet(content, SHEET_FILE).filled_grades)
        except DataError:
            worth = True  # somebody's work, though not such that we can read it
        name = f"error_audit-{hashlib.sha256(content).hexdigest()[:8]}.csv"
        if worth and not report.child(GRADED_FOLDER).exists(name):
            report.child(GRADED_FOLDER).write_bytes(name, content)
        kept += [name] * worth
    return kept


def _read_graded_file(path: str) -> bytes:
    place, _, name = path.rpartition("/")
    folder = Folder(place or ("/" if path.startswith("/") else "."))
    if not name or not folder.exists(name):
        raise SettingsError(
            f"--graded {path} is not there; give the table error_audit.csv of this study's report, with its column "
            "grade filled in"
        )
    size, _ = folder.version(name)
    if size > limits.MAX_SETTINGS_BYTES:
        raise too_large_error(
            f"--graded {path}", size, limits.MAX_SETTINGS_BYTES, "give the table error_audit.csv of a report"
        )
    return folder.read_bytes(name)


def _sheet_in_progress(report: Folder) -> GradingSheet | None:
    tables = report.child("tables")
    if not tables.exists(SHEET_FILE):
        return None
    try:
        return parse_grading_sheet(tables.read_bytes(SHEET_FILE), f"{tables}/{SHEET_FILE}")
    except DataError:
        return None  # it is kept all the same
