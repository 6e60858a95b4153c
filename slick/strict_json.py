"""JSON files that a program can rely on: what the standard parser lets through or breaks on is refused. Pure."""

import json
import math
from collections.abc import Iterable
from typing import Any

_MAX_DEPTH = 100
"""Objects and lists inside each other in a JSON file; ours have 8 at most."""
_MAX_DIGITS = 40


def parse_strict_json(data: bytes) -> Any:
    """JSON as a program may trust it.

    Raises:
        ValueError: it is not UTF-8 or not JSON, names a field twice, holds a number that is not finite or has more
            digits than any of ours, a text that is no Unicode, or is nested too deeply.

    >>> parse_json(b'{"a": NaN}')
    Traceback (most recent call last):
    ValueError: NaN is not a finite number
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_number,
            parse_int=_integer,
            parse_float=_decimal,
        )
    except RecursionError:
        raise ValueError(f"objects and lists inside each other are deeper than {_MAX_DEPTH}") from None
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _children(outer)]
        if not level:
            return value
    raise ValueError(f"objects and lists inside each other are deeper than {_MAX_DEPTH}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return value


def _refuse_number(text: str) -> Any:
    raise ValueError(f"{text} is not a finite number")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits, more than {_MAX_DIGITS}")
    return int(text)


def _decimal(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text[:_MAX_DIGITS])


def _children(value: Any) -> Iterable[Any]:
    """What an object or a list holds; a text is checked to be one."""
    if isinstance(value, str):
        value.encode()  # a lone surrogate is no text
    return (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
