"""The fields of one row: text, gold answers, and choices among names. Pure.

Columns that mean the same are parsed by one rule. A list of answers may be a list, or text that holds one as JSON or
as Python writes it. Text that begins like a list and is none is a bad row: it is never taken as the answer itself.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from slick import limits
from slick.user_files import InvalidJsonError, RowParser

ANSWER_COLUMNS = ("answers", "answer", "possible_answers")
"""Where the gold answers are; of several columns the first that is filled in counts. `answer` may be one text."""

_STRING = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_PYTHON_LIST = re.compile(rf"[\[(]\s*+(?:(?:{_STRING})\s*+(?:,\s*+(?:{_STRING})\s*+)*+,?\s*+)?[\])]", re.DOTALL)
"""A list or tuple of string literals with a comma between each two: Python itself joins strings without one.

Possessive, since time would otherwise grow with the square of the length of a malformed one.
"""

_PARSER = RowParser(())


class RowError(Exception):
    """A row cannot be used."""

    def __init__(self, kind: str, reason: str) -> None:
        """Keep both.

        Args:
            kind: a few words, to count by.
            reason: what was found, what was wanted, how to mend it.
        """
        super().__init__(reason)
        self.kind = kind


def parse_text(row: Mapping[str, Any], column: str) -> str:
    """The text of a column that every row must have.

    Raises:
        RowProblem: it is missing or not usable text.
    """
    value = row.get(column)
    if value is None:
        raise RowError(f"no {column}", f"no {column}, wanted a string; fill it in or remove the row")
    return validate_text(value, column)


def validate_text(value: object, what: str) -> str:
    """Text that can be asked and matched: a string that is not empty, on one line, storable as UTF-8.

    Raises:
        RowProblem: it is not.
    """
    if not isinstance(value, str):
        raise RowError(
            "wrong type", f"{what} is {value!r:.80} ({type(value).__name__}), wanted a string; {_advice(value)}"
        )
    text = value.strip()
    _check_length(text, what)
    if not text:
        raise RowError(f"empty {what}", f"empty {what} ({value!r:.40}), wanted text; fill it in or remove the row")
    if "\n" in text or "\r" in text:
        raise RowError(
            "line break", f"{what} {text!r:.80} holds a line break, wanted one line; answers end at a line's end"
        )
    if "\0" in text:
        raise RowError(
            "NUL character", f"{what} {text!r:.80} holds a NUL character, wanted text; is the file UTF-16? Convert it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "wrong encoding",
            f"{what} {text!r:.80} holds half a surrogate pair at character {error.start + 1}, wanted valid Unicode; "
            "write the character itself",
        ) from error
    return text


def parse_answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """All gold answers of a row, in order.

    Raises:
        RowProblem: there is none, or one is not usable text, or a list is malformed.
    """
    column = next((name for name in ANSWER_COLUMNS if row.get(name) not in (None, "", [])), None)
    if column is None:
        raise RowError("no answer", "no answer, wanted at least one gold answer; add one or remove the row")
    value = row[column]
    if isinstance(value, str):
        value = _parse_list(value, column)
    if isinstance(value, list) and not value:
        raise RowError("no answer", f"{column} is an empty list, wanted at least one gold answer; add one")
    if isinstance(value, dict) or (column != "answer" and not isinstance(value, list)):
        raise RowError(
            "wrong type",
            f'{column} is {value!r:.80} ({type(value).__name__}), wanted a list of strings such as ["Paris"]; '
            "a single answer may stand in a column `answer`",
        )
    return tuple(validate_text(answer, "answer") for answer in (value if isinstance(value, list) else [value]))


def parse_choice(row: Mapping[str, Any], column: str, names: Mapping[str, str]) -> str | None:
    """What the name in a column means, letter case aside; None where it is empty.

    Raises:
        RowProblem: it is none of the names.
    """
    value = row.get(column)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or value.strip().lower() not in names:
        raise RowError(f"unknown {column}", f"{column} is {value!r:.80}, wanted one of {', '.join(names)}; correct it")
    return names[value.strip().lower()]


def _parse_list(value: str, column: str) -> Any:
    """The list or other value that a text holds; the text itself where it does not begin like one."""
    text = value.strip()
    _check_length(text, column)
    is_tuple = text.startswith("(") and _PYTHON_LIST.fullmatch(text) is not None  # else as in "(500) Days of Summer"
    if not text.startswith(("[", "{")) and not is_tuple:
        return value
    try:
        return _PARSER.line(text)
    except InvalidJsonError as error:
        raise RowError("malformed list", f"{column} is {value!r:.80}: {error}; write a list of strings") from error
    except ValueError:
        if _PYTHON_LIST.fullmatch(text):
            try:
                return list(ast.literal_eval(text))
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                pass
    raise RowError(
        "malformed list",
        f"{column} is {value!r:.80}, which begins like a list and is none, wanted a list of strings such as "
        '["Paris", "Paris City"], with a comma between each two; an answer that itself begins with a bracket is '
        'written ["[REC]"]',
    )


def _check_length(text: str, what: str) -> None:
    if len(text) > limits.MAX_TEXT_CHARS:
        raise RowError(
            "too long",
            f"{what} {text[:80]!r}... has {len(text):,} characters, wanted at most {limits.MAX_TEXT_CHARS:,}; shorten "
            "it or remove the row",
        )


def _advice(value: object) -> str:
    if isinstance(value, list | dict | tuple):
        return "write the one text that is meant"
    if isinstance(value, bytes):
        return "store the column as text"
    return "fill it in or remove it" if value is None else "put it in quotes"
