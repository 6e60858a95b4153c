"""Edits of JSON text: only values that change are serialized again, all others keep their characters. Pure.

So long numbers, escapes, the order of keys and white space are unchanged.
"""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from slick.strict_json import RowParser

_DECODER = json.JSONDecoder()
_PARSER = RowParser(None)
_SPACE = re.compile(r"[ \t\n\r]*+")


class _Member(NamedTuple):
    """A key of an object, and the positions of key and value in the text."""

    key: str
    value: Any
    key_start: int
    key_end: int
    start: int
    end: int


def edit_object(text: str, row: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """An object with other values.

    Args:
        text: a JSON object, which `RowParser(None)` accepts, and nothing around it.
        row: its value.
        values: new values by key, in their place if the object has the key, else after the others. Nested values are
            edited in the same way.

    >>> edit_object('{"a": 1.50, "b": [1e2]}', {"a": 1.5, "b": [100.0]}, {"b": [2], "c": None})
    '{"a": 1.50, "b": [2], "c": null}'
    """
    ascii_only = text.isascii() and "\\u" in text
    new = {key: value for key, value in values.items() if key not in row}
    # The first members show the style; the others are only needed to replace values.
    members = list(islice(_members(text, 0), 2 if len(new) == len(values) else None))
    pieces, at = list[str](), 0
    for member in members:
        if member.key in values:
            value = _edit(text, member.start, member.end, member.value, values[member.key], ascii_only)
            pieces += [text[at : member.start], value]
            at = member.end
    if new:
        between, colon = _separators(text, members)
        end = len(text[: text.rindex("}")].rstrip(" \t\r\n"))
        added = between.join(f"{_dump(key, ascii_only)}{colon}{_dump(value, ascii_only)}" for key, value in new.items())
        pieces += [text[at:end], between if row else "", added]
        at = end
    return "".join([*pieces, text[at:]])


def _edit(text: str, start: int, end: int, old: Any, new: Any, ascii_only: bool) -> str:
    """The text of a new value in the place of an old one."""
    if is_same_json(old, new):
        return text[start:end]
    if isinstance(old, dict) and isinstance(new, Mapping) and list(old) == list(new):
        parts = [(member.start, member.end, member.value, new[member.key]) for member in _members(text, start)]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        spans = _PARSER.item_spans(text[:end], start)
        parts = [(at, stop, item, value) for (item, at, stop), value in zip(spans, new, strict=True)]
    else:
        return _dump(new, ascii_only)
    pieces, at = [], start
    for item_start, item_end, item, value in parts:
        pieces += [text[at:item_start], _edit(text, item_start, item_end, item, value, ascii_only)]
        at = item_end
    return "".join([*pieces, text[at:end]])


def is_same_json(first: Any, second: Any) -> bool:
    """Whether two values are the same in JSON, where 1, 1.0 and true differ."""
    return type(first) is type(second) and json.dumps(first, default=str) == json.dumps(second, default=str)


def _dump(value: Any, ascii_only: bool) -> str:
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
        return json.dumps(value)
    return text


def _members(text: str, start: int) -> Iterator[_Member]:
    """The members of the object whose brace is at or after `start`."""
    at = _skip(text, _skip(text, start) + 1)
    while text[at] != "}":
        key, key_end = _DECODER.raw_decode(text, at)
        value_start = _skip(text, _skip(text, key_end) + 1)
        value, end = _PARSER.value(text, value_start)
        yield _Member(key, value, at, key_end, value_start, end)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _separators(text: str, members: list[_Member]) -> tuple[str, str]:
    """The separators between two members, and between a key and its value, as the object has them."""
    between = text[members[0].end : members[1].key_start] if len(members) > 1 else ", "
    colon = text[members[0].key_end : members[0].start] if members else ": "
    return between, colon


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
