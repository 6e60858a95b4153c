"""Attention over packed prompts and answers, used by a Hugging Face causal LM during one forward pass.

The model's code is unchanged; only the attention inside its layers is replaced, through transformers'
`AttentionInterface`.

Array suffixes: N tokens of the batch, H query heads, K key heads, D size of a head, G query heads per key head, P
prompts, F prefixes, W tokens of the longest prefix, M tokens after a prefix, L lanes, A tokens of a lane, B keys of a
lane. A lane is a group of tokens with the same keys.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slick import compat

ATTENTION_NAME, UNTRACED_NAME = "slick_own", "slick_own_untraced"
"""Names of this attention in transformers; the second is for compiled layers."""

LayerKeyValues = tuple[Tensor, Tensor]
"""Keys and values of one layer."""

_LOG2_E = 1 / math.log(2)
"""Softmax uses powers of 2, which torch computes faster on the CPU."""
_MIN_TOKENS_KEYS_FIRST = 16
"""From this many tokens per lane, scores are computed transposed: reductions over keys then run over all tokens."""


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Options that a layer passes to its attention, apart from the scale."""

    softcap: float | None
    window: int | None
    sink_H: Tensor | None
    dropout: float = 0.0
    """Dropout probability of the weights; 0 in eval mode."""


class AttentionBackend(Protocol):
    """Replaces a model's attention during one forward pass."""

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
"""Keyed by the id of the layers' configuration, not by thread: backward may recompute activations in another thread."""


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
    """The function that transformers calls instead of its own attention; tensors have shape (1, heads, N, D)."""
    config: Any = module.config
    backend = _ACTIVE_BACKENDS[id(config)]
    options = AttentionOptions(softcap, sliding_window, s_aux, dropout)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    return backend.attend(int(layer), query[0], key[0], value[0], scale, options)[None], None


class AttentionOverride:
    """Makes a model's layers call an `AttentionBackend`, one forward pass at a time."""

    def __init__(self, model: nn.Module) -> None:
        from transformers import AttentionInterface

        self._name = ATTENTION_NAME
        function = _attention_forward
        if compat.has_compiled_modules(model):
            # The compiler must not specialize on caches and row numbers, which change with each batch.
            self._name, function = UNTRACED_NAME, torch.compiler.disable(_attention_forward)  # type: ignore[no-untyped-call]
        AttentionInterface.register(self._name, function)
        self._configs = compat.attention_configs(model)

    @contextmanager
    def use_backend(self, backend: AttentionBackend) -> Iterator[None]:
        """While active, the model's layers call this backend."""
        keys = [id(config) for config in self._configs]
        try:
            _ACTIVE_BACKENDS.update(dict.fromkeys(keys, backend))
            with compat.attention_override(self._configs, self._name):
                yield
        finally:
            for key in keys:
                del _ACTIVE_BACKENDS[key]


