"""Readers of question files: CSV, JSONL, Parquet and the JSON files of EntityQuestions; see `slick.datasets.rows`.

EntityQuestions has `{train,dev,test}/RELATION.{train,dev,test}.json`, each a JSON list, and a file of templates.
Parquet is read in batches within limits: a few bytes can unpack to billions of rows or gigabytes of text.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slick import limits
from slick.datasets.rows import (
    COLUMNS,
    MAX_COLUMNS_LISTED,
    RawRow,
    SourceFile,
    check_columns,
    json_type,
    question_readers,
)
from slick.errors import DataError
from slick.matching import nfc
from slick.storage import pickled_columns
from slick.strict_json import InvalidJsonError, RowParser, parse_user_json
from slick.user_files import csv_rows, decode, text_lines

_BATCH_ROWS = 8192
TEMPLATES_FILE = "relation_query_templates.json"

MEMBER_PATTERN = re.compile(r"(?P<top>.*?)(?P<name>(?P<split>train|dev|test)/(?P<relation>[^/]+)\.(?P=split)\.json)")
"""Path of a question file in a zip: the folders above the dataset, then the name below it."""

_EXPECTED = 'expected a JSON list of {"question": "...", "answers": ["..."]}'


@question_readers.register(".csv")
def read_csv(file: SourceFile) -> Iterator[RawRow]:
    """The rows of a CSV file.

    Raises:
        DataError: the file is malformed, lacks a column, or has a longer row than the limit.
    """
    with io.TextIOWrapper(file.open(), encoding="utf-8-sig", newline="") as text:
        rows = csv_rows(text, file.where)
        header = [name.strip() for name in next(rows)[1]]
        check_columns(header, file.where)
        for line, cells in rows:
            if len(cells) == len(header):
                yield RawRow(file=file.where, row=line, unit="line", content=dict(zip(header, cells, strict=True)))
            else:
                problem = f"found {len(cells)} cells, expected {len(header)} as in the header"
                yield RawRow(file=file.where, row=line, unit="line", content=cells, problem=problem)


@question_readers.register(".jsonl")
def read_jsonl(file: SourceFile) -> Iterator[RawRow]:
    """The rows of a JSONL file. Blank lines are skipped.

    Raises:
        DataError: the file has no row, or a longer line than the limit, or no row has a required column.
    """
    columns: dict[str, None] = {}
    parser, any_row = RowParser(COLUMNS), False
    with io.TextIOWrapper(file.open(), encoding="utf-8-sig", newline="\n") as text:
        for number, line in enumerate(text_lines(text, file.where), 1):
            if not line.strip():
                continue
            any_row = True
            content, problem = _parse_line(line, parser)
            if isinstance(content, dict):
                columns |= dict.fromkeys(
                    name for name in content if name in COLUMNS or len(columns) < MAX_COLUMNS_LISTED
                )
            yield RawRow(file=file.where, row=number, unit="line", content=content, problem=problem)
    if not any_row:
        raise DataError(f"{file.where} holds no row; download it again or leave it out")
    if columns:  # a column that only some rows lack is a problem of those rows
        check_columns(list(columns), file.where)


def _parse_line(line: str, parser: RowParser) -> tuple[Any, str | None]:
    """The object of a line; for an invalid line its text or other value, and the problem."""
    try:
        content = parser.line(line)
    except json.JSONDecodeError as error:
        problem = f"found no whole JSON object ({error.msg} at column {error.colno}), expected one on each line"
        return line.removesuffix("\n"), problem
    except InvalidJsonError as error:
        return line.removesuffix("\n"), str(error)
    return content, None if isinstance(content, dict) else f"found a JSON {json_type(content)}, expected an object"


@question_readers.register(".parquet")
def read_parquet(file: SourceFile) -> Iterator[RawRow]:
    """The rows of a Parquet file. Columns that are not used are not read.

    Raises:
        DataError: the file is damaged, lacks a column, or unpacks to more rows or bytes than the limits.
    """
    numbers = count(1)
    for batch in parquet_batches(file, _used_columns):
        columns = batch.schema.names
        values = [python_values(batch.column(name), name, file.where) for name in columns]
        for cells in zip(*values, strict=True):
            yield RawRow(file=file.where, row=next(numbers), content=dict(zip(columns, cells, strict=True)))


def parquet_batches(
    file: SourceFile, choose: Callable[[pa.Schema, str], list[str]], *, ratio: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in batches of bounded size, texts dictionary-encoded.

    Args:
        file: the file.
        choose: gives the columns to read, from the schema of the file and its name for messages.
        ratio: maximum number of unpacked bytes per byte of the file; None for `limits.MAX_UNPACK_RATIO`.

    Raises:
        DataError: the file is damaged, a column may hold pickles, or it unpacks to more rows or bytes than the limits.
    """
    where, limit = file.where, _unpack_limit(file, ratio or limits.MAX_UNPACK_RATIO)
    with parquet_errors(where), file.random_access() as stream:
        parquet = pq.ParquetFile(stream)
        columns = choose(parquet.schema_arrow, where)
        _check_pickles(parquet.schema_arrow, columns, where)
        _check_metadata(parquet.metadata, columns, file, limit)
        # Dictionary encoding is kept, so that repeated texts are counted before they are unpacked.
        texts = [path for path, kind in _leaf_columns(parquet.metadata, columns) if kind == "BYTE_ARRAY"]
        parquet = pq.ParquetFile(stream, read_dictionary=texts)
        bytes_left = limit
        for large_batch in _group_batches(parquet, columns):
            for batch in _split_batch(large_batch):
                bytes_left -= num_bytes(batch)
                if bytes_left < 0:
                    raise _too_large_error(file, "more", limit)
                yield batch


