"""A judge that does not distinguish right from wrong answers is refused before it grades."""

from collections.abc import Callable
from typing import Any

import pytest

from slick.annotation.judge_control import NUM_QUESTIONS, check_judge, control_answers
from slick.errors import EngineError
from slick.study_files import CORRECT, INCORRECT, UNPARSABLE

TEXTS = {f"q{i}": (f"Who is {i}?", [f"Person {i}"]) for i in range(40)}


def test_each_question_has_a_right_and_a_wrong_answer() -> None:
    answers = control_answers(TEXTS)
    assert len(answers) == 2 * NUM_QUESTIONS
    assert answers == control_answers(dict(reversed(TEXTS.items())))
    for answer in answers:
        assert answer.is_correct == (answer.answer == f"It is {answer.gold[0]}.")
    assert len({answer.answer for answer in answers if answer.is_correct}) == NUM_QUESTIONS


def test_too_few_distinct_gold_answers_skip_the_check() -> None:
    assert control_answers(dict(list(TEXTS.items())[:4])) == []
    assert control_answers({name: (question, ["Paris"]) for name, (question, _) in TEXTS.items()}) == []


def outcomes(is_accepted: Callable[[Any], bool]) -> list[str]:
    return [CORRECT if is_accepted(answer) else INCORRECT for answer in control_answers(TEXTS)]


@pytest.mark.parametrize(
    ("is_accepted", "message"),
    [
        (lambda _: True, r"calls 25 of 25 gold answers correct, and 25 of 25 answers .*; it recognizes 50 %"),
        (lambda _: False, r"calls 0 of 25 gold answers correct, and 0 of 25 .*expected at least 80 %.*larger judge"),
        (lambda answer: not answer.is_correct, r"recognizes 0 %"),
    ],
)
def test_inaccurate_judges_are_refused(is_accepted: Callable[[Any], bool], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_judge(control_answers(TEXTS), outcomes(is_accepted), 0.8)


def test_accurate_judge_is_accepted() -> None:
    assert check_judge(control_answers(TEXTS), outcomes(lambda answer: answer.is_correct), 0.8) == 1.0
    half_parsable = [UNPARSABLE if i % 4 == 0 else o for i, o in enumerate(outcomes(lambda answer: answer.is_correct))]
    assert check_judge(control_answers(TEXTS), half_parsable, 0.7) < 0.8
