"""Text, JSON and CSV of files that users bring, within `slick.limits`: damage gives one message, never a traceback."""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, BinaryIO, TextIO

from slick import limits
from slick.errors import DataError

_BLOCK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*+")


class InvalidJsonError(ValueError):
    """One JSON value cannot be used; says what was found and wanted."""


def decode(data: bytes, where: str) -> str:
    """Text of a file; a byte order mark of UTF-8 is taken off.

    Raises:
        DataError: it is not UTF-8; names the byte.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise encoding_error(io.BytesIO(data), where) from error


def encoding_error(stream: BinaryIO, where: str) -> DataError:
    """What to say of a file that is not UTF-8: the first wrong byte and its line.

    Args:
        stream: the file, from its beginning.
        where: its name.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, start = 0, 1, b""
    while True:
        block = stream.read(_BLOCK)
        start = start or block[:2]
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = offset - pending + error.start
            line += error.object.count(b"\n", 0, error.start)
            guess = "UTF-16" if start in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
            return DataError(
                f"{where} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {at} (line {line}); convert "
                f"it, for example with `iconv -f {guess} -t UTF-8`"
            )
        if not block:
            return DataError(f"{where} changed while it was read; give the command again when nothing writes to it")
        offset, line = offset + len(block), line + block.count(b"\n")


def text_lines(text: TextIO, where: str) -> Iterator[str]:
    """The lines of a text, with their ends.

    Args:
        text: open at its beginning.
        where: the file's name.

    Raises:
        DataError: a line is longer than a row may be.
    """
    number = 0
    while line := text.readline(limits.MAX_ROW_CHARS + 1):
        number += 1
        if len(line.rstrip("\r\n")) > limits.MAX_ROW_CHARS:
            raise _too_long(where, number)
        yield line


def _too_long(where: str, line: int) -> DataError:
    return DataError(
        f"{where}, line {line}: the row has more than {limits.MAX_ROW_CHARS:,} characters, which is the limit; look "
        "for a quote that is not closed, or drop the columns that hold whole documents"
    )


