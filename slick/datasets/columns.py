"""Columns of a question file: their names, and what splits and popularities look like. Pure."""

import ast
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

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


SPLITS = ("train", "dev", "test")

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "development": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "test": "test",
    "testing": "test",
}
"""Each name that a split may have in a column or in the name of a file, and the split that it means."""

_AMBIGUOUS = ("eval", "evaluation")
"""In the name of a file: some mean the dev split by it, others the test split."""

SplitOrigin = Literal["column", "file name", "share"]
SPLIT_ORIGINS: tuple[SplitOrigin, ...] = ("column", "file name", "share")
"""`share`: the row states no split, and gets one by `--dev-share` and `--test-share`."""


def splits_in_name(name: str) -> tuple[str, ...]:
    """The splits that the name of a file may mean, in the order train, dev, test; empty if it names none.

    Only whole words count, in any letter case; everything that is no letter separates words.

    Args:
        name: of the file, with the folders between the question set and the file.

    >>> [splits_in_name(name) for name in ("my.train.jsonl", "val-00000-of-00002.parquet", "test/P17.csv")]
    [('train',), ('dev',), ('test',)]
    >>> [splits_in_name(name) for name in ("latest.jsonl", "train_dev.csv", "eval.jsonl")]
    [(), ('train', 'dev'), ('dev', 'test')]
    """
    words = re.findall(r"[^\W\d_]+", name.lower())
    named = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if not named and any(word in _AMBIGUOUS for word in words):
        named = {"dev", "test"}
    return tuple(split for split in SPLITS if split in named)


def explicit_split(column: str | None, named: Sequence[str]) -> tuple[str, SplitOrigin] | None:
    """The split that a row states and where; None if it states none.

    Args:
        column: the split in the row itself.
        named: the splits that the name of its file may mean, see `splits_in_name`.

    Raises:
        ValueError: column and name contradict each other, or the name may mean several splits and there is no column.
    """
    if column is not None:
        if named and column not in named:
            raise ValueError(
                f"column split says {column}, but the name of the file says {' or '.join(named)}; correct the column, "
                "or rename the file"
            )
        return column, "column"
    if len(named) > 1:
        raise ValueError(
            f"no split, and the name of the file may mean {' or '.join(named)}, wanted one split; rename the file, or "
            "add a column split"
        )
    return (named[0], "file name") if named else None


COLUMNS = ("popularity", "s_pop")
"""Where it stands in a row; the first that the row has."""


def parse_popularity(row: Mapping[str, Any]) -> float | None:
    """The popularity of a row's subject; None where the row has none, or leaves it empty.

    Raises:
        ValueError: it is no number, or less than 0; says what was found and wanted, and how to mend it.

    >>> parse_popularity({"s_pop": "1520"}), parse_popularity({"popularity": None}), parse_popularity({})
    (1520.0, None, None)
    """
    column = next((name for name in COLUMNS if name in row), None)
    value = None if column is None else row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = _number(value)
    if number is None or not 0 <= number < math.inf:
        raise ValueError(
            f"{column} is {value!r:.80}, wanted a finite number of 0 or more, such as 1520; write it without units and "
            "separators, or leave it empty where it is not known"
        )
    return number


def _number(value: object) -> float | None:
    """None for what is no number; text is read as in CSV, where all cells are text."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    if isinstance(value, str) and not value.strip().isascii():
        return None
    if isinstance(value, str) and "_" in value:  # Python reads 1_000 as a number, no one else does
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
