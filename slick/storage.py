"""A folder on a local disk or in an object store, through pyarrow.fs: the one place that opens files of a study.

Every write is whole or absent: locally a temporary file is renamed over the target; object stores show an object
only when its upload is complete.
"""

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, Union
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from slick.errors import SettingsError, StudyError
from slick.file_errors import file_errors, temporary_folder
from slick.strict_json import parse_json
from slick.uris import check_uri

FolderLike = Union[str, os.PathLike[str], "Folder"]
"""How callers of the Python API name a folder: a path or URI as text, a path object, or a `Folder`."""


def as_folder(place: FolderLike) -> "Folder":
    """The folder that a caller named.

    Raises:
        SettingsError: a URI was made into a path object, which has lost a slash, or holds a secret.

    >>> as_folder("s3://bucket/study").uri
    's3://bucket/study'
    """
    if isinstance(place, Folder):
        return place
    text = os.fspath(place)
    if not isinstance(place, str) and re.match(r"[A-Za-z][\w+.-]+:/", text):
        raise SettingsError(f"{place!r} is a URI made into a path, which loses a slash; give it as text")
    return Folder(text)


class Folder:
    """One folder, by local path or URI (`s3://bucket/study`, `gs://...`); small enough to travel to Ray workers."""

    def __init__(self, uri: str) -> None:
        if uri.startswith("file://"):  # a local folder like any other: made when needed, files renamed into place
            uri = unquote(urlparse(uri).path)
        if "://" in uri:
            check_uri(uri)
        self.uri = uri.rstrip("/") if "://" in uri else os.path.abspath(os.path.expanduser(uri))

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __str__(self) -> str:
        return self._parts()[0]  # for people: without the object store's options

    def _parts(self) -> tuple[str, str]:
        """The path, and an object store's options, which stand behind it."""
        base, etag, options = ("", "", "") if self.is_local else self.uri.partition("?")
        return base or self.uri, etag + options

    def child(self, *names: str) -> Self:
        """The folder `names[0]/names[1]/...` inside this one; it need not exist."""
        path, options = self._parts()
        return type(self)("/".join((path, *names)) + options)

    @property
    def parent(self) -> Self:
        """The folder that this one, or the file of this name, is in; of the topmost, that one itself."""
        path, options = self._parts()
        return type(self)((path.rpartition("/")[0] or "/") + options)

    @property
    def name(self) -> str:
        """The last part of the path.

        >>> Folder("s3://bucket/study/questions.zip?region=eu-west-1").name
        'questions.zip'
        """
        return self._parts()[0].rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        """True for a path on this machine's file system."""
        return "://" not in self.uri

    @property
    def local_path(self) -> str:
        """The path on this machine.

        Raises:
            StudyError: the folder is in an object store.
        """
        if not self.is_local:
            raise StudyError(f"{self.uri} is not on this machine's file system, and this step needs a local folder")
        return self.uri

    def _open(self) -> tuple[pafs.FileSystem, str]:
        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        try:
            filesystem, path = pafs.FileSystem.from_uri(self.uri)
        except pa.ArrowInvalid as error:
            raise StudyError(
                f"{self.uri} cannot be opened ({error}); give a path, or a URI such as s3://bucket/study"
            ) from error
        return filesystem, path

    def mkdir(self) -> None:
        """Create the folder and its parents; object stores need no folders and are left alone."""
        if self.is_local:
            with file_errors(str(self), "made"):
                os.makedirs(self.uri, exist_ok=True)

    def exists(self, name: str = "") -> bool:
        """True if the file or folder `name` is here; without a name, if this folder itself is."""
        filesystem, path = self._open()
        with file_errors(f"{self}/{name}".rstrip("/"), "looked at"):
            info = filesystem.get_file_info(f"{path}/{name}" if name else path)
        return bool(info.type != pafs.FileType.NotFound)

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files directly in here that end with `suffix`; empty if the folder is not there."""
        entries = self._entries()
        return sorted(e.base_name for e in entries if e.type == pafs.FileType.File and e.base_name.endswith(suffix))

    def folders(self) -> list[str]:
        """Sorted names of the folders directly in here."""
        return sorted(e.base_name for e in self._entries() if e.type == pafs.FileType.Directory)

    def _entries(self) -> list[pafs.FileInfo]:
        """What is directly in here; a name that begins with a dot is a write that was broken off."""
        filesystem, path = self._open()
        with file_errors(str(self), "listed"):
            entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return [entry for entry in entries if not entry.base_name.startswith(".")]

    def read_bytes(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            StudyError: it is not there.
        """
        filesystem, path = self._open()
        with file_errors(f"{self}/{name}", "read"), filesystem.open_input_stream(f"{path}/{name}") as stream:
            return bytes(stream.read())

    def open_input(self, name: str) -> pa.NativeFile:
        """A file, open for reading at any position, so that it need not be held in memory whole.

        Raises:
            StudyError: it is not there.
        """
        filesystem, path = self._open()
        with file_errors(f"{self}/{name}", "read"):
            return filesystem.open_input_file(f"{path}/{name}")

    def version(self, name: str) -> tuple[int, int]:
        """Size in bytes and time of change in ns of a file; (0, 0) if it is not there."""
        filesystem, path = self._open()
        with file_errors(f"{self}/{name}", "looked at"):
            info = filesystem.get_file_info(f"{path}/{name}")
        return int(info.size or 0), int(info.mtime_ns or 0)

    def versions(self) -> dict[str, tuple[int, int]]:
        """Size in bytes and time of change in ns of each file directly in here, by its name."""
        files = (entry for entry in self._entries() if entry.type == pafs.FileType.File)
        return {entry.base_name: (int(entry.size or 0), int(entry.mtime_ns or 0)) for entry in files}

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole: a reader sees the old content or the new, never a part."""
        if "/" in name:
            raise StudyError(f"{self}/{name} cannot be written: {name} is not the name of a file inside that folder")
        self.mkdir()
        filesystem, path = self._open()
        with file_errors(f"{self}/{name}", "written"):
            if not self.is_local:
                with filesystem.open_output_stream(f"{path}/{name}") as stream:
                    stream.write(data)
                return
            part = f"{path}/.{name}.{uuid.uuid4().hex}.part"
            try:
                with open(part, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())  # a manifest must not outlive, in a power cut, the files it speaks for
                os.replace(part, f"{path}/{name}")
            finally:
                Path(part).unlink(missing_ok=True)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file: UTF-8, names once an object, finite numbers; see `slick.strict_json`.

        Raises:
            StudyError: it is not there, or is not such JSON.
        """
        data = self.read_bytes(name)
        try:
            return parse_json(data)
        except ValueError as error:
            reason = str(error).splitlines()[0][:300]
            raise StudyError(f"{self}/{name} is not JSON ({reason}); delete it and run the step again") from error

    def write_json(self, name: str, value: object) -> None:
        """Write JSON for people to read: indented, keys in the order given, no NaN."""
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def read_table(self, name: str, columns: Sequence[str] | None = None, *, optional: Sequence[str] = ()) -> pa.Table:
        """One Parquet file as a table, as it is; `slick.stored_files.read_validated_table` also checks what it holds.

        Args:
            name: of the file.
            columns: that are wanted; None: all.
            optional: further columns, read where the file has them.

        Raises:
            StudyError: it is not there, is not a whole Parquet file, or lacks a column.
        """
        data = self.read_bytes(name)
        try:
            schema = pq.ParquetFile(pa.BufferReader(data)).schema_arrow
            if names := pickled_columns(schema):
                raise StudyError(
                    f"{self}/{name} has columns of a type that can hold pickles, which run code when they are read: "
                    f"{names}; delete that file and run the step that writes it again"
                )
            if columns is not None:
                self._check_columns(name, columns, schema.names)
                columns = [*columns, *(column for column in optional if column in schema.names)]
            # Threads of Arrow's that still let go of columns when a short program ends abort it now and then.
            return pq.read_table(pa.BufferReader(data), columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:  # OSError: a page that does not decompress
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise StudyError(
                f"{self}/{name} is not a whole Parquet file ({reason}); delete it and run the step again"
            ) from error

    def _check_columns(self, name: str, wanted: Sequence[str], found: Sequence[str]) -> None:
        missing = [column for column in wanted if found.count(column) != 1]
        if missing:
            twice = "has twice" if missing[0] in found else "lacks"
            raise StudyError(
                f"{self}/{name} {twice} a column: {', '.join(missing)}; wanted {', '.join(wanted)}, found "
                f"{', '.join(found)[:300] or 'none'}; it was changed, or written by another version of this program: "
                "restore it, or delete it and run the step again"
            )

    def write_table(self, name: str, table: pa.Table) -> None:
        """One Parquet file, zstd compressed."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def num_rows(self, name: str) -> int:
        """Rows of a Parquet file, from its footer alone."""
        filesystem, path = self._open()
        with file_errors(f"{self}/{name}", "read"):
            return int(pq.read_metadata(f"{path}/{name}", filesystem=filesystem).num_rows)

    def read_tables(self, prefix: str = "part-", columns: list[str] | None = None) -> pa.Table:
        """All `prefix*.parquet` files of the folder, in the order of their names, as one table.

        Raises:
            StudyError: there is none.
        """
        names = [name for name in self.names(".parquet") if name.startswith(prefix)]
        if not names:
            raise StudyError(f"{self.uri} holds no {prefix}*.parquet; run the step that writes it first")
        return pa.concat_tables(self.read_table(name, columns) for name in names)

    def _files(self) -> Iterator[tuple[str, pafs.FileInfo]]:
        """Every file in here and below by its path from here; none if the folder is not there."""
        filesystem, path = self._open()
        with file_errors(str(self), "listed"):
            found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
        start = len(path.rstrip("/")) + 1
        yield from ((info.path[start:], info) for info in found if info.type == pafs.FileType.File)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file in here and below, by its path from here; empty if the folder is not there."""
        return {name: int(info.size) for name, info in self._files()}

    def etag(self) -> str | None:
        """16 hex digits that change when a file in here or below does; None if there is none.

        Of address, paths, sizes and times: content is not read, so that it can be asked of a large model cheaply.
        """
        files = sorted((name, info.size, info.mtime_ns) for name, info in self._files())
        return hashlib.sha256(repr((self.uri, files)).encode()).hexdigest()[:16] if files else None

    def download(self, target: str) -> None:
        """Copy all files in here and below into the local folder `target`."""
        filesystem, path = self._open()
        with file_errors(str(self), f"copied to {target}"):
            pafs.copy_files(path, target, source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem())

    @contextmanager
    def as_local_path(self) -> Iterator[str]:
        """A path on this machine where all files lie while the block lasts: the folder itself, or a copy of it."""
        if self.is_local:
            yield self.uri
            return
        with temporary_folder("slick-fetched-") as copy:
            self.download(copy)
        try:
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def add(self, source: str) -> None:
        """Copy all files of the local folder `source` into this one, beside those that are here."""
        self.mkdir()
        filesystem, path = self._open()
        with file_errors(str(self), "written"):
            pafs.copy_files(source, path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)

    def delete(self, name: str = "") -> None:
        """Remove a file, or without a name this folder and all in it; absent is fine."""
        filesystem, path = self._open()
        target = f"{path}/{name}" if name else path
        with file_errors(f"{self}/{name}".rstrip("/"), "deleted"):
            kind = filesystem.get_file_info(target).type
            if kind == pafs.FileType.Directory:
                filesystem.delete_dir(target)
            elif kind == pafs.FileType.File:
                filesystem.delete_file(target)

    @contextmanager
    def atomic_replace(self) -> Iterator["Folder"]:
        """A new, empty folder that takes this one's place when the block ends, and vanishes if the block fails.

        For one writer at a time; what a writer that was killed has left beside this folder is removed. Locally the
        place is taken by renaming. In an object store, which cannot rename, the new files are written over the old,
        `manifest.json` last.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="slick-staged-") as copy:
                yield Folder(copy)
                self._overwrite(copy)
            return
        self.parent.mkdir()
        beginning = os.path.join(os.path.dirname(self.uri), f".{self.name}.")
        for left in (path for end in ("part", "old") for path in glob.glob(f"{glob.escape(beginning)}*.{end}")):
            shutil.rmtree(left, ignore_errors=True)
        etag = uuid.uuid4().hex
        part, old = f"{beginning}{etag}.part", f"{beginning}{etag}.old"
        try:
            with file_errors(str(self), "written"):
                os.makedirs(part)
            yield Folder(part)
            with file_errors(str(self), "replaced"):
                if os.path.exists(self.uri):
                    os.replace(self.uri, old)
                try:
                    os.replace(part, self.uri)
                except OSError:
                    if os.path.exists(old):
                        os.replace(old, self.uri)
                    raise
        finally:
            for path in (part, old):
                shutil.rmtree(path, ignore_errors=True)

    def _overwrite(self, source: str) -> None:
        """Make this folder of an object store hold the files of a local folder and no others."""
        last = "manifest.json"
        self.delete(last)
        new = Folder(source)
        for name in sorted(new.sizes(), key=lambda name: name == last):
            *folders, file = name.split("/")
            self.child(*folders).write_bytes(file, new.child(*folders).read_bytes(file))
        for name in self.sizes().keys() - new.sizes().keys():
            self.delete(name)

    def upload(self, source: str) -> None:
        """Replace this folder by a copy of the local folder `source`; locally it appears in one step.

        Raises:
            StudyError: it cannot be written; locally nothing of the copy stays.
        """
        if not self.is_local:
            self._overwrite(source)
            return
        with self.atomic_replace() as new, file_errors(str(self), "written"):
            # Not copytree: temporary folders are private, and who may read a study is for the umask to say.
            local = pafs.LocalFileSystem()
            pafs.copy_files(source, new.uri, source_filesystem=local, destination_filesystem=local)


def pickled_columns(schema: pa.Schema) -> list[str]:
    """Columns of a type that a Python library defines: values of Ray Data's are pickles, loaded when they are read.

    >>> pickled_columns(pa.schema([("text", pa.string())]))
    []
    """

    def types(kind: pa.DataType) -> Iterator[pa.DataType]:
        yield kind
        if isinstance(kind, pa.DictionaryType):
            yield from types(kind.value_type)
        for i in range(kind.num_fields):
            yield from types(kind.field(i).type)

    return [field.name for field in schema if any(isinstance(kind, pa.ExtensionType) for kind in types(field.type))]
