"""JSONL: one JSON object a line."""

import io
import json
from collections.abc import Iterator
from typing import Any

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
from slick.strict_json import InvalidJsonError, RowParser
from slick.user_files import text_lines


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
    """The object of a line; or its text or other value, and what is wrong with it."""
    try:
        content = parser.line(line)
    except json.JSONDecodeError as error:
        problem = f"found no whole JSON object ({error.msg} at column {error.colno}), expected one on each line"
        return line.removesuffix("\n"), problem
    except InvalidJsonError as error:
        return line.removesuffix("\n"), str(error)
    return content, None if isinstance(content, dict) else f"found a JSON {json_type(content)}, expected an object"
