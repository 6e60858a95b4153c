"""Question files, their rows before validation, and the registry of readers.

A reader parses one file format. Damage to a whole file (truncation, a wrong encoding, a missing column) raises
DataError. A defect of a single row is stored in `RawRow.problem`, so that `slick.datasets.validate` can set that row
aside.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from slick.datasets.columns import ANSWER_COLUMNS, POPULARITY_COLUMNS
from slick.errors import DataError
from slick.registry import Registry
from slick.user_files import too_large_error

COLUMNS = ("relation", "question", *ANSWER_COLUMNS, "subject", "split", "domain", *POPULARITY_COLUMNS)
"""The columns that are used. A file may have others."""

BLOCK_BYTES = 1 << 20
"""Bytes that are read from a file at a time."""

MAX_COLUMNS_LISTED = 20
"""Columns that a message lists."""

_FINE_TUNING_COLUMNS = ({"messages"}, {"conversations"}, {"prompt", "completion"}, {"instruction", "output"}, {"text"})
"""Columns of common fine-tuning files, which are not question sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a question set, or one member of a zip."""

    name: str
    """Path below the question set."""
    where: str
    """For messages."""
    size: int
    """Bytes, unpacked."""
    open: Callable[[], BinaryIO]
    """Opens the file at its beginning. Errors name the file."""
    random_access: Callable[[], pa.NativeFile]
    """Opens the file for formats that are not read in order. A member of a zip is then held in memory whole."""

    def is_blank(self) -> bool:
        """True if the file holds only white space and a byte order mark."""
        with self.open() as stream:
            blocks = iter(lambda: stream.read(BLOCK_BYTES), b"")
            return not any(block.strip(b"\xef\xbb\xbf \t\r\n\v\f") for block in blocks)

    def read(self, limit: int, fix: str) -> bytes:
        """The content.

        Args:
            limit: the most bytes that the file may have.
            fix: what to do if it has more, for the message.

        Raises:
            DataError: it has more bytes than `limit`.
        """
        if self.size > limit:
            raise too_large_error(self.where, self.size, limit, fix)
        with self.open() as stream:
            return stream.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One row as it is in the file."""

    file: str
    row: int
    """Number of the row, or of the line on which it begins, counted from 1."""
    content: Any
    """A dict if the row is well formed."""
    unit: Literal["row", "line"] = "row"
    """What `row` counts."""
    problem: str | None = None
    """Why the row could not be parsed."""
    named_splits: tuple[str, ...] = ()
    """The splits that the name of the file may mean; see `slick.datasets.columns.splits_in_name`."""

    @property
    def where(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, {self.unit} {self.row}"


RowReader = Callable[[SourceFile], Iterator[RawRow]]

question_readers: Registry[RowReader] = Registry("question reader", "slick.datasets.readers")
"""Readers by the lower-case suffix of their files, such as `.csv`.

`entity_questions` is not a suffix: it reads the files of a folder layout.
"""


def table_suffixes() -> tuple[str, ...]:
    """The suffixes of all formats in which a question set can be one file."""
    return tuple(sorted(name for name in question_readers.names() if name.startswith(".")))


def is_table(path: str) -> bool:
    """True if a reader is registered for the suffix of this path, ignoring letter case."""
    return path.lower().endswith(table_suffixes())


def reader_for(path: str) -> RowReader:
    """The reader with the longest suffix that a path ends with.

    Raises:
        SettingsError: there is none.
    """
    suffixes = [suffix for suffix in table_suffixes() if path.lower().endswith(suffix)]
    return question_readers.get(max(suffixes, key=len, default=path))


def check_columns(names: Sequence[str], where: str) -> None:
    """Refuse a table without the required columns.

    Args:
        names: of all its columns.
        where: the file, for messages.

    Raises:
        DataError: a required column is missing, or a column that is used occurs twice.
    """
    repeated = sorted(name for name, num in Counter(names).items() if num > 1 and name in COLUMNS)
    if repeated:
        raise DataError(
            f"{where} has column {', '.join(repeated)} more than once; expected each once: rename or drop one"
        )
    missing = [name for name in ("relation", "question") if name not in names]
    if not any(name in names for name in ANSWER_COLUMNS):
        missing.append("answers (or answer)")
    if missing:
        raise DataError(
            f"{where} lacks column {', '.join(missing)}; found {_list_columns(names)}{_hint(names)}, expected "
            "relation, question, answers and optionally subject, split, domain, popularity: rename the columns"
        )


def _list_columns(names: Sequence[str]) -> str:
    num_more = len(names) - MAX_COLUMNS_LISTED
    return ", ".join(names[:MAX_COLUMNS_LISTED]) + (f" and {num_more} more" if num_more > 0 else "")


def _hint(names: Sequence[str]) -> str:
    """The likely mistake, in parentheses."""
    if len(names) == 1 and any(sign in names[0] for sign in ";\t|"):
        return " (are the cells separated by commas?)"
    if any(columns <= set(names) for columns in _FINE_TUNING_COLUMNS):
        return " (this is a fine-tuning file; make one row of each question and answer)"
    return ""


def json_type(value: object) -> str:
    """The JSON type of a parsed value, for messages."""
    names = {dict: "object", list: "list", str: "string", int: "number", float: "number", bool: "boolean"}
    return names.get(type(value), "null")
