"""A user's fine-tuning data: a file or a folder of shards, read row by row, and written back with edited rows."""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, BinaryIO, cast

import pyarrow as pa

from slick import limits
from slick.curation.containers import Container, EditCursor, NewColumns, RowEdit, container_suffixes, find_container
from slick.curation.data import DataFile, MemoryData, check_target
from slick.curation.hf_datasets import SavedDataset, is_saved_dataset, open_dataset_object
from slick.curation.hub import SCHEME, download_data
from slick.curation.in_memory import ListData, TableData
from slick.datasets.rows import BLOCK_BYTES, SourceFile
from slick.datasets.sources import source_file
from slick.errors import DataError, SettingsError, StudyError
from slick.storage import Folder

__all__ = ["DataFile", "MemoryData", "NewColumns", "RowEdit", "open_data"]

_METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "manifest.json")
"""JSON files beside the shards of a folder that hold no rows."""


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
        self.suffix = "" if is_folder else _find_suffix(names[0])
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
        self._check_unchanged()
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

    def loading_code(self, path: str) -> str | None:
        """See `DataFile.loading_code`."""
        if path.lower().endswith(".gz") and not self._container.gzip_is_loaded:
            return None
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
        self._check_unchanged()
        cursor.finish()

    def _check_suffix(self, name: str) -> None:
        """Raise SettingsError for a name by which the copy would be read as another container."""
        expected = next(suffix for suffix in self._container.suffixes if _plain(self._names[0]).endswith(suffix))
        same = self._container.suffixes if self.container == "jsonl" else (expected,)
        if not _plain(name).endswith(same):
            raise SettingsError(
                f"{name} is to hold an edited copy of {self.name}, expected a name that ends with {' or '.join(same)} "
                "(or that and .gz); rename it"
            )


def _find_suffix(name: str) -> str:
    """The suffix of a data file, with that of its compression."""
    suffix = next(suffix for suffix in container_suffixes() if _plain(name).endswith(suffix))
    return suffix + name.lower()[len(_plain(name)) :]


def _plain(name: str) -> str:
    """A name in lower case, without the suffix of its compression."""
    return name.lower().removesuffix(".gz")


def open_data(source: Any) -> DataFile:
    """Open a user's data.

    Args:
        source: a path or URI of a file, of a folder of shards, or of a folder that `datasets` saved;
            `hf://datasets/NAME[@REVISION][/FILE]`; or a list of dicts, an Arrow table, or a `datasets.Dataset`.

    Raises:
        DataError: it does not exist, cannot be downloaded, is empty, or has an unknown container.
    """
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        return _open_path(name, download_data(name) if name.startswith(SCHEME) else name)
    if isinstance(source, pa.Table):
        return TableData(source)
    if isinstance(source, list | tuple):
        return ListData(source)
    data = open_dataset_object(source)
    if data is None:
        raise DataError(
            f"the data is a {type(source).__name__}, expected a path, a list of dicts, a pyarrow.Table or a "
            "datasets.Dataset; convert it"
        )
    return data


def _open_path(name: str, path: str) -> DataFile:
    """The data at a local path or URI; `name` is the user's, for messages."""
    if not path.strip():
        raise DataError(f"the data has no name; {_expected()}")
    place = Folder(path)
    try:
        if place.name in place.parent.names():
            if not _is_data(place.name):
                raise DataError(f"{name} has an unsupported file format; {_expected()}")
            return StoredData(name, place.parent, [place.name], is_folder=False)
        if not place.exists():
            raise DataError(f"{name} does not exist; {_expected()}")
        return SavedDataset(name, place) if is_saved_dataset(place) else _open_folder(name, place)
    except (OSError, pa.ArrowInvalid, StudyError) as error:
        raise DataError(f"{name} cannot be read: {error}; {_expected()}") from error


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
    limit = max(limits.FREE_UNPACKED_BYTES, limits.MAX_REPEATED_RATIO * file.size)

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
