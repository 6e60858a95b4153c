"""Containers of fine-tuning rows: JSONL, JSON lists, CSV and Parquet. Each reads a file and writes an edited copy."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa

from slick.datasets.rows import SourceFile
from slick.errors import DataError
from slick.registry import Registry

NewColumns = Mapping[str, pa.DataType]
"""Columns that are added to a file, or replaced in their place if it has them, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowEdit:
    """The edit of one row."""

    index: int
    """Of the row in the whole set, from 0."""
    row: Mapping[str, Any] | None = None
    """New values of its columns; columns that are not here keep theirs. None: all do."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Values of the new columns; those that are not here are null."""
    repeat: int = 1
    """How often the row is written; 0 drops it."""


class EditCursor:
    """The edits of consecutive rows."""

    def __init__(self, edits: Iterable[RowEdit]) -> None:
        """A cursor before the first row.

        Args:
            edits: at most one per row, by ascending index. Rows without an edit are unchanged.
        """
        self._edits = iter(edits)
        self._next = next(self._edits, None)
        self._index = 0

    def advance(self) -> RowEdit:
        """The edit of the next row.

        Raises:
            ValueError: the next edit is of an earlier row.
        """
        index, edit = self._index, self._next
        self._index += 1
        if edit is None or edit.index > index:
            return RowEdit(index=index)
        if edit.index < index:
            raise ValueError(f"the edit of row {edit.index} follows those up to row {index}; expected ascending rows")
        self._next = next(self._edits, None)
        return edit

    def take(self, num: int) -> list[RowEdit]:
        """The edits of the next rows. Raises ValueError as `advance`."""
        return [self.advance() for _ in range(num)]

    def finish(self) -> None:
        """Raise ValueError if there is an edit of a row after the last."""
        if self._next is not None:
            raise ValueError(f"there is an edit of row {self._next.index}, expected fewer than {self._index} rows")


class Container(ABC):
    """A file format. It does not interpret the rows."""

    name: str
    suffixes: tuple[str, ...]
    loader: str
    """Argument of `datasets.load_dataset` that reads the format."""
    gzip_is_loaded = True
    """Whether `datasets.load_dataset` also reads gzipped files."""

    def accepts(self, file: SourceFile) -> bool:
        """Whether a file with one of the suffixes has this format; looks at its beginning."""
        return True

    def load_options(self, file: SourceFile) -> Mapping[str, str]:
        """Further arguments of `datasets.load_dataset`."""
        return {}

    @abstractmethod
    def rows(self, file: SourceFile, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows, each with its place such as `line 12`.

        Args:
            file: the file.
            columns: those to read; None reads all.

        Raises:
            DataError: the file is damaged. The message names the file and the line or row.
        """

    @abstractmethod
    def write(self, file: SourceFile, output: BinaryIO, edits: EditCursor, new_columns: NewColumns) -> None:
        """Write an edited copy of a file. Everything that is not edited stays unchanged.

        Args:
            file: the file.
            output: where the copy is written.
            edits: at the first row of the file.
            new_columns: the columns that every row gets.

        Raises:
            DataError: the file is damaged, or a value does not fit the type of its column.
        """


CONTAINERS: Registry[Callable[[], Container]] = Registry("container", "slick.curation.containers")
"""Container classes by name."""


def container_suffixes() -> list[str]:
    """The suffixes of all containers."""
    return sorted({suffix for _, container in CONTAINERS.items() for suffix in container().suffixes})


def find_container(file: SourceFile) -> Container:
    """The container of a file, by its suffix and its beginning.

    Raises:
        DataError: there is none.
    """
    for _, make in CONTAINERS.items():
        container = make()
        if file.name.lower().endswith(container.suffixes) and container.accepts(file):
            return container
    raise DataError(
        f"{file.where} has an unsupported file format; expected {', '.join(container_suffixes())}, each also with "
        ".gz: convert it"
    )