def _group_batches(parquet: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows in batches, none over two row groups: Arrow cannot join the dictionaries of nested columns."""
    for group in range(parquet.num_row_groups):
        yield from parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns, row_groups=[group])


@contextmanager
def parquet_errors(where: str) -> Iterator[None]:
    """Turn errors of reading a Parquet file into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not a complete Parquet file: {error}; write it or download it again") from error


def _used_columns(schema: pa.Schema, where: str) -> list[str]:
    check_columns(schema.names, where)
    return [name for name in schema.names if name in (*COLUMNS, "question_id")]


def _check_pickles(schema: pa.Schema, columns: list[str], where: str) -> None:
    if names := sorted({*pickled_columns(schema)} & {*columns}):
        raise DataError(
            f"{where} has columns of a type that can hold pickles, which run code when they are read: {names}; "
            "write them as text or numbers"
        )


def _check_metadata(metadata: pq.FileMetaData, columns: list[str], file: SourceFile, max_bytes: int) -> None:
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
    if unpacked > max_bytes:
        raise _too_large_error(file, f"{unpacked:,}", max_bytes)


def _unpack_limit(file: SourceFile, ratio: int) -> int:
    return max(limits.FREE_UNPACKED_BYTES, ratio * file.size)


def _too_large_error(file: SourceFile, num_bytes: str, limit: int) -> DataError:
    return DataError(
        f"{file.where} has {file.size:,} bytes and its columns would unpack to {num_bytes}, at most "
        f"{limit:,} are read ({limit // max(1, file.size)} times its bytes); if you trust it, write it as "
        ".jsonl"
    )


def _leaf_columns(metadata: pq.FileMetaData, columns: list[str]) -> list[tuple[str, str]]:
    """Path and physical type of the leaf columns of these columns."""
    schema = metadata.schema
    leaves = [schema.column(i) for i in range(len(schema))]
    return [(leaf.path, leaf.physical_type) for leaf in leaves if leaf.path.partition(".")[0] in columns]


def _split_batch(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Parts of a batch, in order, each of which unpacks to at most the limit of a batch."""
    if batch.num_rows < 2 or num_bytes(batch) <= limits.MAX_BATCH_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _split_batch(batch.slice(0, half))
    yield from _split_batch(batch.slice(half))


def num_bytes(batch: pa.RecordBatch) -> int:
    """Bytes that a batch unpacks to."""
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


def python_values(column: pa.Array, name: str, where: str) -> list[Any]:
    """The values of a column. Raises DataError if Python has no such value; `name` and `where` are for its message."""
    try:
        values: list[Any] = column.to_pylist()
    except (ArithmeticError, ValueError, TypeError, LookupError, NotImplementedError, pa.ArrowException) as error:
        raise DataError(
            f"{where}: column {name} ({column.type}) holds a value that cannot be read: {error}; store the column as "
            "text, or correct the value"
        ) from error
    return values


@question_readers.register("entity_questions")
def read_entity_questions(file: SourceFile) -> Iterator[RawRow]:
    """The rows of one relation and split. The name of the file gives `relation` and the split.

    Raises:
        DataError: the file is not a JSON list, or is larger than the limit.
    """
    where = file.where
    split, _, name = file.name.partition("/")
    relation = name.removesuffix(f".{split}.json")
    text = decode(file.read(limits.MAX_DOCUMENT_BYTES, "write the questions as .jsonl, one per line"), where)
    start = len(text) - len(text.lstrip(" \t\r\n"))
    parser, number = RowParser(COLUMNS), 0
    try:
        if text[start] != "[":
            value, _ = parser.value(text, start)
            raise DataError(f"{where} holds a JSON {json_type(value)}; {_EXPECTED}")
        for number, content in enumerate(parser.items(text, start), 1):
            if isinstance(content, dict):
                content["relation"] = relation
                yield RawRow(file=where, row=number, content=content, named_splits=(split,))
            else:
                problem = f"found a JSON {json_type(content)}, expected an object"
                yield RawRow(file=where, row=number, content=content, problem=problem)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not whole JSON: {error.msg} at line {error.lineno}, column {error.colno} of {file.size:,} "
            f"bytes; {_EXPECTED}; download it again"
        ) from error
    except InvalidJsonError as error:
        raise DataError(f"{where}, row {number + 1}: {error}; {_EXPECTED}") from error


def parse_templates(data: bytes, where: str) -> dict[str, str]:
    """The question templates by relation; those without exactly one `[X]` are left out.

    Args:
        data: content of `relation_query_templates.json`.
        where: the file, for messages.

    Raises:
        DataError: it is not a JSON object of strings.
    """
    templates = parse_user_json(data, where, "fix it, or remove it to use the shipped templates")
    if not isinstance(templates, dict) or not all(isinstance(template, str) for template in templates.values()):
        raise DataError(
            f'{where} is not of the form {{"P17": "Which country is [X] located in?", ...}}; fix or remove it'
        )
    return {nfc(relation): template for relation, template in templates.items() if template.count("[X]") == 1}
