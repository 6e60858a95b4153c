"""Most likely tokens, and probabilities of given tokens and answers, from a model's logits."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.errors import EngineError
from slick.inference.base import AnswerScore, GoldScore, SamplingConfig
from slick.inference.packed.sampler import BoolArray, Candidates, IntArray, cumulative_probabilities
from slick.quantization import model_quantization

EXTRA_CANDIDATES = 24
"""Candidates fetched beyond top-k, to detect ties at its edge, which token ids break."""
_NUM_GRID_ROWS = 16
"""Rows of the grid that `_top_keys` writes a vocabulary into."""
_ROWS_PER_SORT = 64
"""Rows of logits whose whole vocabulary is sorted at once."""
END_OF_ANSWER = -1
"""A target that matches any token that ends an answer."""
ANY_TOKEN = -2
"""A target that matches any token, because the answer is cut off before it."""
_MASK_31_BITS = 0x7FFFFFFF

SortKeys = NDArray[np.int64]
Integers = TypeVar("Integers", SortKeys, Tensor)
TokenIds = Sequence[int]
ReadLogProbabilities = Callable[[list[list[int]], IntArray, IntArray], Candidates]
"""From sequences, numbers of their last tokens and token ids: log-probabilities of the ids after each last token."""


def top_candidates(logits_NV: Tensor, num: int) -> Candidates:
    """The `num` most likely tokens of each row, by logit and then by token id, also at the edge.

    Raises:
        EngineError: a logit is not finite.
    """
    num_classes = logits_NV.shape[1]
    fetched = min(num + EXTRA_CANDIDATES, num_classes)
    keys = (_top_keys if logits_NV.device.type == "cpu" else _top_keys_on_gpu)(logits_NV, fetched)
    values, ids = _unpack_keys(keys)
    values_NC, ids_NC = values[:, :num], ids[:, :num]
    check_finite(values_NC[:, 0])
    if fetched < num_classes:
        # A tie extends beyond the fetched tokens: only a full sort finds the lowest ids.
        tied = np.flatnonzero(values_NC[:, -1] == values[:, -1])
        for start in range(0, len(tied), _ROWS_PER_SORT):
            rows = tied[start : start + _ROWS_PER_SORT]
            tied_RV = logits_NV[torch.from_numpy(rows).to(logits_NV.device)]
            sorted_RV, by_value = torch.sort(tied_RV, descending=True, stable=True)
            values_NC[rows], ids_NC[rows] = sorted_RV[:, :num].float().cpu().numpy(), by_value[:, :num].cpu().numpy()
    return values_NC, ids_NC


def token_log_probabilities(logits_NV: Tensor, ids: NDArray[np.int64]) -> Candidates:
    """Log-probabilities of the given tokens in each row: softmax over the whole vocabulary in float32.

    Raises:
        EngineError: one is not finite.
    """
    log_probabilities_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    values = log_probabilities_NV[:, torch.from_numpy(ids).to(logits_NV.device)].cpu().numpy()
    check_finite(values)
    return values, np.broadcast_to(ids, values.shape)


def check_finite(values: NDArray[np.float32]) -> None:
    """Refuse logits or log-probabilities that are not finite.

    Raises:
        EngineError: one is not.
    """
    if not np.isfinite(values).all():
        raise EngineError(
            "the model's logits are not finite (NaN or infinity), so its answers are meaningless; load it in float32 "
            "or bfloat16, and check that the weights are complete"
        )


def _top_keys_on_gpu(logits_NV: Tensor, num: int) -> SortKeys:
    """`_top_keys`, sorted on the GPU, so that only the keys are transferred to the host."""
    values, ids = torch.topk(logits_NV, num, dim=1, sorted=False)
    # NaN is the largest value in topk; its key must be the largest too, so that `check_finite` sees it.
    values = values.float().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    keys, _ = _pack_keys((values + 0.0).view(torch.int32).long(), ids).sort(dim=1, descending=True)
    return keys.cpu().numpy()


def _top_keys(logits_NV: Tensor, num: int) -> SortKeys:
    """Sort keys of the `num` largest logits of each row, largest first; up to four times as fast as torch on the CPU.

    If the vocabulary is large, each row of logits is viewed as a grid. The `num` largest logits are in the `num`
    columns with the largest maxima, so only those columns are searched.
    """
    num_rows, num_classes = logits_NV.shape
    grid_rows, width = _NUM_GRID_ROWS, num_classes // _NUM_GRID_ROWS
    if width <= 2 * num:
        values, ids = logits_NV.float().numpy(), np.arange(num_classes)[None]
    else:
        grid = logits_NV[:, : grid_rows * width].view(num_rows, grid_rows, width)
        columns = np.argpartition(grid.amax(1).float().numpy(), -num, axis=1)[:, -num:]
        ids = (np.arange(grid_rows)[:, None] * width + columns[:, None]).reshape(num_rows, -1)
        rest = np.broadcast_to(np.arange(grid_rows * width, num_classes), (num_rows, num_classes - grid_rows * width))
        ids = np.concatenate([ids, rest], axis=1)
        values = torch.gather(logits_NV, 1, torch.from_numpy(ids)).float().numpy()
    if num < values.shape[1]:
        kept = np.argpartition(values, -num, axis=1)[:, -num:]
        values, ids = np.take_along_axis(values, kept, axis=1), np.take_along_axis(ids, kept, axis=1)
    # NaN is the largest value here, but its key may be the smallest.
    check_finite(values.max(axis=1))
    return -np.sort(-_pack_keys((values + 0.0).view(np.int32).astype(np.int64), ids), axis=1)


def _pack_keys(bits: Integers, ids: Integers) -> Integers:
    """Integers that sort like the logits with these bits; equal logits sort by descending id."""
    return (_to_sortable(bits) << 32) | (_MASK_31_BITS - ids)


def _unpack_keys(keys: SortKeys) -> Candidates:
    """Inverse of `_pack_keys`: logits and token ids."""
    return _to_sortable(keys >> 32).astype(np.int32).view(np.float32), _MASK_31_BITS - (keys & _MASK_31_BITS)


def _to_sortable(bits: Integers) -> Integers:
    """Maps the bits of 32-bit floats, as signed integers, to integers that sort like the floats; its own inverse."""
    return bits ^ ((bits >> 31) & _MASK_31_BITS)


def accepts_argument(model: nn.Module, parameter: str) -> bool:
    """Whether the model's forward method has this parameter."""
    return parameter in inspect.signature(model.forward).parameters


