"""A batch of prompts and their answers through a Hugging Face causal LM, every distinct token once, all in one row.

What stands before the first token in which the prompts of a prefix differ is computed once and kept between batches;
then come the rest of the prompts, then the answers, node by node. `slick.inference.packed.attention` says who sees
whom.

Legend of array suffixes: N tokens fed together, P prompts, F prefixes, L lanes, A tokens of a lane, B keys of a lane.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.inference.batching import TokenIds, max_tokens_per_pass, shared_prefix_length, split_by_tokens
from slick.inference.packed.attention import (
    AttentionOverride,
    ForwardPass,
    KeyValueCache,
    LayerKeyValues,
    PrefixContext,
    SuffixContext,
)
from slick.inference.packed.cpu_linear import num_padding_rows
from slick.inference.packed.sampler import Candidates, IntArray
from slick.inference.scoring import accepts_argument, token_log_probabilities, top_candidates


class PackedDecoder:
    """Prompts as roots of trees; the keys and values of prefixes are kept between batches."""

    def __init__(self, model: nn.Module, *, prefix_cache_bytes: int = 1 << 28) -> None:
        """Hold a model.

        Args:
            model: a causal LM that takes the packed way.
            prefix_cache_bytes: keys and values of prefixes kept between batches, the last used ones.
        """
        self._model = model
        self._attention = AttentionOverride(model)
        self._keeps_logits = accepts_argument(model, "logits_to_keep")
        self._device = next(model.parameters()).device
        self._max_tokens = max_tokens_per_pass(model)
        self._prefixes: OrderedDict[tuple[tuple[int, ...], ...], dict[int, LayerKeyValues]] = OrderedDict()
        self._prefix_cache_bytes = prefix_cache_bytes
        self._store = KeyValueCache()
        self._watched: IntArray | None = None
        self._reset({}, [], [], 1)
        self.windows: set[int] = set()
        """Sliding windows that layers asked for so far."""
        self.num_layers = 0
        """Layers of the last forward pass that attended through the attention interface."""
        self.num_prefilled = 0
        """Prompt tokens fed since the decoder was built."""

    def start(
        self,
        prefixes: Sequence[TokenIds],
        prompts: Sequence[Sequence[TokenIds]],
        *,
        num_candidates: int,
        kept: IntArray | None = None,
        scored_ids: IntArray | None = None,
    ) -> Candidates:
        """Feed the prompts; the last token of each becomes a root, numbered in order.

        Args:
            prefixes: what other batches may share with this one.
            prompts: for each prefix its prompts, which begin alike: what they share is fed once.
            num_candidates: how many of the likeliest tokens are wanted of each node, now and later.
            kept: how many last tokens of each prompt candidates are wanted of; None for the last one alone.
            watched: tokens whose log-probabilities are wanted in place of the likeliest tokens and their logits.

        Returns:
            Candidates behind the kept tokens of all prompts, in order.
        """
        shared = [shared_prefix_length(prefix, group, kept) for prefix, group in zip(prefixes, prompts, strict=True)]
        begins = tuple(tuple(group[0][:length]) for group, length in zip(prompts, shared, strict=True))
        layers = self._prefix_layers(begins) if any(shared) else {}
        tails = [prompt[length:] for group, length in zip(prompts, shared, strict=True) for prompt in group]
        prefix_P = np.repeat(np.arange(len(prompts)), [len(group) for group in prompts])
        self._reset(layers, shared, prefix_P, num_candidates)
        self._watched = scored_ids
        self._tail_P = np.array([len(tail) for tail in tails])
        self._depth_N = self._tail_P + self._shared_F[prefix_P] - 1
        self._path_ND = np.empty((len(tails), 0), dtype=np.int64)
        self._root_N = np.arange(len(tails))
        kept_P = np.ones(len(tails), dtype=np.int64) if kept is None else np.tile(kept, len(prompts))
        found: list[Candidates] = []
        for part in split_by_tokens(self._tail_P, self._max_tokens):
            found.append(self._feed_tails(part, tails, kept_P))
        self.num_prefilled += int(self._tail_P.sum())
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])

    def feed(self, parents: IntArray, tokens: IntArray) -> Candidates:
        """Feed one token behind each given node; the new nodes are numbered on from the last one."""
        order = np.argsort(self._prefix_P[self._root_N[parents]], kind="stable")
        parents_O, tokens_O = parents[order], tokens[order]
        roots = self._root_N[parents_O]
        depths = self._depth_N[parents_O] + 1
        path = self._path_ND[parents_O]
        slots = self._store.num_tokens + np.arange(len(parents))
        # A path is as long as the node is deep in the answer: what is free behind takes the node itself.
        depth_in_answer = depths - self._depth_N[roots] - 1
        if len(path) and depth_in_answer.max() >= path.shape[1]:
            path = np.concatenate([path, np.full((len(path), 1), -1)], axis=1)
            grown = np.full((len(self._path_ND), 1), -1)
            self._path_ND = np.concatenate([self._path_ND, grown], axis=1)
        path[np.arange(len(path)), depth_in_answer] = slots
        found: list[Candidates] = []
        for start in range(0, len(parents), self._max_tokens):
            num = min(self._max_tokens, len(parents) - start)
            part = np.minimum(start + np.arange(num + self._num_padding_rows(num)), len(parents) - 1)
            logits, ids = self._feed_nodes(tokens_O[part], roots[part], depths[part], path[part])
            found.append((logits[:num], ids[:num]))
        back = np.argsort(order)
        self._root_N = np.concatenate([self._root_N, roots[back]])
        self._depth_N = np.concatenate([self._depth_N, depths[back]])
        self._path_ND = np.concatenate([self._path_ND, path[back]])
        return np.concatenate([f[0] for f in found])[back], np.concatenate([f[1] for f in found])[back]

    def release(self) -> None:
        """Give back the memory of the last batch."""
        self._store = KeyValueCache()

    def _reset(
        self, layers: dict[int, LayerKeyValues], shared: Sequence[int], prefix_P: Sequence[int] | IntArray, num: int
    ) -> None:
        self._store.clear()
        self._layers, self._num_candidates, self._watched = layers, num, None
        self._shared_F, self._prefix_P = np.array(shared, dtype=np.int64), np.array(prefix_P, dtype=np.int64)
        self._tail_start_P = np.zeros(len(self._prefix_P), dtype=np.int64)

    def _feed_tails(self, part: slice, tails: Sequence[TokenIds], kept_P: IntArray) -> Candidates:
        """Whole tails, a lane each; the last token comes again as often as rows are to spare."""
        lengths = self._tail_P[part]
        tokens = np.concatenate([np.asarray(tail, dtype=np.int64) for tail in tails[part]])
        width = int(lengths.max())
        starts = np.cumsum(lengths) - lengths
        self._tail_start_P[part] = self._store.num_tokens + starts
        rows_N = np.minimum(np.arange(len(tokens) + self._num_padding_rows(len(tokens))), len(tokens) - 1)
        lane_N = np.repeat(np.arange(len(lengths)), lengths)[rows_N]
        within_N = rows_N - starts[lane_N]
        columns = np.arange(width)
        rows_LA = np.minimum(starts[:, None] + columns, len(tokens) - 1)
        own_positions = self._shared_F[self._prefix_P[part]][:, None] + columns
        causal = columns[:, None] >= columns
        seen_LAB = causal & (columns < lengths[:, None])[:, None]
        seen_LAB[:, :, 0] = True  # padding sees something, for a softmax over nothing is not a number
        own = SuffixContext(
            keys_LB=self._tensor(rows_LA + self._store.num_tokens),
            masked_LAB=self._tensor(~seen_LAB),
            rows_LA=self._tensor(rows_LA),
            place_N=self._tensor(lane_N * width + within_N),
            key_positions_LB=self._tensor(own_positions),
        )
        prefix_N = self._prefix_P[part][lane_N]
        positions = self._shared_F[prefix_N] + within_N
        kept = np.flatnonzero((within_N >= (lengths - kept_P[part])[lane_N])[: len(tokens)])
        return self._forward(tokens[rows_N], positions, own, prefix_N, kept)

    def _feed_nodes(self, tokens: IntArray, roots: IntArray, depths: IntArray, path_ND: IntArray) -> Candidates:
        """One token each, a lane each: it sees its tail and the answer that leads to it."""
        tails = self._tail_P[roots]
        columns = np.arange(int(tails.max()))
        in_tail = columns < tails[:, None]
        keys = np.concatenate([self._tail_start_P[roots][:, None] + columns, path_ND], axis=1)
        seen = np.concatenate([in_tail, path_ND >= 0], axis=1)
        shared = self._shared_F[self._prefix_P[roots]][:, None]
        positions = np.concatenate([shared + columns, (shared + tails[:, None]) + np.arange(path_ND.shape[1])], axis=1)
        own = SuffixContext(
            keys_LB=self._tensor(np.where(seen, keys, 0)),
            masked_LAB=self._tensor(~seen[:, None]),
            rows_LA=None,
            place_N=None,
            key_positions_LB=self._tensor(positions),
        )
        return self._forward(tokens, depths, own, self._prefix_P[roots], None)

    def _forward(
        self, tokens: IntArray, positions: IntArray, own: SuffixContext, prefix_N: IntArray, kept: IntArray | None
    ) -> Candidates:
        """Candidates behind the kept tokens (None for all); keys and values of all tokens go into the store."""
        logits = self._logits(tokens, positions, own, self._prefix_part(prefix_N), kept)
        if self._watched is not None:
            return token_log_probabilities(logits, self._watched)
        return top_candidates(logits, self._num_candidates)

    def _logits(
        self,
        tokens: IntArray,
        positions: IntArray,
        own: SuffixContext,
        prefix: PrefixContext | None,
        kept: IntArray | None,
    ) -> Tensor:
        running = ForwardPass(
            store=self._store,
            positions_N=self._tensor(positions),
            own=own,
            prefix=prefix,
            longest=int(positions.max()) + 1,
        )
        arguments: dict[str, Any] = {}
        if kept is not None and self._keeps_logits:
            arguments["logits_to_keep"] = self._tensor(kept)
        with self._attention.use_backend(running):
            output = self._model(
                input_ids=self._tensor(tokens)[None],
                position_ids=running.positions_N[None],
                use_cache=False,
                **arguments,
            )
        self._store.num_tokens += len(tokens)
        self.windows |= running.windows
        self.num_layers = running.num_layers
        logits: Tensor = output.logits[0]
        return logits if kept is None or self._keeps_logits else logits[self._tensor(kept)]

    def _prefix_part(self, prefix_N: IntArray) -> PrefixContext | None:
        """What the tokens see of their prefixes; tokens of one prefix stand together."""
        if not self._layers:
            return None
        low, high = int(prefix_N[0]), int(prefix_N[-1]) + 1
        counts = np.bincount(prefix_N - low, minlength=high - low)
        starts = np.cumsum(counts) - counts
        width = int(counts.max())
        rows_FM = np.minimum(starts[:, None] + np.arange(width), len(prefix_N) - 1)
        place_N = (prefix_N - low) * width + np.arange(len(prefix_N)) - starts[prefix_N - low]
        lengths_F, padding_F1W = self._shared_F[low:high], None
        if self._device.type != "cpu":
            num_kept = next(iter(self._layers.values()))[0].shape[2]
            padding_F1W = self._tensor((np.arange(num_kept) >= lengths_F[:, None])[:, None])
        return PrefixContext(
            layers={layer: (keys[:, low:high], values[:, low:high]) for layer, (keys, values) in self._layers.items()},
            rows_FM=self._tensor(rows_FM),
            place_N=self._tensor(place_N),
            lengths_F=lengths_F.tolist() if padding_F1W is None else [],
            padding_F1W=padding_F1W,
        )

    def _prefix_layers(self, prefixes: tuple[tuple[int, ...], ...]) -> dict[int, LayerKeyValues]:
        """Keys and values of these prefixes, each of shape (K, F, W, D), padded behind."""
        if prefixes not in self._prefixes:
            self._prefixes[prefixes] = self._compute_prefixes(prefixes)
            while self._num_bytes() > self._prefix_cache_bytes and len(self._prefixes) > 1:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(prefixes)
        return self._prefixes[prefixes]

    def _compute_prefixes(self, prefixes: tuple[tuple[int, ...], ...]) -> dict[int, LayerKeyValues]:
        some = [prefix for prefix in prefixes if prefix]
        self._reset({}, [0], [0] * len(some), 1)
        self._tail_P = np.array([len(prefix) for prefix in some])
        for part in split_by_tokens(self._tail_P, self._max_tokens):
            self._feed_tails(part, some, np.ones(len(some), dtype=np.int64))
        self.num_prefilled += int(self._tail_P.sum())
        lengths = np.array([len(prefix) for prefix in prefixes])
        starts = np.zeros(len(prefixes), dtype=np.int64)
        starts[lengths > 0] = self._tail_start_P
        # Behind a shorter prefix its own last token is repeated; an empty one has any, and none of it counts.
        within = np.minimum(np.arange(lengths.max()), np.maximum(lengths[:, None] - 1, 0))
        places = self._tensor(starts[:, None] + within)
        flat, shape = places.flatten(), tuple(places.shape)

        def taken(kept: Tensor) -> Tensor:
            return kept.index_select(1, flat).view(kept.shape[0], *shape, kept.shape[2])

        return {layer: (taken(keys), taken(values)) for layer, (keys, values) in self._store.items()}

    def _num_bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for layers in self._prefixes.values() for k, v in layers.values())

    def _num_padding_rows(self, num: int) -> int:
        return num_padding_rows(num) if self._device.type == "cpu" else 0

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)
