"""A user's fine-tuning data: a file or a folder of shards, read row by row, and written back with edited rows."""

import gzip
import hashlib
import io
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, BinaryIO, cast

import pyarrow as pa

from slick import limits
from slick.curation.containers import (
    Container,
    EditCursor,
    NewColumns,
    RowEdit,
    container_suffixes,
    find_container,
)
from slick.datasets.rows import BLOCK_BYTES, SourceFile
from slick.datasets.sources import source_file
from slick.errors import DataError, SettingsError, StudyError
from slick.storage import Folder

__all__ = ["DataFile", "NewColumns", "RowEdit", "open_data"]

_METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "manifest.json")
"""JSON files beside the shards of a folder that hold no rows."""


class DataFile(ABC):
    """A user's data set. Rows have the same order and numbers whenever they are read."""

    name: str
    """As the user gave it."""
    container: str
    """The kind of file or object."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits of the content."""

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
    def loading_code(self, path: str) -> str:
        """The line of Python that reads a copy at this path with the package `datasets`."""

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
        for _, row in self.rows():
            columns.update(dict.fromkeys(row))
            num += 1
        return tuple(columns), num


class StoredData(DataFile):
    """One file, or a folder of files of one container."""

    def __init__(self, name: str, folder: Folder, names: Sequence[str], *, is_folder: bool) -> None:
        """Open the data; files are read later.

        Args:
            name: as the user gave it.
            folder: the folder, or that of the file.
            names: paths of the files in it.
            is_folder: whether the data is the folder.

        Raises:
            DataError: a file is empty, or of no known container or another than the first.
        """
        self.name = name
        self._folder, self._names, self._is_folder = folder, tuple(names), is_folder
        self._versions = self._read_versions()
        kinds: dict[str, Container] = {}
        for file in self._files():
            if file.is_blank():
                raise DataError(f"{file.where} is empty ({file.size} bytes); download it again or leave it out")
            kinds[file.name] = find_container(file)
        self._container = next(iter(kinds.values()))
        self.container = self._container.name
        other = next((file for file, kind in kinds.items() if kind.name != self.container), None)
        if other is not None:
            raise DataError(
                f"{name} holds files of several containers: {names[0]} ({self.container}) and {other} "
                f"({kinds[other].name}); expected one: curate them one at a time"
            )

    def _files(self) -> Iterator[SourceFile]:
        """The files, uncompressed."""
        for path in self._names:
            *folders, file = path.split("/")
            size = self._versions[path][0]
            source = source_file(self._folder.child(*folders), file, path, self.name, size)
            yield _unzipped(source) if file.lower().endswith(".gz") else source

    def _read_versions(self) -> dict[str, tuple[int, int]]:
        parts = {path: path.rpartition("/") for path in self._names}
        return {
            path: self._folder.child(*filter(None, [folder])).version(file) for path, (folder, _, file) in parts.items()
        }

    def _check_unchanged(self) -> None:
        if self._read_versions() != self._versions:
            raise DataError(
                f"{self.name} changed since it was opened; run the command again when no other program writes to it"
            )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the content, and for a folder of the names of its files."""
        digest = hashlib.sha256()
        for file in self._files():
            if self._is_folder:
                digest.update(f"\0{file.name}\0".encode())
            with file.open() as stream:
                for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
                    digest.update(block)
        self._check_unchanged()
        return digest.hexdigest()[:16]

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """All rows; see `DataFile.rows`."""
        num = 0
        for file in self._files():
            for place, row in self._container.rows(file, columns):
                num += 1
                if num > limits.MAX_ROWS_PER_FILE:
                    raise DataError(f"{self.name} has more than {limits.MAX_ROWS_PER_FILE:,} rows; divide it")
                yield f"{file.where}, {place}", row
        self._check_unchanged()
        if not num:
            raise DataError(f"{self.name} holds no row; download it again, or name another file")

    def write(self, to: str, edits: Iterable[RowEdit], new_columns: NewColumns, *, overwrite: bool = False) -> None:
        """Write an edited copy; see `DataFile.write`. The copy of a folder has files of the same names."""
        target, cursor = Folder(to), EditCursor(edits)
        own = self._folder if self._is_folder else self._folder.child(self._names[0])
        check_target(target, own, overwrite=overwrite, replaceable=self._names if self._is_folder else None)
        if not self._is_folder:
            self._check_suffix(target.name)
            with target.parent.open_output(target.name) as output:
                self._write_file(next(self._files()), output, target.name, cursor, new_columns)
                self._check_written(cursor)
            return
        with target.atomic_replace() as new:
            for file, path in zip(self._files(), self._names, strict=True):
                *folders, name = path.split("/")
                with new.child(*folders).open_output(name) as output:
                    self._write_file(file, output, name, cursor, new_columns)
            self._check_written(cursor)

    def loading_code(self, path: str) -> str:
        """See `DataFile.loading_code`."""
        options = "".join(
            f", {key}={value!r}" for key, value in self._container.load_options(next(self._files())).items()
        )
        files = f"data_dir={path!r}" if self._is_folder else f"data_files={path!r}"
        return f'load_dataset("{self._container.loader}", {files}{options})'

    def _write_file(
        self, file: SourceFile, output: BinaryIO, name: str, cursor: EditCursor, new_columns: NewColumns
    ) -> None:
        if not name.lower().endswith(".gz"):
            self._container.write(file, output, cursor, new_columns)
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=output, mtime=0) as packed:
            self._container.write(file, cast(BinaryIO, packed), cursor, new_columns)

    def _check_written(self, cursor: EditCursor) -> None:
        cursor.finish()
        self._check_unchanged()

    def _check_suffix(self, name: str) -> None:
        """Refuse a name by which the copy would be read as another container."""
        expected = next(suffix for suffix in self._container.suffixes if _plain(self._names[0]).endswith(suffix))
        same = self._container.suffixes if self.container == "jsonl" else (expected,)
        if not _plain(name).endswith(same):
            raise SettingsError(
                f"{name} is to hold an edited copy of {self.name}, expected a name that ends with {' or '.join(same)} "
                "(or that and .gz); rename it"
            )


def _plain(name: str) -> str:
    """A name in lower case, without the suffix of its compression."""
    return name.lower().removesuffix(".gz")


def check_target(target: Folder, source: Folder, *, overwrite: bool, replaceable: Sequence[str] | None = None) -> None:
    """Refuse to overwrite anything that is not an earlier copy.

    Args:
        target: the file or folder of the copy.
        source: the data.
        overwrite: replace an earlier copy.
        replaceable: paths of files that a replaced folder may hold, beside a card; None for a file.

    Raises:
        SettingsError: the target exists, or one of the two is inside the other.
    """
    first, second = (os.path.realpath(place.uri) if place.is_local else place.uri for place in (target, source))
    if first == second or f"{first}/".startswith(f"{second}/") or f"{second}/".startswith(f"{first}/"):
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
            f"{target} holds files that are no earlier copy: {', '.join(others[:5])}; give an empty or new folder"
        )


def open_data(source: Any) -> DataFile:
    """Open a user's data.

    Args:
        source: path or URI of a file or a folder of shards.

    Raises:
        DataError: it does not exist, is empty, or has an unknown container.
    """
    location = os.fspath(source)
    if not location.strip():
        raise DataError(f"the data has no name; {_expected()}")
    place = Folder(location)
    try:
        if place.name in place.parent.names():
            if not _is_data(place.name):
                raise DataError(f"{location} has an unsupported file format; {_expected()}")
            return StoredData(location, place.parent, [place.name], is_folder=False)
        if not place.exists():
            raise DataError(f"{location} does not exist; {_expected()}")
        return _open_folder(location, place)
    except (OSError, pa.ArrowInvalid, StudyError) as error:
        raise DataError(f"{location} cannot be read: {error}; {_expected()}") from error


def _open_folder(location: str, folder: Folder) -> DataFile:
    names = sorted(
        path
        for path in folder.sizes()
        if _is_data(path)
        and path.rpartition("/")[2] not in _METADATA_FILES
        and not any(part.startswith((".", "_")) for part in path.split("/"))
    )
    if not names:
        found = ", ".join(list(folder.sizes())[:8]) or "nothing"
        raise DataError(f"folder {location} holds no data file, found {found}; {_expected()}")
    if len(names) > limits.MAX_FILES:
        raise DataError(f"{location} holds {len(names):,} files, at most {limits.MAX_FILES:,} are read; join them")
    return StoredData(location, folder, names, is_folder=True)


def _is_data(name: str) -> bool:
    return _plain(name).endswith(tuple(container_suffixes()))


def _expected() -> str:
    return f"expected a file that ends with {', '.join(container_suffixes())} (or that and .gz), or a folder of them"


_GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)


class _GzipReader(io.RawIOBase):
    """Uncompresses a file in blocks, within limits. Damage and excess raise DataError."""

    def __init__(self, packed: BinaryIO, where: str, limit: int) -> None:
        super().__init__()
        self._packed, self._where, self._left, self._limit = packed, where, limit, limit
        self._stream = gzip.GzipFile(fileobj=packed, mode="rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(min(len(buffer), BLOCK_BYTES))
        except _GZIP_ERRORS as error:
            raise DataError(
                f"{self._where} is not a whole gzip file: {str(error) or 'it ends too early'}; download it again"
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._where} uncompresses to more than {self._limit:,} bytes, the limit for its size; if you trust "
                "it, uncompress it yourself"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._packed.close()
        super().close()


def _unzipped(file: SourceFile) -> SourceFile:
    """A gzipped file as it is uncompressed. For random access it is held in memory whole."""
    limit = max(limits.FREE_UNPACKED_BYTES, limits.MAX_UNPACK_RATIO * file.size)

    def open_file() -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_GzipReader(file.open(), file.where, limit), BLOCK_BYTES))

    def random_access() -> pa.NativeFile:
        with open_file() as stream:
            data = stream.read(limits.MAX_MEMBER_BYTES + 1)
        if len(data) > limits.MAX_MEMBER_BYTES:
            raise DataError(
                f"{file.where} uncompresses to more than {limits.MAX_MEMBER_BYTES:,} bytes, which is the limit of a "
                "file that is held in memory; uncompress it yourself"
            )
        return pa.BufferReader(data)

    return replace(file, name=file.name[: -len(".gz")], open=open_file, random_access=random_access)
