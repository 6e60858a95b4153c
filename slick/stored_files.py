"""Typed reading of the JSON and Parquet files of a study: whatever they hold, the reader gets what it declared.

A file that is not as declared raises one `StudyError`: file and place in it, what was found, what is wanted, and how to
mend it. Readers declare JSON as nested types (dataclasses, typed dictionaries, `dict`, `list`, `tuple`, `Literal`,
`X | None`) and tables as a `TableSpec`.
"""

import dataclasses
import math
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import pyarrow as pa
import pyarrow.compute as pc

from slick.errors import StudyError
from slick.storage import Folder

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

_MAX_VALUE_CHARS = 60
_LARGEST_INTEGER = 2**64
_TYPE_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}


class Minimum(NamedTuple):
    """Of a number, as in `Annotated[int, Bound(1)]`."""

    at_least: float


Count = Annotated[int, Minimum(0)]


class MismatchError(ValueError):
    """A value is not of the declared type; the message says where, what was found and what is wanted."""


def read_record(folder: Folder, name: str, kind: type[T], hint: str, *, exact: bool = False) -> T:
    """One JSON file as a value of the declared type.

    Args:
        folder: that the file is in.
        name: of the file.
        kind: the declared type; a dataclass or typed dictionary ignores fields that it does not know.
        remedy: how to mend a file that is not as declared; ends the message.
        exact: refuse fields that a dataclass does not know.

    Raises:
        StudyError: the file is not there, is not JSON, or does not hold such a value.
    """
    value = folder.read_json(name)
    try:
        record: T = convert(value, kind, exact=exact)
    except MismatchError as error:
        raise StudyError(f"{folder}/{name}: {error}; {hint}") from error
    return record


def convert(value: Any, kind: Any, place: str = "", *, exact: bool = False) -> Any:
    """A JSON value as a value of the declared type, without guessing: a text is no number, and a number no text.

    Args:
        value: as JSON was parsed.
        kind: the declared type. A whole number may stand for a `float`.
        place: of the value in the file, for messages: `settings.sampling`.
        exact: refuse fields that a dataclass does not know.

    Raises:
        MismatchError: the value, or one inside it, is of another type.

    >>> convert({"a": [1, 2]}, dict[str, list[float]])
    {'a': [1.0, 2.0]}
    >>> convert({"a": ["1"]}, dict[str, list[int]])
    Traceback (most recent call last):
    slick.stored_files.MismatchError: a[0] is the text '1', wanted a whole number
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, kind, place, exact=exact)
    if origin is Required or origin is NotRequired:
        return convert(value, arguments[0], place, exact=exact)
    if origin is Annotated:
        number = convert(value, arguments[0], place, exact=exact)
        if number < arguments[1].at_least:
            raise MismatchError(
                f"{place or 'the file'} is {format_value(value)}, wanted {arguments[1].at_least:g} or more"
            )
        return number
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise _mismatch(value, place, kind)
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        required = {
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        return kind(**_convert_fields(value, kind, {field.name for field in fields}, required, place, exact=exact))
    if is_typeddict(kind):
        found = _convert_fields(value, kind, _hints(kind).keys(), kind.__required_keys__, place, exact=exact)
        return {**value, **found}
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _mismatch(value, place, kind)
        return {
            convert(key, arguments[0], f"a field of {place or 'the file'}"): convert(
                item, arguments[1], _join_path(place, key), exact=exact
            )
            for key, item in value.items()
        }
    if origin in (list, Sequence, tuple):
        if not isinstance(value, list):
            raise _mismatch(value, place, kind)
        items = [convert(item, arguments[0], f"{place}[{i}]", exact=exact) for i, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    return _convert_scalar(value, kind, place)


def _convert_union(value: Any, kind: Any, place: str, *, exact: bool) -> Any:
    """The first alternative that fits; where one alternative alone is of the value's kind, its own message."""
    alternatives = get_args(kind)
    errors: list[MismatchError] = []
    for alternative in alternatives:
        try:
            return convert(value, alternative, place, exact=exact)
        except MismatchError as error:
            errors.append(error)
    others = [error for error, one in zip(errors, alternatives, strict=True) if one is not type(None)]
    if len(others) == 1 and value is not None and isinstance(value, dict | list):
        raise others[0]
    raise _mismatch(value, place, kind)


