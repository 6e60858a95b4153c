"""Whole sequences through the plain forward pass, and the check whether a model may be fed the packed way.

Slower than `slick.engines.packed`, but it trusts nothing except that a causal LM gives logits for a text: models with a
state instead of keys and values, with positions in the mask, or with windows shorter than the prompt are served right.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.engines.logits import candidates_of, takes
from slick.engines.packed import PackedDecoder
from slick.engines.tree import Candidates, Ints


class PlainDecoder:
    """Whole sequences through the plain forward pass, without masks or caches: any causal LM, at a price."""

    _MAX_ROWS = 64
    """Sequences of one forward pass; all of them of one length, so none is padded."""

    def __init__(self, model: nn.Module, num_candidates: int) -> None:
        self._model, self._num_candidates = model, num_candidates
        self._device = next(model.parameters()).device
        self._last_only = takes(model, "logits_to_keep")
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


def agree(packed: PackedDecoder, plain: PlainDecoder, vocab_size: int, dtype: torch.dtype) -> str:
    """Feed a few short prompts and answers both ways; empty if the logits agree, else what went wrong."""
    ids = [(7 * i + 3) % vocab_size for i in range(16)]
    prefix, tails = ids[:5], [ids[5:8], [ids[5], *ids[8:11]], ids[6:9], ids[7:9], ids[5:8], ids[3:7]]
    parents, tokens = np.array([0, 0, 1, 5]), np.array(ids[11:15])
    packed.set_candidates(vocab_size)
    plain.set_candidates(vocab_size)
    try:
        nodes, first = packed.start(prefix, len(prefix), tails)
        order = np.argsort(nodes[parents], kind="stable")
        rest = packed.advance(nodes[parents][order], tokens[order])
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        return f"it does not take a packed batch ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    right_nodes, right_first = plain.start(prefix, len(prefix), tails)
    right_rest = plain.advance(right_nodes[parents][order], tokens[order])
    pairs = ((_by_id(first)[nodes], _by_id(right_first)[right_nodes]), (_by_id(rest), _by_id(right_rest)))
    error_share = max(float(np.abs(a - b).mean() / max(b.std(axis=1).mean(), 1e-30)) for a, b in pairs)
    exact = dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"
    limit = 2e-4 if exact else 0.05
    if error_share <= limit:
        return ""
    return f"its logits differ by {error_share:.2g} of their spread, more than {limit:g}"


def _by_id(candidates: Candidates) -> NDArray[np.float32]:
    values, ids = candidates
    logits = np.empty_like(values)
    np.put_along_axis(logits, ids, values, axis=1)
    return logits
