"""The rows of a question set, parsed out of its files but not yet checked.

Damage to a whole file (cut short, wrong encoding, a missing column) is a DataError here; what is wrong with one row
only travels along as its `problem`, so that `slick.questions.checks` can set it aside.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slick.errors import DataError
from slick.questions.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One row as it was found."""

    file: str
    row: int
    """Counted from 1; in JSONL and CSV the line on which the row begins."""
    content: Any
    """A dict where the row is well formed."""
    problem: str | None = None
    """What kept the row from being parsed."""

    @property
    def where(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, {'line' if self.file.lower().endswith(('.jsonl', '.csv')) else 'row'} {self.row}"


def read_rows(source: Source) -> Iterator[RawRow]:
    """All rows of a source, file by file.

    In the layout of EntityQuestions `relation` and `split` come from the file's name.

    Raises:
        DataError: a file is damaged, empty, or lacks a column.
    """
    for name, data in source.files.items():
        where = f"{source.name}: {name}" if len(source.files) > 1 else source.name
        if not data.strip():
            raise DataError(f"{where} is empty ({len(data)} bytes); fetch it again or leave it out")
        if source.layout == "entity_questions":
            yield from _entity_questions(name, data, where)
        else:
            reader = {"parquet": _parquet, "jsonl": _jsonl, "csv": _csv}[name.rpartition(".")[2].lower()]
            yield from reader(data, where)


def decode(data: bytes, where: str) -> str:
    """Text of a file; a byte order mark of UTF-8 is taken off.

    Raises:
        DataError: it is not UTF-8; names the byte.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        guess = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "WINDOWS-1252"
        raise DataError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} (line {line}); convert it, "
            f"for example with `iconv -f {guess} -t UTF-8`"
        ) from error


def _entity_questions(name: str, data: bytes, where: str) -> Iterator[RawRow]:
    split, _, file = name.partition("/")
    relation = file.removesuffix(f".{split}.json")
    wanted = 'wanted a JSON list of {"question": "...", "answers": ["..."]}'
    try:
        rows = json.loads(decode(data, where))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not whole JSON: {error.msg} at line {error.lineno}, column {error.colno} of {len(data):,} "
            f"bytes; {wanted}; fetch it again"
        ) from error
    except RecursionError as error:
        raise DataError(f"{where} nests lists too deeply; {wanted}") from error
    if not isinstance(rows, list):
        raise DataError(f"{where} holds a JSON {_kind(rows)}; {wanted}")
    for number, content in enumerate(rows, 1):
        if isinstance(content, dict):
            yield RawRow(file=where, row=number, content={**content, "relation": relation, "split": split})
        else:
            yield RawRow(
                file=where, row=number, content=content, problem=f"found a JSON {_kind(content)}, wanted an object"
            )


def _jsonl(data: bytes, where: str) -> Iterator[RawRow]:
    any_row = False
    for number, line in enumerate(decode(data, where).split("\n"), 1):
        if not line.strip():
            continue
        any_row = True
        content: Any = line
        problem = None
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                problem = f"found a JSON {_kind(content)}, wanted an object"
        except json.JSONDecodeError as error:
            problem = f"found no whole JSON object ({error.msg} at column {error.colno}), wanted one on each line"
        except RecursionError:
            problem = "found JSON nested too deeply, wanted one flat object on each line"
        yield RawRow(file=where, row=number, content=content, problem=problem)
    if not any_row:
        raise DataError(f"{where} holds no row; fetch it again or leave it out")


def _csv(data: bytes, where: str) -> Iterator[RawRow]:
    text = decode(data, where)
    csv.field_size_limit(1 << 24)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        header = [name.strip() for name in next(lines)]
        _require_columns(header, where)
        number = lines.line_num + 1
        for cells in lines:
            if cells:
                wrong = len(cells) != len(header)
                yield RawRow(
                    file=where,
                    row=number,
                    content=cells if wrong else dict(zip(header, cells, strict=True)),
                    problem=f"found {len(cells)} cells, wanted {len(header)} as in the header" if wrong else None,
                )
            number = lines.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{where} is not whole CSV: {error} in the row that begins on line {number}; look for a quote that is not "
            "closed (a quote inside a cell is written twice), or fetch the file again"
        ) from error


def _parquet(data: bytes, where: str) -> Iterator[RawRow]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        _require_columns(file.schema_arrow.names, where)
        number = 0
        for batch in file.iter_batches(batch_size=8192):
            for content in batch.to_pylist():
                number += 1
                yield RawRow(file=where, row=number, content=content)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not a whole Parquet file: {error}; write it or fetch it again") from error


def _require_columns(found: list[str], where: str) -> None:
    missing = [name for name in ("relation", "question") if name not in found]
    if "answers" not in found and "answer" not in found:
        missing.append("answers (or answer)")
    repeated = sorted({name for name in found if found.count(name) > 1})
    if repeated:
        raise DataError(
            f"{where} has column {', '.join(repeated)} more than once; wanted each once: rename or drop one"
        )
    if missing:
        hint = " (are the cells separated by commas?)" if len(found) == 1 and any(c in found[0] for c in ";\t|") else ""
        raise DataError(
            f"{where} lacks column {', '.join(missing)}; found {', '.join(found)}{hint}, wanted relation, question, "
            "answers and optionally subject, split, domain, popularity: rename the columns"
        )


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", int: "number", float: "number", bool: "boolean"}
    return names.get(type(value), "null")
