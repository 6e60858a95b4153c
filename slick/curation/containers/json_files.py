"""JSONL files and JSON lists. Rows that are not edited are copied as text."""

import codecs
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from slick import limits
from slick.curation.containers import CONTAINERS, Container, EditCursor, NewColumns, RowEdit
from slick.curation.json_text import edit_object
from slick.datasets.rows import SourceFile, json_type
from slick.errors import DataError
from slick.strict_json import InvalidJsonError, RowParser
from slick.user_files import decode, encoding_error, text_lines, too_large_error

_PEEK_BYTES = 1 << 16
_FIX = "fix or remove it"
_EXPECTED = 'expected a JSON list of objects such as [{"prompt": "...", "completion": "..."}]'


@contextmanager
def open_text(file: SourceFile, newline: str) -> Iterator[tuple[io.TextIOWrapper, bytes]]:
    """A text file after its byte order mark, and that mark; empty if it has none.

    Args:
        file: the file.
        newline: as for `io.TextIOWrapper`.

    Raises:
        DataError: it is not UTF-8.
    """
    stream = cast(io.BufferedReader, file.open())
    mark = codecs.BOM_UTF8 if stream.peek(3).startswith(codecs.BOM_UTF8) else b""
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline) as text:
        try:
            yield text, mark
        except UnicodeDecodeError as error:
            with file.open() as again:
                raise encoding_error(again, file.where) from error


def edit_row_text(text: str, row: Mapping[str, Any], edit: RowEdit, new_columns: NewColumns) -> str:
    """The text of an edited row, given its text and value."""
    values = {**(edit.row or {}), **{name: edit.columns.get(name) for name in new_columns}}
    return edit_object(text, row, values) if values else text


class _Line(NamedTuple):
    number: int
    text: str
    """The object, without white space around it."""
    end: str
    """The line end; empty for a last line without one."""
    row: dict[str, Any]


@CONTAINERS.register("jsonl")
class JsonLines(Container):
    """One JSON object per line."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson", ".json")
    loader = "json"

    def accepts(self, file: SourceFile) -> bool:
        """Whether the file is no JSON list; only `.json` may be one."""
        return not file.name.lower().endswith(".json") or not _is_list(file)

    def rows(self, file: SourceFile, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows; see `Container.rows`. Blank lines are skipped."""
        with open_text(file, "\n") as (text, _):
            for line in _lines(text, file.where):
                yield f"line {line.number}", _select(line.row, columns)

    def write(self, file: SourceFile, output: BinaryIO, edits: EditCursor, new_columns: NewColumns) -> None:
        """Write an edited copy; see `Container.write`."""
        with open_text(file, "\n") as (text, mark):
            output.write(mark)
            separator, end, is_first = "\n", "", True
            for line in _lines(text, file.where):
                edit = edits.advance()
                separator, end = line.end or separator, line.end
                edited = edit_row_text(line.text, line.row, edit, new_columns) if edit.repeat else ""
                for _ in range(edit.repeat):
                    output.write(f"{'' if is_first else separator}{edited}".encode())
                    is_first = False
            output.write(b"" if is_first else end.encode())


def _lines(text: io.TextIOWrapper, where: str) -> Iterator[_Line]:
    parser = RowParser(None)
    for number, line in enumerate(text_lines(text, where), 1):
        content = line.strip(" \t\r\n")
        if not content:
            continue
        try:
            row = parser.line(content)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}, line {number}: found no whole JSON object ({error.msg} at column {error.colno}), expected "
                f"one on each line; {_FIX}"
            ) from error
        except InvalidJsonError as error:
            raise DataError(f"{where}, line {number}: {error}; {_FIX}") from error
        _check_object(row, f"{where}, line {number}")
        yield _Line(number, content, line[len(line.rstrip("\r\n")) :], row)


def _check_object(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{where}: found a JSON {json_type(row)}, expected an object; {_FIX}")
    if len(row) > limits.MAX_COLUMNS:
        raise DataError(f"{where}: found {len(row):,} keys, at most {limits.MAX_COLUMNS:,} are read; {_FIX}")


def _select(row: dict[str, Any], columns: Sequence[str] | None) -> dict[str, Any]:
    return row if columns is None else {name: row[name] for name in columns if name in row}


def _is_list(file: SourceFile) -> bool:
    with file.open() as stream:
        return stream.read(_PEEK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n").startswith(b"[")


@CONTAINERS.register("json")
class JsonList(Container):
    """One JSON list of objects."""

    name = "json"
    suffixes = (".json",)
    loader = "json"

    def accepts(self, file: SourceFile) -> bool:
        """Whether the file begins with a bracket."""
        return _is_list(file)

    def rows(self, file: SourceFile, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows; see `Container.rows`. The text of the file is held in memory."""
        for number, (row, _, _) in enumerate(_items(_read(file), file.where), 1):
            yield f"row {number}", _select(row, columns)

    def write(self, file: SourceFile, output: BinaryIO, edits: EditCursor, new_columns: NewColumns) -> None:
        """Write an edited copy; see `Container.write`. White space between rows stays as it is."""
        text = _read(file)
        spans = [(start, end) for _, start, end in _items(text, file.where)]
        before = text[: spans[0][0]] if spans else text
        between = text[spans[0][1] : spans[1][0]] if len(spans) > 1 else ", "
        is_first = True
        output.write(before.encode())
        for row, start, end in _items(text, file.where):
            edit = edits.advance()
            edited = edit_row_text(text[start:end], row, edit, new_columns) if edit.repeat else ""
            for _ in range(edit.repeat):
                output.write(f"{'' if is_first else between}{edited}".encode())
                is_first = False
        output.write((text[spans[-1][1] :] if spans else "").encode())


def _read(file: SourceFile) -> str:
    with file.open() as stream:
        data = stream.read(limits.MAX_DOCUMENT_BYTES + 1)
    if len(data) > limits.MAX_DOCUMENT_BYTES:
        raise too_large_error(
            file.where, len(data), limits.MAX_DOCUMENT_BYTES, "write it as .jsonl, one object per line"
        )
    return decode(data, file.where)


def _items(text: str, where: str) -> Iterator[tuple[dict[str, Any], int, int]]:
    """The rows of a list, each with where it starts and ends in the text."""
    number = 0
    try:
        for number, item in enumerate(RowParser(None).item_spans(text, text.index("[")), 1):
            _check_object(item[0], f"{where}, row {number}")
            yield item
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not whole JSON: {error.msg} at line {error.lineno}, column {error.colno}; {_EXPECTED}; fix "
            "it, or download it again"
        ) from error
    except InvalidJsonError as error:
        raise DataError(f"{where}, row {number + 1}: {error}; {_EXPECTED}") from error
