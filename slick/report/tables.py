r"""Text in CSV files that are made to be opened in a spreadsheet, whose programs run what looks like a formula. Pure.

What a model answered, or a question says, may begin with `=`. A single quote before it makes it text, as OWASP advises
(owasp.org/www-community/attacks/CSV_Injection); it is put as well behind characters that a program with other settings
than ours takes for the end of a cell. `from_cell` gives back the text as it was, to the letter: where quotes stand
before such a character already, one more is put there, and one is taken away.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from slick.types import ALL_CATEGORIES, Category

_FORMULA_PREFIXES = "=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20"
"""First characters that make a cell a formula, the full-width ones too."""
_CELL_START = r"(\A|[;\t\r\n\"])"
"""Where a cell may begin, for programs that take semicolons or tabs for the end of one as well."""
_NUMBER = r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?"
_NUMERIC_CELL = re.compile(rf"{_NUMBER}( to {_NUMBER}| \({_NUMBER} to {_NUMBER}\))?", re.I)
"""A number, an interval, or a number with its interval: with a sign before it is still no formula."""
_ESCAPE_PATTERN = re.compile(rf"{_CELL_START}('*)(?=[{_FORMULA_PREFIXES}])")
_UNESCAPE_PATTERN = re.compile(rf"{_CELL_START}'('*)(?=[{_FORMULA_PREFIXES}])")


def escape_cell(text: str) -> str:
    r"""The text as a spreadsheet program may be given it.

    >>> [escape_cell(text) for text in ("=1+1", "-0.5 (-1.0 to 0.1)", "-x", "'s-Hertogenbosch", "a;=1")]
    ["'=1+1", '-0.5 (-1.0 to 0.1)', "'-x", "'s-Hertogenbosch", "a;'=1"]
    """
    return text if _NUMERIC_CELL.fullmatch(text) else _ESCAPE_PATTERN.sub(r"\1'\2", text)


def unescape_cell(cell: str) -> str:
    """The text that `to_cell` was given; a cell of which a person or program took the quote away is left as it is.

    >>> [unescape_cell(cell) for cell in ("'=1+1", "''=1+1", "=1+1", "'s-Hertogenbosch")]
    ['=1+1', "'=1+1", '=1+1', "'s-Hertogenbosch"]
    """
    return _UNESCAPE_PATTERN.sub(r"\1\2", cell)


CellValue = str | float | int | None
Row = tuple[CellValue, ...]


CATEGORY_COLUMNS = (ALL_CATEGORIES, *map(str, Category))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table; numbers are kept as numbers, text cells may carry marks."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[CellValue, ...], ...]
    strong: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of cells to be shown in bold."""
    total_rows: frozenset[int] = frozenset()
    """Rows that are sums or headings."""
    text_columns: frozenset[int] = frozenset()
    """Columns of running text: set from the left, and broken into lines."""


def to_csv(table: Table) -> bytes:
    """UTF-8 CSV with a header line; an absent value is an empty field, and no text is a formula to a spreadsheet."""
    return "".join(_csv_line([_csv_cell(value) for value in row]) for row in (table.columns, *table.rows)).encode()


def _csv_line(cells: Sequence[CellValue]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # by which it knows that both stand in quotes
    return text.getvalue().removesuffix("\r\n") + "\n"


def _csv_cell(value: CellValue) -> CellValue:
    if value is None:
        return ""
    return escape_cell(value) if isinstance(value, str) else value
