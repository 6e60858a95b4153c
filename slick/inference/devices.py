"""Devices of models: setup, description, and batches of questions that fit the free memory."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from slick import compat
from slick.errors import EngineError, ModelError
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.sampler import IntArray
from slick.precision import Device, Runtime
from slick.quantization import model_quantization

_LOG = logging.getLogger(__name__)
_DEFAULT_BATCH_SIZE = 32
_MAX_BATCH_SIZE = 512
_ESTIMATED_TOKENS = 24
"""Assumed tokens of a question, and of a long answer."""
_MIN_PROMPTS_OF_A_RELATION = 8
"""With at least this many prompts, their common beginning is taken to be that of all questions of the relation."""
_MAX_TOKENS_ON_CPU, _MAX_TOKENS_ON_GPU = 2048, 8192
"""Tokens per forward pass."""
_LOGITS_BYTES_ON_CPU = 1 << 27
_LOGITS_DIVISOR_ON_GPU = 8
"""Logits take at most this fraction of the free memory, because some models copy them several times."""

TokenIds = Sequence[int]
Result = TypeVar("Result")


def prepare_device(num_gpus: float) -> str:
    """Set up the device of an engine's process and return its torch name.

    On the CPU the process gets one thread, because Ray schedules by core. With a fraction of a GPU, it gets that
    fraction of the memory.

    Args:
        num_gpus: what Ray reserved for the process: 0 for the CPU, less than 1 for a shared GPU.

    Raises:
        ModelError: a GPU is reserved, but torch sees none.
    """
    if not num_gpus:
        torch.set_num_threads(1)
        return "cpu"
    _require_gpu()
    if num_gpus < 1:
        torch.cuda.set_per_process_memory_fraction(num_gpus)
    return "cuda"


def current_gpu() -> Device:
    """The GPU of this process.

    Raises:
        ModelError: torch sees none.
    """
    _require_gpu()
    supports_bfloat16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return Device(
        is_gpu=True,
        supports_bfloat16=supports_bfloat16,
        name=torch.cuda.get_device_name(),
        memory=torch.cuda.get_device_properties(0).total_memory,
    )


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise ModelError(
            "Ray reserved a GPU, but torch sees none there; install torch with CUDA on that node, or use no GPU: "
            "--gpus-per-actor 0, in training --gpus-per-worker 0"
        )


def free_bytes(device: torch.device) -> int:
    """Bytes of GPU memory that this process can still allocate: free memory and torch's own cache.

    A process that has a fraction of the GPU gets at most that fraction of the memory.
    """
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - reserved
    return max(0, min(int(free), allowed)) + reserved - torch.cuda.memory_allocated(device)


def format_device(device: torch.device) -> str:
    """The torch name without index, and for a GPU its model: `cpu`, `cuda (NVIDIA L4)`."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def model_runtime(model: nn.Module, device: torch.device, own_attention: str = "") -> Runtime:
    """Device, dtype and attention kernel of a loaded model.

    Args:
        model: loaded in its dtype.
        device: where the model computes; the weights may be offloaded elsewhere.
        own_attention: the kernel that replaces the model's; empty if none does.
    """
    config: Any = model.config
    dtype, quantization = str(next(model.parameters()).dtype).removeprefix("torch."), model_quantization(model)
    return Runtime(
        device=format_device(device),
        dtype=dtype if quantization == "none" else f"{dtype} with {quantization} base weights",
        attention=own_attention or compat.attention_implementation(config) or "that of the model's code",
    )


class AdaptiveBatcher:
    """Runs batches of questions, and halves their size whenever memory runs out."""

    def __init__(self, model: nn.Module, size: int | None) -> None:
        """Start with a batch size.

        Args:
            model: on its device.
            size: questions per batch; None for 32 on the CPU, and on a GPU for as many as have their keys and values in
                half of the free memory.
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
        """Results of all questions.

        Args:
            batch: any number of questions.
            sampling: the answers per prompt, to estimate memory.
            work: computes the results of some questions, given their slice of the batch and their prompts.
            release: frees the memory that a failed call took.

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
                _LOG.warning(
                    "out of memory with a batch of %d questions; continuing with batches of %d", size, size // 2
                )
            if len(results) == start:
                # Outside the except block, where the error no longer references the tensors of the failed call.
                release()
                if self._device.type != "cpu":
                    torch.cuda.empty_cache()
        return results

    def _initial_batch_size(self, num_prefixes: int, sampling: SamplingConfig) -> int:
        """Questions whose keys and values fill half of the free memory if no two answers share tokens."""
        token_bytes = None if self._device.type == "cpu" else _kv_bytes_per_token(self._model)
        if token_bytes is None:
            return _DEFAULT_BATCH_SIZE
        tokens = num_prefixes * (
            _ESTIMATED_TOKENS + (1 + sampling.num_samples) * min(sampling.max_new_tokens, _ESTIMATED_TOKENS)
        )
        return max(1, min(_MAX_BATCH_SIZE, free_bytes(self._device) // 2 // (tokens * token_bytes)))


def _kv_bytes_per_token(model: nn.Module) -> int | None:
    """Bytes of the keys and values of one token; None if the configuration does not determine them."""
    model_config: Any = model.config
    config = model_config.get_text_config()
    query_heads = getattr(config, "num_attention_heads", None)
    heads = getattr(config, "num_key_value_heads", None) or query_heads
    if not (isinstance(query_heads, int) and isinstance(heads, int)):
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // query_heads
    return 2 * int(config.num_hidden_layers) * heads * int(width) * next(model.parameters()).element_size()


def max_tokens_per_pass(model: nn.Module) -> int:
    """Tokens per forward pass: many, so that weights are read seldom, but few enough for their logits to fit."""
    weight = next(model.parameters())
    limit, logits_memory = _MAX_TOKENS_ON_CPU, _LOGITS_BYTES_ON_CPU
    if weight.device.type != "cpu":
        limit, logits_memory = _MAX_TOKENS_ON_GPU, free_bytes(weight.device) // _LOGITS_DIVISOR_ON_GPU
    config: Any = model.config
    logits_bytes = int(config.get_text_config().vocab_size) * weight.element_size()
    num = max(256, min(limit, logits_memory // logits_bytes))
    return num - num % 64  # a multiple needs no padding rows, see `num_padding_rows`


def shared_prefix_length(prefix: TokenIds, prompts: Sequence[TokenIds], num_kept: IntArray | None) -> int:
    """Number of tokens at the beginning of all prompts that are fed once; the last `num_kept` of a prompt never are.

    Many prompts share the prefix and how questions of their relation begin, as do those of other batches. Few prompts
    may share more by chance, which other batches would not, so they share at most the prefix.
    """
    shared = min(len(prompt) - (1 if num_kept is None else int(num_kept[i])) for i, prompt in enumerate(prompts))
    first = prompts[0]
    others = prompts if len(prompts) >= _MIN_PROMPTS_OF_A_RELATION else [*prompts, [*prefix, *[-1] * shared]]
    for prompt in others:
        if prompt[:shared] != first[:shared]:
            shared = next(i for i in range(shared) if prompt[i] != first[i])
    return shared


def split_by_tokens(lengths: IntArray, limit: int) -> list[slice]:
    """Split consecutive prompts into groups of at most `limit` tokens; a longer prompt is a group of its own."""
    parts: list[slice] = []
    start, total = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and total + length > limit:
            parts.append(slice(start, i))
            start, total = i, 0
        total += length
    return [*parts, slice(start, len(lengths))]
