"""Zips from users: members are read one at a time, in blocks, and never beyond the size that the zip states."""

import io
import struct
import zipfile
import zlib
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import pyarrow as pa

from slick import limits
from slick.errors import DataError
from slick.user_files import too_large_error

_BLOCK = 1 << 16
_METHODS = {9: "Deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard", 95: "XZ"}
_HINT = "download the zip again, or unpack it and name the folder"
_READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, OSError, ValueError, pa.ArrowException)


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
            path: of the member.
            limit: the most bytes that it may unpack to.

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
        return cast(BinaryIO, io.BufferedReader(_Member(stream, where, info.file_size), _BLOCK))

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
            data = self._stream.read(min(len(buffer), _BLOCK))
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