class KeyValueCache:
    """Keys and values of every token fed, layer by layer, each of shape (K, capacity, D)."""

    def __init__(self) -> None:
        self._layers: dict[int, LayerKeyValues] = {}
        self.num_tokens = 0

    def clear(self) -> None:
        """Remove all tokens, but keep the memory for the next batch."""
        self.num_tokens = 0

    def write(self, layer: int, key_KND: Tensor, value_KND: Tensor) -> LayerKeyValues:
        """Append the tokens of one forward pass; returns the buffers of the layer.

        The caller advances `num_tokens` after the last layer.
        """
        end = self.num_tokens + key_KND.shape[1]
        buffers = self._layers.get(layer)
        if buffers is None or buffers[0].shape[1] < end:
            old_keys, old_values = buffers or (None, None)
            buffers = self._layers[layer] = (
                self._grow(old_keys, key_KND, end),
                self._grow(old_values, value_KND, end),
            )
        buffers[0][:, self.num_tokens : end] = key_KND
        buffers[1][:, self.num_tokens : end] = value_KND
        return buffers

    def items(self) -> Iterable[tuple[int, LayerKeyValues]]:
        """The buffers of each layer."""
        return self._layers.items()

    def _grow(self, old: Tensor | None, new: Tensor, end: int) -> Tensor:
        grown = new.new_empty((new.shape[0], max(1024, end * 3 // 2), new.shape[2]))
        if old is not None and self.num_tokens:
            grown[:, : self.num_tokens] = old[:, : self.num_tokens]
        return grown


@dataclass(slots=True, kw_only=True)
class PrefixContext:
    """The prefixes that the tokens of a batch attend to."""

    layers: dict[int, LayerKeyValues]
    """Keys and values, each of shape (K, F, W, D), padded at the end with copies of real ones."""
    rows_FM: Tensor
    """Indices of the tokens that follow each prefix, padded with arbitrary ones."""
    index_N: Tensor
    """Index of token n in the flattened `rows_FM`."""
    lengths_F: list[int]
    """Tokens of each prefix; empty where `padding_F1W` masks the padding."""
    padding_F1W: Tensor | None
    """True for padding; None on the CPU, where masking is slower than zeroing a few short slices."""


@dataclass(slots=True, kw_only=True)
class SuffixContext:
    """The tokens of question and answer that the tokens of a batch attend to, in lanes with common keys."""

    keys_LB: Tensor
    """Slots in the cache, padded with arbitrary ones."""
    masked_LAB: Tensor
    """True for keys of the lane that a token must not attend to."""
    rows_LA: Tensor | None
    """Indices of the tokens of each lane, padded with arbitrary ones; None if each token is a lane."""
    index_N: Tensor | None
    """Index of token n in the flattened `rows_LA`."""
    key_positions_LB: Tensor


@dataclass(slots=True, kw_only=True)
class ForwardPass:
    """Attention backend of one packed forward pass."""

    cache: KeyValueCache
    positions_N: Tensor
    suffix: SuffixContext
    prefix: PrefixContext | None
    longest: int
    """Highest position of any token, plus one."""
    windows: set[int] = field(default_factory=set)
    """Sliding windows that the layers have passed."""
    num_layers: int = 0
    """Layers that called `attend`; 0 if the model does not use the attention interface."""

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
        keys_and_values = self.cache.write(layer, key_KND, value_KND)
        num_heads, num_tokens, width = query_HND.shape
        num_key_heads = key_KND.shape[0]
        query_KNGD = query_HND.reshape(num_key_heads, -1, num_tokens, width).transpose(1, 2).contiguous()
        parts = [self._attend_suffix(query_KNGD, keys_and_values, scaling, options)]
        if self.prefix is not None:
            parts.append(self._attend_prefix(query_KNGD, self.prefix, layer, scaling, options))
        out_KNGD = _merge_softmax(parts, options.sink_H, num_key_heads)
        return out_KNGD.transpose(0, 1).reshape(num_tokens, num_heads, -1).to(query_HND.dtype)

    def _attend_suffix(
        self, query_KNGD: Tensor, keys_and_values: LayerKeyValues, scaling: float, options: AttentionOptions
    ) -> "PartialSoftmax":
        suffix, rows_LA = self.suffix, self.suffix.rows_LA
        heads, _, group, width = query_KNGD.shape
        lanes, num_keys = suffix.keys_LB.shape
        slots = suffix.keys_LB.flatten()
        keys, values = (
            states.index_select(1, slots).view(heads * lanes, num_keys, states.shape[2]) for states in keys_and_values
        )
        masked_LAB = suffix.masked_LAB
        if options.window and self.longest > options.window:
            positions_LA = self.positions_N[:, None] if rows_LA is None else self.positions_N[rows_LA]
            masked_LAB = masked_LAB | (positions_LA[..., None] - suffix.key_positions_LB[:, None] >= options.window)
        tokens = masked_LAB.shape[1]
        query = query_KNGD if rows_LA is None else query_KNGD.index_select(1, rows_LA.flatten())
        part = _partial_softmax(
            query.reshape(heads * lanes, tokens * group, width),
            keys,
            values,
            masked_LAB.repeat_interleave(group, 1) if tokens > 1 else masked_LAB,
            lanes,
            scaling,
            options.softcap,
        )
        return part.in_batch_order(heads, group, suffix.index_N)

    def _attend_prefix(
        self, query_KNGD: Tensor, prefix: PrefixContext, layer: int, scaling: float, options: AttentionOptions
    ) -> "PartialSoftmax":
        heads, _, group, width = query_KNGD.shape
        keys, values = prefix.layers[layer]
        num_prefixes, num_keys = keys.shape[1:3]
        num_rows = prefix.rows_FM.shape[1]
        masked = prefix.padding_F1W
        if options.window and self.longest > options.window:
            positions_W = torch.arange(num_keys, device=keys.device)
            outside_FMW = self.positions_N[prefix.rows_FM][..., None] - positions_W >= options.window
            outside = outside_FMW.repeat_interleave(group, 1)
            masked = outside if masked is None else outside | masked
        query = query_KNGD.index_select(1, prefix.rows_FM.flatten())
        part = _partial_softmax(
            query.view(heads * num_prefixes, num_rows * group, width),
            keys.flatten(0, 1),
            values.flatten(0, 1),
            masked,
            num_prefixes,
            scaling,
            options.softcap,
            prefix.lengths_F,
        )
        return part.in_batch_order(heads, group, prefix.index_N)


@dataclass(frozen=True, slots=True)
class PartialSoftmax:
    """Softmax over some of the keys, unnormalized: highest score (base 2), sum of weights, weighted sum of values."""

    highest: Tensor
    total: Tensor
    weighted: Tensor

    def in_batch_order(self, heads: int, group: int, index_N: Tensor | None) -> "PartialSoftmax":
        """These values reordered to match the batch, with shapes (K, N, G, 1) and (K, N, G, D)."""

        def ordered(x: Tensor) -> Tensor:
            x = x.reshape(heads, -1, group, x.shape[-1])
            return x if index_N is None else x.index_select(1, index_N)

        return PartialSoftmax(ordered(self.highest), ordered(self.total), ordered(self.weighted))


def _partial_softmax(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    masked: Tensor | None,
    lanes: int,
    scaling: float,
    cap: float | None,
    lengths: Sequence[int] = (),
) -> PartialSoftmax:
    """Softmax over the keys of each lane; `query` is (K * lanes, tokens, D), `masked` (lanes, tokens or 1, keys).

    Keys past `lengths[lane]` are padding: copies of real keys with zero weight.
    """
    keys_first = query.shape[1] >= _MIN_TOKENS_KEYS_FIRST
    along = 1 if keys_first else 2
    pair = (keys, query) if keys_first else (query, keys)
    scores = torch.bmm(pair[0], pair[1].transpose(1, 2)).float()
    scores = torch.tanh(scores.mul_(scaling / cap)).mul_(cap * _LOG2_E) if cap else scores.mul_(scaling * _LOG2_E)
    by_lane = scores.view(-1, lanes, *scores.shape[1:])
    if masked is not None:
        by_lane.masked_fill_(masked.transpose(1, 2) if keys_first else masked, torch.finfo(scores.dtype).min)
    highest = scores.amax(along, keepdim=True)
    weights = scores.sub_(highest).exp2_()
    for lane, length in enumerate(lengths):
        by_lane[:, lane].narrow(along, length, keys.shape[1] - length).zero_()  # faster than a mask over all keys
    total = weights.sum(along, keepdim=True)
    if keys_first:
        highest, total, weights = (x.transpose(1, 2) for x in (highest, total, weights))
    return PartialSoftmax(highest, total, torch.bmm(weights.to(values.dtype), values))


def _merge_softmax(parts: list[PartialSoftmax], sink_H: Tensor | None, num_key_heads: int) -> Tensor:
    """The complete softmax from its parts, shape (K, N, G, D)."""
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
    # The factors have one number per head, so dividing them by the total is cheaper than dividing the values.
    out = parts[0].weighted * factors[0].div_(total)
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        out.addcmul_(part.weighted, factor.div_(total))
    return out
