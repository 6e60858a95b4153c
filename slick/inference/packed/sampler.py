"""Samples many answers at once, as a tree: answers with the same tokens so far share a node.

Pure numpy; the model is behind `FeedFn`. Array suffixes: P prompts, R rows (one per answer: the greedy answer of each
prompt, then its samples), N nodes, V vocabulary, C candidate tokens, T answer tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from slick.inference.base import SamplingConfig
from slick.matching import AnswerMatcher
from slick.rng import uniforms

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Candidates = tuple[NDArray[np.float32], IntArray]
"""Logits and ids of the most likely tokens after each node, shape (N, C): best first, equal logits by token id."""

FeedFn = Callable[[IntArray, IntArray], Candidates]
"""Feed token `tokens[i]` after node `parents[i]`; numbers of the new nodes continue from the last node's."""


class EarlyExit(Protocol):
    """Ends samples that cannot change the category of their question."""

    def hit_questions(self, rows: IntArray) -> IntArray:
        """Questions that one of these finished answers matches."""
        ...

    def cannot_match(self, rows: IntArray) -> BoolArray:
        """True for rows that no correct answer begins like."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Tokens of all answers of a batch, in R = prompts * (1 + num_samples) rows."""

    tokens_RT: IntArray
    lengths_R: IntArray
    """Tokens of each answer, stop token included; 0 for a skipped answer."""
    finished_R: BoolArray
    """Whether an answer is complete; False if it was stopped early or skipped."""


