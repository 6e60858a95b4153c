"""Validated reading of the JSON and Parquet files of a study.

Readers declare JSON as nested types (dataclasses, typed dictionaries, `dict`, `list`, `tuple`, `Literal`, `X | None`)
and tables as a `TableSpec`. A file that does not match raises a `StudyError` with the file, the place in it, the value
found, the expected value, and how to fix it.
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
    """The smallest value of a number, as in `Annotated[int, Minimum(1)]`."""

    at_least: float


Count = Annotated[int, Minimum(0)]


class MismatchError(ValueError):
    """A value is not of the declared type; the message has its place, the value and the expected type."""


def read_record(folder: Folder, name: str, kind: type[T], hint: str, *, exact: bool = False) -> T:
    """A JSON file as a value of the declared type.

    Args:
        folder: the folder of the file.
        name: the file's name.
        kind: the declared type; unknown fields of dataclasses and typed dictionaries are ignored.
        hint: how to fix a file that does not match; the end of the message.
        exact: reject unknown fields of dataclasses.

    Raises:
        StudyError: the file does not exist, is not JSON, or does not hold such a value.
    """
    value = folder.read_json(name)
    try:
        record: T = convert(value, kind, exact=exact)
    except MismatchError as error:
        raise StudyError(f"{folder}/{name}: {error}; {hint}") from error
    return record


def convert(value: Any, kind: Any, place: str = "", *, exact: bool = False) -> Any:
    """A JSON value as a value of the declared type, without coercion between text and numbers.

    Args:
        value: parsed JSON.
        kind: the declared type. A `float` may be an integer in JSON.
        place: the place of the value in the file, for messages, such as `settings.sampling`.
        exact: reject unknown fields of dataclasses.

    Raises:
        MismatchError: the value, or one inside it, is of another type.

    >>> convert({"a": [1, 2]}, dict[str, list[float]])
    {'a': [1.0, 2.0]}
    >>> convert({"a": ["1"]}, dict[str, list[int]])
    Traceback (most recent call last):
    slick.stored_files.MismatchError: a[0] is the text '1', expected a whole number
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
                f"{place or 'the file'} is {format_value(value)}, expected {arguments[1].at_least:g} or more"
            )
        return number
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise _mismatch(value, place, kind)
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        names = {field.name for field in dataclasses.fields(kind)}
        return kind(**_convert_fields(value, kind, names, _required_names(kind), place, exact=exact))
    if is_typeddict(kind):
        known = _convert_fields(value, kind, _hints(kind).keys(), kind.__required_keys__, place, exact=exact)
        return {**value, **known}
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
        kinds = enumerate(_item_kinds(origin, arguments, value, place, kind))
        items = [convert(value[i], item_kind, f"{place}[{i}]", exact=exact) for i, item_kind in kinds]
        return tuple(items) if origin is tuple else items
    return _convert_scalar(value, kind, place)


def _item_kinds(origin: Any, arguments: Sequence[Any], value: Sequence[Any], place: str, kind: Any) -> list[Any]:
    """The declared type of each item of a list. A tuple without an ellipsis has a fixed number of items."""
    if origin is not tuple or arguments[-1] is Ellipsis:
        return [arguments[0]] * len(value)
    if len(value) != len(arguments):
        raise MismatchError(
            f"{place or 'the file'} is {format_value(value)} with {len(value)} items, expected {len(arguments)}"
        )
    return list(arguments)


def _required_names(kind: Any) -> set[str]:
    """Fields of a dataclass without a default."""
    no_default = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    return {field.name for field in fields if field.default is no_default and field.default_factory is no_default}


def _convert_union(value: Any, kind: Any, place: str, *, exact: bool) -> Any:
    """The value as the first alternative that matches; if there is one besides None, its error message is kept."""
    alternatives = get_args(kind)
    errors: list[MismatchError] = []
    for alternative in alternatives:
        try:
            return convert(value, alternative, place, exact=exact)
        except MismatchError as error:
            errors.append(error)
    others = [error for error, kind in zip(errors, alternatives, strict=True) if kind is not type(None)]
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
    return MismatchError(f"{place or 'the file'} is {format_value(value)}, expected {_expected(kind)}")


