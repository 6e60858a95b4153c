"""Whole sequences through the model's own forward pass, and the check whether a model supports the packed decoder.

Slower than the packed decoder, but it only requires that a causal LM returns logits for a text. It serves models with a
recurrent state instead of keys and values, with positions in the mask, or with their own attention code.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slick import compat
from slick.errors import EngineError
from slick.inference.packed.compiled import compile_layers
from slick.inference.packed.decoder import PackedDecoder
from slick.inference.packed.sampler import Candidates, IntArray, concatenate_candidates
from slick.inference.scoring import accepts_argument, logit_tolerance, token_log_probabilities, top_candidates

_LOG = logging.getLogger(__name__)

_MAX_ROWS = 64
"""Sequences per forward pass; all have the same length, so none is padded."""
_NO_WINDOW = 1 << 30
"""Window size that means no window."""


class FullForwardDecoder:
    """Feeds whole sequences without masks or caches; works for any causal LM."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._num_candidates = model, 1
        self._scored_ids: IntArray | None = None
        self._device = next(model.parameters()).device
        self._keeps_logits = accepts_argument(model, "logits_to_keep")
        self._nodes: list[tuple[int, ...]] = []
        self.num_prefilled = 0
        """Prompt tokens fed for the first answer tokens; later steps, which feed the prompt again, do not count."""

    def start(
        self,
        prefixes: Sequence[Sequence[int]],
        prompts: Sequence[Sequence[Sequence[int]]],
        *,
        num_candidates: int,
        num_kept: IntArray | None = None,
        scored_ids: IntArray | None = None,
    ) -> Candidates:
        """See `PackedDecoder.start`."""
        self._num_candidates, self._scored_ids = num_candidates, scored_ids
        self._nodes = [tuple(prompt) for group in prompts for prompt in group]
        self.num_prefilled += sum(map(len, self._nodes))
        kept_P = np.ones(len(self._nodes), dtype=np.int64) if num_kept is None else np.tile(num_kept, len(prompts))
        return self._candidates(
            [
                node[: len(node) - dropped]
                for node, num in zip(self._nodes, kept_P.tolist(), strict=True)
                for dropped in range(num - 1, -1, -1)
            ]
        )

    def feed(self, parents: IntArray, tokens: IntArray) -> Candidates:
        """See `PackedDecoder.feed`."""
        edges = zip(parents.tolist(), tokens.tolist(), strict=True)
        nodes = [(*self._nodes[parent], token) for parent, token in edges]
        self._nodes += nodes
        return self._candidates(nodes)

    def _candidates(self, sequences: list[tuple[int, ...]]) -> Candidates:
        by_length: dict[int, list[int]] = {}
        for i, sequence in enumerate(sequences):
            by_length.setdefault(len(sequence), []).append(i)
        candidates: list[Candidates] = []
        order: list[int] = []
        for indices in by_length.values():
            for start in range(0, len(indices), _MAX_ROWS):
                rows = indices[start : start + _MAX_ROWS]
                logits = self._logits([sequences[i] for i in rows])
                candidates.append(
                    top_candidates(logits, self._num_candidates)
                    if self._scored_ids is None
                    else token_log_probabilities(logits, self._scored_ids)
                )
                order += rows
        back = np.argsort(order)
        values, ids = concatenate_candidates(candidates)
        return values[back], ids[back]

    def _logits(self, sequences: list[tuple[int, ...]]) -> Tensor:
        kwargs = {"logits_to_keep": 1} if self._keeps_logits else {}
        output = self._model(input_ids=torch.tensor(sequences, device=self._device), use_cache=False, **kwargs)
        logits: Tensor = output.logits[:, -1]
        return logits


def find_logit_mismatch(packed: PackedDecoder, full: FullForwardDecoder, vocab_size: int, limit: float) -> str:
    """Feed a few short prompts and answers to both decoders; the difference as text, empty if the logits agree.

    Args:
        packed: decoder of packed batches.
        full: decoder of whole sequences of the same model.
        vocab_size: rows of the embedding matrix.
        limit: largest mean difference, in standard deviations of the logits; see `logit_tolerance`.
    """
    try:
        logits = _logits_of_three_steps(packed, vocab_size)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        return f"it fails on a packed batch ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    if not packed.num_layers:
        return "its layers do not use the attention interface of transformers"
    error_share = _max_difference(logits, _logits_of_three_steps(full, vocab_size))
    if error_share <= limit:
        return ""
    return f"its logits differ by {error_share:.2g} of their standard deviation, more than {limit:g}"


