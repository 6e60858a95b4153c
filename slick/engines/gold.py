"""How likely a given answer is: greedily, and under sampling. Pure numpy; the model sits behind `Candidates`.

Legend of array suffixes: P prompts, N places (of each prompt one for each token of the answer, and one for its end),
C candidate tokens, V vocabulary.
"""

import numpy as np
from numpy.typing import NDArray

from slick.engines.tree import BoolArray, Candidates, IntArray, cumulative_probabilities

END_OF_ANSWER = -1
"""In place of a token: whatever ends an answer."""
ANY_TOKEN = -2
"""In place of a token: any, since the answer is cut off before it."""


def score_positions(
    candidates: Candidates,
    targets_N: IntArray,
    prompt_N: IntArray,
    ends_V: BoolArray,
    *,
    temperature: float,
    top_k: int,
) -> tuple[BoolArray, NDArray[np.float64]]:
    """Whether each answer is the greedy one, and the chance that one sample is it.

    Args:
        candidates: for the token at each place, given all right tokens before it.
        targets_N: the right token, `END_OF_ANSWER` or `ANY_TOKEN`.
        prompt_N: the prompt of each place, 0 to P - 1; each has at least one.
        ends_V: True for tokens that end an answer and add nothing to it.
        temperature: of the samples.
        top_k: samples choose among that many likeliest tokens.

    Returns:
        Flags and chances, both of shape (P,).
    """
    logits, ids = candidates
    right_NC = np.where((targets_N == END_OF_ANSWER)[:, None], ends_V[ids], ids == targets_N[:, None])
    right_NC |= (targets_N == ANY_TOKEN)[:, None]
    cumulative = cumulative_probabilities(logits[:, :top_k], temperature)
    chances_NC = np.diff(cumulative, axis=1, prepend=0.0)
    chance_N = (chances_NC * right_NC[:, :top_k]).sum(axis=1)
    num_prompts = int(prompt_N[-1]) + 1
    chance_P = np.ones(num_prompts)
    np.multiply.at(chance_P, prompt_N, chance_N)
    greedy_P = np.ones(num_prompts, dtype=bool)
    np.logical_and.at(greedy_P, prompt_N, right_NC[:, 0])
    return greedy_P, chance_P