def _expected(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_expected, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    if origin in (list, Sequence, tuple):
        return "a list"
    return _TYPE_NAMES.get(kind, "an object")


def format_value(value: Any) -> str:
    """A short description of a JSON value in one line, for messages."""
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
    """A dictionary of one file's rows, looked up with keys from other files; a missing key raises a StudyError."""

    def __init__(self, items: Iterable[tuple[K, V]], missing: str) -> None:
        """`missing` is the message for a missing key, with the placeholder `{key}`."""
        super().__init__(items)
        self._missing = missing

    def __missing__(self, key: K) -> V:
        raise StudyError(
            f"{self._missing.format(key=_truncate(repr(key)))}, but another file of the study has it: the files are of "
            "different studies, or one was changed; restore it, or run its step and the following ones again"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """The schema of the Parquet files of one kind, and constraints on their values."""

    schema: pa.Schema
    step: str
    """The step that writes the files, for messages."""
    nullable: frozenset[str] = frozenset()
    """Columns that may have nulls."""
    values: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    """Column -> allowed texts."""
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    """Column -> smallest and largest number."""
    optional: frozenset[str] = frozenset()
    """Columns that may be absent."""
    non_empty: frozenset[str] = frozenset()
    """Columns of lists with at least one item and no nulls."""
    same_length: tuple[tuple[str, str], ...] = ()
    """Pairs of columns whose lists have the same lengths."""
    allow_empty: bool = False
    """Whether a file may have no rows."""

    @property
    def hint(self) -> str:
        """How to fix a file that does not match."""
        return f"restore it, or delete that folder and run `slick {self.step}` again"


def read_validated_table(folder: Folder, name: str, spec: TableSpec, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file and check its columns, types, nulls, allowed values and ranges.

    Args:
        folder: the folder of the file.
        name: the file's name.
        spec: the schema and constraints.
        columns: the columns to read, in this order; None: all of the schema. Optional ones may be absent.

    Returns:
        The columns in the types of the schema.

    Raises:
        StudyError: the file does not exist, is not Parquet, or does not match.
    """
    requested = list(spec.schema.names) if columns is None else list(columns)
    optional = [column for column in requested if column in spec.optional]
    table = folder.read_table(name, [column for column in requested if column not in spec.optional], optional=optional)
    table = table.select([column for column in requested if column in table.column_names])
    where = f"{folder}/{name}"
    if not table.num_rows and not spec.allow_empty:
        raise StudyError(f"{where} has no rows, expected at least one; {spec.hint}")
    checked = [_cast_column(where, column, table[column], spec) for column in table.column_names]
    result = pa.table(checked, schema=pa.schema([spec.schema.field(column) for column in table.column_names]))
    for first, second in spec.same_length:
        if {first, second} <= set(result.column_names) and not _same_lengths(result[first], result[second]):
            raise StudyError(f"{where}: lists of {first} and {second} differ in their lengths; {spec.hint}")
    return result


def _same_lengths(column: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether the lists of two columns, and the lists inside them, have the same lengths."""
    first, second = column.combine_chunks(), other.combine_chunks()
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
        StudyError: there is no such file, or one does not match.
    """
    names = [name for name in folder.names(".parquet") if name.startswith(prefix)]
    if not names:
        raise StudyError(f"{folder} holds no {prefix}*.parquet; run `slick {spec.step}` with this --out first")
    tables = {name: read_validated_table(folder, name, spec, columns) for name in names}
    check_same_columns(folder, {name: set(table.column_names) for name, table in tables.items()}, spec)
    return pa.concat_tables(tables.values())


def check_same_columns(folder: Folder, columns: Mapping[str, set[str]], spec: TableSpec) -> None:
    """Refuse files of one folder that differ in their optional columns.

    Args:
        folder: the folder of the files.
        columns: file name -> its columns.
        spec: the schema, for the message.

    Raises:
        StudyError: they differ.
    """
    union: set[str] = set().union(*columns.values())
    if incomplete := [name for name, present in columns.items() if present != union]:
        raise StudyError(
            f"{folder}/{incomplete[0]} lacks a column that other files of that folder have, of "
            f"{', '.join(sorted(union))}; {spec.hint}"
        )


def _cast_column(where: str, name: str, column: pa.ChunkedArray, spec: TableSpec) -> pa.ChunkedArray:
    """One column in the type of the schema.

    Raises:
        StudyError: the column has another type, or does not satisfy the constraints.
    """
    kind = spec.schema.field(name).type
    try:
        if not _is_lossless_cast(column.type, kind):
            raise StudyError(f"{where}: column {name} is of type {column.type}, expected {kind}; {spec.hint}")
        array = column if column.type.equals(kind) else column.cast(kind)
        array.validate(full=True)  # raises for texts that are not UTF-8
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"{where}: column {name} is not {kind} throughout ({reason}); {spec.hint}") from error
    if array.null_count and name not in spec.nullable:
        raise StudyError(
            f"{where}: column {name} has no value in {array.null_count:,} of {len(array):,} rows, expected a value in "
            f"every row; {spec.hint}"
        )
    _check_values(where, name, array, spec)
    return array


def _check_values(where: str, name: str, array: pa.ChunkedArray, spec: TableSpec) -> None:
    """Raise a StudyError for an empty list, or a value outside the allowed values or range."""
    if name in spec.non_empty:
        lists = array.combine_chunks()
        if lists.flatten().null_count or not pc.all(pc.greater(pc.list_value_length(lists), 0), min_count=0).as_py():
            raise StudyError(f"{where}: column {name} holds an empty list, or a null in a list; {spec.hint}")
    if name in spec.values:
        invalid = sorted(set(pc.unique(array).to_pylist()) - {None, *map(str, spec.values[name])})
        if invalid:
            raise StudyError(
                f"{where}: column {name} holds {_truncate(repr(invalid[0]))}, expected one of "
                f"{', '.join(map(str, spec.values[name]))}; {spec.hint}"
            )
    if name in spec.ranges:
        low, high = spec.ranges[name]
        values = array.drop_null()
        within = pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))
        if not pc.all(within, min_count=0).as_py():
            outside = values.filter(pc.invert(within))[0].as_py()
            expected = f"{low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
            raise StudyError(f"{where}: column {name} holds {outside}, expected {expected}; {spec.hint}")


def _is_lossless_cast(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether values keep their meaning in another type. Overflow is checked by the cast itself."""
    if pa.types.is_null(source) or source.equals(target):
        return True
    if pa.types.is_dictionary(source):
        return _is_lossless_cast(source.value_type, target)
    if _is_list(target):
        return _is_list(source) and _is_lossless_cast(source.value_type, target.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string)
    if any(is_text(target) for is_text in texts):
        return any(is_text(source) for is_text in texts)
    if pa.types.is_floating(target):
        return bool(pa.types.is_floating(source) or pa.types.is_integer(source))
    return bool(pa.types.is_integer(target) and pa.types.is_integer(source))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
