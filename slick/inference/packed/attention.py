"""Attention over packed prompts and answers, installed in a Hugging Face causal LM for one forward pass.

The model keeps its own code; only the attention inside its layers is replaced, through the attention interface of
transformers.

Legend of array suffixes: N tokens of the batch, H query heads, K key heads or keys, D width of a head, G query heads
of a key head, P prompts, F prefixes, L lanes, A tokens of a lane, B keys of a lane.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slick import compat

ATTENTION_NAME = "slick_own"


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a layer asks of its attention beside the scale."""

    softcap: float | None
    window: int | None
    sink_H: Tensor | None
    dropout: float = 0.0
    """Share of the weights; 0 unless the model is being trained."""


class AttentionBackend(Protocol):
    """What takes the place of a model's attention during one forward pass."""

    def attend(
        self,
        layer: int,
        query_HND: Tensor,
        key_KND: Tensor,
        value_KND: Tensor,
        scaling: float,
        options: AttentionOptions,
    ) -> Tensor:
        """Attention of one layer, shape (N, H, D)."""
        ...


_ACTIVE_BACKENDS: dict[int, AttentionBackend] = {}
"""By the id of the layers' config, not by thread: a thread of the backward pass may compute activations again."""


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention; arrays come as (1, heads, N, D)."""
    config: Any = module.config
    running = _ACTIVE_BACKENDS[id(config)]
    options = AttentionOptions(softcap, sliding_window, s_aux, dropout)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    return running.attend(int(layer), query[0], key[0], value[0], scale, options)[None], None


class AttentionOverride:
    """Puts a model's layers under an attention of our own, one forward pass at a time."""

    def __init__(self, model: nn.Module) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, _attention_forward)
        self._configs = compat.attention_configs(model)

    @contextmanager
    def use_backend(self, backend: AttentionBackend) -> Iterator[None]:
        """Within, the model's layers call this backend."""
        keys = [id(config) for config in self._configs]
        try:
            _ACTIVE_BACKENDS.update(dict.fromkeys(keys, backend))
            with compat.attention_override(self._configs, ATTENTION_NAME):
                yield
        finally:
            for key in keys:
                del _ACTIVE_BACKENDS[key]


LayerKeyValues = tuple[Tensor, Tensor]

_LOG2_E = 1 / math.log(2)
"""Softmax is done with powers of 2, which torch computes faster on CPU."""
_MANY_TOKENS = 16


