"""The least time of a model's forward passes on a device: the roofline.

The roofline time of a pass is the larger of two: its operations at the device's peak, and its bytes at the memory
bandwidth. Operations are those of the weights, attention scores and weighted values. Bytes are those of the weights
(read once per pass), the logits (written and read), and the keys and values (written once, read once per token).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak rates of a GPU in its data sheet."""

    flops: float
    """Dense bfloat16 operations per second."""
    bytes: float
    """Bytes of memory per second."""


PEAKS = {
    "NVIDIA B200": Peak(2250e12, 8.0e12),
    "NVIDIA H200": Peak(989e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12),
    "NVIDIA H100 PCIe": Peak(756e12, 2.0e12),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 2.039e12),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 1.555e12),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 1.935e12),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 1.555e12),
    "NVIDIA L40S": Peak(362e12, 0.864e12),
    "NVIDIA L4": Peak(121e12, 0.3e12),
}
"""By the name that torch reports."""


class Roofline:
    """Counts the forward passes of a model, and their least time if the peak is known."""

    def __init__(self, model: Any, peak: Peak | None, mean_length: float) -> None:
        """Count from now on.

        Args:
            model: a causal LM that is called with `input_ids` as a keyword.
            peak: of its device; None if unknown.
            mean_length: average number of keys per token.
        """
        config = model.config.get_text_config()
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        itemsize = matrices[0].element_size()
        head_size = config.hidden_size * config.vocab_size
        # The input embedding is a lookup without multiplications, whether it is tied to the head or not.
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        body_size = sum(weight.numel() for weight in matrices) - head_size * (1 if tied else 2)
        key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        attention_flop = 4.0 * config.num_hidden_layers * config.num_attention_heads * width * mean_length
        self._token_flop, self._logit_flop = 2.0 * body_size + attention_flop, 2.0 * head_size
        self._weight_bytes, self._logit_bytes = (body_size + head_size) * itemsize, 2.0 * config.vocab_size * itemsize
        self._token_bytes = 2.0 * config.num_hidden_layers * key_heads * width * itemsize * (1 + mean_length)
        self._peak = peak
        self.is_counting = True
        self.clear()
        model.register_forward_pre_hook(self._count_call, with_kwargs=True)

    def clear(self) -> None:
        """Reset the counters."""
        self.seconds, self.passes, self.tokens = 0.0, 0, 0

    def _count_call(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        rows, num = len(kwargs["input_ids"]), kwargs["input_ids"].numel()
        logits_to_keep = kwargs.get("logits_to_keep", num)
        logits = rows * logits_to_keep if isinstance(logits_to_keep, int) else len(logits_to_keep)
        if self.is_counting:
            self.count(num, min(num, logits))

    def count(self, tokens: int, logits: int) -> None:
        """Count one pass.

        Args:
            tokens: number of tokens, over all rows.
            logits: number of tokens whose logits are computed.
        """
        self.passes += 1
        self.tokens += tokens
        if self._peak is not None:
            flop = tokens * self._token_flop + logits * self._logit_flop
            num_bytes = self._weight_bytes + logits * self._logit_bytes + tokens * self._token_bytes
            self.seconds += max(flop / self._peak.flops, num_bytes / self._peak.bytes)


def measure_device(device: str, dtype: str) -> dict[str, float]:
    """Operations per second of a large product and bytes per second of a large copy, each the best of five."""
    import torch

    size, num = (8192, 1 << 30) if device == "cuda" else (256, 1 << 22)
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    x = torch.empty(num, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    product = min(_seconds(lambda: a @ a, device) for _ in range(5))
    copy = min(_seconds(lambda: y.copy_(x), device) for _ in range(5))
    return {"flops": 2.0 * size**3 / product, "bytes": 2.0 * num / copy}


def _seconds(work: Callable[[], object], device: str) -> float:
    synchronize(device)
    started_at = time.perf_counter()
    for _ in range(4):
        work()
    synchronize(device)
    return (time.perf_counter() - started_at) / 4


def synchronize(device: str) -> None:
    """Wait until the device has finished all work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
