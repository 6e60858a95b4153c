"""A folder on a local disk or in an object store, through pyarrow.fs. All files of a study are opened here.

Writes are atomic: a local file is written under a temporary name and renamed; an object store shows an object only when
its upload is complete. Temporary errors of an object store are retried for `RETRY_S`.
"""

import glob
import hashlib
import json
import logging
import os
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar, Union, cast
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from slick.errors import INCOMPLETE, SettingsError, StudyError, file_errors, is_store_error, temporary_folder
from slick.strict_json import parse_json
from slick.uris import check_uri

_LOG = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_MAX_REQUEST_BYTES = 5 << 20
"""A file of this size or less is uploaded to S3 in one request; pyarrow divides files of 10 MiB and more."""
_MAX_TRANSFERS = 8
"""Files of a folder that are copied from or to an object store at the same time."""

RETRY_S = 120.0
"""Seconds for which an operation is retried while an object store does not answer or answers temporary errors."""
_MAX_WAIT_S = 10.0
"""Seconds between two tries; they double from one second to this."""

Result = TypeVar("Result")

FolderLike = Union[str, os.PathLike[str], "Folder"]
"""A folder in the Python API: a path or URI as text, a path object, or a `Folder`."""


def _check_characters(path: str) -> None:
    """Raise StudyError for a path that no file system can hold."""
    if "\0" in path or any("\ud800" <= character <= "\udfff" for character in path):
        raise StudyError(
            f"the path {path[:200]!r} holds a NUL character or a part of a character; give a path of whole characters"
        )


def as_folder(folder: FolderLike) -> "Folder":
    """Convert a path or URI to a `Folder`.

    Raises:
        SettingsError: a URI was converted to a path object, which drops a slash, or holds a secret.

    >>> as_folder("s3://bucket/study").uri
    's3://bucket/study'
    """
    if isinstance(folder, Folder):
        return folder
    text = os.fspath(folder)
    if not isinstance(folder, str) and re.match(r"[A-Za-z][\w+.-]+:/", text):
        raise SettingsError(f"{folder!r} is a URI made into a path, which loses a slash; give it as text")
    return Folder(text)


