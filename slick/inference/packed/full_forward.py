"""Whole sequences through the plain forward pass, and the check whether a model supports the packed decoder.

Slower than the packed decoder, but it only assumes that a causal LM returns logits for a text. It serves models with a
recurrent state instead of keys and values, with positions in the mask, or with an attention of their own.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick import compat
from slick.inference.packed.decoder import PackedDecoder
from slick.inference.packed.sampler import Candidates, IntArray
from slick.inference.scoring import accepts_argument, token_log_probabilities, top_candidates


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


_LOG = logging.getLogger(__name__)
_NO_WINDOW = 1 << 30
"""Tokens of a window that is none."""


class DecoderSelector:
    """The two ways to feed a model."""

    def __init__(self, model: nn.Module) -> None:
        """Try out, by a few short forward passes, whether the model takes packed batches; warn where it does not."""
        self._model = model
        self._window, self._warned = _NO_WINDOW, False
        self._plain = FullForwardDecoder(model)
        self._packed = self._verify_packed()

    @property
    def uses_packing(self) -> bool:
        """True if the model takes packed batches; else every answer costs whole sequences."""
        return self._packed is not None

    def for_length(self, num_tokens: int) -> PackedDecoder | FullForwardDecoder:
        """The quickest that is right for sequences of at most so many tokens."""
        if self._packed is None:
            return self._plain
        if num_tokens <= self._window:
            return self._packed
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "prompts reach beyond the model's attention window of %d tokens: such batches are fed as whole "
                "sequences, which is right but slower",
                self._window,
            )
        return self._plain

    def release(self) -> None:
        """Give back the memory of the last batch."""
        if self._packed is not None:
            self._packed.release()

    def _verify_packed(self) -> PackedDecoder | None:
        model: Any = self._model
        config = model.config.get_text_config()
        packed = PackedDecoder(model)
        if compat.has_recurrent_state(model):
            trouble = "it carries a state instead of keys and values"
        else:
            was_training = model.training
            model.eval()
            with torch.inference_mode():
                trouble = find_logit_mismatch(
                    packed, self._plain, int(config.vocab_size), next(model.parameters()).dtype
                )
            model.train(was_training)
        if trouble:
            name = type(model).__name__
            _LOG.warning("%s is fed whole sequences, which is right but slower: %s", name, trouble)
            return None
        self._window = _implicit_window(config, packed.windows)
        return PackedDecoder(model)


def _implicit_window(text_config: Any, told: set[int]) -> int:
    """Tokens within which attention reaches everything before, but for windows that layers tell the attention of."""
    windows = [getattr(text_config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    if getattr(text_config, "use_sliding_window", True) is False:
        windows[0] = None
    untold = (window for window in windows if isinstance(window, int) and window > 0 and window not in told)
    return min(untold, default=_NO_WINDOW)
