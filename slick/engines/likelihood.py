"""How likely given texts are to follow a prompt, from one pass and without a draw.

Texts that differ in their last token alone are read off one sequence.
"""

from collections.abc import Callable, Sequence

import numpy as np

from slick.engines.tree import Candidates, IntArray

TokenIds = Sequence[int]

ReadLogProbabilities = Callable[[list[list[int]], IntArray, IntArray], Candidates]
"""Feed sequences; of the last so many tokens of each, the log-probabilities of given tokens to come next."""


def log_probabilities(
    read: ReadLogProbabilities, prompts: Sequence[TokenIds], answers_QC: Sequence[Sequence[TokenIds]]
) -> list[tuple[float, ...]]:
    """The natural logarithm of the chance that each prompt is followed by each of its answers; Q prompts, C answers.

    Args:
        read: the model.
        prompts: Q sequences of tokens.
        answers_QC: tokens of the answers to each prompt, one or more each.

    Returns:
        For each prompt C numbers, none above 0.
    """
    fed = [(q, stem) for q, answers in enumerate(answers_QC) for stem in dict.fromkeys(map(_all_but_last, answers))]
    kept = np.array([len(stem) + 1 for _, stem in fed])
    ids = np.unique([token for answers in answers_QC for answer in answers for token in answer])
    values_NC, _ = read([[*prompts[q], *stem] for q, stem in fed], kept, ids)
    place_of = dict(zip(fed, (np.cumsum(kept) - kept).tolist(), strict=True))
    column_of = {token: column for column, token in enumerate(ids.tolist())}

    def chance(q: int, answer: TokenIds) -> float:
        first = place_of[q, _all_but_last(answer)]
        return sum(float(values_NC[first + i, column_of[token]]) for i, token in enumerate(answer))

    return [tuple(chance(q, answer) for answer in answers) for q, answers in enumerate(answers_QC)]


def _all_but_last(answer: TokenIds) -> tuple[int, ...]:
    """What must be fed to see how likely the answer is: all but its last token."""
    return tuple(answer[:-1])
