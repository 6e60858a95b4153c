"""Exceptions of libraries become one message; exceptions of this program pass unchanged."""

import copy

import numpy as np
import pytest

from slick.errors import (
    EngineError,
    ModelError,
    SlickError,
    StudyError,
    error_from_name,
    format_library_error,
    wrap_library_errors,
)
from slick.prompts import draw_exemplar_sets, few_shot_prefix


def run_in_file(path: str, line: str) -> None:
    """Run a line of code as if it were in another file."""
    exec(compile(line, path, "exec"), {"few_shot_prefix": few_shot_prefix, "np": np})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("raise RuntimeError('CUDA error: device-side assert triggered')", "RuntimeError: CUDA error: device-side"),
        ("raise IndexError('index out of range in self')", "IndexError: index out of range in self"),
        ("assert False, 'Padding_idx must be within num_embeddings'", "AssertionError: Padding_idx"),
        ("[][0]", "IndexError: list index"),
    ],
)
def test_library_exception_is_one_engine_error(line: str, message: str) -> None:
    with (
        pytest.raises(EngineError, match=rf"^answering 3 questions failed: {message}") as raised,
        wrap_library_errors("answering 3 questions failed"),
    ):
        run_in_file("/lib/site-packages/torch/nn/functional.py", line)
    assert raised.value.__cause__ is not None
    assert "\n" not in str(raised.value)
    assert str(copy.copy(raised.value)) == str(raised.value), "Ray copies exceptions"


def test_error_class_and_advice_can_be_given() -> None:
    with (
        pytest.raises(ModelError, match="x: OSError: no file; try y"),
        wrap_library_errors("x", ModelError, lambda _: "try y"),
    ):
        run_in_file("/lib/vllm/llm.py", "raise OSError('no file')")


def test_exceptions_of_this_program_pass_unchanged() -> None:
    with pytest.raises(TypeError), wrap_library_errors("x"):
        few_shot_prefix([1])  # type: ignore[list-item]
    with pytest.raises(ZeroDivisionError), wrap_library_errors("x"):
        run_in_file(draw_exemplar_sets.__code__.co_filename, "1 / 0")
    with pytest.raises(AssertionError), wrap_library_errors("x"):
        run_in_file(draw_exemplar_sets.__code__.co_filename, "assert False")


def test_exceptions_of_compiled_code_are_library_errors() -> None:
    with pytest.raises(EngineError, match="x: RuntimeError: CUDA error"), wrap_library_errors("x"):
        run_in_file(draw_exemplar_sets.__code__.co_filename, "raise RuntimeError('CUDA error')")


def test_slick_errors_pass_unchanged() -> None:
    with pytest.raises(StudyError, match=r"^as it is$"), wrap_library_errors("x"):
        raise StudyError("as it is")


def test_long_message_keeps_its_beginning_and_last_line() -> None:
    message = format_library_error(RuntimeError("first\n" + "many details\n" * 100 + "the last line"))
    assert message.startswith("RuntimeError: first many details")
    assert message.endswith("... the last line")
    assert len(message) < 450


@pytest.mark.parametrize("kind", [SlickError, *SlickError.__subclasses__()])
def test_stored_error_of_a_worker_keeps_its_class(kind: type[SlickError]) -> None:
    error = error_from_name(kind.__name__, "x is y")
    assert type(error) is kind
    assert str(error) == "x is y"


def test_stored_error_of_an_unknown_class_is_a_slick_error() -> None:
    assert type(error_from_name("KeyboardInterrupt", "x")) is SlickError
