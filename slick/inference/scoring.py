"""Log-probabilities of the model: of candidate tokens, of gold answers, and of True against False."""

import inspect
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.errors import EngineError
from slick.inference.packed.sampler import BoolArray, Candidates, IntArray, cumulative_probabilities

_EXTRA_CANDIDATES = 24
"""Candidates fetched beyond top-k, so that ties at its edge are seen and settled by token id."""

_NUM_BUCKETS = 16
_ROWS_SORTED = 64
"""Rows whose whole vocabulary is sorted at once."""
_MASK_31_BITS = 0x7FFFFFFF

SortKeys = NDArray[np.int64]
Integers = TypeVar("Integers", SortKeys, Tensor)


def top_candidates(logits_NV: Tensor, num: int) -> Candidates:
    """The `num` likeliest tokens of each row: by logit, equal ones by token id, also at the edge.

    Raises:
        EngineError: a logit is not a finite number.
    """
    num_classes = logits_NV.shape[1]
    fetched = min(num + _EXTRA_CANDIDATES, num_classes)
    keys = (_top_keys if logits_NV.device.type == "cpu" else _top_keys_on_gpu)(logits_NV, fetched)
    values, ids = _unpack_keys(keys)
    values_NC, ids_NC = values[:, :num], ids[:, :num]
    _check_finite(values_NC[:, 0])
    if fetched < num_classes:
        # A tie that reaches past the fetched tokens: only a full sort knows which ids are the lowest.
        tied = np.flatnonzero(values_NC[:, -1] == values[:, -1])
        for start in range(0, len(tied), _ROWS_SORTED):
            rows = tied[start : start + _ROWS_SORTED]
            tied_RV = logits_NV[torch.from_numpy(rows).to(logits_NV.device)]
            sorted_RV, by_value = torch.sort(tied_RV, descending=True, stable=True)
            values_NC[rows], ids_NC[rows] = sorted_RV[:, :num].float().cpu().numpy(), by_value[:, :num].cpu().numpy()
    return values_NC, ids_NC


def token_log_probabilities(logits_NV: Tensor, ids: NDArray[np.int64]) -> Candidates:
    """Log-probabilities of the given tokens in each row, by a softmax over the whole vocabulary in float32.

    Raises:
        EngineError: one is not a finite number.
    """
    chances_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    values = chances_NV[:, torch.from_numpy(ids).to(chances_NV.device)].cpu().numpy()
    _check_finite(values)
    return values, np.broadcast_to(ids, values.shape)


def _check_finite(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise EngineError(
            "the model gave logits that are not finite numbers (NaN or infinity), so its answers mean nothing; "
            "load it in float32 or bfloat16, and see that the weights are whole"
        )


def _top_keys_on_gpu(logits_NV: Tensor, num: int) -> SortKeys:
    """As `_top_keys`, but sorted there: the host gets the keys alone, in one transfer."""
    values, ids = torch.topk(logits_NV, num, dim=1, sorted=False)
    # Not-a-number is the largest of topk; as a key it must be so too, to be seen.
    values = values.float().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    keys, _ = _pack_keys((values + 0.0).view(torch.int32).long(), ids).sort(dim=1, descending=True)
    return keys.cpu().numpy()


def _top_keys(logits_NV: Tensor, num: int) -> SortKeys:
    """The keys of the largest `num` of each row, largest first, on CPU, where torch takes up to four times as long.

    Of a large vocabulary every `num`th largest stands in a column whose largest is among the `num` largest of all
    columns, if the row is written in lines; so only those columns are searched.
    """
    num_rows, num_classes = logits_NV.shape
    lines, width = _NUM_BUCKETS, num_classes // _NUM_BUCKETS
    if width <= 2 * num:
        values, places = logits_NV.float().numpy(), np.arange(num_classes)[None]
    else:
        grid = logits_NV[:, : lines * width].view(num_rows, lines, width)
        columns = np.argpartition(grid.amax(1).float().numpy(), -num, axis=1)[:, -num:]
        places = (np.arange(lines)[:, None] * width + columns[:, None]).reshape(num_rows, -1)
        rest = np.broadcast_to(np.arange(lines * width, num_classes), (num_rows, num_classes - lines * width))
        places = np.concatenate([places, rest], axis=1)
        values = torch.gather(logits_NV, 1, torch.from_numpy(places)).float().numpy()
    if num < values.shape[1]:
        kept = np.argpartition(values, -num, axis=1)[:, -num:]
        values, places = np.take_along_axis(values, kept, axis=1), np.take_along_axis(places, kept, axis=1)
    # Not-a-number is the largest so far; as a key it may be the smallest.
    _check_finite(values.max(axis=1))
    return -np.sort(-_pack_keys((values + 0.0).view(np.int32).astype(np.int64), places), axis=1)


def _pack_keys(bits: Integers, ids: Integers) -> Integers:
    """Numbers in the order of the logits whose bits these are, equal ones against the order of their ids."""
    return (_to_sortable(bits) << 32) | (_MASK_31_BITS - ids)


def _unpack_keys(keys: SortKeys) -> Candidates:
    """Logits and token ids again."""
    return _to_sortable(keys >> 32).astype(np.int32).view(np.float32), _MASK_31_BITS - (keys & _MASK_31_BITS)


def _to_sortable(bits: Integers) -> Integers:
    """From the bits of 32-bit floats, as signed integers, to numbers in the order of the floats, and back."""
    return bits ^ ((bits >> 31) & _MASK_31_BITS)


def accepts_argument(model: nn.Module, parameter: str) -> bool:
    """True if the model's forward pass has that parameter."""
    return parameter in inspect.signature(model.forward).parameters


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