def _max_difference(logits: list[NDArray[np.float32]], expected: list[NDArray[np.float32]]) -> float:
    """The largest mean difference of any step, in standard deviations of the expected logits."""
    errors = [np.abs(a - b).mean() / max(b.std(axis=1).mean(), 1e-30) for a, b in zip(logits, expected, strict=True)]
    return float(max(errors))


def _logits_of_three_steps(decoder: PackedDecoder | FullForwardDecoder, num: int) -> list[NDArray[np.float32]]:
    """Logits after a few short prompts, and after one and two tokens of branching answers.

    Args:
        decoder: any decoder.
        num: rows of the embedding matrix.
    """
    ids = [(7 * i + 3) % num for i in range(24)]
    tails = [ids[5:8], [ids[5], *ids[8:11]], [*ids[5:9], ids[2]], ids[5:7], ids[3:7]]
    prompts = [[ids[:5] + tail for tail in tails], [ids[10:18] + tail for tail in tails]]
    parents, tokens = np.array([0, 0, 1, 4, 5, 5, 7, 9]), np.array(ids[11:19])
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


class DecoderSelector:
    """Chooses between the packed decoder and whole sequences."""

    def __init__(self, model: nn.Module, *, compiled: bool = False) -> None:
        """Test with a few short forward passes whether the model supports packed batches; log a warning if not.

        Args:
            model: in eval or training mode.
            compiled: compile the decoder layers for packed batches.

        Raises:
            EngineError: the layers cannot be compiled, or give other logits then.
        """
        self._model = model
        self._window, self._warned = _NO_WINDOW, False
        self._full = FullForwardDecoder(model)
        self._packed = self._verify_packed()
        if compiled:
            self._packed = self._compile()

    @property
    def uses_packing(self) -> bool:
        """Whether the model supports packed batches; otherwise every token costs a pass over its whole sequence."""
        return self._packed is not None

    def for_length(self, num_tokens: int) -> PackedDecoder | FullForwardDecoder:
        """The fastest decoder that is correct for sequences of at most this many tokens."""
        if self._packed is None:
            return self._full
        if num_tokens <= self._window:
            return self._packed
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "prompts exceed the model's attention window of %d tokens: such batches are fed as whole sequences, "
                "which gives the same answers, but more slowly",
                self._window,
            )
        return self._full

    def release(self) -> None:
        """Free the memory of the last batch."""
        if self._packed is not None:
            self._packed.release()

    def _verify_packed(self) -> PackedDecoder | None:
        model: Any = self._model
        config = model.config.get_text_config()
        packed = PackedDecoder(model)
        if compat.has_recurrent_state(model):
            problem = "it keeps a recurrent state instead of keys and values"
        else:
            was_training = model.training
            model.eval()
            with torch.inference_mode():
                problem = find_logit_mismatch(packed, self._full, int(config.vocab_size), logit_tolerance(model))
            model.train(was_training)
        if problem:
            name = type(model).__name__
            _LOG.warning("%s is fed whole sequences, which gives the same answers, but more slowly: %s", name, problem)
            return None
        self._window = _implicit_window(config, packed.windows)
        return PackedDecoder(model)

    def _compile(self) -> PackedDecoder:
        """The packed decoder with compiled layers, after a comparison of logits with the layers as they were."""
        model: Any = self._model
        name = type(model).__name__
        if self._packed is None:
            raise EngineError(f"--compile is for packed batches, which {name} does not support; leave it out")
        vocab_size, limit = int(model.config.get_text_config().vocab_size), logit_tolerance(model)
        with torch.inference_mode():
            expected = _logits_of_three_steps(self._packed, vocab_size)
            compile_layers(model)
            decoder = PackedDecoder(model)
            try:
                logits = _logits_of_three_steps(decoder, vocab_size)
            except Exception as error:  # what torch.compile raises depends on its backend
                raise EngineError(
                    f"--compile: torch.compile fails on {name} ({type(error).__name__}: "
                    f"{' '.join(str(error).split())[:300]}); install a C++ compiler, or leave it out"
                ) from error
        difference = _max_difference(logits, expected)
        if difference > limit:
            raise EngineError(
                f"--compile: compiled layers of {name} give logits that differ by {difference:.2g} of their standard "
                f"deviation, more than {limit:g}; leave it out"
            )
        return PackedDecoder(model)


def _implicit_window(text_config: Any, passed: set[int]) -> int:
    """The smallest attention window that the model's layers do not pass to the attention function.

    Up to this many tokens, packed attention is correct.

    Args:
        text_config: the model's configuration.
        passed: windows that layers do pass.
    """
    windows = [getattr(text_config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    if getattr(text_config, "use_sliding_window", True) is False:
        windows[0] = None
    implicit = (window for window in windows if isinstance(window, int) and window > 0 and window not in passed)
    return min(implicit, default=_NO_WINDOW)
