"""Strict JSON: repeated keys, NaN, too long numbers, half surrogate pairs and too deep nesting are errors. Pure."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from slick import limits
from slick.errors import DataError

_STUDY_DIGITS = 40
"""Digits of a number in a file of a study; larger ones overflow when they are computed with."""
_SPACE = re.compile(r"[ \t\n\r]*+")


class InvalidJsonError(ValueError):
    """A JSON value is refused. The message states what was found and expected."""


def parse_json(data: bytes, *, max_digits: int = _STUDY_DIGITS, lenient: bool = False) -> Any:
    """The value of a JSON document.

    Args:
        data: UTF-8, with or without a byte order mark.
        max_digits: maximum number of digits of a whole number.
        lenient: accept NaN, Infinity and the last value of a repeated key, as Python and transformers do.

    Raises:
        InvalidJsonError: a key is repeated in one object, a number is not finite or too long, a string is half a
            surrogate pair, or the value is nested too deeply.
        ValueError: it is not UTF-8 or not JSON.

    >>> parse_json(b'{"a": NaN}')
    Traceback (most recent call last):
    slick.strict_json.InvalidJsonError: found NaN, which is not JSON, expected a number, a string or null
    """
    text = data.decode("utf-8-sig")

    def integer(digits: str) -> int:
        if len(digits) > max_digits:
            raise InvalidJsonError(f"found a number of {len(digits):,} digits, expected at most {max_digits:,}")
        return int(digits)

    checks = {"object_pairs_hook": _object, "parse_constant": _refuse_constant, "parse_float": _float}
    hooks: dict[str, Any] = {} if lenient else checks
    try:
        value = json.loads(text, parse_int=integer, **hooks)
    except RecursionError as error:
        raise InvalidJsonError(_too_deep()) from error
    _check_depth(value, text)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InvalidJsonError("found half a surrogate pair, expected valid Unicode") from error
    return value


def parse_user_json(data: bytes, where: str, expected: str, *, lenient: bool = False) -> Any:
    """The value of a small JSON file from a user: relations, templates, configurations.

    Args:
        data: its content, of at most `limits.MAX_SETTINGS_BYTES`.
        where: its name, for messages.
        expected: what the file should hold and how to fix it, for messages.
        lenient: see `parse_json`.

    Raises:
        DataError: `parse_json` refuses it.
    """
    try:
        return parse_json(data, max_digits=limits.MAX_NUMBER_DIGITS, lenient=lenient)
    except InvalidJsonError as error:
        raise DataError(f"{where}: {error}; {expected}") from error
    except ValueError as error:
        raise DataError(f"{where} is not UTF-8 JSON: {error}; {expected}") from error


class RowParser:
    """Parses JSON values that are rows. It is strict about the columns that are used; others may hold anything."""

    def __init__(self, columns: tuple[str, ...] | None) -> None:
        """A parser.

        Args:
            columns: those that are used; None if all are, with the keys of all objects in them.
        """
        self._columns = None if columns is None else frozenset(columns)
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=_any_integer)

    def value(self, text: str, start: int = 0) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends.

        Raises:
            json.JSONDecodeError: it is not JSON.
            InvalidJsonError: it is nested too deeply, or repeats a column that is used.
        """
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError as error:
            raise InvalidJsonError(_too_deep()) from error
        _check_depth(value, text, start, end)
        return value, end

    def line(self, text: str) -> Any:
        """The one value of a line. Raises the errors of `value`."""
        start = len(text) - len(text.lstrip(" \t\r\n"))
        value, end = self.value(text, start)
        if text[end:].strip(" \t\r\n"):
            raise json.JSONDecodeError("Extra data", text, end)
        return value

    def items(self, text: str, start: int) -> Iterator[Any]:
        """The values of the list whose bracket is at `start`, one at a time. Raises the errors of `value`."""
        return (value for value, _, _ in self.item_spans(text, start))

    def item_spans(self, text: str, start: int) -> Iterator[tuple[Any, int, int]]:
        """Like `items`, each value with its start and end."""
        at, end = _skip_whitespace(text, start + 1), start
        mark = text[at : at + 1]
        while mark != "]":
            value, end = self.value(text, at)
            yield value, at, end
            at = _skip_whitespace(text, end)
            mark = text[at : at + 1]
            if mark not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = at if mark == "]" else _skip_whitespace(text, at + 1)
        if (rest := _skip_whitespace(text, at + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object as `json` parses it, except that `json` silently takes the last value of a repeated key."""
        row = dict(pairs)
        if len(row) < len(pairs):
            repeated = sorted(key for key, num in Counter(k for k, _ in pairs).items() if num > 1)
            if used := [key for key in repeated if self._columns is None or key in self._columns]:
                raise InvalidJsonError(f"found {', '.join(used)[:80]} more than once in the object, expected each once")
        return row


def _skip_whitespace(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _check_depth(value: Any, text: str, start: int = 0, end: int | None = None) -> None:
    """Raise InvalidJsonError if lists and objects are nested deeper than the limit.

    Args:
        value: parsed from `text[start:end]`.
        text: what it was parsed from.
        start: where the value starts.
        end: where the value ends; None for the end of the text.
    """
    end = len(text) if end is None else end
    if text.count("[", start, end) + text.count("{", start, end) <= limits.MAX_JSON_DEPTH:
        return
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > limits.MAX_JSON_DEPTH:
            raise InvalidJsonError(_too_deep())
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]


def _too_deep() -> str:
    return f"found JSON nested too deeply, expected at most {limits.MAX_JSON_DEPTH} lists and objects inside each other"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        key = next(key for key, num in Counter(k for k, _ in pairs).items() if num > 1)
        raise InvalidJsonError(f"found the key {key!r:.80} more than once in one object, expected each once")
    return value


def _any_integer(digits: str) -> int | Decimal:
    """A number, also if it is too long for int, so that it is never taken for a string."""
    return int(digits) if len(digits) <= limits.MAX_NUMBER_DIGITS else Decimal(digits)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidJsonError(f"found {text[:40]}, which is not a finite number")
    return number


def _refuse_constant(name: str) -> float:
    raise InvalidJsonError(f"found {name}, which is not JSON, expected a number, a string or null")
