"""Edits of JSON text: only the values that change are written anew, all others keep their characters. Pure.

So numbers of any length, escapes, the order of keys and white space stay as they are.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from slick.strict_json import RowParser

_DECODER = json.JSONDecoder()
_PARSER = RowParser(None)
_SPACE = re.compile(r"[ \t\n\r]*+")


class _Member(NamedTuple):
    """A key of an object, and where its parts are in the text."""

    key: str
    value: Any
    key_start: int
    key_end: int
    start: int
    end: int


def edit_object(text: str, changes: Mapping[str, Any], additions: Mapping[str, Any]) -> str:
    """An object with other values.

    Args:
        text: a JSON object, which `RowParser(None)` accepts, and nothing around it.
        changes: new values of its keys. Inside them too, only what differs is written anew.
        additions: values of keys that are replaced where the object has them, and appended where it has not.

    >>> edit_object('{"a": 1.50,  "b": [1e2, "x"]}', {"b": [100.0, "y"]}, {"c": None})
    '{"a": 1.50,  "b": [1e2, "y"], "c": null}'
    """
    members = list(_members(text, 0))
    ascii_only = text.isascii() and "\\u" in text
    missing = changes.keys() - {member.key for member in members}
    pieces, at = [], 0
    for member in members:
        if member.key in additions:
            value = _dump(additions[member.key], ascii_only)
        elif member.key in changes:
            value = _edit(text, member.start, member.end, member.value, changes[member.key], ascii_only)
        else:
            continue
        pieces += [text[at : member.start], value]
        at = member.end
    present = {member.key for member in members}
    new = {key: value for key, value in additions.items() if key not in present}
    new |= {key: changes[key] for key in changes if key in missing and key not in new}
    if new:
        between, colon = _separators(text, members)
        end = members[-1].end if members else text.index("{") + 1
        added = between.join(f"{_dump(key, ascii_only)}{colon}{_dump(value, ascii_only)}" for key, value in new.items())
        pieces += [text[at:end], between if members else "", added]
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
    return json.dumps(value, ensure_ascii=ascii_only or _has_half_surrogate(value))


def _has_half_surrogate(value: Any) -> bool:
    """Whether a value can only be written with escapes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


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
    """What is between two members and between a key and its value, in the style of the object."""
    between = text[members[0].end : members[1].key_start] if len(members) > 1 else ", "
    colon = text[members[0].key_end : members[0].start] if members else ": "
    return between, colon


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