class KeyValueCache:
    """Keys and values of every token fed, layer by layer, each of shape (K, capacity, D)."""

    def __init__(self) -> None:
        self._layers: dict[int, LayerKeyValues] = {}
        self.num_tokens = 0

    def clear(self) -> None:
        """Forget all tokens; the memory stays for the next batch."""
        self.num_tokens = 0

    def write(self, layer: int, key_KND: Tensor, value_KND: Tensor) -> LayerKeyValues:
        """Append the tokens of one forward pass; returns the layer's whole store."""
        end = self.num_tokens + key_KND.shape[1]
        kept = self._layers.get(layer)
        if kept is None or kept[0].shape[1] < end:
            kept = self._layers[layer] = (self._grow(kept, 0, key_KND, end), self._grow(kept, 1, value_KND, end))
        kept[0][:, self.num_tokens : end] = key_KND
        kept[1][:, self.num_tokens : end] = value_KND
        return kept

    def items(self) -> Iterable[tuple[int, LayerKeyValues]]:
        """Each layer's whole store."""
        return self._layers.items()

    def _grow(self, kept: LayerKeyValues | None, which: int, new: Tensor, end: int) -> Tensor:
        grown = new.new_empty((new.shape[0], max(1024, end * 3 // 2), new.shape[2]))
        if kept is not None and self.num_tokens:
            grown[:, : self.num_tokens] = kept[which][:, : self.num_tokens]
        return grown


@dataclass(slots=True, kw_only=True)
class PrefixContext:
    """What the tokens of a batch see of their prefixes."""

    layers: dict[int, LayerKeyValues]
    """Keys and values, each of shape (K, F, W, D), padded behind."""
    rows_FM: Tensor
    """Tokens behind each prefix, padded with any."""
    place_N: Tensor
    """Where token n stands in `rows_FM`, flattened."""
    lengths_F: list[int]
    """Tokens of each prefix; what stands behind in `layers` repeats some of them. Empty where a mask tells."""
    padding_F1W: Tensor | None
    """The mask of what stands behind each prefix; None on CPU, where it takes longer than a few short stretches."""


@dataclass(slots=True, kw_only=True)
class SuffixContext:
    """What the tokens of a batch see of their own question and answer: tokens are cut into lanes with common keys."""

    keys_LB: Tensor
    """Places in the store, padded with any."""
    masked_LAB: Tensor
    """Which of its lane's keys a token does not see."""
    rows_LA: Tensor | None
    """Tokens of each lane, padded with any; None where each token is a lane."""
    place_N: Tensor | None
    """Where token n stands in `rows_LA`, flattened."""
    key_positions_LB: Tensor


@dataclass(slots=True, kw_only=True)
class ForwardPass:
    """One forward pass: where its tokens stand and what they see."""

    store: KeyValueCache
    positions_N: Tensor
    own: SuffixContext
    prefix: PrefixContext | None
    longest: int
    """Highest position of any token, plus one."""
    windows: set[int] = field(default_factory=set)
    """Sliding windows that layers asked for."""
    num_layers: int = 0
    """Layers that came by; none if the model does not use the attention interface."""

    def attend(
        self,
        layer: int,
        query_HND: Tensor,
        key_KND: Tensor,
        value_KND: Tensor,
        scaling: float,
        options: AttentionOptions,
    ) -> Tensor:
        """Attention of one layer, shape (N, H, D)."""
        self.num_layers += 1
        if options.window:
            self.windows.add(int(options.window))
        store = self.store.write(layer, key_KND, value_KND)
        num_heads, num_tokens, width = query_HND.shape
        num_key_heads = key_KND.shape[0]
        query_KNGD = query_HND.reshape(num_key_heads, -1, num_tokens, width).transpose(1, 2).contiguous()
        parts = [self._own(query_KNGD, store, scaling, options)]
        if self.prefix is not None:
            parts.append(self._prefix(query_KNGD, self.prefix, layer, scaling, options))
        out_KNGD = _merge_softmax(parts, options.sink_H, num_key_heads)
        return out_KNGD.transpose(0, 1).reshape(num_tokens, num_heads, -1).to(query_HND.dtype)

    def _own(
        self, query_KNGD: Tensor, store: LayerKeyValues, scaling: float, options: AttentionOptions
    ) -> "PartialSoftmax":
        own = self.own
        heads, _, group, width = query_KNGD.shape
        lanes, num_keys = own.keys_LB.shape
        flat = own.keys_LB.flatten()
        keys, values = (kept.index_select(1, flat).view(heads * lanes, num_keys, kept.shape[2]) for kept in store)
        masked_LAB = own.masked_LAB
        if options.window and self.longest > options.window:
            positions_LA = self.positions_N[own.rows_LA] if own.rows_LA is not None else self.positions_N[:, None]
            masked_LAB = masked_LAB | (positions_LA[..., None] - own.key_positions_LB[:, None] >= options.window)
        tokens = masked_LAB.shape[1]
        query = query_KNGD if own.rows_LA is None else query_KNGD.index_select(1, own.rows_LA.flatten())
        part = _partial_softmax(
            query.reshape(heads * lanes, tokens * group, width),
            keys,
            values,
            masked_LAB.repeat_interleave(group, 1) if tokens > 1 else masked_LAB,
            lanes,
            scaling,
            options.softcap,
        )
        return part.rows(heads, group, own.place_N)

    def _prefix(
        self, query_KNGD: Tensor, prefix: PrefixContext, layer: int, scaling: float, options: AttentionOptions
    ) -> "PartialSoftmax":
        heads, _, group, width = query_KNGD.shape
        keys, values = prefix.layers[layer]
        num_prefixes, num_keys = keys.shape[1:3]
        num_rows = prefix.rows_FM.shape[1]
        hidden = prefix.padding_F1W
        if options.window and self.longest > options.window:
            places_W = torch.arange(num_keys, device=keys.device)
            far_FMW = self.positions_N[prefix.rows_FM][..., None] - places_W >= options.window
            far = far_FMW.repeat_interleave(group, 1)
            hidden = far if hidden is None else far | hidden
        query = query_KNGD.index_select(1, prefix.rows_FM.flatten())
        part = _partial_softmax(
            query.view(heads * num_prefixes, num_rows * group, width),
            keys.flatten(0, 1),
            values.flatten(0, 1),
            hidden,
            num_prefixes,
            scaling,
            options.softcap,
            prefix.lengths_F,
        )
        return part.rows(heads, group, prefix.place_N)


@dataclass(frozen=True, slots=True)
class PartialSoftmax:
    """Softmax over a part of the keys: highest score (for base 2), sum of powers, and the sum of values they weigh."""

    highest: Tensor
    total: Tensor
    weighted: Tensor

    def rows(self, heads: int, group: int, place_N: Tensor | None) -> "PartialSoftmax":
        """In the order of the batch, shapes (K, N, G, 1) and (K, N, G, D)."""

        def ordered(x: Tensor) -> Tensor:
            x = x.reshape(heads, -1, group, x.shape[-1])
            return x if place_N is None else x.index_select(1, place_N)

        return PartialSoftmax(ordered(self.highest), ordered(self.total), ordered(self.weighted))


def _partial_softmax(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    hidden: Tensor | None,
    lanes: int,
    scaling: float,
    cap: float | None,
    lengths: Sequence[int] = (),
) -> PartialSoftmax:
    """What the keys of each lane weigh; `query` is (K * lanes, tokens, D), `hidden` (lanes, tokens or 1, keys).

    Keys from `lengths[lane]` on repeat others of their lane, so that they change no highest score; they weigh nothing.
    """
    # Many tokens lie side by side, so that what runs over keys works on all of them at once.
    keys_first = query.shape[1] >= _MANY_TOKENS
    along = 1 if keys_first else 2
    pair = (keys, query) if keys_first else (query, keys)
    scores = torch.bmm(pair[0], pair[1].transpose(1, 2)).float()
    scores = torch.tanh(scores.mul_(scaling / cap)).mul_(cap * _LOG2_E) if cap else scores.mul_(scaling * _LOG2_E)
    by_lane = scores.view(-1, lanes, *scores.shape[1:])
    if hidden is not None:
        by_lane.masked_fill_(hidden.transpose(1, 2) if keys_first else hidden, torch.finfo(scores.dtype).min)
    highest = scores.amax(along, keepdim=True)
    weights = scores.sub_(highest).exp2_()
    for lane, length in enumerate(lengths):
        by_lane[:, lane].narrow(along, length, keys.shape[1] - length).zero_()  # cheaper than a mask over all of them
    total = weights.sum(along, keepdim=True)
    if keys_first:
        highest, total, weights = (x.transpose(1, 2) for x in (highest, total, weights))
    return PartialSoftmax(highest, total, torch.bmm(weights.to(values.dtype), values))


def _merge_softmax(parts: list[PartialSoftmax], sink_H: Tensor | None, num_key_heads: int) -> Tensor:
    """The whole softmax from its parts, shape (K, N, G, D)."""
    if len(parts) == 1 and sink_H is None:
        return parts[0].weighted / parts[0].total
    highest = parts[0].highest
    for part in parts[1:]:
        highest = torch.maximum(highest, part.highest)
    sink = None if sink_H is None else sink_H.float().view(num_key_heads, 1, -1, 1) * _LOG2_E
    if sink is not None:
        highest = torch.maximum(highest, sink)
    factors = [(part.highest - highest).exp2_() for part in parts]
    total = factors[0] * parts[0].total
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        total.addcmul_(factor, part.total)
    if sink is not None:
        total += (sink - highest).exp2_()
    # The factors have one number a head, so they are divided by the total before they weigh the values.
    out = parts[0].weighted * factors[0].div_(total)
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        out.addcmul_(part.weighted, factor.div_(total))
    return out
