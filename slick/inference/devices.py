"""Devices of models: setup, free memory, and what a loaded model runs on."""

from typing import Any

import torch
from torch import nn

from slick import compat
from slick.errors import ModelError
from slick.precision import Device, Runtime


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
    return Device(is_gpu=True, supports_bfloat16=supports_bfloat16, name=torch.cuda.get_device_name())


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
    return Runtime(
        device=format_device(device),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        attention=own_attention or compat.attention_implementation(config) or "that of the model's code",
    )