def csv_rows(text: TextIO, where: str, *, delimiter: str = ",", strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the line on which it begins; the header first, empty rows left out.

    Args:
        text: opened with `newline=""`.
        where: the file's name.
        delimiter: between cells.
        strict: refuse quotes in wrong places.

    Raises:
        DataError: it is malformed, or a row or the header is longer than the limit.
    """
    csv.field_size_limit(limits.MAX_ROW_CHARS)  # of the process; a row is not longer either
    number, chars, is_header = 1, 0, True

    def lines() -> Iterator[str]:
        nonlocal chars
        for line in text_lines(text, where):
            chars += len(line)
            if chars > limits.MAX_ROW_CHARS + len("\r\n"):
                raise _too_long(where, number)
            yield line

    rows = csv.reader(lines(), delimiter=delimiter, strict=strict)
    try:
        for cells in rows:
            if is_header and len(cells) > limits.MAX_COLUMNS:
                raise DataError(
                    f"{where} has {len(cells):,} columns, at most {limits.MAX_COLUMNS:,} are read; drop those that are "
                    "not needed"
                )
            if cells or is_header:
                yield number, cells
            number, chars, is_header = rows.line_num + 1, 0, False
    except csv.Error as error:
        raise DataError(
            f"{where} is not whole CSV: {error} in the row that begins on line {number}; look for a quote that is not "
            "closed (a quote inside a cell is written twice), or fetch the file again"
        ) from error


def parse_user_json(data: bytes, where: str, wanted: str, *, lenient: bool = False) -> Any:
    """The value of a JSON file that is small and strictly checked: relations, templates, configurations.

    Args:
        data: its content, of at most `limits.MAX_SETTINGS_BYTES`.
        where: its name.
        wanted: what to write and how to mend it, for messages.
        lenient: take NaN, Infinity and the last value of a repeated key, as Python and so transformers do.

    Raises:
        DataError: it is not UTF-8, not JSON, nested too deeply, or holds a key twice, NaN, a number that is
            too long, or half a surrogate pair.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 JSON: {error}; {wanted}") from error
    try:
        value = json.loads(
            text,
            object_pairs_hook=None if lenient else _object_without_repeats,
            parse_int=_parse_integer,
            parse_constant=None if lenient else _refuse_constant,
        )
        check_depth(value, text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a surrogate pair, wanted valid Unicode; {wanted}") from error
    except InvalidJsonError as error:
        raise DataError(f"{where}: {error}; {wanted}") from error
    except RecursionError as error:
        raise DataError(f"{where}: {_deep()}; {wanted}") from error
    except ValueError as error:
        raise DataError(f"{where} is not UTF-8 JSON: {error}; {wanted}") from error
    return value


def too_large_error(where: str, num_bytes: int, limit: int, mend: str) -> DataError:
    """What to say of a file that is not read since it has too many bytes."""
    return DataError(f"{where} has {num_bytes:,} bytes, at most {limit:,} are read; {mend}")


class RowParser:
    """Reads JSON values that are rows: strict about the columns that are used, while others may hold anything."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        """Keep the names.

        Args:
            columns: that are used.
        """
        self._columns = frozenset(columns)
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=_any_integer)

    def value(self, text: str, start: int = 0) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends.

        Raises:
            json.JSONDecodeError: it is no JSON.
            JsonProblem: it is nested too deeply, or has a column twice.
        """
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError as error:
            raise InvalidJsonError(_deep()) from error
        check_depth(value, text, start, end)
        return value, end

    def line(self, text: str) -> Any:
        """The one value of a line. Raises what `value` raises."""
        start = len(text) - len(text.lstrip(" \t\r\n"))
        value, end = self.value(text, start)
        if text[end:].strip(" \t\r\n"):
            raise json.JSONDecodeError("Extra data", text, end)
        return value

    def items(self, text: str, start: int) -> Iterator[Any]:
        """The values of the list whose first bracket is at `start`, one at a time. Raises what `value` raises."""
        at, end = _skip_whitespace(text, start + 1), start
        mark = text[at : at + 1]
        while mark != "]":
            value, end = self.value(text, at)
            yield value
            at = _skip_whitespace(text, end)
            mark = text[at : at + 1]
            if mark not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = at if mark == "]" else _skip_whitespace(text, at + 1)
        if (rest := _skip_whitespace(text, at + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """As `json` makes it; but of a key that is there twice `json` would take the last value without a word."""
        row = dict(pairs)
        if len(row) < len(pairs):
            repeated = sorted(key for key, num in Counter(k for k, _ in pairs).items() if num > 1)
            if used := [key for key in repeated if key in self._columns]:
                raise InvalidJsonError(f"found {', '.join(used)} more than once in the object, wanted each once")
        return row


def _skip_whitespace(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def check_depth(value: Any, text: str, start: int = 0, end: int | None = None) -> None:
    """Raise JsonProblem if lists and objects of a parsed value are nested deeper than the limit.

    Args:
        value: parsed.
        text: that it was parsed from.
        start: where in the text it begins.
        end: where it ends; None for the end of the text.
    """
    end = len(text) if end is None else end
    if text.count("[", start, end) + text.count("{", start, end) <= limits.MAX_JSON_DEPTH:
        return
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > limits.MAX_JSON_DEPTH:
            raise InvalidJsonError(_deep())
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]


def _deep() -> str:
    return f"found JSON nested too deeply, wanted at most {limits.MAX_JSON_DEPTH} lists and objects inside each other"


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        key = next(key for key, num in Counter(k for k, _ in pairs).items() if num > 1)
        raise InvalidJsonError(f"found the key {key!r:.80} more than once in one object, wanted each once")
    return value


def _parse_integer(digits: str) -> int:
    if len(digits) > limits.MAX_NUMBER_DIGITS:
        raise InvalidJsonError(f"found a number of {len(digits):,} digits, wanted at most {limits.MAX_NUMBER_DIGITS:,}")
    return int(digits)


def _any_integer(digits: str) -> int | Decimal:
    """A number that is too long stays a number, so that it is never taken for a text."""
    return int(digits) if len(digits) <= limits.MAX_NUMBER_DIGITS else Decimal(digits)


def _refuse_constant(name: str) -> float:
    raise InvalidJsonError(f"found {name}, which is no JSON, wanted a number, a string or null")
