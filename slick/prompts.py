"""The prompts: few-shot and closed-book prompts for questions, and the P(True) prompt. Pure.

Source of P(True): Gekhman et al. 2024, arXiv:2405.05904, section 6 and appendix J, after Kadavath et al. 2022,
arXiv:2207.05221. The paper prints the prompt, but does not say which token is scored and whether examples precede it.
Here there are no examples, and the two choices are `(A` and `(B` after a space, as in the prompt. A bare ` A` could
also be an article, as in `A city`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slick.errors import DataError
from slick.matching import nfc
from slick.rng import derive_seed

CLOSED_BOOK_INSTRUCTION = "Answer the following question.\n"


def few_shot_prefix(exemplars: Sequence[tuple[str, str]]) -> str:
    r"""The part of a few-shot prompt that all questions of a relation and exemplar set share.

    >>> few_shot_prefix([("Where was Ada born?", "London")])
    'Q: Where was Ada born?\nA: London\n'
    """
    return nfc("".join(f"Q: {question}\nA: {answer}\n" for question, answer in exemplars))


def few_shot_suffix(question: str) -> str:
    r"""The part of a few-shot prompt after the prefix; the answer follows, up to the first newline.

    >>> few_shot_suffix("Where was Ada born?")
    'Q: Where was Ada born?\nA:'
    """
    return nfc(f"Q: {question}\nA:")


def closed_book_suffix(question: str) -> str:
    """The part of a closed-book prompt after `CLOSED_BOOK_INSTRUCTION`."""
    return nfc(f"{question}\n")


def closed_book_prompt(question: str) -> str:
    r"""The fine-tuning input; the target answer follows.

    >>> closed_book_prompt("Where was Ada born?")
    'Answer the following question.\nWhere was Ada born?\n'
    """
    return CLOSED_BOOK_INSTRUCTION + closed_book_suffix(question)


def draw_exemplar_sets(
    dev_ids: Mapping[str, Sequence[str]], *, num_sets: int = 10, num_shots: int = 4, seed: int = 0
) -> dict[str, list[list[str]]]:
    """Draw the exemplar sets of every relation, which all of its questions share.

    Sets of one relation differ at least in their order; a dev question may be in several sets.

    Args:
        dev_ids: relation -> the question_ids of its dev split, in any order.
        num_sets: number of sets per relation.
        num_shots: questions per set.
        seed: random seed.

    Returns:
        Relation -> `num_sets` lists of `num_shots` question_ids.

    Raises:
        DataError: a relation has too few dev questions for that many different sets.

    Source: Gekhman et al. 2024, arXiv:2405.05904, appendix C.
    """
    sets: dict[str, list[list[str]]] = {}
    for relation in sorted(dev_ids):
        ids = sorted(dev_ids[relation])
        needed = num_shots + (num_sets > 1)
        while math.perm(needed, num_shots) < num_sets:
            needed += 1
        if len(ids) < needed:
            raise DataError(
                f"relation {relation} has {len(ids)} dev questions; {num_sets} exemplar sets of {num_shots} need "
                f"at least {needed}; add dev questions, exclude the relation, or lower --num-shots"
            )
        rng = np.random.default_rng(derive_seed(seed, "exemplars", relation))
        drawn: list[list[str]] = []
        for _ in range(1000 * num_sets):
            picked = [ids[i] for i in rng.choice(len(ids), size=num_shots, replace=False)]
            if picked not in drawn:
                drawn.append(picked)
            if len(drawn) == num_sets:
                break
        if len(drawn) < num_sets:
            raise DataError(
                f"relation {relation} gave {len(drawn)} different exemplar sets from {len(ids)} dev questions, "
                f"expected {num_sets}; add dev questions, or lower --num-exemplar-sets"
            )
        sets[relation] = drawn
    return sets


P_TRUE_PREFIX = "Question:"
P_TRUE_CHOICES = ("(A", "(B")
"""The continuations of the prompt after a space: true, false."""


def p_true_suffix(question: str, proposal: str) -> str:
    r"""The part of the P(True) prompt after `P_TRUE_PREFIX`.

    >>> p_true_suffix("Where is Paris?", "France")
    ' Where is Paris?\nProposed Answer: France\nIs the proposed answer:\n\n(A) True\n(B) False\nThe proposed answer is:'
    """
    return nfc(
        f" {question}\nProposed Answer: {proposal}\nIs the proposed answer:\n\n(A) True\n(B) False\n"
        "The proposed answer is:"
    )


def p_true_row(question_id: str, log_a: float, log_b: float) -> dict[str, Any]:
    """A row of `P_TRUE_SCHEMA` from the log-probabilities of both choices; exact where the probabilities underflow.

    >>> p_true_row("q", -800.0, -800.0)["p_true"]
    0.5
    """
    odds = math.exp(-abs(log_a - log_b))  # of the less likely choice
    share = 1.0 / (1.0 + odds)
    return {
        "question_id": question_id,
        "p_a": math.exp(log_a),
        "p_b": math.exp(log_b),
        "p_true": share if log_a >= log_b else odds * share,
    }
