"""How questions are cut into batches that fit the memory of a device."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from slick.errors import EngineError
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.devices import free_bytes
from slick.inference.packed.sampler import IntArray

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


TokenIds = Sequence[int]

_MIN_PROMPTS = 8
"""Questions whose common beginning is that of their relation."""

_TOKENS_ON_CPU, _TOKENS_ON_GPU = 2048, 8192
"""Of a pass, at most."""
_LOGITS_BYTES_ON_CPU = 1 << 27
_LOGITS_SHARE_ON_GPU = 8
"""One of so many parts of the free memory, since some models write their logits out several times."""


def max_tokens_per_pass(model: nn.Module) -> int:
    """Many, so that weights are seldom read anew, and no more than there is room for the logits of."""
    weight = next(model.parameters())
    most, room = _TOKENS_ON_CPU, _LOGITS_BYTES_ON_CPU
    if weight.device.type != "cpu":
        most, room = _TOKENS_ON_GPU, free_bytes(weight.device) // _LOGITS_SHARE_ON_GPU
    config: Any = model.config
    logits_bytes = int(config.get_text_config().vocab_size) * weight.element_size()
    fitting = max(256, min(most, room // logits_bytes))
    return fitting - fitting % 64  # which needs no spare rows


def shared_prefix_length(prefix: TokenIds, prompts: Sequence[TokenIds], kept: IntArray | None) -> int:
    """Tokens in which all the prompts agree from the start; each keeps its wanted last tokens to itself.

    Many questions agree in the prefix and in how a question of their relation begins. Few may agree in more by
    accident, which no other batch could share with them: they agree in the prefix at most.
    """
    shared = min(len(prompt) - (1 if kept is None else int(kept[i])) for i, prompt in enumerate(prompts))
    first = prompts[0]
    others = prompts if len(prompts) >= _MIN_PROMPTS else [*prompts, [*prefix, *[-1] * shared]]
    for prompt in others:
        if prompt[:shared] != first[:shared]:
            shared = next(i for i in range(shared) if prompt[i] != first[i])
    return shared


def split_by_tokens(lengths: IntArray, limit: int) -> list[slice]:
    """Consecutive prompts with at most `limit` tokens together, a longer one alone."""
    parts: list[slice] = []
    start, total = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and total + length > limit:
            parts.append(slice(start, i))
            start, total = i, 0
        total += length
    return [*parts, slice(start, len(lengths))]
