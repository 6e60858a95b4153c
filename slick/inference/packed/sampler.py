"""Choosing tokens for many answers at once: a tree in which answers that agree so far are one node.

Pure numpy; the model sits behind `FeedFn`. Legend of array suffixes: P prompts, R rows (one row an answer: of each
prompt the greedy one, then its samples), N nodes, V vocabulary, C candidate tokens, T answer tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slick.inference.base import SamplingConfig
from slick.rng import uniforms

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Candidates = tuple[NDArray[np.float32], IntArray]
"""Logits and token ids of the likeliest tokens of each node, shape (N, C): best first, equal logits by token id."""

FeedFn = Callable[[IntArray, IntArray], Candidates]
"""Feed token `tokens[i]` behind node `parents[i]`; the new nodes are numbered on from the last one."""


class EarlyExit(Protocol):
    """Ends samples that no longer bear on the category of their question."""

    def hit_questions(self, rows: IntArray) -> IntArray:
        """Which questions are hit by one of these answers, which have come to their ends."""
        ...

    def cannot_match(self, rows: IntArray) -> BoolArray:
        """Which of the rows, as far as they have come, cannot become right."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Tokens of all answers of a batch, R = prompts * (1 + num_samples) rows."""

    tokens_RT: IntArray
    lengths_R: IntArray
    """Tokens of each answer, its stop token included; 0 for an answer that was not needed."""
    finished_R: BoolArray
    """Whether an answer has come to its end; not if it was given up as hopeless, or was not needed."""


class AnswerTree:
    """The nodes of a batch of prompts, and the answers that run along them. Root p is the end of prompt p."""

    def __init__(
        self,
        first: Candidates,
        feed: FeedFn,
        *,
        keys_P: NDArray[np.uint64],
        question_P: IntArray,
        stops_V: BoolArray,
        sampling: SamplingConfig,
    ) -> None:
        """Start at the roots.

        Args:
            first: candidates for the first answer token of each prompt.
            feed: see `FeedFn`.
            keys_P: `row_key(seed, question_id, prompt_index)` of each prompt.
            question_P: the question of each prompt.
            stops_V: True for tokens that end an answer.
            sampling: how many answers, how long, and how they are drawn.
        """
        self._feed, self._stops_V, self._sampling = feed, stops_V, sampling
        num_prompts, self._rows_a_prompt = len(keys_P), 1 + sampling.num_samples
        self._keys_P, self._question_P = keys_P, question_P
        self._cumulative_NC, self._ids_NC = self._distribution(first)
        num_rows = num_prompts * self._rows_a_prompt
        self.rows = AnswerTokens(
            np.full((num_rows, sampling.max_new_tokens), -1, dtype=np.int64),
            np.zeros(num_rows, dtype=np.int64),
            np.zeros(num_rows, dtype=bool),
        )
        self.num_fed = 0
        """Answer tokens that went through the model; answers that agree share them, stop tokens are never fed."""

    def question_of(self, rows: IntArray) -> IntArray:
        """The question that each of the rows answers."""
        return self._question_P[rows // self._rows_a_prompt]

    def decode_all(self, watch: EarlyExit | None = None) -> None:
        """Decode all answers, in step with each other.

        Args:
            watch: asked after each step. Samples of a question that an answer has hit count as not needed unless they
                have ended; hopeless ones stay as far as they have come. Of a question that a greedy answer hits, no
                sample counts as needed. Greedy answers are always whole.
        """
        tokens_RT, lengths_R, finished_R = self.rows.tokens_RT, self.rows.lengths_R, self.rows.finished_R
        live = np.arange(len(lengths_R))
        node = live // self._rows_a_prompt
        for step in range(self._sampling.max_new_tokens):
            chosen = self._next_tokens(node, live, step)
            tokens_RT[live, step] = chosen
            lengths_R[live] = step + 1
            goes_on = ~self._stops_V[chosen]
            if step + 1 == self._sampling.max_new_tokens:
                goes_on[:] = False
            ended = live[~goes_on]
            finished_R[ended] = True
            if watch is not None and len(ended):
                # Of equal answers the first one speaks for all; it is the greedy one, if that is among them.
                _, first = np.unique(self._edges(node[~goes_on], chosen[~goes_on]), return_index=True)
                self._drop_unneeded(ended[first], live[goes_on], watch)
                goes_on &= lengths_R[live] > 0
            live, node, chosen = live[goes_on], node[goes_on], chosen[goes_on]
            edge, first, place = np.unique(self._edges(node, chosen), return_index=True, return_inverse=True)
            if watch is not None and len(edge):
                stays = ~watch.cannot_match(live[first])[place] | self._is_greedy(live)
                live, kept, place = live[stays], *np.unique(place[stays], return_inverse=True)
                edge = edge[kept]
            if not len(edge):
                break
            node = len(self._ids_NC) + place
            self._add(self._feed(edge // len(self._stops_V), edge % len(self._stops_V)))
            self.num_fed += len(edge)

    def _drop_unneeded(self, ended: IntArray, going_on: IntArray, watch: EarlyExit) -> None:
        """Make samples that hits have made needless as if they had never been."""
        rows = np.arange(len(self.rows.lengths_R))
        needless = np.isin(self.question_of(rows), watch.hit_questions(ended[self._is_greedy(ended)]))
        needless[going_on] |= np.isin(self.question_of(going_on), watch.hit_questions(ended))
        needless &= ~self._is_greedy(rows)
        self.rows.tokens_RT[needless] = -1
        self.rows.lengths_R[needless] = 0
        self.rows.finished_R[needless] = False

    def _edges(self, node: IntArray, chosen: IntArray) -> IntArray:
        """One number for (node, token), so that rows which still agree are found by sorting."""
        return np.asarray(node * len(self._stops_V) + chosen)

    def _is_greedy(self, rows: IntArray) -> BoolArray:
        return np.asarray(rows % self._rows_a_prompt == 0)

    def _add(self, candidates: Candidates) -> None:
        cumulative, ids = self._distribution(candidates)
        self._ids_NC = np.concatenate([self._ids_NC, ids])
        self._cumulative_NC = np.concatenate([self._cumulative_NC, cumulative])

    def _distribution(self, candidates: Candidates) -> tuple[NDArray[np.float64], IntArray]:
        logits, ids = candidates
        if not self._sampling.num_samples:
            return np.empty((len(ids), 0)), ids
        return cumulative_probabilities(logits[:, : self._sampling.top_k], self._sampling.temperature), ids

    def _next_tokens(self, node: IntArray, rows: IntArray, step: int) -> IntArray:
        """The next token of each row: the best for a greedy row, else drawn by inverse distribution."""
        sample = rows % self._rows_a_prompt - 1
        greedy = sample < 0
        if greedy.all():
            return np.asarray(self._ids_NC[node, 0])
        draws = uniforms(self._keys_P[rows // self._rows_a_prompt], np.maximum(sample, 0), step)
        place = (self._cumulative_NC[node] <= draws[:, None]).sum(axis=1)
        place = np.where(greedy, 0, np.minimum(place, self._cumulative_NC.shape[1] - 1))
        return np.asarray(self._ids_NC[node, place])


def cumulative_probabilities(logits_NC: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Running sums of softmax(logits / temperature) over the candidates alone, in float64; the last is 1."""
    scaled = logits_NC.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled[:, :1])
    cumulative = np.cumsum(weights, axis=1)
    return np.asarray(cumulative / cumulative[:, -1:])
