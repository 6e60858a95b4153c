"""Errors that the user can fix, and the messages for errors of file systems and libraries.

    SlickError
      DataError       a question set, a row or a file is invalid
      ModelError      a model or tokenizer cannot be loaded or used
      EngineError     a generation failed; it never counts as an answer
      StudyError      a study folder is unfinished, invalid, or has other settings
      VariantError    the knowledge table has too few rows for a variant
      SettingsError   settings that contradict each other or exceed the machine
      ClusterError    a Ray cluster does not answer or rejects the request

A message has the problem, its place, the value found, the expected value, and how to fix it. The command line prints it
without a traceback and exits with status 2. Any other exception is a defect of this program; its status is 1.
"""

import errno
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OWN_PACKAGES = tuple(str(_ROOT / package) for package in ("slick", "tuning", "jobs"))
_MAX_MESSAGE_CHARS = 400

_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_DISK_TEXTS = ("No space left on device", "Disk quota exceeded", "Read-only file system")
INCOMPLETE = "incomplete transfer"
# pyarrow raises OSErrors without a number for object stores. 60 and 77 are errors of certificates.
_STORE_ERROR = re.compile(
    r"(?!.*curlCode: (60|77)\b).*(curlCode|HTTP status (408|429|5\d\d)|AWS Error (NETWORK_CONNECTION|SLOW_DOWN"
    rf"|SERVICE_UNAVAILABLE|THROTTLING|INTERNAL_FAILURE|REQUEST_TIMEOUT)|{INCOMPLETE})",
    re.DOTALL,
)
# torch and safetensors write files in C++ and Rust; their errors are not OSErrors.
_LIBRARY_TEXTS = ("PytorchStreamWriter failed writing", "inline_container.cc", "I/O error:")


class SlickError(Exception):
    """An error that the user can fix."""


class DataError(SlickError):
    """A question set, a row or a file is invalid."""


class ModelError(SlickError):
    """A model or tokenizer cannot be loaded or used."""


class EngineError(SlickError):
    """A generation failed; it never counts as an answer."""


class StudyError(SlickError):
    """A study folder is unfinished, invalid, or has other settings."""


class VariantError(SlickError):
    """The knowledge table has too few rows for a variant."""


class SettingsError(SlickError):
    """Settings contradict each other or exceed the machine."""


class ClusterError(SlickError):
    """A Ray cluster does not answer or rejects the request."""


def error_from_name(name: str, message: str) -> SlickError:
    """An error of the class with this name, for errors that another process has stored; `SlickError` if unknown."""
    kinds = {kind.__name__: kind for kind in SlickError.__subclasses__()}
    return kinds.get(name, SlickError)(message)


@contextmanager
def wrap_library_errors(
    what: str,
    kind: type[SlickError] = EngineError,
    advice: Callable[[str], str] = lambda _: "see the message of the library",
) -> Iterator[None]:
    """Turn exceptions of libraries (torch, transformers, vLLM, ...) into a `SlickError`.

    Exceptions that a line of this program raises are defects and pass unchanged, unless a compiled operation of torch
    raises them, such as an error of CUDA.

    Args:
        what: the beginning of the message, such as `answering 32 questions failed`.
        kind: the class of the error.
        advice: how to fix it, given the message of the library.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SlickError) or not _is_from_library(error):
            raise
        reason = format_library_error(error)
        raise kind(f"{what}: {reason}; {advice(reason)}") from error


def format_library_error(error: BaseException) -> str:
    """Class and message of an exception in one line; a long message is cut to its beginning and last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {' '.join(' '.join(lines).split())}".removesuffix(": ")
    if len(text) <= _MAX_MESSAGE_CHARS:
        return text
    last = lines[-1][-_MAX_MESSAGE_CHARS // 2 :]
    return f"{text[: _MAX_MESSAGE_CHARS - len(last)]} ... {last}"


def _is_from_library(error: Exception) -> bool:
    """Whether a line of a library raised the error, or a compiled operation that a line of this program calls."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not frames[-1].filename.startswith(_OWN_PACKAGES):
        return True
    # Compiled code has no frames: torch raises RuntimeError and subclasses of it, numpy MemoryError.
    return isinstance(error, RuntimeError | MemoryError) or type(error).__module__.split(".")[0] in ("torch", "vllm")


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
    """The message for a file-system error, including one raised by a library; None for other errors."""
    from pyarrow import ArrowException  # here, so that `import slick.errors` is fast

    full = next((cause for cause in _error_chain(error) if is_disk_error(cause)), None)
    if full is not None:
        name = place or str(getattr(full, "filename", None) or "a file")
        reason = next((text for text in _DISK_TEXTS if text in str(full)), str(full))
        is_read_only = getattr(full, "errno", None) == errno.EROFS or reason == "Read-only file system"
        fix = "make it writable" if is_read_only else "free space on that disk"
        return f"{name} cannot be {action}: {reason}; {fix} and run the same command again, which resumes the step"
    failure = next((cause for cause in _error_chain(error) if is_store_error(cause)), None)
    if failure is not None:
        reason = str(failure).splitlines()[0][:300]
        return (
            f"{place or 'a file'} cannot be {action}: the object store fails or cannot be reached ({reason}). If its "
            "address is right, wait until it works and run the same command again, which resumes the step"
        )
    if isinstance(error, OSError | ArrowException) or any(text in str(error) for text in _LIBRARY_TEXTS):
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


def is_store_error(error: BaseException) -> bool:
    """Whether an object store cannot be reached or has a temporary error, so that a retry may help."""
    return (
        isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and bool(_STORE_ERROR.match(str(error)))
    )


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
