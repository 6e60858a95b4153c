"""Question files, zips of them, their rows before validation, and the registry of readers.

A reader parses one file format. Damage to a whole file (truncation, a wrong encoding, a missing column) raises
DataError. A defect of a single row is stored in `RawRow.problem`, so that `slick.datasets.validate` can set that row
aside. Members of a zip are read one at a time, in blocks, and never beyond the size that the zip states.
"""

import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, cast

import pyarrow as pa

from slick import limits
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

_MEMBER_BLOCK_BYTES = 1 << 16
_METHODS = {9: "Deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard", 95: "XZ"}
_HINT = "download the zip again, or unpack it and name the folder"
_READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, OSError, ValueError, pa.ArrowException)


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
            limit: maximum size of the file in bytes.
            fix: advice for a file that is larger, for the message.

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
        names: the names of all its columns.
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
    """The JSON type of a parsed value, for messages; the type in Python if it has none."""
    names = {dict: "object", list: "list", str: "string", int: "number", float: "number", bool: "boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


class Archive:
    """A zip, open for reading."""

    def __init__(self, stream: BinaryIO, location: str) -> None:
        """Read the list of members.

        Args:
            stream: the zip. The caller closes it.
            location: its path or URI, for messages.

        Raises:
            DataError: it is not a whole zip, or has more members than the limit.
        """
        self._location = location
        self._num_bytes = stream.seek(0, io.SEEK_END)
        try:
            self._zip = zipfile.ZipFile(stream)
        except (*_READ_ERRORS, NotImplementedError) as error:
            raise DataError(
                f"{location} is not a whole zip file: {error} ({self._num_bytes:,} bytes found); download it again, or "
                "unpack it with a repair tool and name the folder"
            ) from error
        if len(self._zip.filelist) > limits.MAX_FILES:
            raise DataError(
                f"{location} holds {len(self._zip.filelist):,} members, at most {limits.MAX_FILES:,} are read; join "
                "the files into fewer"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def names(self) -> list[str]:
        """The paths of all members."""
        return self._zip.namelist()

    def size(self, path: str) -> int:
        """Bytes that a member unpacks to, as the zip states. Reading the member fails if that is wrong."""
        return self._zip.getinfo(path).file_size

    def check(self, paths: list[str]) -> None:
        """Raise DataError if these members would unpack to more than the limits."""
        sizes = {path: self.size(path) for path in paths}
        largest, total = max(sizes, key=lambda path: sizes[path]), sum(sizes.values())
        if sizes[largest] > limits.MAX_MEMBER_BYTES:
            raise self._too_large(largest, limits.MAX_MEMBER_BYTES)
        limit = min(
            max(limits.FREE_UNPACKED_BYTES, limits.MAX_UNPACK_RATIO * self._num_bytes), limits.MAX_ARCHIVE_BYTES
        )
        if total > limit:
            raise DataError(
                f"{self._location} has {self._num_bytes:,} bytes and would unpack to {total:,}, at most {limit:,} are "
                f"read ({limits.MAX_UNPACK_RATIO} times its bytes, and {limits.MAX_ARCHIVE_BYTES:,}), the largest "
                f"member is {largest}; if you trust it, unpack it yourself and name the folder"
            )

    def open(self, path: str, limit: int) -> BinaryIO:
        """A member, open at its beginning. If it is damaged, reading it raises DataError.

        Args:
            path: the path of the member.
            limit: maximum size of the unpacked member in bytes.

        Raises:
            DataError: it states more, is encrypted, or is compressed by another method than deflate.
        """
        info = self._zip.getinfo(path)
        where = f"{self._location}, member {info.filename}"
        if info.file_size > limit:
            raise self._too_large(path, limit)
        if info.flag_bits & 1:
            raise DataError(f"{where}: it is encrypted, expected no encryption; unpack it and name the folder")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # The other methods can unpack a few bytes to any number in one step, or need gigabytes of memory.
            name = _METHODS.get(info.compress_type, f"method {info.compress_type}")
            raise DataError(f"{where}: it is compressed by {name}, expected deflate; compress it again, or {_HINT}")
        try:
            stream = self._zip.open(info)
        except (*_READ_ERRORS, NotImplementedError) as error:
            raise _damaged_error(where, error) from error
        return cast(BinaryIO, io.BufferedReader(_Member(stream, where, info.file_size), _MEMBER_BLOCK_BYTES))

    def _too_large(self, path: str, limit: int) -> DataError:
        fix = "if you trust it, unpack it yourself and name the folder"
        return too_large_error(f"{self._location}, member {path}", self.size(path), limit, fix)


class _Member(io.RawIOBase):
    """Unpacks a member in blocks, so that an understated size costs no memory, and names the member in errors."""

    def __init__(self, stream: Any, where: str, size: int) -> None:
        super().__init__()
        self._stream, self._where, self._left = stream, where, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(min(len(buffer), _MEMBER_BLOCK_BYTES))
        except _READ_ERRORS as error:
            raise _damaged_error(self._where, error) from error
        if not data and self._left:
            raise _damaged_error(self._where, EOFError())
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _damaged_error(where: str, error: Exception) -> DataError:
    return DataError(f"{where}: it is damaged ({str(error) or 'it ends too early'}); {_HINT}")