def logit_tolerance(model: nn.Module) -> float:
    """The mean difference of logits, in their standard deviations, that rounding explains."""
    is_exact = (
        next(model.parameters()).dtype in (torch.float32, torch.float64)
        and torch.get_float32_matmul_precision() == "highest"
        and model_quantization(model) != "8bit"  # LLM.int8 rounds activations; 4-bit weights are dequantized
    )
    return 2e-4 if is_exact else 0.15  # bfloat16 rounding alone gives 0.05 for a model of 30 layers


def tokens_to_feed(answers: Sequence[TokenIds], max_new_tokens: int) -> list[list[int]]:
    """The tokens of each answer, or none for an answer that is longer than any sample, whose probability is 0."""
    return [list(answer) if len(answer) <= max_new_tokens else [] for answer in answers]


def score_answers(
    candidates: Candidates,
    answers: Sequence[TokenIds],
    num_prefixes: int,
    ends_V: BoolArray,
    sampling: SamplingConfig,
) -> list[tuple[GoldScore, ...]]:
    """Scores of gold answers, from the candidates at each of their positions.

    Args:
        candidates: for each prompt, prefix by prefix, one row before each token of `tokens_to_feed` and one after the
            last; at least `top_k` candidates, or the whole vocabulary.
        answers: token ids of the gold answer to each question.
        num_prefixes: number of prompts per question.
        ends_V: True for tokens that end an answer and add nothing to it.
        sampling: how samples are drawn. An answer of `max_new_tokens` is cut off there, so no end token has to follow.

    Returns:
        One tuple per question, with one `GoldScore` per prefix.
    """
    num_questions, limit = len(answers), sampling.max_new_tokens
    targets = [
        [*fed, END_OF_ANSWER if len(fed) < limit else ANY_TOKEN] for fed in tokens_to_feed(answers, limit)
    ] * num_prefixes
    greedy_P, probability_P = score_positions(
        candidates,
        np.concatenate([np.array(target) for target in targets]),
        np.repeat(np.arange(len(targets)), [len(target) for target in targets]),
        ends_V,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
    )
    fits = [len(answer) <= limit for answer in answers]
    return [
        tuple(
            GoldScore(is_greedy=fits[q] and bool(greedy_P[p]), probability=fits[q] * float(probability_P[p]))
            for p in range(q, len(targets), num_questions)
        )
        for q in range(num_questions)
    ]


def sort_candidates(rows: Sequence[Mapping[int, float]], num: int) -> Candidates:
    """Candidates from the log-probabilities of the most likely tokens by id, as engines with an own sampler give them.

    Log-probabilities are logits up to a constant per row, which no sampling probability depends on.

    Args:
        rows: one mapping per position. To break ties at the edge by token id, as `top_candidates` does, pass
            `EXTRA_CANDIDATES` more than `num`.
        num: number of candidates to keep.

    Returns:
        The `num` most likely tokens of each row, by log-probability and then by token id.

    Raises:
        EngineError: a row has fewer tokens, or its highest log-probability is not finite.
    """
    minimum = min(map(len, rows), default=num)
    if minimum < num:
        raise EngineError(f"the engine returned log-probabilities of {minimum} tokens at a position, expected {num}")
    values, ids = np.empty((len(rows), num), dtype=np.float32), np.empty((len(rows), num), dtype=np.int64)
    for i, row in enumerate(rows):
        row_ids = np.fromiter(row.keys(), dtype=np.int64, count=len(row))
        row_values = np.fromiter(row.values(), dtype=np.float32, count=len(row))
        best = np.lexsort((row_ids, -row_values))[:num]
        values[i], ids[i] = row_values[best], row_ids[best]
    check_finite(values[:, 0])
    return values, ids


