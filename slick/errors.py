"""Errors that the user can fix.

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

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OWN_PACKAGES = tuple(str(_ROOT / package) for package in ("slick", "tuning", "jobs"))
_MAX_MESSAGE_CHARS = 400


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
