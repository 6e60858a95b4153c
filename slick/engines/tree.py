"""Choosing tokens for many answers at once: a tree in which answers that agree so far are one node.

Pure numpy; the model sits behind `advance`. Legend of array suffixes: Q questions, R rows (one row an answer: of each
question the greedy one, then its samples), N live nodes, V vocabulary, C candidate tokens, T answer tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slick.draws import uniforms
from slick.engines.base import SamplingConfig

Ints = NDArray[np.int64]

Candidates = tuple[NDArray[np.float32], Ints]
"""Logits and token ids of the likeliest tokens of each node, shape (N, C): best first, equal logits by token id."""

Advance = Callable[[Ints, Ints], Candidates]
"""Feed token `tokens[i]` behind live node `parents[i]`; these become the live nodes."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokens of all answers of a batch, R = Q * (1 + num_samples) rows."""

    tokens_RT: Ints
    lengths_R: Ints
    """Tokens of each answer, its stop token included."""
    num_nodes_fed: int
    """Answer tokens that went through the model; answers that agree share them, stop tokens are never fed."""


def grow(
    first: Candidates,
    node_of_Q: Ints,
    advance: Advance,
    *,
    keys_Q: NDArray[np.uint64],
    stops_V: NDArray[np.bool_],
    sampling: SamplingConfig,
) -> Rows:
    """Decode the greedy answer and the samples of every question.

    Args:
        first: candidates for the first answer token of each distinct prompt.
        node_of_Q: which of those prompts is question q's.
        advance: see `Advance`.
        keys_Q: `row_key(seed, question_id, prompt_index)` of each question.
        stops_V: True for tokens that end an answer.
        sampling: how many answers, how long, and how they are drawn.
    """
    rows_a_question = 1 + sampling.num_samples
    num_rows = len(node_of_Q) * rows_a_question
    tokens_RT = np.full((num_rows, sampling.max_new_tokens), -1, dtype=np.int64)
    lengths_R = np.zeros(num_rows, dtype=np.int64)
    sample_R = np.tile(np.arange(-1, sampling.num_samples), len(node_of_Q))
    keys_R = np.repeat(keys_Q, rows_a_question)
    live, node = np.arange(num_rows), np.repeat(node_of_Q, rows_a_question)
    candidates, num_nodes_fed = first, 0
    for step in range(sampling.max_new_tokens):
        chosen = _choose(candidates, node, keys_R[live], sample_R[live], step, sampling)
        tokens_RT[live, step] = chosen
        lengths_R[live] = step + 1
        goes_on = ~stops_V[chosen]
        if step + 1 == sampling.max_new_tokens or not goes_on.any():
            break
        live = live[goes_on]
        # One number for (node, token), so that rows which still agree are found by sorting.
        branches, node = np.unique(node[goes_on] * len(stops_V) + chosen[goes_on], return_inverse=True)
        candidates = advance(branches // len(stops_V), branches % len(stops_V))
        num_nodes_fed += len(branches)
    return Rows(tokens_RT, lengths_R, num_nodes_fed)


def _choose(
    candidates: Candidates,
    node: Ints,
    keys: NDArray[np.uint64],
    samples: Ints,
    step: int,
    sampling: SamplingConfig,
) -> Ints:
    """The next token of each live row: the best for a greedy row (sample -1), else drawn by inverse distribution."""
    logits, ids = candidates
    greedy = samples < 0
    if greedy.all():
        return np.asarray(ids[node, 0])
    cumulative = cumulative_probabilities(logits[:, : sampling.top_k], sampling.temperature)
    draws = uniforms(keys, np.maximum(samples, 0), step)
    place = (cumulative[node] <= draws[:, None]).sum(axis=1)
    place = np.where(greedy, 0, np.minimum(place, cumulative.shape[1] - 1))
    return np.asarray(ids[node, place])


def cumulative_probabilities(logits_NC: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Running sums of softmax(logits / temperature) over the candidates alone, in float64; the last is 1."""
    scaled = logits_NC.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled[:, :1])
    cumulative = np.cumsum(weights, axis=1)
    return np.asarray(cumulative / cumulative[:, -1:])
