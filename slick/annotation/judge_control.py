"""A check of a judge before it grades: does it recognize answers that are known to be right or wrong? Pure.

A judge that calls every answer correct would make every question HighlyKnown, and one that accepts none would make
them Unknown.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from slick.errors import EngineError
from slick.formatting import format_percent
from slick.matching import normalize
from slick.rng import row_key
from slick.study_files import CORRECT

NUM_QUESTIONS = 25
"""Questions that the check uses, each with a right and a wrong answer."""
_MIN_QUESTIONS = 5
"""With fewer, there is no check."""


class ControlAnswer(NamedTuple):
    """An answer whose outcome is known."""

    question: str
    gold: Sequence[str]
    answer: str
    is_correct: bool


def control_answers(texts: Mapping[str, tuple[str, Sequence[str]]]) -> list[ControlAnswer]:
    """For some questions a right answer, the gold answer in a sentence, and a wrong one, that of another question.

    Args:
        texts: question_id -> question and gold answers.

    Returns:
        Right and wrong answers in turn; empty if there are too few questions with different gold answers.
    """
    order = sorted(texts, key=lambda question_id: int(row_key(0, "judge control", question_id)))
    chosen: dict[str, tuple[str, Sequence[str]]] = {}  # by gold answer, so that all differ
    for question_id in order:
        question, gold = texts[question_id]
        if (name := normalize(gold[0])) and len(chosen) < NUM_QUESTIONS:
            chosen.setdefault(name, (question, gold))
    if len(chosen) < _MIN_QUESTIONS:
        return []
    rows = list(chosen.values())
    answers = []
    for (question, gold), (_, other) in zip(rows, rows[1:] + rows[:1], strict=True):
        answers.append(ControlAnswer(question, gold, f"It is {gold[0].strip()}.", True))
        answers.append(ControlAnswer(question, gold, f"It is {other[0].strip()}.", False))
    return answers


def check_judge(answers: Sequence[ControlAnswer], outcomes: Sequence[str], min_accuracy: float) -> float:
    """The mean share of right and of wrong answers that the judge recognizes.

    Args:
        answers: the result of `control_answers`, not empty.
        outcomes: the judge's outcome of each.
        min_accuracy: the least accepted share, in [0, 1].

    Raises:
        EngineError: the share is lower.
    """
    accepted = [outcome == CORRECT for outcome in outcomes]
    num = len(answers) // 2
    right = sum(is_hit for is_hit, answer in zip(accepted, answers, strict=True) if answer.is_correct)
    wrong = sum(is_hit for is_hit, answer in zip(accepted, answers, strict=True) if not answer.is_correct)
    accuracy = (right + num - wrong) / (2 * num)
    if accuracy < min_accuracy:
        raise EngineError(
            f"the judge does not distinguish right from wrong answers: it calls {right} of {num} gold answers correct, "
            f"and {wrong} of {num} answers to other questions; it recognizes {format_percent(accuracy)}, expected at "
            f"least {format_percent(min_accuracy)}. Give a larger judge, or another matcher; "
            "--judge.min-control-accuracy 0 disables this check"
        )
    return accuracy
