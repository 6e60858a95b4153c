"""Sheets that a person fills in inside the report's folder: found, read, and kept when the report is made anew."""

import hashlib

from slick import limits
from slick.analysis.audit_sheet import Sheet, read_sheet
from slick.analysis.loading.answers import Sheets
from slick.errors import DataError, SettingsError
from slick.storage import Folder
from slick.user_files import too_large_error

SHEET = "error_audit.csv"
KEPT = "graded"
"""Folder inside report/ that no report clears."""


def read_sheets(report: Folder, graded: str) -> Sheets:
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
        handed_in = read_sheet(_read(graded), graded)
    return Sheets(handed_in, _begun(report))


def keep_sheets(report: Folder, graded: str) -> list[str]:
    """Copy what was filled in to report/graded/, under a name of its content.

    Returns:
        The names of the copies, those that were there already too.
    """
    tables, kept = report.child("tables"), []
    found = [tables.read_bytes(SHEET)] if tables.exists(SHEET) else []
    if graded:
        found.append(_read(graded))
    for content in found:
        try:
            worth = bool(read_sheet(content, SHEET).filled)
        except DataError:
            worth = True  # somebody's work, though not such that we can read it
        name = f"error_audit-{hashlib.sha256(content).hexdigest()[:8]}.csv"
        if worth and not report.child(KEPT).exists(name):
            report.child(KEPT).write_bytes(name, content)
        kept += [name] * worth
    return kept


def _read(path: str) -> bytes:
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


def _begun(report: Folder) -> Sheet | None:
    tables = report.child("tables")
    if not tables.exists(SHEET):
        return None
    try:
        return read_sheet(tables.read_bytes(SHEET), f"{tables}/{SHEET}")
    except DataError:
        return None  # it is kept all the same
