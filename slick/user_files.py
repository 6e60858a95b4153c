"""Text, CSV and YAML of files from users, within `slick.limits`. Damage raises one DataError.

Of YAML only mappings, lists, strings, numbers, true, false and null are read. Plain scalars follow the core schema of
YAML 1.2 and JSON: `1e-5` is a number; `no`, `on`, `010`, `1:30` and `2026-01-01` are strings. PyYAML follows YAML 1.1,
where they are other values, so only its parser is used. No object of any other type can be constructed.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO

from slick import limits
from slick.errors import DataError
from slick.uris import check_uri

_BLOCK = 1 << 20
_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def decode(data: bytes, where: str) -> str:
    """Text of a file, without a UTF-8 byte order mark.

    Raises:
        DataError: it is not UTF-8. The message gives the byte.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise encoding_error(io.BytesIO(data), where) from error


def encoding_error(stream: BinaryIO, where: str) -> DataError:
    """The error for a file that is not UTF-8, with the first invalid byte and its line.

    Args:
        stream: the file, from its beginning.
        where: its name, for messages.
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
            return DataError(
                f"{where} changed while it was read; run the command again when no other program writes to it"
            )
        offset, line = offset + len(block), line + block.count(b"\n")


def text_lines(text: TextIO, where: str) -> Iterator[str]:
    """The lines of a text, with their line ends.

    Args:
        text: open at its beginning.
        where: the file's name.

    Raises:
        DataError: a line is longer than the limit of a row.
    """
    number = 0
    while line := text.readline(limits.MAX_ROW_CHARS + 1):
        number += 1
        if len(line.rstrip("\r\n")) > limits.MAX_ROW_CHARS:
            raise _row_too_long_error(where, number)
        yield line


def _row_too_long_error(where: str, line: int) -> DataError:
    return DataError(
        f"{where}, line {line}: the row has more than {limits.MAX_ROW_CHARS:,} characters, which is the limit; look "
        "for a quote that is not closed, or drop the columns that hold whole documents"
    )


def csv_rows(text: TextIO, where: str, *, delimiter: str = ",", strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, the header first, each with the line on which it begins. Empty rows are skipped.

    Args:
        text: opened with `newline=""`.
        where: the file's name.
        delimiter: between cells.
        strict: refuse misplaced quotes.

    Raises:
        DataError: it is malformed, or a row or the header is longer than the limit.
    """
    csv.field_size_limit(limits.MAX_ROW_CHARS)  # of the whole process
    number, chars, is_header = 1, 0, True

    def lines() -> Iterator[str]:
        nonlocal chars
        for line in text_lines(text, where):
            chars += len(line)
            if chars > limits.MAX_ROW_CHARS + len("\r\n"):
                raise _row_too_long_error(where, number)
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
            "closed (a quote inside a cell is written twice), or download the file again"
        ) from error


def too_large_error(where: str, num_bytes: int, limit: int, fix: str) -> DataError:
    """The error for a file that has too many bytes to be read; `fix` states what to do."""
    return DataError(f"{where} has {num_bytes:,} bytes, at most {limit:,} are read; {fix}")


def parse_yaml(data: bytes, where: str, expected: str) -> Any:
    """The value of a small YAML file.

    Args:
        data: its content, of at most `limits.MAX_YAML_BYTES`.
        where: its name, for messages.
        expected: what the file should hold, for messages.

    Raises:
        DataError: it is not UTF-8, not one YAML document, too large or nested too deeply, or has an anchor, an alias, a
            tag or a repeated key.
        SettingsError: a key holds a secret.
    """
    import yaml

    if len(data) > limits.MAX_YAML_BYTES:
        raise too_large_error(where, len(data), limits.MAX_YAML_BYTES, expected)
    text = decode(data, where)
    try:
        events = iter(yaml.parse(text, Loader=yaml.BaseLoader))
        return _YamlReader(where, expected).document(events)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DataError(f"{where}{line} is not YAML: {problem}; {expected}") from error


class _YamlReader:
    """Builds a value from the events of PyYAML's parser, and refuses aliases, which can expand without bound."""

    def __init__(self, where: str, expected: str) -> None:
        self._where, self._expected = where, expected

    def document(self, events: Iterator[Any]) -> Any:
        """The value of the only document; None if there is none."""
        value, num_documents = None, 0
        for event in events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                num_documents += 1
                if num_documents > 1:
                    raise self._error(event, "found a second document, expected one")
                value = self._value(next(events), events, depth=0)
        return value

    def _value(self, event: Any, events: Iterator[Any], depth: int) -> Any:
        kind = type(event).__name__
        if kind == "AliasEvent" or event.anchor is not None:
            raise self._error(event, f"found the anchor or alias {event.anchor[:80]!r}, expected each value in full")
        if event.tag is not None and event.tag != "!":
            raise self._error(event, f"found the tag {event.tag[:80]!r}, expected a value without a tag")
        if kind == "ScalarEvent":
            return self._scalar(event) if event.implicit[0] else event.value
        if depth >= limits.MAX_JSON_DEPTH:
            raise self._error(event, f"found more than {limits.MAX_JSON_DEPTH} lists and mappings inside each other")
        return self._list(events, depth) if kind == "SequenceStartEvent" else self._mapping(events, depth)

    def _list(self, events: Iterator[Any], depth: int) -> list[Any]:
        values = []
        while type(event := next(events)).__name__ != "SequenceEndEvent":
            values.append(self._value(event, events, depth + 1))
        return values

    def _mapping(self, events: Iterator[Any], depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while type(event := next(events)).__name__ != "MappingEndEvent":
            if type(event).__name__ != "ScalarEvent" or event.anchor is not None:
                raise self._error(event, "found a key that is not a plain string, expected the name of a setting")
            check_uri(event.value, self._where)
            if event.value in values:
                raise self._error(event, f"found the key {event.value[:80]!r} more than once in one mapping")
            values[event.value] = self._value(next(events), events, depth + 1)
        return values

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if text.lower() in _CONSTANTS and text in (text.lower(), text.title(), text.upper()):
            return _CONSTANTS[text.lower()]
        if len(text) > limits.MAX_NUMBER_DIGITS:
            return text
        if _INTEGER.fullmatch(text) and not re.match(r"[-+]?0[0-9]", text):
            return int(text)
        return float(text) if _NUMBER.fullmatch(text) and not _INTEGER.fullmatch(text) else text

    def _error(self, event: Any, problem: str) -> DataError:
        return DataError(f"{self._where}, line {event.start_mark.line + 1}: {problem}; {self._expected}")
