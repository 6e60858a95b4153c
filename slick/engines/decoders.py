"""Which way a model may be fed: packed where it takes that and where that is right, else whole sequences."""

import logging
from typing import Any

import torch
from torch import nn

from slick.engines.packed import PackedDecoder
from slick.engines.plain import FullForwardDecoder, find_logit_mismatch

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
        if getattr(model, "_is_stateful", False):
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
