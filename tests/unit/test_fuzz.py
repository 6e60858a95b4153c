"""Every reader refuses damaged inputs with a message; `python -m tests.fuzz.run` feeds them many more."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings

from slick.annotation.prompting import PromptBuilder, exemplar_texts
from slick.datasets.columns import RowError, validate_text
from slick.prompt_formats import QaFormat
from tests.fuzz.inputs import texts
from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_reader_reads_or_refuses_every_input(name: str) -> None:
    outcomes = fuzz(TARGETS[name], 12)
    assert outcomes.total() >= 12


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_reader_reads_or_refuses_a_thousand_inputs(name: str) -> None:
    outcomes = fuzz(TARGETS[name], 1000, seed_number=1)
    assert outcomes["refused"] > 0 or name in NEVER_REFUSE, outcomes
    assert outcomes["read"] > 0, outcomes


NEVER_REFUSE = {"context", "judge reply", "storage name", "tuning rows"}
"""Readers that take any text, and one whose refusals are of rows."""


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(texts)
def test_a_question_never_changes_how_others_are_asked(hostile: str) -> None:
    rows = [
        {"question_id": f"q{i}", "relation": "P19", "question": f"Where was Ada{i} born?", "answers": ["London"]}
        for i in range(4)
    ]
    exemplars = {"P19": [["q0", "q1"], ["q1", "q0"]]}

    def prompts(question: str) -> dict[str, tuple[list[str], str]]:
        table = pa.Table.from_pylist([*rows[:3], rows[3] | {"question": question}])
        builder = PromptBuilder(exemplars, exemplar_texts(table, exemplars, "here"), QaFormat())
        asked = builder.add_prompts(table).to_pylist()
        return {row["question_id"]: (builder.prefixes[row["prompt_group"]], row["suffix"]) for row in asked}

    try:
        question = validate_text(hostile, "question")
    except RowError:
        return
    usual, changed = prompts(rows[3]["question"]), prompts(question)
    assert {name: prompt for name, prompt in changed.items() if name != "q3"} == {
        name: prompt for name, prompt in usual.items() if name != "q3"
    }
    assert changed["q3"][1] == f"Q: {unicodedata.normalize('NFC', question)}\nA:"
    assert changed["q3"][1].count("\n") == 1, "a question is one line, so it cannot add an exemplar"
