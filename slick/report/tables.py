"""Tables of the report, and CSV files that are safe to open in a spreadsheet. Pure.

Spreadsheets evaluate cells that begin with a character such as `=`, and an answer or a question may begin with one.
Such cells are prefixed with a single quote, as OWASP recommends (owasp.org/www-community/attacks/CSV_Injection). A
quote is also inserted after characters that some spreadsheets take for the end of a cell. `unescape_cell` restores the
exact text: existing quotes before such a character are extended by one, which is removed again.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from slick.types import ALL_CATEGORIES, Category

_FORMULA_PREFIXES = "=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20"
"""First characters of formulas, including the full-width ones."""
_CELL_START = r"(\A|[;\t\r\n\"])"
"""Where a cell may begin, also for spreadsheets whose separator is a semicolon or a tab."""
_NUMBER = r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?"
_NUMERIC_CELL = re.compile(rf"{_NUMBER}( to {_NUMBER}| \({_NUMBER} to {_NUMBER}\))?", re.I)
"""A number, an interval, or a number with its interval. A leading sign does not make it a formula."""
_ESCAPE_PATTERN = re.compile(rf"{_CELL_START}('*)(?=[{_FORMULA_PREFIXES}])")
_UNESCAPE_PATTERN = re.compile(rf"{_CELL_START}'('*)(?=[{_FORMULA_PREFIXES}])")


def escape_cell(text: str) -> str:
    r"""The text as a cell that no spreadsheet evaluates.

    >>> [escape_cell(text) for text in ("=1+1", "-0.5 (-1.0 to 0.1)", "-x", "'s-Hertogenbosch", "a;=1")]
    ["'=1+1", '-0.5 (-1.0 to 0.1)', "'-x", "'s-Hertogenbosch", "a;'=1"]
    """
    return text if _NUMERIC_CELL.fullmatch(text) else _ESCAPE_PATTERN.sub(r"\1'\2", text)


def unescape_cell(cell: str) -> str:
    """The text of a cell written by `escape_cell`. Cells whose quote was removed by hand or by a program are unchanged.

    >>> [unescape_cell(cell) for cell in ("'=1+1", "''=1+1", "=1+1", "'s-Hertogenbosch")]
    ['=1+1', "'=1+1", '=1+1', "'s-Hertogenbosch"]
    """
    return _UNESCAPE_PATTERN.sub(r"\1\2", cell)


CellValue = str | float | int | None
Row = tuple[CellValue, ...]

CATEGORY_COLUMNS = (ALL_CATEGORIES, *map(str, Category))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table for the page and for its CSV file."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[CellValue, ...], ...]
    strong: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells in bold."""
    total_rows: frozenset[int] = frozenset()
    """Rows of totals or headings."""
    text_columns: frozenset[int] = frozenset()
    """Columns of text: left-aligned, with line breaks."""


def to_csv(table: Table) -> bytes:
    """UTF-8 CSV with a header line. None is an empty field, and text is escaped by `escape_cell`."""
    return "".join(_csv_line([_csv_cell(value) for value in row]) for row in (table.columns, *table.rows)).encode()


def _csv_line(cells: Sequence[CellValue]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # with this terminator, the writer quotes both characters
    return text.getvalue().removesuffix("\r\n") + "\n"


def _csv_cell(value: CellValue) -> CellValue:
    if value is None:
        return ""
    return escape_cell(value) if isinstance(value, str) else value
