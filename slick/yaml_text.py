"""YAML of files that users bring, within `slick.limits`: only mappings, lists, texts, numbers, true, false and null.

Plain scalars follow the core schema of YAML 1.2 and JSON: `1e-5` is a number, while `no`, `on`, `010`, `1:30` and
`2026-01-01` are texts. PyYAML follows YAML 1.1, where they are other values. So only its parser is used here; no object
of any other type can be constructed.
"""

import re
from collections.abc import Iterator
from typing import Any

from slick import limits
from slick.errors import DataError
from slick.uris import check_uri
from slick.user_files import decode, too_large_error

_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def parse_yaml(data: bytes, where: str, wanted: str) -> Any:
    """The value of a small YAML file.

    Args:
        data: its content, of at most `limits.MAX_YAML_BYTES`.
        where: its name.
        wanted: what to write instead, for messages.

    Raises:
        DataError: it is not UTF-8, not one YAML document, too large or nested too deeply, or has an anchor, an alias, a
            tag or a repeated key.
        SettingsError: a key holds a secret.
    """
    import yaml

    if len(data) > limits.MAX_YAML_BYTES:
        raise too_large_error(where, len(data), limits.MAX_YAML_BYTES, wanted)
    text = decode(data, where)
    try:
        events = iter(yaml.parse(text, Loader=yaml.BaseLoader))
        return _YamlReader(where, wanted).document(events)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DataError(f"{where}{line} is not YAML: {problem}; {wanted}") from error


class _YamlReader:
    """Builds a value from the events of PyYAML's parser, and refuses what could grow beyond the text."""

    def __init__(self, where: str, wanted: str) -> None:
        self._where, self._wanted = where, wanted

    def document(self, events: Iterator[Any]) -> Any:
        """The value of the only document; None if there is none."""
        value, num_documents = None, 0
        for event in events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                num_documents += 1
                if num_documents > 1:
                    raise self._error(event, "found a second document, wanted one")
                value = self._value(next(events), events, depth=0)
        return value

    def _value(self, event: Any, events: Iterator[Any], depth: int) -> Any:
        kind = type(event).__name__
        if kind == "AliasEvent" or event.anchor is not None:
            raise self._error(event, f"found the anchor or alias {event.anchor[:80]!r}, wanted each value in full")
        if event.tag is not None and event.tag != "!":
            raise self._error(event, f"found the tag {event.tag[:80]!r}, wanted a value without a tag")
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
                raise self._error(event, "found a key that is not a plain text, wanted the name of a setting")
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
        return DataError(f"{self._where}, line {event.start_mark.line + 1}: {problem}; {self._wanted}")
