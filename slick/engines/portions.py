"""A batch in portions that fit into the device's memory, none of it lost where a portion does not fit after all."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from slick.engines.base import PromptBatch, SamplingConfig
from slick.engines.devices import free_bytes
from slick.errors import EngineError

_LOG = logging.getLogger(__name__)
_DEFAULT_BATCH_SIZE = 32
_MAX_BATCH_SIZE = 512
_ESTIMATED_TOKENS = 24
"""Tokens of a question and of a long answer, to reckon with."""

Result = TypeVar("Result")


class AdaptiveBatcher:
    """How many questions go through a model at once: found, then halved whenever memory runs out."""

    def __init__(self, model: nn.Module, size: int | None) -> None:
        """Begin with a size.

        Args:
            model: on its device.
            size: questions at once; None for 32 on CPU, and on GPU for as many as half of the free memory holds
                if the model has keys and values.
        """
        self._model, self._size = model, size
        self._device = next(model.parameters()).device

    def run(
        self,
        batch: PromptBatch,
        sampling: SamplingConfig,
        work: Callable[[slice, PromptBatch], list[Result]],
        release: Callable[[], None],
    ) -> list[Result]:
        """What `work` gives for each question of the batch.

        Args:
            batch: any number of questions.
            sampling: that the work does for each.
            work: takes the place of some questions in the batch, and the prompts of these alone.
            release: gives back the memory that a portion took.

        Raises:
            EngineError: memory ran out with a single question.
        """
        results: list[Result] = []
        while len(results) < len(batch.question_ids):
            if self._size is None:
                self._size = self._initial_batch_size(len(batch.prefixes), sampling)
            size, start = self._size, len(results)
            part = slice(start, min(start + size, len(batch.question_ids)))
            try:
                with torch.inference_mode():
                    results += work(part, batch.part(part))
            except torch.OutOfMemoryError as error:
                size = part.stop - part.start
                if size == 1:
                    raise EngineError(
                        f"the device ran out of memory while answering one question ({error}); use --dtype bfloat16, "
                        "a smaller model or a larger device"
                    ) from error
                self._size = size // 2
                _LOG.warning("out of memory with %d questions at once; going on with %d", size, size // 2)
            if len(results) == start:
                # Here, where the error no longer holds on to what the failed part took.
                release()
                if self._device.type != "cpu":
                    torch.cuda.empty_cache()
        return results

    def _initial_batch_size(self, num_prefixes: int, sampling: SamplingConfig) -> int:
        """Questions whose keys and values take up half of the free memory if every answer differs from all others."""
        token_bytes = None if self._device.type == "cpu" else _kv_bytes_per_token(self._model)
        if token_bytes is None:
            return _DEFAULT_BATCH_SIZE
        tokens = num_prefixes * (
            _ESTIMATED_TOKENS + (1 + sampling.num_samples) * min(sampling.max_new_tokens, _ESTIMATED_TOKENS)
        )
        return max(1, min(_MAX_BATCH_SIZE, free_bytes(self._device) // 2 // (tokens * token_bytes)))


def _kv_bytes_per_token(model: nn.Module) -> int | None:
    """What the keys and values of a token take up; None for a model that has none, or does not tell."""
    of_model: Any = model
    config = of_model.config.get_text_config()
    query_heads = getattr(config, "num_attention_heads", None)
    heads = getattr(config, "num_key_value_heads", None) or query_heads
    if not (isinstance(query_heads, int) and isinstance(heads, int)):
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // query_heads
    return 2 * int(config.num_hidden_layers) * heads * int(width) * next(model.parameters()).element_size()
