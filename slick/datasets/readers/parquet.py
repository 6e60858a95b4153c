"""Parquet, read in batches within limits: a few bytes can unpack to billions of rows or gigabytes of text."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slick import limits
from slick.datasets.rows import COLUMNS, RawRow, SourceFile, check_columns, question_readers
from slick.errors import DataError
from slick.storage import pickled_columns

_BATCH_ROWS = 8192


@question_readers.register(".parquet")
def read_parquet(file: SourceFile) -> Iterator[RawRow]:
    """The rows of a Parquet file. Columns that are not used are not read.

    Raises:
        DataError: the file is damaged, lacks a column, or unpacks to more rows or bytes than the limits.
    """
    where = file.where
    try:
        with file.random_access() as stream:
            parquet = pq.ParquetFile(stream)
            columns = _used_columns(parquet.schema_arrow, where)
            _check_metadata(parquet.metadata, columns, file)
            # Dictionary encoding is kept, so that repeated texts are counted before they are unpacked.
            texts = [path for path, kind in _leaf_columns(parquet.metadata, columns) if kind == "BYTE_ARRAY"]
            parquet = pq.ParquetFile(stream, read_dictionary=texts)
            bytes_left, numbers = _unpack_limit(file), count(1)
            for large_batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for batch in _split_batch(large_batch):
                    bytes_left -= _num_bytes(batch)
                    if bytes_left < 0:
                        raise _too_large_error(file, "more")
                    values = [_python_values(batch.column(name), name, where) for name in columns]
                    for cells in zip(*values, strict=True):
                        content = dict(zip(columns, cells, strict=True))
                        yield RawRow(file=where, row=next(numbers), content=content)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not a complete Parquet file: {error}; write it or download it again") from error


def _used_columns(schema: pa.Schema, where: str) -> list[str]:
    """The columns to read, none of a type that can hold pickles."""
    check_columns(schema.names, where)
    columns = [name for name in schema.names if name in (*COLUMNS, "question_id")]
    if names := sorted({*pickled_columns(schema)} & {*columns}):
        raise DataError(
            f"{where} has columns of a type that can hold pickles, which run code when they are read: {names}; "
            "write them as text or numbers"
        )
    return columns


def _check_metadata(metadata: pq.FileMetaData, columns: list[str], file: SourceFile) -> None:
    """Refuse a file that would unpack to more than the limits, by its footer alone."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [
        chunk
        for group in groups
        for chunk in map(group.column, range(group.num_columns))
        if chunk.path_in_schema.partition(".")[0] in columns
    ]
    values: dict[str, int] = {"": metadata.num_rows}
    for chunk in chunks:
        values[chunk.path_in_schema] = values.get(chunk.path_in_schema, 0) + chunk.num_values
    num, limit = max(values.values()), max(limits.FREE_VALUES, limits.MAX_VALUES_PER_BYTE * file.size)
    if num > limit:
        raise DataError(
            f"{file.where} has {num:,} rows or values in {file.size:,} bytes, at most {limit:,} are read; remove "
            "repeated rows"
        )
    if metadata.num_columns > limits.MAX_COLUMNS:
        raise DataError(
            f"{file.where} has {metadata.num_columns:,} columns, at most {limits.MAX_COLUMNS:,} are read; drop those "
            "that are not needed"
        )
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
    if unpacked > _unpack_limit(file):
        raise _too_large_error(file, f"{unpacked:,}")


def _unpack_limit(file: SourceFile) -> int:
    return max(limits.FREE_UNPACKED_BYTES, limits.MAX_UNPACK_RATIO * file.size)


def _too_large_error(file: SourceFile, num_bytes: str) -> DataError:
    return DataError(
        f"{file.where} has {file.size:,} bytes and its columns would unpack to {num_bytes}, at most "
        f"{_unpack_limit(file):,} are read ({limits.MAX_UNPACK_RATIO} times its bytes); if you trust it, write it as "
        ".jsonl"
    )


def _leaf_columns(metadata: pq.FileMetaData, columns: list[str]) -> list[tuple[str, str]]:
    """Path and physical type of the leaf columns of these columns."""
    schema = metadata.schema
    leaves = [schema.column(i) for i in range(len(schema))]
    return [(leaf.path, leaf.physical_type) for leaf in leaves if leaf.path.partition(".")[0] in columns]


def _split_batch(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Parts of a batch, in order, each of which unpacks to at most the limit of a batch."""
    if batch.num_rows < 2 or _num_bytes(batch) <= limits.MAX_BATCH_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _split_batch(batch.slice(0, half))
    yield from _split_batch(batch.slice(half))


def _num_bytes(batch: pa.RecordBatch) -> int:
    return sum(_array_bytes(column) for column in batch.columns)


def _array_bytes(array: pa.Array) -> int:
    """Bytes that an array unpacks to."""
    if isinstance(array, pa.DictionaryArray):
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return int(pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0)
    if isinstance(array, pa.ListArray | pa.LargeListArray):
        return _array_bytes(array.flatten())
    if isinstance(array, pa.StructArray):
        return sum(_array_bytes(child) for child in array.flatten())
    return int(array.nbytes)


def _python_values(column: pa.Array, name: str, where: str) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ArithmeticError, ValueError, TypeError, LookupError, NotImplementedError, pa.ArrowException) as error:
        raise DataError(
            f"{where}: column {name} ({column.type}) holds a value that cannot be read: {error}; store the column as "
            "text, or correct the value"
        ) from error
    return values
