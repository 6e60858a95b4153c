"""Edits of Arrow tables: rows are taken from the table, and only values that change are converted. Pure."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from slick.curation.containers import NewColumns, RowEdit
from slick.curation.json_text import is_same_json
from slick.errors import DataError
from slick.storage import pickled_columns

_FEATURE_TYPES = {pa.string(): "string", pa.float64(): "float64", pa.int64(): "int64", pa.bool_(): "bool"}
"""Types of new columns, and their names in Hugging Face features."""


def check_schema(schema: pa.Schema, where: str) -> None:
    """Refuse two columns of one name, and types that can hold pickles.

    Raises:
        DataError: there is such a column; the message begins with `where`.
    """
    repeated = [name for name, num in Counter(schema.names).items() if num > 1]
    if repeated:
        raise DataError(f"{where} has the column {repeated[0]!r} more than once; expected each once: rename one")
    if names := pickled_columns(schema):
        raise DataError(
            f"{where} has columns of an extension type, which can hold pickles: {', '.join(names)}; expected text, "
            "numbers, lists and structs: drop those columns or store them as such"
        )


def edit_table(table: pa.Table, edits: Sequence[RowEdit], new_columns: NewColumns, where: str) -> pa.Table:
    """An edited copy of consecutive rows, without metadata.

    Args:
        table: the rows.
        edits: one for each row.
        new_columns: the columns that every row gets: in their place if the table has them, else after the others.
        where: the file, for messages.

    Raises:
        DataError: a new value does not fit the type of its column.
        ValueError: an edit names a column that the table does not have.
    """
    columns = {name: table.column(name) for name in table.column_names}
    changes: dict[str, dict[int, Any]] = {}
    for i, edit in enumerate(edits):
        for name, value in (edit.row or {}).items():
            if name not in columns:
                raise ValueError(f"the edit of row {edit.index} names the column {name!r}, which is not in the table")
            if name not in new_columns and not is_same_json(columns[name][i].as_py(), value):
                changes.setdefault(name, {})[i] = value
    for name, values in changes.items():
        columns[name] = _replace_values(columns[name], values, f"{where}, column {name}")
    for name, kind in new_columns.items():
        columns[name] = _array([edit.columns.get(name) for edit in edits], kind, f"{where}, new column {name}")
    edited = pa.table(columns)
    if all(edit.repeat == 1 for edit in edits):
        return edited
    return edited.take(pa.array([i for i, edit in enumerate(edits) for _ in range(edit.repeat)], pa.int64()))


def edit_schema(schema: pa.Schema, new_columns: NewColumns) -> pa.Schema:
    """The schema of an edited table: its metadata is kept, and Hugging Face features get the new columns."""
    for name, kind in new_columns.items():
        index = schema.get_field_index(name)
        field = pa.field(name, kind)
        schema = schema.append(field) if index < 0 else schema.set(index, field)
    metadata = dict(schema.metadata or {})
    if b"huggingface" in metadata:
        metadata[b"huggingface"] = _add_features(metadata[b"huggingface"], new_columns)
    return schema.with_metadata(metadata or None)


def _add_features(metadata: bytes, new_columns: NewColumns) -> bytes:
    """The metadata of the package `datasets` with features for the new columns; unchanged if it cannot be read."""
    try:
        value = json.loads(metadata)
        features: Mapping[str, Any] = value["info"]["features"]
        new = {name: {"dtype": _FEATURE_TYPES[kind], "_type": "Value"} for name, kind in new_columns.items()}
        value["info"]["features"] = {**features, **new}
    except (ValueError, LookupError, TypeError):
        return metadata
    return json.dumps(value).encode()


def _replace_values(column: pa.ChunkedArray, values: Mapping[int, Any], where: str) -> pa.ChunkedArray:
    """A column with other values in some rows; the others are taken from it without conversion."""
    new = _array(list(values.values()), column.type, where)
    places = {row: len(column) + i for i, row in enumerate(values)}
    indices = pa.array([places.get(row, row) for row in range(len(column))], pa.int64())
    return pa.chunked_array([*column.chunks, new], column.type).take(indices)


def _array(values: list[Any], kind: pa.DataType, where: str) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where} ({kind}): a new value cannot be stored: {error}; write the column as text, or convert the "
            "file to .jsonl"
        ) from error