class AnswerTree:
    """The nodes of a batch of prompts, and the answers as paths through them. Root p is the end of prompt p."""

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
        """A tree of roots only.

        Args:
            first: candidates for the first answer token of each prompt.
            feed: see `FeedFn`.
            keys_P: `row_key(seed, question_id, prompt_index)` of each prompt.
            question_P: index of each prompt's question.
            stops_V: True for tokens that end an answer.
            sampling: number and length of the answers, and how they are sampled.
        """
        self._feed, self._stops_V, self._sampling = feed, stops_V, sampling
        num_prompts, self._rows_per_prompt = len(keys_P), 1 + sampling.num_samples
        self._keys_P, self._question_P = keys_P, question_P
        self._cumulative_NC, self._ids_NC = self._distribution(first)
        num_rows = num_prompts * self._rows_per_prompt
        self.rows = AnswerTokens(
            np.full((num_rows, sampling.max_new_tokens), -1, dtype=np.int64),
            np.zeros(num_rows, dtype=np.int64),
            np.zeros(num_rows, dtype=bool),
        )
        self.num_fed = 0
        """Answer tokens that went through the model; a node counts once, and stop tokens are never fed."""

    def question_of(self, rows: IntArray) -> IntArray:
        """Index of the question of each row."""
        return self._question_P[rows // self._rows_per_prompt]

    def decode_all(self, early_exit: EarlyExit | None = None) -> None:
        """Decode all answers, one token of each per step.

        Args:
            early_exit: consulted after each step. Once an answer to a question is correct, its unfinished samples are
                removed; once a greedy answer is correct, all its samples are. Samples that can no longer match stay
                incomplete. Greedy answers are always completed.
        """
        tokens_RT, lengths_R, finished_R = self.rows.tokens_RT, self.rows.lengths_R, self.rows.finished_R
        live = np.arange(len(lengths_R))
        node = live // self._rows_per_prompt
        for step in range(self._sampling.max_new_tokens):
            chosen = self._next_tokens(node, live, step)
            tokens_RT[live, step] = chosen
            lengths_R[live] = step + 1
            continues = ~self._stops_V[chosen]
            if step + 1 == self._sampling.max_new_tokens:
                continues[:] = False
            ended = live[~continues]
            finished_R[ended] = True
            if early_exit is not None and len(ended):
                # The first of equal answers is enough to match; it is the greedy one, if that is among them.
                _, first = np.unique(self._edges(node[~continues], chosen[~continues]), return_index=True)
                self._remove_unneeded(ended[first], live[continues], early_exit)
                continues &= lengths_R[live] > 0
            live, node, chosen = live[continues], node[continues], chosen[continues]
            edge, first, edge_index = np.unique(self._edges(node, chosen), return_index=True, return_inverse=True)
            if early_exit is not None and len(edge):
                stays = ~early_exit.cannot_match(live[first])[edge_index] | self._is_greedy(live)
                live, kept, edge_index = live[stays], *np.unique(edge_index[stays], return_inverse=True)
                edge = edge[kept]
            if not len(edge):
                break
            node = len(self._ids_NC) + edge_index
            self._add(self._feed(edge // len(self._stops_V), edge % len(self._stops_V)))
            self.num_fed += len(edge)

    def _remove_unneeded(self, ended: IntArray, unfinished: IntArray, early_exit: EarlyExit) -> None:
        """Remove samples of questions that one of the ended answers matches; see `decode_all`."""
        rows = np.arange(len(self.rows.lengths_R))
        unneeded = np.isin(self.question_of(rows), early_exit.hit_questions(ended[self._is_greedy(ended)]))
        unneeded[unfinished] |= np.isin(self.question_of(unfinished), early_exit.hit_questions(ended))
        unneeded &= ~self._is_greedy(rows)
        self.rows.tokens_RT[unneeded] = -1
        self.rows.lengths_R[unneeded] = 0
        self.rows.finished_R[unneeded] = False

    def _edges(self, node: IntArray, chosen: IntArray) -> IntArray:
        """A unique number for each (node, token), so that rows with the same tokens are found by sorting."""
        return np.asarray(node * len(self._stops_V) + chosen)

    def _is_greedy(self, rows: IntArray) -> BoolArray:
        return np.asarray(rows % self._rows_per_prompt == 0)

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
        """The next token of each row: the best for a greedy row, otherwise sampled by inverse transform."""
        sample = rows % self._rows_per_prompt - 1
        greedy = sample < 0
        if greedy.all():
            return np.asarray(self._ids_NC[node, 0])
        uniform_R = uniforms(self._keys_P[rows // self._rows_per_prompt], np.maximum(sample, 0), step)
        rank = (self._cumulative_NC[node] <= uniform_R[:, None]).sum(axis=1)
        rank = np.where(greedy, 0, np.minimum(rank, self._cumulative_NC.shape[1] - 1))
        return np.asarray(self._ids_NC[node, rank])


def cumulative_probabilities(logits_NC: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Cumulative sums of softmax(logits / temperature) over the candidates, in float64; the last one is 1."""
    scaled = logits_NC.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled[:, :1])
    cumulative = np.cumsum(weights, axis=1)
    return np.asarray(cumulative / cumulative[:, -1:])


def concatenate_candidates(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of several groups of nodes, in order."""
    return np.concatenate([values for values, _ in parts]), np.concatenate([ids for _, ids in parts])


class CategoryEarlyExit:
    """Matches growing answers with the gold answers; implements `EarlyExit`."""

    def __init__(
        self,
        targets: Sequence[AnswerMatcher],
        question_of: Callable[[IntArray], IntArray],
        text_of: Callable[[int], str],
    ) -> None:
        """Early exit for one batch.

        Args:
            targets: one matcher per question.
            question_of: maps rows to the indices of their questions.
            text_of: the text of a row so far.
        """
        self._targets, self._question_of, self._text_of = targets, question_of, text_of
        self._can_still_match: dict[tuple[int, str], bool] = {}

    def hit_questions(self, rows: IntArray) -> IntArray:
        """Questions that one of these finished answers matches."""
        answers = set(self._row_texts(rows))  # many prompts of a question have the same answer
        questions = [question for question, text in answers if self._targets[question].is_hit(text)]
        return np.unique(np.array(questions, dtype=np.int64))

    def cannot_match(self, rows: IntArray) -> BoolArray:
        """True for rows that no correct answer begins like."""
        return np.array([not self._matches_beginning(*row) for row in self._row_texts(rows)], dtype=bool)

    def _matches_beginning(self, question: int, text: str) -> bool:
        beginning = text.rstrip("\N{REPLACEMENT CHARACTER}")  # the first bytes of an incomplete character
        key = question, beginning
        if key not in self._can_still_match:
            self._can_still_match[key] = self._targets[question].can_still_match(beginning)
        return self._can_still_match[key]

    def _row_texts(self, rows: IntArray) -> Iterator[tuple[int, str]]:
        return zip(self._question_of(rows).tolist(), map(self._text_of, rows.tolist()), strict=True)
