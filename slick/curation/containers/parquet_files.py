"""Parquet files. Rows that are not edited are never converted; schema, metadata and row groups stay."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from slick import limits
from slick.curation.arrow_edits import check_schema, edit_schema, edit_table
from slick.curation.containers import CONTAINERS, Container, EditCursor, NewColumns
from slick.datasets.readers import num_bytes, parquet_batches, parquet_errors, python_values
from slick.datasets.rows import SourceFile

_MAX_BATCH_ROWS = 8192
_MAX_GROUP_BYTES = 1 << 27
"""Bytes that are collected for one row group."""


@CONTAINERS.register("parquet")
class ParquetTable(Container):
    """A Parquet file, with columns of any type."""

    name = "parquet"
    suffixes = (".parquet",)
    loader = "parquet"
    gzip_is_loaded = False

    def rows(self, file: SourceFile, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows; see `Container.rows`."""
        number = 0
        for batch in _bounded_batches(file, columns):
            names = batch.schema.names
            values = [python_values(batch.column(name), name, file.where) for name in names]
            for cells in zip(*values, strict=True):
                number += 1
                yield f"row {number}", dict(zip(names, cells, strict=True))

    def write(self, file: SourceFile, output: BinaryIO, edits: EditCursor, new_columns: NewColumns) -> None:
        """Write an edited copy; see `Container.write`. A row group of the copy has the rows of one of the file."""
        batch_rows = _safe_batch_rows(file)
        with parquet_errors(file.where), file.random_access() as stream:
            source = pq.ParquetFile(stream)
            schema, codec = edit_schema(source.schema_arrow, new_columns), _compression(source.metadata)
        with pq.ParquetWriter(output, schema, compression=codec) as writer:
            for _, batches in groupby(_batches(file, batch_rows), key=lambda item: item[0]):
                tables: list[pa.Table] = []
                for _, batch in batches:
                    part = pa.Table.from_batches([batch])
                    table = edit_table(part, edits.take(part.num_rows), new_columns, file.where)
                    tables.append(pa.Table.from_arrays(table.columns, schema=schema))
                    if sum(table.nbytes for table in tables) > _MAX_GROUP_BYTES:
                        _write_group(writer, tables)
                        tables = []
                _write_group(writer, tables)


def _batches(file: SourceFile, batch_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows in batches, each with the index of its row group."""
    with parquet_errors(file.where), file.random_access() as stream:
        source = pq.ParquetFile(stream)
        for group in range(source.num_row_groups):
            for batch in source.iter_batches(batch_size=batch_rows, row_groups=[group]):
                yield group, batch


def _write_group(writer: pq.ParquetWriter, tables: list[pa.Table]) -> None:
    rows = sum(table.num_rows for table in tables)
    if rows:
        writer.write_table(pa.concat_tables(tables), row_group_size=rows)


def _bounded_batches(file: SourceFile, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows within limits; see `parquet_batches`."""

    def choose(schema: pa.Schema, where: str) -> list[str]:
        check_schema(schema, where)
        return list(schema.names if columns is None else columns)

    with file.random_access() as stream:
        size = stream.size()  # of the uncompressed file
    return parquet_batches(replace(file, size=size), choose, ratio=limits.MAX_REPEATED_RATIO)


def _safe_batch_rows(file: SourceFile) -> int:
    """Rows of which a batch is held in memory. Raises DataError if the file unpacks to more than the limits."""
    largest = 1.0  # bytes of a row, on average over a batch
    for batch in _bounded_batches(file):
        largest = max(largest, num_bytes(batch) / batch.num_rows)
    return int(max(1, min(_MAX_BATCH_ROWS, limits.MAX_BATCH_BYTES / largest)))


def _compression(metadata: pq.FileMetaData) -> str:
    """The codec of the first column."""
    codecs = {"UNCOMPRESSED": "none", "SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "ZSTD": "zstd"}
    if not metadata.num_row_groups or not metadata.num_columns:
        return "snappy"
    return codecs.get(metadata.row_group(0).column(0).compression, "snappy")
