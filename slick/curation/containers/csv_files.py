"""CSV and TSV files. Rows whose cells do not change are copied as text."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from slick import limits
from slick.curation.containers import CONTAINERS, Container, EditCursor, NewColumns, RowEdit
from slick.curation.containers.json_files import open_text
from slick.datasets.rows import SourceFile
from slick.errors import DataError
from slick.user_files import csv_rows

_DELIMITERS = ",;\t|"


class _Style(NamedTuple):
    """How a file is written."""

    delimiter: str
    quote_all: bool


class _Record(NamedTuple):
    line: int
    """The line on which it begins."""
    cells: list[str]
    text: str
    """Without its line end."""
    end: str
    """The line end; empty for a last row without one."""


class _Recorder:
    """Iterates over the lines of a text and records those since the last call of `take`."""

    def __init__(self, text: TextIO) -> None:
        self._text, self._lines = text, list[str]()
        self.first_line = self._pending = text.readline(limits.MAX_ROW_CHARS + 1)

    def readline(self, limit: int) -> str:
        line, self._pending = self._pending or self._text.readline(limit), ""
        self._lines.append(line)
        return line

    def take(self) -> str:
        text = "".join(self._lines).lstrip("\r\n")  # of empty lines, which are skipped
        self._lines.clear()
        return text


@CONTAINERS.register("csv")
class CsvTable(Container):
    """Cells separated by commas, semicolons, tabs or bars, with a header. All values are text."""

    name = "csv"
    suffixes = (".csv", ".tsv")
    loader = "csv"

    def load_options(self, file: SourceFile) -> Mapping[str, str]:
        """The delimiter, if it is not a comma."""
        with open_text(file, "") as (text, _):
            delimiter = next(_records(text, file))[1].delimiter
        return {} if delimiter == "," else {"sep": delimiter}

    def rows(self, file: SourceFile, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows; see `Container.rows`. Every value is a string."""
        with open_text(file, "") as (text, _):
            records = _records(text, file)
            header = next(records)[0].cells
            for record, _ in records:
                row = dict(zip(header, record.cells, strict=True))
                yield f"line {record.line}", row if columns is None else {name: row[name] for name in columns}

    def write(self, file: SourceFile, output: BinaryIO, edits: EditCursor, new_columns: NewColumns) -> None:
        """Write an edited copy; see `Container.write`."""
        with open_text(file, "") as (text, mark):
            records = _records(text, file)
            header, style = next(records)
            places = {name: i for i, name in enumerate(header.cells)}
            appended = [name for name in new_columns if name not in places]
            output.write(mark + _append(header.text, appended, style).encode())
            separator, end = header.end or "\n", header.end
            for record, _ in records:
                edit = edits.advance()
                edited = _edit_record(record, edit, new_columns, places, style) if edit.repeat else ""
                edited = _append(edited, [_cell(edit.columns.get(name), name) for name in appended], style)
                output.write(f"{separator}{edited}".encode() * edit.repeat)
                separator, end = record.end or separator, record.end
            output.write(end.encode())


def _records(text: TextIO, file: SourceFile) -> Iterator[tuple[_Record, _Style]]:
    """The header and the rows. Raises DataError if a row has another number of cells, or a column has no own name."""
    recorder = _Recorder(text)
    style = _find_style(recorder.first_line, file)
    rows = csv_rows(cast(TextIO, recorder), file.where, delimiter=style.delimiter)
    header: list[str] | None = None
    for line, cells in rows:
        content = recorder.take()
        stripped = content.removesuffix("\n").removesuffix("\r")
        if header is None:
            header = cells
            _check_header(header, file.where)
        elif len(cells) != len(header):
            raise DataError(
                f"{file.where}, line {line}: found {len(cells)} cells, expected {len(header)} as in the header; fix or "
                "remove the row"
            )
        yield _Record(line, cells, stripped, content[len(stripped) :]), style


def _find_style(header: str, file: SourceFile) -> _Style:
    """The delimiter that divides the header into most cells; a tab for `.tsv`."""
    text = header.rstrip("\r\n")
    sizes = {sign: len(next(csv.reader([text], delimiter=sign), [])) for sign in _DELIMITERS}
    delimiter = "\t" if file.name.lower().endswith(".tsv") else max(sizes, key=lambda sign: sizes[sign])
    cells = next(csv.reader([text], delimiter=delimiter), [])
    quote_all = text == delimiter.join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in cells)
    return _Style(delimiter, quote_all)


def _check_header(header: list[str], where: str) -> None:
    repeated = [name for name, num in Counter(header).items() if num > 1]
    if repeated or not header:
        found = f"the column {repeated[0]!r} more than once" if repeated else "an empty first line"
        raise DataError(f"{where}, line 1: found {found}, expected a header with the name of each column; correct it")


def _edit_record(record: _Record, edit: RowEdit, new: NewColumns, places: Mapping[str, int], style: _Style) -> str:
    """The text of a row with its changed cells, without the columns that are appended."""
    cells = list(record.cells)
    for name, value in (edit.row or {}).items():
        if name not in places:
            raise ValueError(f"the edit of row {edit.index} names the column {name!r}, which is not in the file")
        cells[places[name]] = _cell(value, name)
    for name in new:
        if name in places:
            cells[places[name]] = _cell(edit.columns.get(name), name)
    return record.text if cells == record.cells else _format(cells, style)


def _append(text: str, cells: Sequence[str], style: _Style) -> str:
    """The text of a row with further cells."""
    if not cells:
        return text
    first = '""' if style.quote_all else ""
    return text + _format(["", *cells], style).removeprefix(first)


def _format(cells: Sequence[str], style: _Style) -> str:
    output = io.StringIO()
    csv.writer(
        output,
        delimiter=style.delimiter,
        quoting=csv.QUOTE_ALL if style.quote_all else csv.QUOTE_MINIMAL,
        lineterminator="\r\n",  # cells with either sign are quoted
    ).writerow(cells)
    return output.getvalue().removesuffix("\r\n")


def _cell(value: Any, column: str) -> str:
    """The cell of a value; empty for null."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"the new value of column {column!r} is {value!r:.80}, expected text or a number")
    return str(value)
