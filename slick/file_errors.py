"""Messages for errors of file systems and of libraries that write files."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from slick.errors import SlickError, StudyError

_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "Read-only file system")
# torch and safetensors write files in C++ and Rust; their errors are not OSErrors.
_LIBRARY_TEXTS = ("PytorchStreamWriter failed writing", "inline_container.cc", "I/O error:")


@contextmanager
def file_errors(place: str, action: str) -> Iterator[None]:
    """Turn errors of the file system into a StudyError.

    Args:
        place: the file or folder, for the message.
        action: the operation as a participle, such as "written".

    Raises:
        StudyError: a file is missing, may not be read or written, or the disk is full.
    """
    try:
        yield
    except SlickError:
        raise
    except FileNotFoundError as error:
        raise StudyError(f"{place} does not exist; run the step that writes it first") from error
    except Exception as error:
        message = format_file_error(error, place, action)
        if message is None:
            raise
        raise StudyError(message) from error


def format_file_error(error: BaseException, place: str = "", action: str = "written") -> str | None:
    """The message for an error of the file system, also if a library raised it; None for other errors."""
    full = next((cause for cause in _error_chain(error) if is_disk_error(cause)), None)
    if full is not None:
        name = place or str(getattr(full, "filename", None) or "a file")
        reason = next((text for text in _DISK_TEXTS if text in str(full)), str(full))
        return (
            f"{name} cannot be {action}: {reason}; free space on that disk and run the same command again, which "
            "resumes the step"
        )
    if isinstance(error, OSError | pa.ArrowException) or any(text in str(error) for text in _LIBRARY_TEXTS):
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        return (
            f"{place or 'a file'} cannot be {action}: {reason}; check the path, and that you may read and write there"
        )
    return None


def is_disk_error(error: BaseException) -> bool:
    """Whether the disk is full, over quota or read-only, so that a retry cannot help."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRNOS:
        return True
    return not isinstance(error, StudyError) and any(text in str(error) for text in _DISK_TEXTS)


def _error_chain(error: BaseException) -> Iterator[BaseException]:
    """An error, its cause or context, the cause or context of that, and so on."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


@contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A new temporary folder, which is kept when the block ends and deleted if the block fails.

    Args:
        prefix: the beginning of its name.

    Raises:
        StudyError: the disk is full or not writable.
    """
    with file_errors(tempfile.gettempdir(), "written"):
        folder = tempfile.mkdtemp(prefix=prefix)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
