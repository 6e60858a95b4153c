"""Every reader refuses damaged inputs with a message; `python -m tests.fuzz.run` feeds them many more."""

import pytest

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
