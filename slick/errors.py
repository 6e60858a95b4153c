"""Everything a user can mend, as one tree.

    SlickError
      DataError       a question set, a row, or a file is not what it must be
      ModelError      a model or tokenizer cannot be loaded or driven
      EngineError     a generation failed; it is never read as an answer
      StudyError      a study folder is unfinished, or belongs to other settings
      VariantError    a fine-tuning set that the knowledge table cannot give
      SettingsError   settings that contradict each other or the machine
      ClusterError    a Ray cluster does not answer, or does not let us in

Each message says what, where, what was found, what was wanted, and how to mend it. The command line prints it in
one piece without a traceback and exits with status 2; any other exception is a defect of ours and exits with 1.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OWN_PACKAGES = tuple(str(_ROOT / package) for package in ("slick", "tuning", "jobs"))
_MAX_MESSAGE_CHARS = 400


class SlickError(Exception):
    """Something the user can mend."""


class DataError(SlickError):
    """A question set, a row, or a file is not what it must be."""


class ModelError(SlickError):
    """A model or tokenizer cannot be loaded or driven."""


class EngineError(SlickError):
    """A generation failed. A failure is never an answer."""


class StudyError(SlickError):
    """A study folder is unfinished, or was written by other settings."""


class VariantError(SlickError):
    """A fine-tuning set was asked for that the knowledge table cannot give."""


class SettingsError(SlickError):
    """Settings contradict each other, or ask for more than the machine has."""


class ClusterError(SlickError):
    """A Ray cluster does not answer, does not let us in, or does not know the job."""


def error_from_name(name: str, message: str) -> SlickError:
    """An error that another process wrote down, of the class of that name; an unknown name gives a `SlickError`."""
    kinds = {kind.__name__: kind for kind in SlickError.__subclasses__()}
    return kinds.get(name, SlickError)(message)


@contextmanager
def wrap_library_errors(
    what: str,
    kind: type[SlickError] = EngineError,
    mend: Callable[[str], str] = lambda _: "the library's own message says what failed",
) -> Iterator[None]:
    """Within, an exception that comes out of a library (torch, transformers, vLLM, ...) becomes one message.

    Defects of this program stay what they are: an exception that is raised by a line of its own code, unless it is one
    that torch's compiled operations raise there, such as an error of CUDA.

    Args:
        what: what failed, the beginning of the message, such as `answering 32 questions failed`.
        kind: of the error that is raised instead.
        mend: how to mend it, from the library's message.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SlickError) or not _is_from_library(error):
            raise
        reason = format_library_error(error)
        raise kind(f"{what}: {reason}; {mend(reason)}") from error


def format_library_error(error: BaseException) -> str:
    """Kind and message of an exception in one line; of a long one its beginning and its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {' '.join(' '.join(lines).split())}".removesuffix(": ")
    if len(text) <= _MAX_MESSAGE_CHARS:
        return text
    last = lines[-1][-_MAX_MESSAGE_CHARS // 2 :]
    return f"{text[: _MAX_MESSAGE_CHARS - len(last)]} ... {last}"


def _is_from_library(error: Exception) -> bool:
    """Whether the line that raised it is a library's, or a compiled operation's called by a line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not frames[-1].filename.startswith(_OWN_PACKAGES):
        return True
    # Compiled code leaves no frame behind: torch raises RuntimeError and its own subclasses of it, numpy MemoryError.
    return isinstance(error, RuntimeError | MemoryError) or type(error).__module__.split(".")[0] in ("torch", "vllm")
