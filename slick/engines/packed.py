"""A batch of questions as few packed sequences with a 4D attention mask: the fast way through a Hugging Face causal LM.

The mask says who sees whom, so the prefix is computed once and kept, prompts that begin alike share their tokens, and
answers that agree so far are fed once. One sequence for all would waste attention on what a question does not see,
which grows with the square of the batch; one for each would be mostly padding. So questions share lanes, a few in each.

Legend of array suffixes: B lanes, L tokens of a lane (padded), K keys of a lane, N live nodes, Q questions.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.engines.logits import candidates_of, takes
from slick.engines.tree import Candidates, Ints

QUESTIONS_A_LANE = 4

KeysValues = list[tuple[Tensor, Tensor]]


class PackedDecoder:
    """Packed sequences of a batch; the key-value cache of prefixes is kept between batches."""

    def __init__(self, model: nn.Module, num_candidates: int, prefix_cache_bytes: int = 1 << 30) -> None:
        self._model, self._num_candidates = model, num_candidates
        self._keeps_logits = takes(model, "logits_to_keep")
        weight = next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self._prefixes: OrderedDict[tuple[int, ...], KeysValues] = OrderedDict()
        self._prefix_cache_bytes = prefix_cache_bytes
        self._cache: Any = None
        self._lane_N: Ints = np.empty(0, dtype=np.int64)
        self._depth_N: Ints = np.empty(0, dtype=np.int64)
        self._sees_NK: NDArray[np.bool_] = np.empty((0, 0), dtype=bool)
        self.num_prefilled = 0
        """Prompt tokens fed since the decoder was built, padding aside."""

    def set_candidates(self, num_candidates: int) -> None:
        """How many of the likeliest tokens the tree may choose among."""
        self._num_candidates = num_candidates

    def start(self, prefix: Sequence[int], shared: int, tails: Sequence[Sequence[int]]) -> tuple[Ints, Candidates]:
        """Feed the prompts `prefix[:shared] + tails[q]`; the distinct prompts of a lane become live nodes.

        Args:
            prefix: tokens of the whole prefix text, what the cache is kept by.
            shared: how many of them really begin every prompt.
            tails: of each question; none empty.

        Returns:
            The live node of each question, and the candidates of each live node.
        """
        tries = [_trie(tails[i : i + QUESTIONS_A_LANE]) for i in range(0, len(tails), QUESTIONS_A_LANE)]
        self.num_prefilled += sum(len(trie.tokens) for trie in tries)
        width = max(len(trie.tokens) for trie in tries)
        tokens_BL = np.zeros((len(tries), width), dtype=np.int64)
        depths_BL = np.zeros((len(tries), width), dtype=np.int64)
        sees_BLK = np.zeros((len(tries), width, shared + width), dtype=bool)
        for lane, trie in enumerate(tries):
            pads = width - len(trie.tokens)  # in front, so that the ends of prompts come last in every lane
            tokens_BL[lane, pads:], depths_BL[lane, pads:] = trie.tokens, trie.depths
            sees_BLK[lane, pads:, :shared] = True
            sees_BLK[lane, pads:, shared + pads :] = trie.sees
        self._cache = self._prefix_cache(tuple(prefix), shared, len(tries))
        num_kept = max(trie.num_ends for trie in tries)
        logits = self._forward(tokens_BL, depths_BL + shared, sees_BLK, num_kept)

        self._lane_N = np.repeat(np.arange(len(tries)), [trie.num_ends for trie in tries])
        slot_N = np.concatenate([np.arange(-trie.num_ends, 0) for trie in tries])
        self._depth_N = depths_BL[self._lane_N, slot_N] + shared
        self._sees_NK = sees_BLK[self._lane_N, slot_N]
        first_node = np.cumsum([0, *(trie.num_ends for trie in tries)])
        node_of_Q = np.concatenate([first_node[lane] + trie.end_of_tail for lane, trie in enumerate(tries)])
        return node_of_Q, self._candidates(logits, slot_N + num_kept)

    def advance(self, parents: Ints, tokens: Ints) -> Candidates:
        """Feed one token behind each given live node; these become the live nodes.

        Args:
            parents: live nodes in rising order; a node may come several times.
            tokens: one for each.
        """
        self._drop_lanes(self._lane_N[parents])
        self._lane_N = lane_N = self._lane_N[parents]
        num_lanes = int(lane_N[-1]) + 1
        slot_N = np.arange(len(parents)) - np.searchsorted(lane_N, lane_N)
        width = int(slot_N.max()) + 1
        itself = slot_N[:, None] == np.arange(width)
        self._sees_NK = np.concatenate([self._sees_NK[parents], itself], axis=1)
        self._depth_N = self._depth_N[parents] + 1
        tokens_BL = np.zeros((num_lanes, width), dtype=np.int64)
        depths_BL = np.zeros((num_lanes, width), dtype=np.int64)
        sees_BLK = np.zeros((num_lanes, width, self._sees_NK.shape[1]), dtype=bool)
        tokens_BL[lane_N, slot_N], depths_BL[lane_N, slot_N] = tokens, self._depth_N
        sees_BLK[lane_N, slot_N] = self._sees_NK
        return self._candidates(self._forward(tokens_BL, depths_BL, sees_BLK, width), slot_N)

    def _drop_lanes(self, going_on: Ints) -> None:
        """Forget lanes whose answers are all finished, and number the others anew."""
        kept = np.unique(going_on)
        num_lanes = self._cache.layers[0].keys.shape[0]
        if len(kept) == num_lanes:
            return
        for layer in self._cache.layers:
            layer.keys = layer.keys[torch.from_numpy(kept).to(layer.keys.device)]
            layer.values = layer.values[torch.from_numpy(kept).to(layer.values.device)]
        self._lane_N = np.searchsorted(kept, self._lane_N)

    def _candidates(self, logits_BLV: Tensor, slot_N: Ints) -> Candidates:
        lane = torch.from_numpy(self._lane_N).to(self._device)
        slot = torch.from_numpy(slot_N).to(self._device)
        return candidates_of(logits_BLV[lane, slot], self._num_candidates)

    def _forward(self, tokens_BL: Ints, positions_BL: Ints, sees_BLK: NDArray[np.bool_], num_kept: int) -> Tensor:
        """Logits of the last `num_kept` tokens of each lane; keys and values of all tokens go into the cache."""
        # Padding sees nothing, itself aside: a row that sees nothing at all is not a number to some kernels.
        width = tokens_BL.shape[1]
        sees_BLK[:, np.arange(width), np.arange(-width, 0)] |= True
        hidden = torch.from_numpy(~sees_BLK).to(self._device)
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(hidden, torch.finfo(self._dtype).min)
        output = self._model(
            input_ids=torch.from_numpy(tokens_BL).to(self._device),
            attention_mask=mask[:, None],
            position_ids=torch.from_numpy(positions_BL).to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            **({"logits_to_keep": num_kept} if self._keeps_logits else {}),
        )
        logits: Tensor = output.logits[:, -num_kept:]
        return logits

    def _prefix_cache(self, prefix: tuple[int, ...], shared: int, num_lanes: int) -> Any:
        """A cache that holds the first `shared` tokens of the prefix in each lane, for this batch to append to."""
        from transformers import DynamicCache

        if not shared:
            return DynamicCache()
        if prefix not in self._prefixes:
            self._prefixes[prefix] = self._compute_prefix(prefix)
            while self._num_bytes() > self._prefix_cache_bytes and len(self._prefixes) > 1:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(prefix)
        # Appending makes new tensors, so the kept ones stay as they are.
        kept = [(keys[..., :shared, :], values[..., :shared, :]) for keys, values in self._prefixes[prefix]]
        return DynamicCache([(k.expand(num_lanes, -1, -1, -1), v.expand(num_lanes, -1, -1, -1)) for k, v in kept])

    def _compute_prefix(self, prefix: tuple[int, ...]) -> KeysValues:
        from transformers import DynamicCache

        num = len(prefix)
        self._cache = DynamicCache()
        self._forward(np.array([prefix]), np.arange(num)[None], np.tri(num, dtype=bool)[None], 1)
        self.num_prefilled += num
        return [(layer.keys, layer.values) for layer in self._cache.layers]

    def _num_bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for kept in self._prefixes.values() for k, v in kept)


@dataclass(frozen=True, slots=True)
class _Trie:
    """The tails of a lane, beginnings that agree shared; the last tokens of tails are its last nodes."""

    tokens: Ints
    depths: Ints
    sees: NDArray[np.bool_]
    """Shape (nodes, nodes): itself and all before it in its tails."""
    num_ends: int
    end_of_tail: Ints
    """Which end each tail has; equal tails have the same."""


def _trie(tails: Sequence[Sequence[int]]) -> _Trie:
    place: dict[tuple[int, int], int] = {}
    depths: list[int] = []
    paths: list[list[int]] = []
    for tail in tails:
        node, path = -1, []
        for depth, token in enumerate(tail):
            key = (node, token)
            if key not in place:
                place[key] = len(place)
                depths.append(depth)
            node = place[key]
            path.append(node)
        paths.append(path)
    ends, end_of_tail = np.unique([path[-1] for path in paths], return_inverse=True)
    is_end = np.zeros(len(place), dtype=bool)
    is_end[ends] = True
    order = np.argsort(is_end, kind="stable")
    new_place = np.argsort(order)
    sees = np.zeros((len(place), len(place)), dtype=bool)
    for path in paths:
        nodes = new_place[path]
        sees[nodes[:, None], nodes] |= np.tri(len(nodes), dtype=bool)
    tokens = np.array([token for _, token in place])
    return _Trie(tokens[order], np.array(depths)[order], sees, len(ends), end_of_tail)