class Folder:
    """One folder, by local path or URI (`s3://bucket/study`, `gs://...`). Pickles as its address."""

    retry_s = RETRY_S
    """Seconds for which temporary errors of an object store are retried; folders inside this one have the default."""

    def __init__(self, uri: str) -> None:
        if uri.startswith("file://"):  # treated as a local path
            uri = unquote(urlparse(uri).path)
        if "://" in uri:
            check_uri(uri)
        _check_characters(uri)
        self.uri = uri.rstrip("/") if "://" in uri else os.path.abspath(os.path.expanduser(uri))

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __str__(self) -> str:
        return self._parts()[0]  # without options of the object store

    def _parts(self) -> tuple[str, str]:
        """The path, and the options of an object store that follow it."""
        base, etag, options = ("", "", "") if self.is_local else self.uri.partition("?")
        return base or self.uri, etag + options

    def child(self, *names: str) -> Self:
        """The folder `names[0]/names[1]/...` inside this one; it may not exist.

        Raises:
            StudyError: a name leads out of the folder, or is no name of a file.
        """
        for name in names:
            if ".." in name.split("/") or name.startswith("/"):
                raise StudyError(f"{name!r} is not a name inside {self}; expected one without '..' and a leading '/'")
        path, options = self._parts()
        return type(self)("/".join((path, *names)) + options)

    @property
    def parent(self) -> Self:
        """The folder that contains this one; the root is its own parent."""
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
        """Whether the folder is on this machine's file system."""
        return "://" not in self.uri

    @property
    def local_path(self) -> str:
        """The path on this machine.

        Raises:
            StudyError: the folder is in an object store.
        """
        if not self.is_local:
            raise StudyError(
                f"{self.uri} is not on this machine's file system, but this step needs a local folder; give one"
            )
        return self.uri

    def _open(self) -> tuple[pafs.FileSystem, str]:
        if self.is_local:
            return pafs.LocalFileSystem(), self.uri
        return self._open_store(self.uri)

    def _open_store(self, uri: str) -> tuple[pafs.FileSystem, str]:
        with file_errors(str(self), "opened"):
            try:
                filesystem, path = self._retry(lambda: pafs.FileSystem.from_uri(uri))  # it may ask for the region
            except pa.ArrowInvalid as error:
                raise StudyError(
                    f"{self.uri} cannot be opened ({error}); give a path, or a URI such as s3://bucket/study"
                ) from error
        return filesystem, path

    def _retry(self, operation: Callable[[], Result]) -> Result:
        """The result of an operation, which is repeated while the object store has a temporary error.

        The clients of object stores retry for seconds, and not after all temporary errors.

        Raises:
            OSError: another error, or the error is still there after `retry_s`.
        """
        wait, end = 1.0, None
        while True:
            try:
                return operation()
            except OSError as error:
                if self.is_local or not is_store_error(error):
                    raise
                now = time.monotonic()
                if end is None:
                    end = now + self.retry_s
                    reason = str(error).splitlines()[0][:200]
                    _LOG.warning("%s: the object store fails (%s); retrying for up to %g s", self, reason, self.retry_s)
                if now + wait > end:
                    raise
            time.sleep(wait * random.uniform(0.5, 1.0))  # so that many processes do not retry at the same moment
            wait = min(2 * wait, _MAX_WAIT_S)

    def mkdir(self) -> None:
        """Create the folder and its parents; does nothing in object stores, which need no folders."""
        if self.is_local:
            with file_errors(str(self), "created"):
                os.makedirs(self.uri, exist_ok=True)

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder `name` exists inside this folder; without a name, whether this folder exists."""
        filesystem, path = self._open()
        with file_errors(f"{self}/{name}".rstrip("/"), "inspected"):
            info = self._retry(lambda: filesystem.get_file_info(f"{path}/{name}" if name else path))
        return bool(info.type != pafs.FileType.NotFound)

    def names(self, suffix: str = "") -> list[str]:
        """Sorted names of the files in this folder that end with `suffix`; empty if the folder does not exist."""
        return sorted(name for name in self.versions() if name.endswith(suffix))

    def folders(self) -> list[str]:
        """Sorted names of the folders in this folder."""
        return sorted(entry.base_name for entry in self._entries() if entry.type == pafs.FileType.Directory)

    def _entries(self) -> list[pafs.FileInfo]:
        """The files and folders in this folder, without names that begin with a dot: these are interrupted writes."""
        filesystem, path = self._open()
        with file_errors(str(self), "listed"):
            entries = self._retry(lambda: filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)))
        return [entry for entry in entries if not entry.base_name.startswith(".")]

    def read_bytes(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            StudyError: it does not exist or cannot be read.
        """
        filesystem, path = self._open()

        def read() -> bytes:
            with filesystem.open_input_stream(f"{path}/{name}", compression=None) as stream:
                return bytes(stream.read())

        with file_errors(f"{self}/{name}", "read"):
            return self._retry(read)

    def open_input(self, name: str) -> pa.NativeFile:
        """A file, open for random access.

        Raises:
            StudyError: it does not exist or cannot be read.
        """
        filesystem, path = self._open()
        with file_errors(f"{self}/{name}", "read"):
            return self._retry(lambda: filesystem.open_input_file(f"{path}/{name}"))

    def version(self, name: str) -> tuple[int, int]:
        """Size in bytes and modification time in ns of a file; (0, 0) if it does not exist."""
        filesystem, path = self._open()
        with file_errors(f"{self}/{name}", "inspected"):
            info = self._retry(lambda: filesystem.get_file_info(f"{path}/{name}"))
        return int(info.size or 0), int(info.mtime_ns or 0)

    def versions(self) -> dict[str, tuple[int, int]]:
        """File name -> size in bytes and modification time in ns, for the files in this folder."""
        files = (entry for entry in self._entries() if entry.type == pafs.FileType.File)
        return {entry.base_name: (int(entry.size or 0), int(entry.mtime_ns or 0)) for entry in files}

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically: a reader sees the old content or the new content."""
        if "/" in name:
            raise StudyError(f"{self}/{name} cannot be written: {name} is not the name of a file inside this folder")
        if not self.is_local:
            with file_errors(f"{self}/{name}", "written"):
                self._upload(name, data)
            return
        with self.open_output(name) as file:
            file.write(data)

    def _upload(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write an object whose content is complete, or not at all.

        The thread is not interrupted by Ctrl-C, which would let the stream's end complete the upload too early. The
        functions of pyarrow that copy files ignore errors at the end of an upload, so they are not used.
        """
        size = len(data)
        uri = self.uri
        is_one_request = uri.startswith("s3://") and size <= _MAX_REQUEST_BYTES
        if is_one_request:
            uri += f"{'&' if '?' in uri else '?'}allow_delayed_open=true"
        filesystem, path = self._open_store(uri) if is_one_request else self._open()

        def write() -> None:
            with filesystem.open_output_stream(f"{path}/{name}", compression=None) as stream:
                stream.write(data)
            if not is_one_request and (stored := filesystem.get_file_info(f"{path}/{name}").size) != size:
                raise OSError(f"{INCOMPLETE}: {stored} of {size} bytes of {name} are stored")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._retry, write).result()

    def _download(self, name: str, size: int, target: str) -> None:
        """Copy the content of an object to a local file, and check its size."""
        filesystem, path = self._open()

        def read() -> None:
            with (
                filesystem.open_input_stream(f"{path}/{name}", compression=None) as stream,
                open(target, "wb") as file,
            ):
                shutil.copyfileobj(stream, file, _BLOCK_BYTES)
                if (read := file.tell()) != size:
                    raise OSError(f"{INCOMPLETE}: {read} of {size} bytes of {name} were read")

        self._retry(read)

    @contextmanager
    def open_output(self, name: str) -> Iterator[BinaryIO]:
        """A new file that is there when the block ends, in place of an old one; nothing changes if the block fails.

        For an object store it is written to a temporary local file first.
        """
        self.mkdir()
        with file_errors(f"{self}/{name}", "written"):
            if not self.is_local:
                with tempfile.NamedTemporaryFile(prefix="slick-staged-") as copy:
                    yield cast(BinaryIO, copy)
                    copy.flush()
                    self._upload(name, _map_file(copy.name))
                return
            path = self.uri
            part = f"{path}/.{name}.{uuid.uuid4().hex}.part"
            try:
                with open(part, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())  # so that a power failure cannot leave a manifest without its files
                os.replace(part, f"{path}/{name}")
            finally:
                Path(part).unlink(missing_ok=True)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file: UTF-8, unique keys, finite numbers; see `slick.strict_json`.

        Raises:
            StudyError: it does not exist, or is not such JSON.
        """
        data = self.read_bytes(name)
        try:
            return parse_json(data)
        except ValueError as error:
            reason = str(error).splitlines()[0][:300]
            raise StudyError(f"{self}/{name} is not JSON ({reason}); delete it and run the step again") from error

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file: indented, keys in the given order, without NaN."""
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

    def read_table(self, name: str, columns: Sequence[str] | None = None, *, optional: Sequence[str] = ()) -> pa.Table:
        """A Parquet file as a table. `slick.stored_files.read_validated_table` also checks its values.

        Args:
            name: the file's name.
            columns: the columns to read; None: all.
            optional: further columns, read if the file has them.

        Raises:
            StudyError: it does not exist, is not a complete Parquet file, or lacks a column.
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
            # Arrow's threads, also those that prefetch, sometimes abort a short program if they run when it exits.
            return pq.read_table(pa.BufferReader(data), columns=columns, use_threads=False, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:  # OSError: a page cannot be decompressed
            raise self._incomplete(name, error) from error

    def _incomplete(self, name: str, error: Exception) -> StudyError:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return StudyError(f"{self}/{name} is not a complete Parquet file ({reason}); delete it and run the step again")

    def _check_columns(self, name: str, expected: Sequence[str], present: Sequence[str]) -> None:
        wrong = [column for column in expected if present.count(column) != 1]
        if wrong:
            problem = "has twice" if wrong[0] in present else "lacks"
            raise StudyError(
                f"{self}/{name} {problem} a column: {', '.join(wrong)}; expected {', '.join(expected)}, found "
                f"{', '.join(present)[:300] or 'none'}. The file was changed, or written by another version of this "
                "program: restore it, or delete it and run the step again"
            )

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file, compressed with zstd."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def write_table_parts(self, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        """Write a Parquet file, compressed with zstd, of which one part at a time is in memory."""
        with self.open_output(name) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)

    def num_rows(self, name: str) -> int:
        """Rows of a Parquet file; reads only its footer."""
        return int(self.read_parquet(name, lambda file: file.metadata.num_rows))

    def read_parquet(self, name: str, read: Callable[[pq.ParquetFile], Result]) -> Result:
        """The result of `read`, which reads some row groups of a Parquet file; it may be called again.

        Raises:
            StudyError: the file does not exist, or it or what `read` reads of it is not complete.
        """
        filesystem, path = self._open()

        def open_and_read() -> Result:
            with filesystem.open_input_file(f"{path}/{name}") as source:
                return read(pq.ParquetFile(source, pre_buffer=False))

        try:
            with file_errors(f"{self}/{name}", "read"):
                return self._retry(open_and_read)
        except pa.ArrowException as error:
            raise self._incomplete(name, error) from error

    def read_tables(self, prefix: str = "part-", columns: list[str] | None = None) -> pa.Table:
        """All `prefix*.parquet` files of the folder as one table, in the order of their names.

        Raises:
            StudyError: there is no such file.
        """
        names = [name for name in self.names(".parquet") if name.startswith(prefix)]
        if not names:
            raise StudyError(f"{self.uri} has no {prefix}*.parquet; run the step that writes it first")
        return pa.concat_tables(self.read_table(name, columns) for name in names)

    def _files(self) -> Iterator[tuple[str, pafs.FileInfo]]:
        """All files in this folder and its subfolders by relative path; none if the folder does not exist."""
        filesystem, path = self._open()
        with file_errors(str(self), "listed"):
            selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
            infos = self._retry(lambda: filesystem.get_file_info(selector))
        start = len(path.rstrip("/")) + 1
        yield from ((info.path[start:], info) for info in infos if info.type == pafs.FileType.File)

    def sizes(self) -> dict[str, int]:
        """Relative path -> bytes, for all files in this folder and its subfolders; empty if it does not exist."""
        return {name: int(info.size) for name, info in self._files()}

    def etag(self) -> str | None:
        """16 hex digits that change if a file in this folder or its subfolders changes; None if there are no files.

        A hash of address, paths, sizes and modification times; file contents are not read, so it is cheap for models.
        """
        files = sorted((name, info.size, info.mtime_ns) for name, info in self._files())
        return hashlib.sha256(repr((self.uri, files)).encode()).hexdigest()[:16] if files else None

    def download(self, target: str) -> None:
        """Copy all files, also those of subfolders, to the local folder `target`."""
        sizes = self.sizes()
        if not sizes:
            raise StudyError(f"{self} does not exist or is empty; run the step that writes it first")

        def fetch(name: str) -> None:
            path = os.path.join(target, *name.split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self._download(name, sizes[name], path)

        with file_errors(str(self), f"copied to {target}"), ThreadPoolExecutor(_MAX_TRANSFERS) as pool:
            list(pool.map(fetch, sizes))

    @contextmanager
    def as_local_path(self) -> Iterator[str]:
        """A local path with all files: the folder itself, or a copy that is deleted when the block ends."""
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
        """Copy all files of the local folder `source` into this folder; other files are kept."""
        if self.is_local:
            self.mkdir()
            with file_errors(str(self), "written"):
                _copy_local_folder(source, self.uri)
            return
        names = list(Folder(source).sizes())
        with file_errors(str(self), "written"), ThreadPoolExecutor(_MAX_TRANSFERS) as pool:
            list(pool.map(lambda name: self._upload(name, _map_file(os.path.join(source, *name.split("/")))), names))

    def delete(self, name: str = "") -> None:
        """Delete a file or, without a name, this folder; does nothing if it does not exist."""
        filesystem, path = self._open()
        target = f"{path}/{name}" if name else path

        def delete() -> None:
            kind = filesystem.get_file_info(target).type
            if kind == pafs.FileType.Directory:
                filesystem.delete_dir(target)
            elif kind == pafs.FileType.File:
                filesystem.delete_file(target)

        with file_errors(f"{self}/{name}".rstrip("/"), "deleted"):
            self._retry(delete)

    @contextmanager
    def atomic_replace(self) -> Iterator["Folder"]:
        """An empty folder that replaces this one when the block ends, and is deleted if the block fails.

        There may be one writer at a time; leftovers of killed writers are deleted. A local folder is replaced by
        renaming. In an object store, which cannot rename, the new files overwrite the old ones, `manifest.json` last.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="slick-staged-") as copy:
                yield Folder(copy)
                self._overwrite(copy)
            return
        self.parent.mkdir()
        prefix = os.path.join(os.path.dirname(self.uri), f".{self.name}.")
        for suffix in ("part", "old"):
            for leftover in glob.glob(f"{glob.escape(prefix)}*.{suffix}"):
                shutil.rmtree(leftover, ignore_errors=True)
        token = uuid.uuid4().hex
        part, old = f"{prefix}{token}.part", f"{prefix}{token}.old"
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
        """Replace the files of this folder of an object store by those of a local folder."""
        last = "manifest.json"
        self.delete(last)
        new = Folder(source)
        for name in sorted(new.sizes(), key=lambda name: name == last):
            *folders, file = name.split("/")
            self.child(*folders).write_bytes(file, new.child(*folders).read_bytes(file))
        for name in self.sizes().keys() - new.sizes().keys():
            self.delete(name)

    def upload(self, source: str) -> None:
        """Replace this folder by a copy of the local folder `source`; atomic on a local disk.

        Raises:
            StudyError: it cannot be written; on a local disk the folder is then unchanged.
        """
        if not self.is_local:
            self._overwrite(source)
            return
        with self.atomic_replace() as new, file_errors(str(self), "written"):
            # Not copytree, which would copy the private mode of temporary folders; the umask decides who may read.
            _copy_local_folder(source, new.uri)


def _copy_local_folder(source: str, target: str) -> None:
    local = pafs.LocalFileSystem()
    pafs.copy_files(source, target, source_filesystem=local, destination_filesystem=local)


def _map_file(path: str) -> bytes | pa.Buffer:
    """The content of a file, which is read when it is used."""
    if not os.path.getsize(path):
        return b""
    with pa.memory_map(path) as file:
        return file.read_buffer()


def pickled_columns(schema: pa.Schema) -> list[str]:
    """Columns of an extension type. Values of Ray Data's extension types are pickles, loaded when they are read.

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