def _convert_fields(
    value: Any, kind: Any, known: Collection[str], required: Collection[str], place: str, *, exact: bool
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _mismatch(value, place, kind)
    where = place or "the file"
    if missing := sorted(set(required) - value.keys()):
        raise MismatchError(f"{where} lacks {', '.join(missing)}")
    if exact and (unknown := sorted(value.keys() - set(known))):
        raise MismatchError(f"{where} has the unknown field {_truncate(repr(unknown[0]))}")
    hints = _hints(kind)
    return {
        name: convert(item, hints[name], _join_path(place, name), exact=exact)
        for name, item in value.items()
        if name in known
    }


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _convert_scalar(value: Any, kind: Any, place: str) -> Any:
    if issubclass(kind, Enum):
        if isinstance(value, str) and value in [member.value for member in kind]:
            return kind(value)
        raise _mismatch(value, place, kind)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        return float(value)
    is_too_large = kind is int and is_number and abs(value) > _LARGEST_INTEGER
    if type(value) is kind and not is_too_large:
        return value
    raise _mismatch(value, place, kind)


def _mismatch(value: Any, place: str, kind: Any) -> MismatchError:
    return MismatchError(f"{place or 'the file'} is {format_value(value)}, wanted {_expected(kind)}")


def _expected(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(one) for one in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    if origin in (list, Sequence, tuple):
        return "a list"
    return _TYPE_NAMES.get(kind, "an object")


def format_value(value: Any) -> str:
    """A JSON value in a few words of one line, for messages."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"the {'text' if isinstance(value, str) else 'number'} {_truncate(repr(value))}"


def _join_path(place: str, name: str) -> str:
    return f"{place}.{_name(name)}".lstrip(".")


def _name(key: str) -> str:
    return key if key.isprintable() and len(key) <= _MAX_VALUE_CHARS else _truncate(repr(key))


def _truncate(text: str) -> str:
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[:_MAX_VALUE_CHARS]}..."


class Lookup(dict[K, V]):
    """A dictionary from one file that keys of other files are looked up in; a key that is not there is a StudyError."""

    def __init__(self, items: Iterable[tuple[K, V]], missing: str) -> None:
        """With the message of a missing key, which `{key}` stands for."""
        super().__init__(items)
        self._missing = missing

    def __missing__(self, key: K) -> V:
        raise StudyError(
            f"{self._missing.format(key=_truncate(repr(key)))}, though another file of the study names it: they are of "
            "different studies, or one was changed; restore it, or run the steps behind it again"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """What the Parquet files of one kind hold."""

    schema: pa.Schema
    step: str
    """That writes them: `slick STEP`; for messages."""
    nullable: frozenset[str] = frozenset()
    """Columns that may hold nulls."""
    values: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    """Column to the texts that it may hold."""
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """Column to its smallest and largest number."""
    optional: frozenset[str] = frozenset()
    """Columns that not every file has."""
    non_empty: frozenset[str] = frozenset()
    """Columns of lists that hold at least one item, and no nulls."""
    same_length: tuple[tuple[str, str], ...] = ()
    """Pairs of columns whose lists are of the same lengths."""
    allow_empty: bool = False

    @property
    def hint(self) -> str:
        """How to mend a file that is not as declared."""
        return f"restore it, or delete that folder and run `slick {self.step}` again"


def read_validated_table(folder: Folder, name: str, spec: TableSpec, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet file, checked: columns, types, nulls, allowed values and ranges.

    Args:
        folder: that the file is in.
        name: of the file.
        spec: what it holds.
        columns: those that are wanted, in this order; None: all of the schema. Optional ones may be absent.

    Returns:
        The wanted columns in the types of the schema.

    Raises:
        StudyError: the file is not there, not Parquet, or not as declared.
    """
    wanted = list(spec.schema.names) if columns is None else list(columns)
    optional = [column for column in wanted if column in spec.optional]
    table = folder.read_table(name, [column for column in wanted if column not in spec.optional], optional=optional)
    table = table.select([column for column in wanted if column in table.column_names])
    where = f"{folder}/{name}"
    if not table.num_rows and not spec.allow_empty:
        raise StudyError(f"{where} has no rows, wanted at least one; {spec.hint}")
    checked = [_cast_column(where, column, table[column], spec) for column in table.column_names]
    found = pa.table(checked, schema=pa.schema([spec.schema.field(column) for column in table.column_names]))
    for one, other in spec.same_length:
        if {one, other} <= set(found.column_names) and not _same_lengths(found[one], found[other]):
            raise StudyError(f"{where}: lists of {one} and {other} differ in their lengths; {spec.hint}")
    return found


def _same_lengths(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether the lists of two columns are of the same lengths, and the lists inside them."""
    first, second = one.combine_chunks(), other.combine_chunks()
    while _is_list(first.type) and _is_list(second.type):
        lengths = (pc.fill_null(pc.list_value_length(lists), 0) for lists in (first, second))
        if not next(lengths).equals(next(lengths)):
            return False
        first, second = first.flatten(), second.flatten()
    return True


def read_validated_parts(
    folder: Folder, spec: TableSpec, columns: Sequence[str] | None = None, prefix: str = "part-"
) -> pa.Table:
    """All `prefix*.parquet` files of a folder as one table, in the order of their names; see `read_validated_table`.

    Raises:
        StudyError: there is none, or one is not as declared.
    """
    names = [name for name in folder.names(".parquet") if name.startswith(prefix)]
    if not names:
        raise StudyError(f"{folder} holds no {prefix}*.parquet; run `slick {spec.step}` with this --out first")
    tables = [read_validated_table(folder, name, spec, columns) for name in names]
    together: set[str] = set().union(*(table.column_names for table in tables))
    if lacking := [name for name, table in zip(names, tables, strict=True) if set(table.column_names) != together]:
        raise StudyError(
            f"{folder}/{lacking[0]} lacks a column that other files of that folder have, of "
            f"{', '.join(sorted(together))}; {spec.hint}"
        )
    return pa.concat_tables(tables)


def _cast_column(where: str, name: str, found: pa.ChunkedArray, spec: TableSpec) -> pa.ChunkedArray:
    """One column in the schema's type.

    Raises:
        StudyError: it is of another type, or holds what it must not.
    """
    kind = spec.schema.field(name).type
    try:
        if not _is_lossless_cast(found.type, kind):
            raise StudyError(f"{where}: column {name} is of type {found.type}, wanted {kind}; {spec.hint}")
        array = found if found.type.equals(kind) else found.cast(kind)
        array.validate(full=True)  # texts that are not UTF-8
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"{where}: column {name} is not {kind} throughout ({reason}); {spec.hint}") from error
    if array.null_count and name not in spec.nullable:
        raise StudyError(
            f"{where}: column {name} has no value in {array.null_count:,} of {len(array):,} rows, wanted a value in "
            f"every row; {spec.hint}"
        )
    if name in spec.non_empty:
        lists = array.combine_chunks()
        if lists.flatten().null_count or not pc.all(pc.greater(pc.list_value_length(lists), 0), min_count=0).as_py():
            raise StudyError(f"{where}: column {name} holds an empty list, or a null in a list; {spec.hint}")
    if name in spec.values:
        strange = sorted(set(pc.unique(array).to_pylist()) - {None, *map(str, spec.values[name])})
        if strange:
            raise StudyError(
                f"{where}: column {name} holds {_truncate(repr(strange[0]))}, wanted one of "
                f"{', '.join(map(str, spec.values[name]))}; {spec.hint}"
            )
    if name in spec.ranges:
        low, high = spec.ranges[name]
        values = array.drop_null()
        within = pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))
        if not pc.all(within, min_count=0).as_py():
            outside = values.filter(pc.invert(within))[0].as_py()
            wanted = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
            raise StudyError(f"{where}: column {name} holds {outside}, wanted {wanted}; {spec.hint}")
    return array


def _is_lossless_cast(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether every value of a type has one equal value of the other; null stands for any, and the cast itself is
    checked for values that do not fit.
    """
    if pa.types.is_null(found) or found.equals(wanted):
        return True
    if pa.types.is_dictionary(found):
        return _is_lossless_cast(found.value_type, wanted)
    if _is_list(wanted):
        return _is_list(found) and _is_lossless_cast(found.value_type, wanted.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string)
    if any(is_text(wanted) for is_text in texts):
        return any(is_text(found) for is_text in texts)
    if pa.types.is_floating(wanted):
        return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
    return bool(pa.types.is_integer(wanted) and pa.types.is_integer(found))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
