"""Two ways to get next-token candidates out of a Hugging Face causal LM, behind one interface.

`PackedDecoder` puts a whole batch into one sequence and says by a 4D attention mask who sees whom: the shared prefix is
computed once and kept, prompts that begin alike share their tokens, answers that agree so far are fed once, and
nothing is ever padded. It needs a decoder that takes such masks. `PlainDecoder` feeds whole sequences and trusts
nothing but the plain forward pass: slower, and right for every model. `agree` tells if a model is fit for the first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.engines.tree import Candidates, Ints
from slick.errors import EngineError

_SPARE_CANDIDATES = 24
"""Candidates fetched beyond top-k, so that ties at its edge are seen and settled by token id."""

KeysValues = list[tuple[Tensor, Tensor]]


class PackedDecoder:
    """A batch as one packed sequence; the key-value cache of prefixes is kept between batches."""

    def __init__(self, model: nn.Module, num_candidates: int, prefix_cache_bytes: int = 1 << 30) -> None:
        self._model, self._num_candidates = model, num_candidates
        self._keeps_logits = _takes(model, "logits_to_keep")
        weight = next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self._prefixes: OrderedDict[tuple[int, ...], KeysValues] = OrderedDict()
        self._prefix_cache_bytes = prefix_cache_bytes
        self._cache: Any = None
        self._sees_NK = torch.empty((0, 0), dtype=torch.bool)
        self._position_N = torch.empty(0, dtype=torch.int64)
        self.num_prefilled = 0
        """Prompt tokens fed since the decoder was built."""

    def set_candidates(self, num_candidates: int) -> None:
        """How many of the likeliest tokens the tree may choose among."""
        self._num_candidates = num_candidates

    def start(self, prefix: Sequence[int], shared: int, tails: Sequence[Sequence[int]]) -> tuple[Ints, Candidates]:
        """Feed the prompts `prefix[:shared] + tails[q]`; each distinct prompt becomes a live node.

        Args:
            prefix: tokens of the whole prefix text, what the cache is kept by.
            shared: how many of them really begin every prompt.
            tails: of each question; none empty.

        Returns:
            The live node of each question, and the candidates of each live node.
        """
        self._cache = self._prefix_cache(tuple(prefix), shared)
        tokens, depths, paths = _trie(tails)
        sees = np.zeros((len(tokens), len(tokens)), dtype=bool)
        for path in paths:
            sees[path[:, None], path] |= np.tri(len(path), dtype=bool)
        ends, node_of_Q = np.unique([path[-1] for path in paths], return_inverse=True)
        self._sees_NK = torch.ones((len(tokens), shared + len(tokens)), dtype=torch.bool, device=self._device)
        self._sees_NK[:, shared:] = torch.from_numpy(sees).to(self._device)
        self._position_N = torch.from_numpy(depths + shared).to(self._device)
        self.num_prefilled += len(tokens)
        keep = torch.from_numpy(ends).to(self._device)
        logits = self._forward(torch.from_numpy(tokens).to(self._device), keep)
        self._sees_NK, self._position_N = self._sees_NK[keep], self._position_N[keep]
        return node_of_Q, candidates_of(logits, self._num_candidates)

    def advance(self, parents: Ints, tokens: Ints) -> Candidates:
        """Feed one token behind each given live node; these become the live nodes."""
        num, parent = len(parents), torch.from_numpy(parents).to(self._device)
        itself = torch.eye(num, dtype=torch.bool, device=self._device)
        self._sees_NK = torch.cat([self._sees_NK[parent], itself], dim=1)
        self._position_N = self._position_N[parent] + 1
        return candidates_of(self._forward(torch.from_numpy(tokens).to(self._device), None), self._num_candidates)

    def _forward(self, tokens: Tensor, keep: Tensor | None) -> Tensor:
        """Logits of the kept positions (all by default); appends the keys and values of all tokens to the cache."""
        mask = torch.zeros(self._sees_NK.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(~self._sees_NK, torch.finfo(self._dtype).min)
        output = self._model(
            input_ids=tokens[None],
            attention_mask=mask[None, None],
            position_ids=self._position_N[None],
            past_key_values=self._cache,
            use_cache=True,
            **({"logits_to_keep": keep} if keep is not None and self._keeps_logits else {}),
        )
        logits: Tensor = output.logits[0]
        return logits if keep is None or self._keeps_logits else logits[keep]

    def _prefix_cache(self, prefix: tuple[int, ...], shared: int) -> Any:
        """A cache that holds the first `shared` tokens of the prefix, for this batch to append to."""
        from transformers import DynamicCache

        if not shared:
            return DynamicCache()
        if prefix not in self._prefixes:
            self._prefixes[prefix] = self._compute_prefix(prefix)
            while self._num_bytes() > self._prefix_cache_bytes and len(self._prefixes) > 1:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(prefix)
        # Appending makes new tensors, so the kept ones stay as they are.
        return DynamicCache([(k[..., :shared, :], v[..., :shared, :]) for k, v in self._prefixes[prefix]])

    def _compute_prefix(self, prefix: tuple[int, ...]) -> KeysValues:
        from transformers import DynamicCache

        num = len(prefix)
        self._cache = DynamicCache()
        self._sees_NK = torch.ones((num, num), dtype=torch.bool, device=self._device).tril_()
        self._position_N = torch.arange(num, device=self._device)
        self._forward(torch.tensor(prefix, device=self._device), torch.tensor([num - 1], device=self._device))
        self.num_prefilled += num
        return [(layer.keys, layer.values) for layer in self._cache.layers]

    def _num_bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for kept in self._prefixes.values() for k, v in kept)


class PlainDecoder:
    """Whole sequences through the plain forward pass, without masks or caches: any causal LM, at a price."""

    _MAX_ROWS = 64
    """Sequences of one forward pass; all of them of one length, so none is padded."""

    def __init__(self, model: nn.Module, num_candidates: int) -> None:
        self._model, self._num_candidates = model, num_candidates
        self._device = next(model.parameters()).device
        self._last_only = _takes(model, "logits_to_keep")
        self._live: list[tuple[int, ...]] = []
        self.num_prefilled = 0
        """Prompt tokens fed to find the first answer tokens; each later step feeds the prompt again."""

    def set_candidates(self, num_candidates: int) -> None:
        """How many of the likeliest tokens the tree may choose among."""
        self._num_candidates = num_candidates

    def start(self, prefix: Sequence[int], shared: int, tails: Sequence[Sequence[int]]) -> tuple[Ints, Candidates]:
        """As `PackedDecoder.start`."""
        prompts = [(*prefix[:shared], *tail) for tail in tails]
        self._live = sorted(set(prompts))
        self.num_prefilled += sum(map(len, self._live))
        place = {prompt: i for i, prompt in enumerate(self._live)}
        return np.array([place[prompt] for prompt in prompts]), self._candidates()

    def advance(self, parents: Ints, tokens: Ints) -> Candidates:
        """As `PackedDecoder.advance`."""
        self._live = [
            (*self._live[parent], token) for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True)
        ]
        return self._candidates()

    def _candidates(self) -> Candidates:
        by_length: dict[int, list[int]] = {}
        for i, sequence in enumerate(self._live):
            by_length.setdefault(len(sequence), []).append(i)
        found: list[Candidates] = []
        order: list[int] = []
        for same in by_length.values():
            for start in range(0, len(same), self._MAX_ROWS):
                rows = same[start : start + self._MAX_ROWS]
                found.append(candidates_of(self._logits([self._live[i] for i in rows]), self._num_candidates))
                order += rows
        back = np.argsort(order)
        return np.concatenate([f[0] for f in found])[back], np.concatenate([f[1] for f in found])[back]

    def _logits(self, sequences: list[tuple[int, ...]]) -> Tensor:
        kwargs = {"logits_to_keep": 1} if self._last_only else {}
        output = self._model(input_ids=torch.tensor(sequences, device=self._device), use_cache=False, **kwargs)
        logits: Tensor = output.logits[:, -1]
        return logits


def candidates_of(logits_NV: Tensor, num: int) -> Candidates:
    """The `num` likeliest tokens of each row: by logit, equal ones by token id, also at the edge.

    Raises:
        EngineError: a logit is not a finite number.
    """
    logits_NV = logits_NV.float()
    if not bool(torch.isfinite(logits_NV).all()):
        raise EngineError(
            "the model gave logits that are not finite numbers (NaN or infinity), so its answers mean nothing; "
            "load it in float32 or bfloat16, and see that the weights are whole"
        )
    num_classes = logits_NV.shape[1]
    fetched = min(num + _SPARE_CANDIDATES, num_classes)
    top, top_ids = torch.topk(logits_NV, fetched, dim=1)
    values, ids = top.cpu().numpy(), top_ids.cpu().numpy()
    order = np.lexsort((ids, -values), axis=1)[:, :num]
    ids_NC = np.take_along_axis(ids, order, axis=1)
    values_NC = np.take_along_axis(values, order, axis=1)
    if fetched < num_classes:
        # A tie that reaches past the fetched tokens: only a full sort knows which ids are the lowest.
        for row in np.flatnonzero(values_NC[:, -1] == values[:, -1]).tolist():
            sorted_V, by_value = torch.sort(logits_NV[row], descending=True, stable=True)
            values_NC[row], ids_NC[row] = sorted_V[:num].cpu().numpy(), by_value[:num].cpu().numpy()
    return values_NC, ids_NC


def agree(packed: PackedDecoder, plain: PlainDecoder, vocab_size: int, dtype: torch.dtype) -> str:
    """Feed two short prompts and their answers both ways; empty if the logits agree, else what went wrong."""
    ids = [(7 * i + 3) % vocab_size for i in range(16)]
    prefix, tails = ids[:5], [ids[5:8], [ids[5], *ids[8:11]]]
    parents, tokens = np.array([0, 0, 1]), np.array(ids[11:14])
    packed.set_candidates(vocab_size)
    plain.set_candidates(vocab_size)
    try:
        nodes, first = packed.start(prefix, len(prefix), tails)
        rest = packed.advance(nodes[parents], tokens)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        return f"it does not take a packed batch ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    right_nodes, right_first = plain.start(prefix, len(prefix), tails)
    right_rest = plain.advance(right_nodes[parents], tokens)
    pairs = ((_by_id(first)[nodes], _by_id(right_first)[right_nodes]), (_by_id(rest), _by_id(right_rest)))
    error_share = max(float(np.abs(a - b).mean() / max(b.std(axis=1).mean(), 1e-30)) for a, b in pairs)
    exact = dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"
    limit = 2e-4 if exact else 0.05
    return (
        "" if error_share <= limit else f"its logits differ by {error_share:.2g} of their spread, more than {limit:g}"
    )


def _by_id(candidates: Candidates) -> NDArray[np.float32]:
    values, ids = candidates
    logits = np.empty_like(values)
    np.put_along_axis(logits, ids, values, axis=1)
    return logits


def _trie(tails: Sequence[Sequence[int]]) -> tuple[Ints, Ints, list[Ints]]:
    """Tokens and depths of the trie of the tails, parents before children, and the path of each tail through it."""
    place: dict[tuple[int, int], int] = {}
    depths: list[int] = []
    paths: list[Ints] = []
    for tail in tails:
        node, path = -1, []
        for depth, token in enumerate(tail):
            key = (node, token)
            if key not in place:
                place[key] = len(place)
                depths.append(depth)
            node = place[key]
            path.append(node)
        paths.append(np.array(path))
    return np.array([token for _, token in place]), np.array(depths), paths


def _takes(model: nn.Module, parameter: str) -> bool:
    import inspect

    return parameter in inspect.signature(model.forward).parameters
