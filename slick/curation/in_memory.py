"""Rows in memory: lists of dicts and Arrow tables."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slick.curation.arrow_edits import check_schema, edit_schema, edit_table
from slick.curation.containers import EditCursor, NewColumns, RowEdit
from slick.curation.data import MemoryData, check_target
from slick.datasets.readers import python_values
from slick.errors import DataError
from slick.storage import Folder

_BATCH_ROWS = 1024


class ListData(MemoryData):
    """A list of dicts. A copy is a new list, or a JSONL file."""

    container, suffix = "list", ".jsonl"

    def __init__(self, rows: Sequence[Any]) -> None:
        self.name = "the list of rows"
        self._rows = list(rows)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """All rows; see `DataFile.rows`."""
        if not self._rows:
            raise DataError(f"{self.name} is empty; expected at least one row")
        for i, row in enumerate(self._rows):
            where = f"{self.name}, index {i}"
            if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
                raise DataError(f"{where} is {row!r:.80} ({type(row).__name__}), expected a dict with text as keys")
            names = row if columns is None else [name for name in columns if name in row]
            yield where, {name: row[name] for name in names}

    def edited(self, edits: Iterable[RowEdit], new_columns: NewColumns) -> list[dict[str, Any]]:
        """An edited copy; see `DataFile.write`."""
        cursor = EditCursor(edits)
        rows = list(self._edited_rows(cursor, new_columns))
        cursor.finish()
        return rows

    def _edited_rows(self, cursor: EditCursor, new_columns: NewColumns) -> Iterator[dict[str, Any]]:
        for _, row in self.rows():
            edit = cursor.advance()
            new = {name: edit.columns.get(name) for name in new_columns}
            for _ in range(edit.repeat):
                yield {**row, **(edit.row or {}), **new}

    def write(self, to: str, edits: Iterable[RowEdit], new_columns: NewColumns, *, overwrite: bool = False) -> None:
        """Write an edited copy as JSONL; see `DataFile.write`."""
        target, cursor = Folder(to), EditCursor(edits)
        check_target(target, None, overwrite=overwrite)
        with target.parent.open_output(target.name) as output:
            for i, row in enumerate(self._edited_rows(cursor, new_columns)):
                try:
                    output.write((json.dumps(row, allow_nan=False) + "\n").encode())
                except (TypeError, ValueError) as error:
                    raise DataError(
                        f"row {i + 1} of the copy is not JSON: {error}; use text, numbers, lists and dicts"
                    ) from error
            cursor.finish()

    def loading_code(self, path: str) -> str:
        """See `DataFile.loading_code`."""
        return f'load_dataset("json", data_files={path!r})'


class TableData(MemoryData):
    """An Arrow table. A copy is a new table, or a Parquet file."""

    container, suffix = "table", ".parquet"

    def __init__(self, table: pa.Table) -> None:
        self.name = "the table"
        check_schema(table.schema, self.name)
        self._table = table

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """All rows; see `DataFile.rows`."""
        if not self._table.num_rows:
            raise DataError(f"{self.name} is empty; expected at least one row")
        number = 0
        for part in _parts(self._table if columns is None else self._table.select(list(columns))):
            for row in table_rows(part, self.name):
                number += 1
                yield f"{self.name}, row {number}", row

    def edited(self, edits: Iterable[RowEdit], new_columns: NewColumns) -> pa.Table:
        """An edited copy; see `DataFile.write`."""
        cursor = EditCursor(edits)
        schema = edit_schema(self._table.schema, new_columns)
        tables = [edit_next_rows(part, cursor, new_columns, schema, self.name) for part in _parts(self._table)]
        cursor.finish()
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def write(self, to: str, edits: Iterable[RowEdit], new_columns: NewColumns, *, overwrite: bool = False) -> None:
        """Write an edited copy as Parquet; see `DataFile.write`."""
        target = Folder(to)
        check_target(target, None, overwrite=overwrite)
        table = self.edited(edits, new_columns)
        with target.parent.open_output(target.name) as output:
            pq.write_table(table, output)

    def loading_code(self, path: str) -> str:
        """See `DataFile.loading_code`."""
        return f'load_dataset("parquet", data_files={path!r})'


def table_rows(table: pa.Table, where: str) -> Iterator[dict[str, Any]]:
    """The rows of a small table. Raises DataError, which names `where`, for values unknown to Python."""
    values = [python_values(table.column(name), name, where) for name in table.column_names]
    for cells in zip(*values, strict=True):
        yield dict(zip(table.column_names, cells, strict=True))


def edit_next_rows(
    table: pa.Table, cursor: EditCursor, new_columns: NewColumns, schema: pa.Schema, where: str
) -> pa.Table:
    """An edited copy of the rows that follow the position of a cursor, with this schema; see `edit_table`."""
    edited = edit_table(table, cursor.take(table.num_rows), new_columns, where)
    return pa.Table.from_arrays(edited.columns, schema=schema)


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, _BATCH_ROWS):
        yield table.slice(start, _BATCH_ROWS)
