"""The interface of a user's fine-tuning data, in files or in memory: its rows, and edited copies of it."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from slick import limits
from slick.curation.containers import NewColumns, RowEdit
from slick.errors import DataError, SettingsError
from slick.storage import Folder


class DataFile(ABC):
    """A user's data set. Rows have the same order and numbers whenever they are read."""

    name: str
    """As the user gave it."""
    container: str
    """The kind of file or object."""

    suffix: str
    """That of a copy, such as `.jsonl.gz`; empty if a copy is a folder."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the content. Raises DataError if the data is damaged."""
        digest = hashlib.sha256()
        for _, row in self.rows():
            digest.update(json.dumps(row, default=str).encode() + b"\n")
        return digest.hexdigest()[:16]

    @abstractmethod
    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """All rows, each with its place for messages, such as `data.jsonl, line 12`.

        Args:
            columns: those to read; None reads all.

        Raises:
            DataError: the data is damaged, has no row, or changed since it was opened.
        """

    @abstractmethod
    def write(self, to: str, edits: Iterable[RowEdit], new_columns: NewColumns, *, overwrite: bool = False) -> None:
        """Write an edited copy in the same container. Nothing is left behind if it fails.

        Args:
            to: path or URI of the copy.
            edits: by ascending index of their rows; rows without an edit are unchanged.
            new_columns: the columns that every row gets; existing ones of these names are replaced in place.
            overwrite: replace an existing copy.

        Raises:
            DataError: the data changed since it was opened, or a new value does not fit its column.
            SettingsError: the copy exists, would replace the data itself, or has the suffix of another container.
            StudyError: the copy cannot be written.
        """

    @abstractmethod
    def loading_code(self, path: str) -> str | None:
        """The line of Python that reads a copy at this path with the package `datasets`; None if it cannot."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in the order in which they first occur. Raises DataError if the data is damaged."""
        return self._scan[0]

    @property
    def num_rows(self) -> int:
        """Number of rows. Raises DataError if the data is damaged."""
        return self._scan[1]

    def first_rows(self, num: int = 100) -> list[dict[str, Any]]:
        """The first rows, to detect their format."""
        return [row for _, row in islice(self.rows(), num)]

    @cached_property
    def _scan(self) -> tuple[tuple[str, ...], int]:
        """The columns and the number of rows, from one pass over the data."""
        columns: dict[str, None] = {}
        num = 0
        for place, row in self.rows():
            columns.update(dict.fromkeys(row))
            if len(columns) > limits.MAX_COLUMNS:
                raise DataError(
                    f"{place}: up to here the data has {len(columns):,} columns, at most {limits.MAX_COLUMNS:,} are "
                    "read; drop those that are not needed, or nest them in one"
                )
            num += 1
        return tuple(columns), num


class MemoryData(DataFile):
    """Rows of an object in memory."""

    @abstractmethod
    def edited(self, edits: Iterable[RowEdit], new_columns: NewColumns) -> Any:
        """An edited copy, of the type of the object; see `DataFile.write`."""


def check_target(
    target: Folder, source: Folder | None, *, overwrite: bool, replaceable: Sequence[str] | None = None
) -> None:
    """Refuse to overwrite anything that is not an earlier copy.

    Args:
        target: the file or folder of the copy.
        source: the data; None if it is in memory.
        overwrite: replace an earlier copy.
        replaceable: paths of files that a replaced folder may hold, beside a card; None for a file.

    Raises:
        SettingsError: the target exists, or one of the two is inside the other.
    """
    first, second = (
        f"{os.path.realpath(place.uri) if place.is_local else place.uri}/" for place in (target, source or target)
    )
    if source is not None and (first.startswith(second) or second.startswith(first)):
        raise SettingsError(f"the copy {target} would replace the data {source} or lie in it; give another place")
    if not target.exists():
        return
    if replaceable is None and target.name not in target.parent.names():
        raise SettingsError(f"{target} is a folder, expected the name of a file; give another name")
    present = target.sizes() if replaceable is not None else {}
    if not overwrite and (replaceable is None or present):
        raise SettingsError(f"{target} exists; give another name, or replace it with --overwrite")
    if others := sorted(present.keys() - {*(replaceable or ()), "README.md"}):
        raise SettingsError(
            f"{target} holds files that are not an earlier copy: {', '.join(others[:5])}; give an empty or new folder"
        )
