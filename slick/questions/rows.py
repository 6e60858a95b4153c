"""The rows of a question set, parsed out of its files but not yet checked.

Damage to a whole file (cut short, wrong encoding, a missing column) is a DataError here; what is wrong with one row
only travels along as its `problem`, so that `slick.questions.checks` can set it aside. Only the columns that are used
matter: of a Parquet file the others are not even read.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from slick.errors import DataError
from slick.questions.fields import ANSWER_COLUMNS
from slick.questions.popularity import COLUMNS as POPULARITY_COLUMNS
from slick.questions.sources import Source
from slick.questions.splits import splits_in_name
from slick.storage import pickled_columns

COLUMNS = ("relation", "question", *ANSWER_COLUMNS, "subject", "split", "domain", *POPULARITY_COLUMNS)
"""The columns that are used; a file may have any others."""

_FINE_TUNING = ({"messages"}, {"conversations"}, {"prompt", "completion"}, {"instruction", "output"}, {"text"})
"""Columns of common files for fine-tuning, which are no question sets."""


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
    named_splits: tuple[str, ...] = ()
    """The splits that the name of the file may mean, see `slick.questions.splits`."""

    @property
    def where(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, {'line' if self.file.lower().endswith(('.jsonl', '.csv')) else 'row'} {self.row}"


def read_rows(source: Source) -> Iterator[RawRow]:
    """All rows of a source, file by file.

    In the layout of EntityQuestions `relation` comes from the file's name.

    Raises:
        DataError: a file is damaged, empty, or lacks a column.
    """
    for name, data in source.files.items():
        where = source.name if source.name.endswith(name) else f"{source.name}: {name}"
        if not data.strip():
            raise DataError(f"{where} is empty ({len(data)} bytes); fetch it again or leave it out")
        if source.layout == "entity_questions":
            yield from _entity_questions(name, data, where)
        else:
            reader = {"parquet": _parquet, "jsonl": _jsonl, "csv": _csv}[name.rpartition(".")[2].lower()]
            named = splits_in_name(name)
            for row in reader(data, where):
                # Parts of a study are named after their relation, which may be called anything.
                is_part = name.startswith("part-") and isinstance(row.content, dict) and "question_id" in row.content
                yield row if is_part or not named else replace(row, named_splits=named)


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
            content = {**content, "relation": relation}
            yield RawRow(file=where, row=number, content=content, named_splits=(split,))
        else:
            yield RawRow(
                file=where, row=number, content=content, problem=f"found a JSON {_kind(content)}, wanted an object"
            )


def _jsonl(data: bytes, where: str) -> Iterator[RawRow]:
    any_row, columns = False, dict[str, None]()
    for number, line in enumerate(decode(data, where).split("\n"), 1):
        if not line.strip():
            continue
        any_row = True
        content: Any = line
        problem = None
        try:
            content = json.loads(line, object_pairs_hook=_json_object, parse_int=_json_integer)
            if isinstance(content, dict):
                columns |= dict.fromkeys(content)
            else:
                problem = f"found a JSON {_kind(content)}, wanted an object"
        except json.JSONDecodeError as error:
            problem = f"found no whole JSON object ({error.msg} at column {error.colno}), wanted one on each line"
        except RecursionError:
            problem = "found JSON nested too deeply, wanted one flat object on each line"
        except _RepeatedKey as error:
            problem = f"found {error} more than once in the object, wanted each once"
        yield RawRow(file=where, row=number, content=content, problem=problem)
    if not any_row:
        raise DataError(f"{where} holds no row; fetch it again or leave it out")
    if columns:
        _require_columns(list(columns), where)  # what only some rows lack is wrong with these rows alone


class _RepeatedKey(ValueError):
    pass


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """As `json` makes it; but of a key that is there twice `json` would take the last value without a word."""
    row = dict(pairs)
    if len(row) < len(pairs) and (repeated := _repeated(key for key, _ in pairs)):
        raise _RepeatedKey(", ".join(repeated))
    return row


def _json_integer(digits: str) -> int | str:
    return int(digits) if len(digits) < 4000 else digits  # Python refuses to convert longer ones


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
        columns = file.schema_arrow.names
        _require_columns(columns, where)
        used = [name for name in columns if name in (*COLUMNS, "question_id")]
        if names := sorted({*pickled_columns(file.schema_arrow)} & {*used}):
            raise DataError(
                f"{where} has columns of a type that can hold pickles, which run code when they are read: {names}; "
                "write them as text or numbers"
            )
        number = 0
        for batch in file.iter_batches(batch_size=8192, columns=used):
            values = [_python_values(batch.column(name), name, where) for name in used]
            for cells in zip(*values, strict=True):
                number += 1
                yield RawRow(file=where, row=number, content=dict(zip(used, cells, strict=True)))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not a whole Parquet file: {error}; write it or fetch it again") from error


def _python_values(column: pa.Array, name: str, where: str) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ArithmeticError, ValueError, TypeError, LookupError, NotImplementedError, pa.ArrowException) as error:
        raise DataError(
            f"{where}: column {name} ({column.type}) holds a value that cannot be read: {error}; store the column as "
            "text, or correct the value"
        ) from error
    return values


def _require_columns(found: list[str], where: str) -> None:
    missing = [name for name in ("relation", "question") if name not in found]
    if not any(name in found for name in ANSWER_COLUMNS):
        missing.append("answers (or answer)")
    repeated = _repeated(found)
    if repeated:
        raise DataError(
            f"{where} has column {', '.join(repeated)} more than once; wanted each once: rename or drop one"
        )
    if missing:
        raise DataError(
            f"{where} lacks column {', '.join(missing)}; found {_some(found)}{_hint(found)}, wanted relation, "
            "question, answers and optionally subject, split, domain, popularity: rename the columns"
        )


def _repeated(names: Iterable[str]) -> list[str]:
    """Of the columns that are used, those that are there more than once."""
    return sorted(name for name, num in Counter(names).items() if num > 1 and name in COLUMNS)


def _some(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _hint(found: list[str]) -> str:
    if len(found) == 1 and any(sign in found[0] for sign in ";\t|"):
        return " (are the cells separated by commas?)"
    if any(columns <= set(found) for columns in _FINE_TUNING):
        return " (as in a file for fine-tuning; of each question and answer make one row)"
    return ""


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", int: "number", float: "number", bool: "boolean"}
    return names.get(type(value), "null")
