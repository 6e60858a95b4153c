"""The two prompt formats of the paper, and the exemplar sets. Pure.

Few-shot, to ask what a model knows (arXiv:2405.05904, appendix C); closed book, to fine-tune and to test (appendix E).
The paper shows the instruction and the question of the closed-book format, not what separates them: here a newline,
and another before the answer. All prompts are in Unicode's NFC, whatever form a question set is written in; see
`slick.matching.nfc`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from slick.draws import derive_seed
from slick.errors import DataError
from slick.matching import nfc

CLOSED_BOOK_INSTRUCTION = "Answer the following question.\n"


def few_shot_prefix(exemplars: Sequence[tuple[str, str]]) -> str:
    r"""The part of a few-shot prompt that all questions of (relation, exemplar set) share.

    >>> few_shot_prefix([("Where was Ada born?", "London")])
    'Q: Where was Ada born?\nA: London\n'
    """
    return nfc("".join(f"Q: {question}\nA: {answer}\n" for question, answer in exemplars))


def few_shot_suffix(question: str) -> str:
    r"""The question's own part of a few-shot prompt; the model's answer follows, up to the first newline.

    >>> few_shot_suffix("Where was Ada born?")
    'Q: Where was Ada born?\nA:'
    """
    return nfc(f"Q: {question}\nA:")


def closed_book_suffix(question: str) -> str:
    """The question's own part of a closed-book prompt, which begins with `CLOSED_BOOK_INSTRUCTION`."""
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
    """The exemplar sets of every relation, drawn once and reused for each of its questions.

    Sets of one relation differ from each other, if only in their order; a dev question may serve in several sets.

    Args:
        dev_ids: relation to the question_ids of its dev split, in any order.

    Returns:
        relation to `num_sets` lists of `num_shots` question_ids.

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
                f"at least {needed}; give it more dev questions, leave it out, or lower --num-shots"
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
                f"relation {relation}: {len(drawn)} different exemplar sets were drawn from {len(ids)} dev questions, "
                f"wanted {num_sets}; give it more dev questions, or lower --num-exemplar-sets"
            )
        sets[relation] = drawn
    return sets
