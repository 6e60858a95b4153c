"""Errors of file systems, and of libraries that write files, as one message that says what to do."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from slick.errors import SlickError, StudyError

_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "Read-only file system")
# torch and safetensors write files in C++ and Rust, whose errors are none of the operating system's.
_LIBRARY_TEXTS = ("PytorchStreamWriter failed writing", "inline_container.cc", "I/O error:")


@contextmanager
def file_errors(place: str, action: str) -> Iterator[None]:
    """Turn what a file system refuses into one message: every access to the files of a study goes through here.

    Args:
        place: the file or folder, for the message.
        action: what is done with it, as a participle: "written".

    Raises:
        StudyError: a file is missing, may not be read or written, or the disk is full.
    """
    try:
        yield
    except SlickError:
        raise
    except FileNotFoundError as error:
        raise StudyError(f"{place} is not there; run the step that writes it first") from error
    except Exception as error:
        message = format_file_error(error, place, action)
        if message is None:
            raise
        raise StudyError(message) from error


def format_file_error(error: BaseException, place: str = "", action: str = "written") -> str | None:
    """The message of an error of the file system, also of one that a library raised in its own words; else None."""
    full = next((cause for cause in _error_chain(error) if is_disk_error(cause)), None)
    if full is not None:
        name = place or str(getattr(full, "filename", None) or "a file")
        reason = next((text for text in _DISK_TEXTS if text in str(full)), str(full))
        return (
            f"{name} cannot be {action}: {reason}; make room on that disk and give the same command again: it goes on "
            "from here"
        )
    if isinstance(error, OSError | pa.ArrowException) or any(text in str(error) for text in _LIBRARY_TEXTS):
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        return (
            f"{place or 'a file'} cannot be {action}: {reason}; see that it is a study's folder, and that you may read "
            "and write there"
        )
    return None


def is_disk_error(error: BaseException) -> bool:
    """True if the disk is full, the quota is used up, or it may only be read: trying again does not help."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRNOS:
        return True
    return not isinstance(error, StudyError) and any(text in str(error) for text in _DISK_TEXTS)


def _error_chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, or while handling."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


@contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A new folder on this machine's disk, which stays when the block ends well and is removed when it fails.

    Args:
        prefix: of its name.

    Raises:
        StudyError: that disk is full, or cannot be written.
    """
    with file_errors(tempfile.gettempdir(), "written"):
        folder = tempfile.mkdtemp(prefix=prefix)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
