"""Feeds prompts and answers to a Hugging Face causal LM, each distinct token once, packed into one row.

The tokens that all prompts of a prefix share are computed once and cached between batches. The remaining tokens of the
prompts (the tails) follow, then the answers, as nodes of a tree. `slick.inference.packed.attention` defines which
tokens attend to which.

Array suffixes: N tokens fed together, P prompts, F prefixes, L lanes, A tokens of a lane, B keys of a lane. A lane is a
group of tokens with the same keys.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.inference.devices import TokenIds, max_tokens_per_pass, shared_prefix_length, split_by_tokens
from slick.inference.packed.attention import (
    AttentionOverride,
    ForwardPass,
    KeyValueCache,
    LayerKeyValues,
    PrefixContext,
    SuffixContext,
)
from slick.inference.packed.cpu_linear import num_padding_rows
from slick.inference.packed.sampler import Candidates, IntArray, concatenate_candidates
from slick.inference.scoring import accepts_argument, token_log_probabilities, top_candidates


class PackedDecoder:
    """Decodes trees of answers whose roots are prompts; caches keys and values of prefixes between batches."""

    def __init__(self, model: nn.Module, *, prefix_cache_bytes: int = 1 << 28) -> None:
        """Wrap a model.

        Args:
            model: a causal LM that supports packed batches.
            prefix_cache_bytes: size of the cache of prefixes, which evicts the least recently used.
        """
        self._model = model
        self._attention = AttentionOverride(model)
        self._keeps_logits = accepts_argument(model, "logits_to_keep")
        self._device = next(model.parameters()).device
        self._max_tokens = max_tokens_per_pass(model)
        self._prefixes: OrderedDict[tuple[int, ...], dict[int, LayerKeyValues]] = OrderedDict()
        """Keys and values of each prefix by layer, of shape (K, W, D); the least recently used first."""
        self._stacked_prefixes: tuple[tuple[int, ...], ...] = ()
        self._stacked: dict[int, LayerKeyValues] = {}
        self._prefix_cache_bytes = prefix_cache_bytes
        self._cache = KeyValueCache()
        self._scored_ids: IntArray | None = None
        self._reset({}, [], [], 1)
        self.windows: set[int] = set()
        """Sliding windows that the layers have passed so far."""
        self.num_layers = 0
        """Layers that called the attention interface in the last forward pass."""
        self.num_prefilled = 0
        """Prompt tokens fed since the decoder was created."""

    def start(
        self,
        prefixes: Sequence[TokenIds],
        prompts: Sequence[Sequence[TokenIds]],
        *,
        num_candidates: int,
        num_kept: IntArray | None = None,
        scored_ids: IntArray | None = None,
    ) -> Candidates:
        """Feed the prompts. The last token of each becomes a root; roots are numbered in order.

        Args:
            prefixes: tokens that other batches may share with this one.
            prompts: the prompts of each prefix; their common beginning is fed once.
            num_candidates: number of most likely tokens to return per node, in this call and in `feed`.
            num_kept: number of last tokens of each prompt to return candidates for; None for one.
            scored_ids: return the log-probabilities of these tokens instead of the most likely tokens and their logits.

        Returns:
            Candidates to follow the kept tokens of all prompts, in order.
        """
        groups = list(zip(prefixes, prompts, strict=True))
        shared = [shared_prefix_length(prefix, group, num_kept) for prefix, group in groups]
        common = tuple(tuple(group[0][:length]) for group, length in zip(prompts, shared, strict=True))
        layers = self._prefix_layers(common) if any(shared) else {}
        tails = [prompt[length:] for group, length in zip(prompts, shared, strict=True) for prompt in group]
        prefix_P = np.repeat(np.arange(len(prompts)), [len(group) for group in prompts])
        self._reset(layers, shared, prefix_P, num_candidates)
        self._scored_ids = scored_ids
        self._tail_P = np.array([len(tail) for tail in tails])
        self._depth_N = self._tail_P + self._shared_F[prefix_P] - 1
        self._path_ND = np.empty((len(tails), 0), dtype=np.int64)
        self._root_N = np.arange(len(tails))
        kept_P = np.ones(len(tails), dtype=np.int64) if num_kept is None else np.tile(num_kept, len(prompts))
        parts = split_by_tokens(self._tail_P, self._max_tokens)
        candidates = [self._feed_tails(part, tails, kept_P) for part in parts]
        self.num_prefilled += int(self._tail_P.sum())
        return concatenate_candidates(candidates)

    def feed(self, parents: IntArray, tokens: IntArray) -> Candidates:
        """Feed one token after each of the given nodes; numbers of the new nodes continue from the last node's."""
        order = np.argsort(self._prefix_P[self._root_N[parents]], kind="stable")
        parents_O, tokens_O = parents[order], tokens[order]
        roots = self._root_N[parents_O]
        depths = self._depth_N[parents_O] + 1
        path = self._path_ND[parents_O]
        slots = self._cache.num_tokens + np.arange(len(parents))
        # A path holds the slots from the first answer token to the node itself, padded with -1.
        depth_in_answer = depths - self._depth_N[roots] - 1
        if len(path) and depth_in_answer.max() >= path.shape[1]:
            path = np.concatenate([path, np.full((len(path), 1), -1)], axis=1)
            grown = np.full((len(self._path_ND), 1), -1)
            self._path_ND = np.concatenate([self._path_ND, grown], axis=1)
        path[np.arange(len(path)), depth_in_answer] = slots
        candidates: list[Candidates] = []
        for start in range(0, len(parents), self._max_tokens):
            num = min(self._max_tokens, len(parents) - start)
            part = np.minimum(start + np.arange(num + self._num_padding_rows(num)), len(parents) - 1)
            logits, ids = self._feed_nodes(tokens_O[part], roots[part], depths[part], path[part])
            candidates.append((logits[:num], ids[:num]))
        back = np.argsort(order)
        self._root_N = np.concatenate([self._root_N, roots[back]])
        self._depth_N = np.concatenate([self._depth_N, depths[back]])
        self._path_ND = np.concatenate([self._path_ND, path[back]])
        logits, ids = concatenate_candidates(candidates)
        return logits[back], ids[back]

    def release(self) -> None:
        """Free the memory of the last batch."""
        self._cache = KeyValueCache()

    def _reset(
        self, layers: dict[int, LayerKeyValues], shared: Sequence[int], prefix_P: Sequence[int] | IntArray, num: int
    ) -> None:
        self._cache.clear()
        self._layers, self._num_candidates, self._scored_ids = layers, num, None
        self._shared_F, self._prefix_P = np.array(shared, dtype=np.int64), np.array(prefix_P, dtype=np.int64)
        self._tail_start_P = np.zeros(len(self._prefix_P), dtype=np.int64)

    def _feed_tails(self, part: slice, tails: Sequence[TokenIds], kept_P: IntArray) -> Candidates:
        """Feed whole tails, one lane each; copies of the last token pad the batch."""
        lengths = self._tail_P[part]
        tokens = np.concatenate([np.asarray(tail, dtype=np.int64) for tail in tails[part]])
        width = int(lengths.max())
        starts = np.cumsum(lengths) - lengths
        self._tail_start_P[part] = self._cache.num_tokens + starts
        rows_N = np.minimum(np.arange(len(tokens) + self._num_padding_rows(len(tokens))), len(tokens) - 1)
        lane_N = np.repeat(np.arange(len(lengths)), lengths)[rows_N]
        within_N = rows_N - starts[lane_N]
        columns = np.arange(width)
        rows_LA = np.minimum(starts[:, None] + columns, len(tokens) - 1)
        own_positions = self._shared_F[self._prefix_P[part]][:, None] + columns
        causal = columns[:, None] >= columns
        seen_LAB = causal & (columns < lengths[:, None])[:, None]
        seen_LAB[:, :, 0] = True  # padding attends to something, because a softmax over nothing is NaN
        suffix = SuffixContext(
            keys_LB=self._tensor(rows_LA + self._cache.num_tokens),
            masked_LAB=self._tensor(~seen_LAB),
            rows_LA=self._tensor(rows_LA),
            index_N=self._tensor(lane_N * width + within_N),
            key_positions_LB=self._tensor(own_positions),
        )
        prefix_N = self._prefix_P[part][lane_N]
        positions = self._shared_F[prefix_N] + within_N
        kept = np.flatnonzero((within_N >= (lengths - kept_P[part])[lane_N])[: len(tokens)])
        return self._forward(tokens[rows_N], positions, suffix, prefix_N, kept)

    def _feed_nodes(self, tokens: IntArray, roots: IntArray, depths: IntArray, path_ND: IntArray) -> Candidates:
        """Feed single tokens, one lane each: a token attends to its tail and to the answer before it."""
        tails = self._tail_P[roots]
        columns = np.arange(int(tails.max()))
        in_tail = columns < tails[:, None]
        keys = np.concatenate([self._tail_start_P[roots][:, None] + columns, path_ND], axis=1)
        seen = np.concatenate([in_tail, path_ND >= 0], axis=1)
        shared = self._shared_F[self._prefix_P[roots]][:, None]
        positions = np.concatenate([shared + columns, (shared + tails[:, None]) + np.arange(path_ND.shape[1])], axis=1)
        suffix = SuffixContext(
            keys_LB=self._tensor(np.where(seen, keys, 0)),
            masked_LAB=self._tensor(~seen[:, None]),
            rows_LA=None,
            index_N=None,
            key_positions_LB=self._tensor(positions),
        )
        return self._forward(tokens, depths, suffix, self._prefix_P[roots], None)

    def _forward(
        self, tokens: IntArray, positions: IntArray, suffix: SuffixContext, prefix_N: IntArray, kept: IntArray | None
    ) -> Candidates:
        """Candidates to follow the kept tokens (None for all); the cache takes keys and values of all tokens."""
        logits = self._logits(tokens, positions, suffix, self._prefix_context(prefix_N), kept)
        if self._scored_ids is not None:
            return token_log_probabilities(logits, self._scored_ids)
        return top_candidates(logits, self._num_candidates)

    def _logits(
        self,
        tokens: IntArray,
        positions: IntArray,
        suffix: SuffixContext,
        prefix: PrefixContext | None,
        kept: IntArray | None,
    ) -> Tensor:
        forward_pass = ForwardPass(
            cache=self._cache,
            positions_N=self._tensor(positions),
            suffix=suffix,
            prefix=prefix,
            longest=int(positions.max()) + 1,
        )
        arguments: dict[str, Any] = {}
        if kept is not None and self._keeps_logits:
            arguments["logits_to_keep"] = self._tensor(kept)
        with self._attention.use_backend(forward_pass):
            output = self._model(
                input_ids=self._tensor(tokens)[None],
                position_ids=forward_pass.positions_N[None],
                use_cache=False,
                **arguments,
            )
        self._cache.num_tokens += len(tokens)
        self.windows |= forward_pass.windows
        self.num_layers = forward_pass.num_layers
        logits: Tensor = output.logits[0]
        return logits if kept is None or self._keeps_logits else logits[self._tensor(kept)]

    def _prefix_context(self, prefix_N: IntArray) -> PrefixContext | None:
        """The prefixes of the tokens; tokens of one prefix are adjacent."""
        if not self._layers:
            return None
        low, high = int(prefix_N[0]), int(prefix_N[-1]) + 1
        counts = np.bincount(prefix_N - low, minlength=high - low)
        starts = np.cumsum(counts) - counts
        num_rows = int(counts.max())
        rows_FM = np.minimum(starts[:, None] + np.arange(num_rows), len(prefix_N) - 1)
        index_N = (prefix_N - low) * num_rows + np.arange(len(prefix_N)) - starts[prefix_N - low]
        lengths_F, padding_F1W = self._shared_F[low:high], None
        if self._device.type != "cpu":
            width = next(iter(self._layers.values()))[0].shape[2]
            padding_F1W = self._tensor((np.arange(width) >= lengths_F[:, None])[:, None])
        return PrefixContext(
            layers={layer: (keys[:, low:high], values[:, low:high]) for layer, (keys, values) in self._layers.items()},
            rows_FM=self._tensor(rows_FM),
            index_N=self._tensor(index_N),
            lengths_F=lengths_F.tolist() if padding_F1W is None else [],
            padding_F1W=padding_F1W,
        )

    def _prefix_layers(self, prefixes: tuple[tuple[int, ...], ...]) -> dict[int, LayerKeyValues]:
        """Keys and values of these prefixes by layer, each of shape (K, F, W, D), padded at the end.

        A prefix is computed once, also if other prefixes surround it later: the prompts about an exemplar differ from
        those about other questions only in the prefixes that contain it.
        """
        if prefixes != self._stacked_prefixes:
            missing = [prefix for prefix in dict.fromkeys(prefixes) if prefix and self._cached_name(prefix) is None]
            self._compute_prefixes(missing)
            names = [self._cached_name(prefix) or () for prefix in prefixes]
            for name in names:
                self._prefixes.move_to_end(name)
            while self._num_bytes() > self._prefix_cache_bytes and (oldest := next(iter(self._prefixes))) not in names:
                del self._prefixes[oldest]
            self._stacked = self._stack([self._prefixes[name] for name in names], [len(prefix) for prefix in prefixes])
            self._stacked_prefixes = prefixes
        return self._stacked

    def _cached_name(self, prefix: tuple[int, ...]) -> tuple[int, ...] | None:
        """A cached prefix that begins with these tokens; None if there is none."""
        if prefix in self._prefixes:
            return prefix
        return next((name for name in self._prefixes if name[: len(prefix)] == prefix), None)

    def _compute_prefixes(self, prefixes: Sequence[tuple[int, ...]]) -> None:
        """Feed prefixes and add them to the cache."""
        if not prefixes:
            return
        self._reset({}, [0], [0] * len(prefixes), 1)
        self._tail_P = np.array([len(prefix) for prefix in prefixes])
        for part in split_by_tokens(self._tail_P, self._max_tokens):
            self._feed_tails(part, prefixes, np.ones(len(prefixes), dtype=np.int64))
        self.num_prefilled += int(self._tail_P.sum())
        for prefix, start in zip(prefixes, self._tail_start_P.tolist(), strict=True):
            span = slice(start, start + len(prefix))
            self._prefixes[prefix] = {
                layer: (keys[:, span].clone(), values[:, span].clone()) for layer, (keys, values) in self._cache.items()
            }

    def _stack(self, entries: Sequence[dict[int, LayerKeyValues]], lengths: Sequence[int]) -> dict[int, LayerKeyValues]:
        """The first `lengths` tokens of each entry; copies of a token pad a shorter prefix and have no weight."""
        width = max(lengths)

        def stack(states: Sequence[Tensor]) -> Tensor:
            first = states[0]
            stacked = first.new_zeros((first.shape[0], len(states), width, first.shape[2]))
            for i, (state, length) in enumerate(zip(states, lengths, strict=True)):
                stacked[:, i, :length] = state[:, :length]
                last = max(length, 1)
                stacked[:, i, length:] = state[:, last - 1 : last]
            return stacked

        return {
            layer: (stack([entry[layer][0] for entry in entries]), stack([entry[layer][1] for entry in entries]))
            for layer in entries[0]
        }

    def _num_bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for layers in self._prefixes.values() for k, v in layers.values())

    def _num_padding_rows(self, num: int) -> int:
        return num_padding_rows(num) if self._device.type == "cpu" else 0

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)