def score_positions(
    candidates: Candidates,
    targets_N: IntArray,
    prompt_N: IntArray,
    ends_V: BoolArray,
    *,
    temperature: float,
    top_k: int,
) -> tuple[BoolArray, NDArray[np.float64]]:
    """Whether each answer is the greedy one, and the probability that one sample equals it.

    Args:
        candidates: at each position of the answers, given the target tokens before it; N positions.
        targets_N: the token of the answer, `END_OF_ANSWER` or `ANY_TOKEN`.
        prompt_N: the prompt of each position, 0 to P - 1; each has at least one.
        ends_V: True for tokens that end an answer and add nothing to it.
        temperature: sampling temperature.
        top_k: samples choose among this many most likely tokens.

    Returns:
        Flags and probabilities, both of shape (P,).
    """
    logits, ids = candidates
    is_target_NC = np.where((targets_N == END_OF_ANSWER)[:, None], ends_V[ids], ids == targets_N[:, None])
    is_target_NC |= (targets_N == ANY_TOKEN)[:, None]
    cumulative_NC = cumulative_probabilities(logits[:, :top_k], temperature)
    probability_NC = np.diff(cumulative_NC, axis=1, prepend=0.0)
    probability_N = (probability_NC * is_target_NC[:, :top_k]).sum(axis=1)
    num_prompts = int(prompt_N[-1]) + 1
    probability_P = np.ones(num_prompts)
    np.multiply.at(probability_P, prompt_N, probability_N)
    greedy_P = np.ones(num_prompts, dtype=bool)
    np.logical_and.at(greedy_P, prompt_N, is_target_NC[:, 0])
    return greedy_P, probability_P


def log_probabilities(
    read: ReadLogProbabilities, prompts: Sequence[TokenIds], answers_QC: Sequence[Sequence[TokenIds]]
) -> list[tuple[float, ...]]:
    """Natural logarithm of the probability that each answer follows its prompt; Q prompts with C answers each.

    Args:
        read: the model.
        prompts: token ids of Q prompts.
        answers_QC: token ids of the answers, at least one per answer.

    Returns:
        For each prompt C numbers, none above 0.
    """
    # To score an answer, all its tokens but the last are fed; answers that differ in the last one share a sequence.
    fed = [(q, stem) for q, answers in enumerate(answers_QC) for stem in dict.fromkeys(map(_all_but_last, answers))]
    num_kept = np.array([len(stem) + 1 for _, stem in fed])
    ids = np.unique([token for answers in answers_QC for answer in answers for token in answer])
    values_NC, _ = read([[*prompts[q], *stem] for q, stem in fed], num_kept, ids)
    first_row = dict(zip(fed, (np.cumsum(num_kept) - num_kept).tolist(), strict=True))
    column = {token: i for i, token in enumerate(ids.tolist())}

    def log_probability(q: int, answer: TokenIds) -> float:
        first = first_row[q, _all_but_last(answer)]
        return sum(float(values_NC[first + i, column[token]]) for i, token in enumerate(answer))

    return [tuple(log_probability(q, answer) for answer in answers) for q, answers in enumerate(answers_QC)]


def score_whole_answers(
    candidates: Candidates,
    answers: Sequence[TokenIds],
    num_prefixes: int,
    ends_V: BoolArray,
    max_new_tokens: int,
) -> list[tuple[AnswerScore, ...]]:
    """Log-probabilities of whole answers, from those of tokens at each of their positions.

    Args:
        candidates: log-probabilities of the same token ids in every row, ascending: those of the answers and all that
            end an answer. For each prompt, prefix by prefix, one row before each token of the answer and one after the
            last.
        answers: token ids of the answer to each question, at least one.
        num_prefixes: number of prompts per question.
        ends_V: True for tokens that end an answer and add nothing to it.
        max_new_tokens: an answer of as many tokens or more needs no end.

    Returns:
        One tuple per question, with one `AnswerScore` per prefix.
    """
    values_NC, ids_NC = candidates
    ids = ids_NC[0]
    is_end_C = ends_V[ids]
    # The probability of the end is that of all tokens that end an answer together.
    end_N = np.logaddexp.reduce(values_NC[:, is_end_C].astype(np.float64), axis=1)
    columns = [np.searchsorted(ids, np.array(answer)) for answer in answers]
    scores: list[list[AnswerScore]] = [[] for _ in answers]
    row = 0
    for _ in range(num_prefixes):
        for question, column in enumerate(columns):
            num = len(column)
            total = float(values_NC[np.arange(row, row + num), column].astype(np.float64).sum())
            has_end = num < max_new_tokens
            scores[question].append(
                AnswerScore(
                    log_probability=total + (float(end_N[row + num]) if has_end else 0.0), num_tokens=num + has_end
                )
            )
            row += num + 1
    return [tuple(of_question) for of_question in scores]


def _all_but_last(answer: TokenIds) -> tuple[int, ...]:
    return tuple(answer[:-1])
