"""The rows of a question set, parsed out of its files but not yet checked.

Damage to a whole file (cut short, wrong encoding, a missing column) is a DataError here; what is wrong with one row
only travels along as its `problem`, so that `slick.datasets.validate` can set it aside. Only the columns that are used
matter: of a Parquet file the others are not even read.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from slick import limits
from slick.datasets.columns import ANSWER_COLUMNS, splits_in_name
from slick.datasets.columns import COLUMNS as POPULARITY_COLUMNS
from slick.datasets.readers.parquet import parquet_rows
from slick.datasets.readers.sources import QuestionSource, SourceFile
from slick.errors import DataError
from slick.user_files import InvalidJsonError, RowParser, csv_rows, decode, encoding_error, text_lines

COLUMNS = ("relation", "question", *ANSWER_COLUMNS, "subject", "split", "domain", *POPULARITY_COLUMNS)
"""The columns that are used; a file may have any others."""

_MAX_COLUMNS_LISTED = 20
"""Columns that a message lists."""

_FINE_TUNING_COLUMNS = ({"messages"}, {"conversations"}, {"prompt", "completion"}, {"instruction", "output"}, {"text"})
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
    """The splits that the name of the file may mean, see `slick.datasets.columns`."""

    @property
    def where(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, {'line' if self.file.lower().endswith(('.jsonl', '.csv')) else 'row'} {self.row}"


def read_rows(source: QuestionSource) -> Iterator[RawRow]:
    """All rows of a source, file by file; no two files are held in memory together.

    In the layout of EntityQuestions `relation` comes from the file's name.

    Raises:
        DataError: a file is damaged, empty, lacks a column, has more rows than are read, or changed meanwhile.
    """
    for file in source.read_files():
        if file.is_blank():
            raise DataError(f"{file.where} is empty ({file.size} bytes); fetch it again or leave it out")
        for number, row in enumerate(_file_rows(source, file), 1):
            if number > limits.MAX_ROWS_PER_FILE:
                raise DataError(
                    f"{file.where} has more than {limits.MAX_ROWS_PER_FILE:,} rows, which is the limit; leave some "
                    "out, or divide them among several files"
                )
            yield row


def _file_rows(source: QuestionSource, file: SourceFile) -> Iterator[RawRow]:
    if source.layout == "entity_questions":
        yield from _entity_questions(file)
        return
    reader = {"parquet": _parquet, "jsonl": _jsonl, "csv": _csv}[file.name.rpartition(".")[2].lower()]
    named = splits_in_name(file.name)
    try:
        for row in reader(file):
            # Parts of a study are named after their relation, which may be called anything.
            is_part = file.name.startswith("part-") and isinstance(row.content, dict) and "question_id" in row.content
            yield row if is_part or not named else replace(row, named_splits=named)
    except UnicodeDecodeError as error:
        with file.open() as stream:
            raise encoding_error(stream, file.where) from error


def _entity_questions(file: SourceFile) -> Iterator[RawRow]:
    where = file.where
    split, _, name = file.name.partition("/")
    relation = name.removesuffix(f".{split}.json")
    wanted = 'wanted a JSON list of {"question": "...", "answers": ["..."]}'
    text = decode(file.read(limits.MAX_DOCUMENT_BYTES, "write the questions as .jsonl, one a line"), where)
    start = len(text) - len(text.lstrip(" \t\r\n"))
    parser, number = RowParser(COLUMNS), 0
    try:
        if text[start] != "[":
            value, _ = parser.value(text, start)
            raise DataError(f"{where} holds a JSON {_kind(value)}; {wanted}")
        for number, content in enumerate(parser.items(text, start), 1):
            if isinstance(content, dict):
                content["relation"] = relation
                yield RawRow(file=where, row=number, content=content, named_splits=(split,))
            else:
                yield RawRow(
                    file=where, row=number, content=content, problem=f"found a JSON {_kind(content)}, wanted an object"
                )
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not whole JSON: {error.msg} at line {error.lineno}, column {error.colno} of {file.size:,} "
            f"bytes; {wanted}; fetch it again"
        ) from error
    except InvalidJsonError as error:
        raise DataError(f"{where}, row {number + 1}: {error}; {wanted}") from error


def _jsonl(file: SourceFile) -> Iterator[RawRow]:
    where, columns, parser, any_row = file.where, dict[str, None](), RowParser(COLUMNS), False
    with io.TextIOWrapper(file.open(), encoding="utf-8-sig", newline="\n") as text:
        for number, line in enumerate(text_lines(text, where), 1):
            if not line.strip():
                continue
            any_row = True
            content: Any = line.removesuffix("\n")
            problem = None
            try:
                content = parser.line(line)
                if isinstance(content, dict):
                    columns |= dict.fromkeys(
                        name for name in content if name in COLUMNS or len(columns) < _MAX_COLUMNS_LISTED
                    )
                else:
                    problem = f"found a JSON {_kind(content)}, wanted an object"
            except json.JSONDecodeError as error:
                problem = f"found no whole JSON object ({error.msg} at column {error.colno}), wanted one on each line"
            except InvalidJsonError as error:
                problem = str(error)
            yield RawRow(file=where, row=number, content=content, problem=problem)
    if not any_row:
        raise DataError(f"{where} holds no row; fetch it again or leave it out")
    if columns:
        _require_columns(list(columns), where)  # what only some rows lack is wrong with these rows alone


def _csv(file: SourceFile) -> Iterator[RawRow]:
    with io.TextIOWrapper(file.open(), encoding="utf-8-sig", newline="") as text:
        rows = csv_rows(text, file.where)
        header = [name.strip() for name in next(rows)[1]]
        _require_columns(header, file.where)
        for number, cells in rows:
            wrong = len(cells) != len(header)
            yield RawRow(
                file=file.where,
                row=number,
                content=cells if wrong else dict(zip(header, cells, strict=True)),
                problem=f"found {len(cells)} cells, wanted {len(header)} as in the header" if wrong else None,
            )


def _parquet(file: SourceFile) -> Iterator[RawRow]:
    def used(columns: list[str]) -> list[str]:
        _require_columns(columns, file.where)
        return [name for name in columns if name in (*COLUMNS, "question_id")]

    for number, content in enumerate(parquet_rows(file, used), 1):
        yield RawRow(file=file.where, row=number, content=content)


def _require_columns(found: list[str], where: str) -> None:
    missing = [name for name in ("relation", "question") if name not in found]
    if not any(name in found for name in ANSWER_COLUMNS):
        missing.append("answers (or answer)")
    repeated = _duplicate_columns(found)
    if repeated:
        raise DataError(
            f"{where} has column {', '.join(repeated)} more than once; wanted each once: rename or drop one"
        )
    if missing:
        raise DataError(
            f"{where} lacks column {', '.join(missing)}; found {_list_columns(found)}{_hint(found)}, wanted relation, "
            "question, answers and optionally subject, split, domain, popularity: rename the columns"
        )


def _duplicate_columns(names: Iterable[str]) -> list[str]:
    """Of the columns that are used, those that are there more than once."""
    return sorted(name for name, num in Counter(names).items() if num > 1 and name in COLUMNS)


def _list_columns(names: list[str]) -> str:
    return ", ".join(names[:_MAX_COLUMNS_LISTED]) + (
        f" and {len(names) - _MAX_COLUMNS_LISTED} more" if len(names) > _MAX_COLUMNS_LISTED else ""
    )


def _hint(found: list[str]) -> str:
    if len(found) == 1 and any(sign in found[0] for sign in ";\t|"):
        return " (are the cells separated by commas?)"
    if any(columns <= set(found) for columns in _FINE_TUNING_COLUMNS):
        return " (as in a file for fine-tuning; of each question and answer make one row)"
    return ""


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", int: "number", float: "number", bool: "boolean"}
    return names.get(type(value), "null")
