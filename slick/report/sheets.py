"""Sheets that a person fills in inside the report's folder: found, read, and kept when the report is made anew."""

import hashlib

from slick import limits
from slick.analysis.audit_sheet import GradingSheet, parse_grading_sheet
from slick.analysis.loading.answers import GradingSheets
from slick.errors import DataError, SettingsError
from slick.storage import Folder
from slick.user_files import too_large_error

SHEET_FILE = "error_audit.csv"
GRADED_FOLDER = "graded"
"""Folder inside report/ that no report clears."""


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
