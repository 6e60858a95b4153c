"""CSV: cells separated by commas, with a header."""

import io
from collections.abc import Iterator

from slick.datasets.rows import RawRow, SourceFile, check_columns, question_readers
from slick.user_files import csv_rows


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
