"""Whole sequences through the plain forward pass, and the check whether a model may be fed the packed way.

Slower than `slick.engines.packed`, but it trusts nothing except that a causal LM gives logits for a text: models with a
state instead of keys and values, with positions in the mask, or with an attention of their own are served right.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick.engines.logits import accepts_argument, token_log_probabilities, top_candidates
from slick.engines.packed import PackedDecoder
from slick.engines.tree import Candidates, IntArray


class FullForwardDecoder:
    """Whole sequences through the plain forward pass, without masks or caches: any causal LM, at a price."""

    _MAX_ROWS = 64
    """Sequences of one forward pass; all of them of one length, so none is padded."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._num_candidates = model, 1
        self._watched: IntArray | None = None
        self._device = next(model.parameters()).device
        self._last_only = accepts_argument(model, "logits_to_keep")
        self._nodes: list[tuple[int, ...]] = []
        self.num_prefilled = 0
        """Prompt tokens fed to find the first answer tokens; each later step feeds the prompt again."""

    def start(
        self,
        prefixes: Sequence[Sequence[int]],
        prompts: Sequence[Sequence[Sequence[int]]],
        *,
        num_candidates: int,
        kept: IntArray | None = None,
        scored_ids: IntArray | None = None,
    ) -> Candidates:
        """As `PackedDecoder.start`."""
        self._num_candidates, self._watched = num_candidates, scored_ids
        self._nodes = [tuple(prompt) for group in prompts for prompt in group]
        self.num_prefilled += sum(map(len, self._nodes))
        kept_P = np.ones(len(self._nodes), dtype=np.int64) if kept is None else np.tile(kept, len(prompts))
        return self._candidates(
            [
                node[: len(node) - back]
                for node, num in zip(self._nodes, kept_P.tolist(), strict=True)
                for back in range(num - 1, -1, -1)
            ]
        )

    def feed(self, parents: IntArray, tokens: IntArray) -> Candidates:
        """As `PackedDecoder.feed`."""
        new = [(*self._nodes[parent], token) for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True)]
        self._nodes += new
        return self._candidates(new)

    def _candidates(self, sequences: list[tuple[int, ...]]) -> Candidates:
        by_length: dict[int, list[int]] = {}
        for i, sequence in enumerate(sequences):
            by_length.setdefault(len(sequence), []).append(i)
        found: list[Candidates] = []
        order: list[int] = []
        for same in by_length.values():
            for start in range(0, len(same), self._MAX_ROWS):
                rows = same[start : start + self._MAX_ROWS]
                logits = self._logits([sequences[i] for i in rows])
                found.append(
                    top_candidates(logits, self._num_candidates)
                    if self._watched is None
                    else token_log_probabilities(logits, self._watched)
                )
                order += rows
        back = np.argsort(order)
        return np.concatenate([f[0] for f in found])[back], np.concatenate([f[1] for f in found])[back]

    def _logits(self, sequences: list[tuple[int, ...]]) -> Tensor:
        kwargs = {"logits_to_keep": 1} if self._last_only else {}
        output = self._model(input_ids=torch.tensor(sequences, device=self._device), use_cache=False, **kwargs)
        logits: Tensor = output.logits[:, -1]
        return logits


def find_logit_mismatch(packed: PackedDecoder, plain: FullForwardDecoder, vocab_size: int, dtype: torch.dtype) -> str:
    """Feed a few short prompts and answers both ways; empty if the logits agree, else what went wrong."""
    ids = [(7 * i + 3) % vocab_size for i in range(24)]
    tails = [ids[5:8], [ids[5], *ids[8:11]], [*ids[5:9], ids[2]], ids[5:7], ids[3:7]]
    prompts = [[ids[:5] + tail for tail in tails], [ids[10:18] + tail for tail in tails]]
    parents, tokens = np.array([0, 0, 1, 4, 5, 5, 7, 9]), np.array(ids[11:19])
    try:
        found = _run_three_steps(packed, prompts, parents, tokens, vocab_size)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        return f"it does not take a packed batch ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if not packed.num_layers:
        return "its layers have an attention of their own"
    right = _run_three_steps(plain, prompts, parents, tokens, vocab_size)
    errors = [np.abs(a - b).mean() / max(b.std(axis=1).mean(), 1e-30) for a, b in zip(found, right, strict=True)]
    error_share = float(max(errors))
    exact = dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"
    limit = 2e-4 if exact else 0.15  # bfloat16 alone makes 0.05 on a model of 30 layers
    if error_share <= limit:
        return ""
    return f"its logits differ by {error_share:.2g} of their spread, more than {limit:g}"


def _run_three_steps(
    decoder: PackedDecoder | FullForwardDecoder,
    prompts: list[list[list[int]]],
    parents: IntArray,
    tokens: IntArray,
    num: int,
) -> list[NDArray[np.float32]]:
    """Logits behind the prompts, and behind one and two tokens of answers that branch."""
    num_roots = sum(map(len, prompts))
    first = decoder.start([group[0][:4] for group in prompts], prompts, num_candidates=num)
    second = decoder.feed(parents, tokens)
    third = decoder.feed(np.array([2, num_roots + 1, num_roots, num_roots + 5]), tokens[:4])
    return [_order_by_token_id(candidates) for candidates in (first, second, third)]


def _order_by_token_id(candidates: Candidates) -> NDArray[np.float32]:
    values, ids = candidates
    logits = np.empty_like(values)
    np.put_along_axis(logits, ids, values, axis=1)
    return logits
