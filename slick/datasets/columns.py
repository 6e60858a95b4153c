"""Columns of a question file: their names, and how their values are parsed and checked. Pure."""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from slick import limits
from slick.strict_json import InvalidJsonError, RowParser

ANSWER_COLUMNS = ("answers", "answer", "possible_answers")
"""Columns of the gold answers. The first that is not empty is used. `answer` may be a single string."""

POPULARITY_COLUMNS = ("popularity", "s_pop")
"""Columns of the popularity of the subject. The first that the row has is used."""

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
"""Names of splits in a column or a file name, and the splits that they mean."""

_AMBIGUOUS_SPLIT_NAMES = ("eval", "evaluation")
"""Words in a file name that mean the dev split to some and the test split to others."""

SplitOrigin = Literal["column", "file name", "share"]
SPLIT_ORIGINS: tuple[SplitOrigin, ...] = ("column", "file name", "share")
"""`share`: neither column nor file name gives a split, so `--dev-share` and `--test-share` assign it."""

_STRING = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_PYTHON_LIST = re.compile(rf"[\[(]\s*+(?:(?:{_STRING})\s*+(?:,\s*+(?:{_STRING})\s*+)*+,?\s*+)?[\])]", re.DOTALL)
"""A list or tuple of string literals separated by commas: Python itself joins strings without a comma.

The quantifiers are possessive. Otherwise the time would grow quadratically with the length of a malformed list.
"""

_PARSER = RowParser(())


class RowError(Exception):
    """A row cannot be used. The message states what was found, what was expected and how to fix it."""

    def __init__(self, kind: str, reason: str) -> None:
        """An error.

        Args:
            kind: a few words by which errors are counted.
            reason: the message.
        """
        super().__init__(reason)
        self.kind = kind


def parse_text(row: Mapping[str, Any], column: str) -> str:
    """The text of a required column.

    Raises:
        RowError: it is missing or not usable text.
    """
    value = row.get(column)
    if value is None:
        raise RowError(f"no {column}", f"no {column}, expected a string; fill it in or remove the row")
    return validate_text(value, column)


def validate_text(value: object, name: str) -> str:
    """Text of a question or answer: `check_text` accepts it, and it is on one line.

    Args:
        value: what the row holds.
        name: the name of the value, for messages.

    Returns:
        The text without white space around it.

    Raises:
        RowError: it is not such text.
    """
    text = check_text(value, name).strip()
    if "\n" in text or "\r" in text:
        raise RowError(
            "line break", f"{name} {text!r:.80} holds a line break, expected one line; answers end at a line's end"
        )
    return text


def check_text(value: object, name: str, *, allow_blank: bool = False) -> str:
    """Text of any number of lines, unchanged: a string that is not blank, within limits, and storable as UTF-8.

    Args:
        value: the value in the row. name: the name of the value, for messages. allow_blank: accept a string that is
            empty or white space.

    Raises:
        RowError: it is not such text.
    """
    if not isinstance(value, str):
        raise RowError(
            "wrong type", f"{name} is {value!r:.80} ({type(value).__name__}), expected a string; {_type_hint(value)}"
        )
    _check_length(value, name)
    if not value.strip() and not allow_blank:
        raise RowError(f"empty {name}", f"empty {name} ({value!r:.40}), expected text; fill it in or remove the row")
    if "\0" in value:
        raise RowError(
            "NUL character",
            f"{name} {value!r:.80} holds a NUL character, expected text; is the file UTF-16? Convert it",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            "wrong encoding",
            f"{name} {value!r:.80} holds half a surrogate pair at character {error.start + 1}, expected valid Unicode; "
            "write the character itself",
        ) from error
    return value


def parse_answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """All gold answers of a row, in order.

    Raises:
        RowError: there is none, one is not usable text, or a list is malformed.
    """
    return tuple(validate_text(answer, "answer") for answer in list_answers(row))


def list_answers(row: Mapping[str, Any]) -> list[Any]:
    """The gold answers of a row as it holds them, in order; at least one.

    Raises:
        RowError: there is none, or a list is malformed.
    """
    column = next((name for name in ANSWER_COLUMNS if _has_answer(row, name)), None)
    if column is None:
        raise RowError("no answer", "no answer, expected at least one gold answer; add one or remove the row")
    value = row[column]
    if isinstance(value, str):
        value = _parse_list(value, column)
    if isinstance(value, list) and not value:
        raise RowError("no answer", f"{column} is an empty list, expected at least one gold answer; add one")
    if isinstance(value, dict) or (column != "answer" and not isinstance(value, list)):
        raise RowError(
            "wrong type",
            f'{column} is {value!r:.80} ({type(value).__name__}), expected a list of strings such as ["Paris"]; '
            "a single answer may be in a column `answer`",
        )
    return value if isinstance(value, list) else [value]


def replace_answers(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """The columns of gold answers of a row, each with this answer alone: as a list, or as text that is read as one.

    >>> replace_answers({"question": "?", "answers": '["Paris", "paris"]', "answer": "Paris"}, "unknown")
    {'answers': '["unknown"]', 'answer': 'unknown'}
    """
    columns: dict[str, Any] = {}
    for name in ANSWER_COLUMNS:
        if not _has_answer(row, name):
            continue
        if isinstance(row[name], str):
            is_plain = name == "answer" and not row[name].lstrip().startswith(("[", "{", "("))
            as_list = not is_plain or answer.lstrip().startswith(("[", "{", "("))
            columns[name] = json.dumps([answer], ensure_ascii=False) if as_list else answer
        else:
            columns[name] = [answer]
    return columns


def _has_answer(row: Mapping[str, Any], column: str) -> bool:
    return row.get(column) not in (None, "", [])


def parse_choice(row: Mapping[str, Any], column: str, names: Mapping[str, str]) -> str | None:
    """The meaning of the name in a column, ignoring letter case; None if the column is empty.

    Raises:
        RowError: it is none of the names.
    """
    value = row.get(column)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or value.strip().lower() not in names:
        raise RowError(
            f"unknown {column}", f"{column} is {value!r:.80}, expected one of {', '.join(names)}; correct it"
        )
    return names[value.strip().lower()]


def parse_popularity(row: Mapping[str, Any]) -> float | None:
    """The popularity of a row's subject; None if the row has none.

    Raises:
        RowError: it is not a number, or is less than 0.

    >>> parse_popularity({"s_pop": "1520"}), parse_popularity({"popularity": None}), parse_popularity({})
    (1520.0, None, None)
    """
    column = next((name for name in POPULARITY_COLUMNS if name in row), None)
    value = None if column is None else row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = _parse_number(value)
    if number is None or not 0 <= number < math.inf:
        raise RowError(
            "no popularity",
            f"{column} is {value!r:.80}, expected a finite number of 0 or more, such as 1520; write it without units "
            "and separators, or leave it empty if it is not known",
        )
    return number


def splits_in_name(name: str) -> tuple[str, ...]:
    """The splits that a file name may mean, in the order train, dev, test; empty if it names none.

    Only whole words count, in any letter case. Any character that is not a letter separates words.

    Args:
        name: the file name, with the folders between the question set and the file.

    >>> [splits_in_name(name) for name in ("my.train.jsonl", "val-00000-of-00002.parquet", "test/P17.csv")]
    [('train',), ('dev',), ('test',)]
    >>> [splits_in_name(name) for name in ("latest.jsonl", "train_dev.csv", "eval.jsonl")]
    [(), ('train', 'dev'), ('dev', 'test')]
    """
    words = re.findall(r"[^\W\d_]+", name.lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if not splits and any(word in _AMBIGUOUS_SPLIT_NAMES for word in words):
        splits = {"dev", "test"}
    return tuple(split for split in SPLITS if split in splits)


def explicit_split(row: Mapping[str, Any], named_splits: Sequence[str]) -> tuple[str, SplitOrigin] | None:
    """The split that a row or its file states, and which of the two; None if neither does.

    Args:
        row: its column `split` is read.
        named_splits: the splits that the name of its file may mean, see `splits_in_name`.

    Raises:
        RowError: the column holds no split, contradicts the file name, or is empty while the name may mean several.
    """
    split = parse_choice(row, "split", SPLIT_NAMES)
    if split is not None:
        if named_splits and split not in named_splits:
            raise RowError(
                "split contradicts file name",
                f"column split says {split}, but the name of the file says {' or '.join(named_splits)}; correct the "
                "column, or rename the file",
            )
        return split, "column"
    if len(named_splits) > 1:
        raise RowError(
            "ambiguous file name",
            f"no split, and the name of the file may mean {' or '.join(named_splits)}, expected one split; rename the "
            "file, or add a column split",
        )
    return (named_splits[0], "file name") if named_splits else None


def _parse_list(value: str, column: str) -> Any:
    """The JSON value or Python list in a string; the string itself if it does not begin like one."""
    text = value.strip()
    _check_length(text, column)
    is_tuple = text.startswith("(") and _PYTHON_LIST.fullmatch(text) is not None  # unlike "(500) Days of Summer"
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
        f"{column} is {value!r:.80}, which begins like a list but is not one, expected a list of strings such as "
        '["Paris", "Paris City"], separated by commas; an answer that begins with a bracket is written ["[REC]"]',
    )


def _check_length(text: str, name: str) -> None:
    if len(text) > limits.MAX_TEXT_CHARS:
        raise RowError(
            "too long",
            f"{name} {text[:80]!r}... has {len(text):,} characters, expected at most {limits.MAX_TEXT_CHARS:,}; "
            "shorten it or remove the row",
        )


def _type_hint(value: object) -> str:
    """How to fix a value that is not a string."""
    if isinstance(value, list | dict | tuple):
        return "write a single string"
    if isinstance(value, bytes):
        return "store the column as text"
    return "fill it in or remove it" if value is None else "put it in quotes"


def _parse_number(value: object) -> float | None:
    """None if the value is not a number. Strings are parsed because all cells of CSV are strings."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    if isinstance(value, str) and (not value.strip().isascii() or "_" in value):  # Python reads 1_000 as 1000
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
