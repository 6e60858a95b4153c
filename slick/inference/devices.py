"""What a device is, and what a GPU still has room for."""

from typing import Any

import torch
from torch import nn

from slick.errors import ModelError
from slick.precision import Device, Runtime


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that tensors may still take: what nobody has, and what torch keeps in stock for this process.

    A process that has a part of the GPU counts on no more than that part of the memory.
    """
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - reserved
    return max(0, min(int(free), allowed)) + reserved - torch.cuda.memory_allocated(device)


def current_gpu() -> Device:
    """The GPU of this process.

    Raises:
        ModelError: torch sees none.
    """
    if not torch.cuda.is_available():
        raise ModelError(
            "Ray set aside a GPU, but torch sees none there; install torch with CUDA on that machine, or use no GPU: "
            "--gpus-per-actor 0, for trainings --gpus-per-worker 0"
        )
    supports_bfloat16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return Device(is_gpu=True, supports_bfloat16=supports_bfloat16, name=torch.cuda.get_device_name())


def format_device(device: torch.device) -> str:
    """As torch names it, without its index; of a GPU the name as well: `cpu`, `cuda (NVIDIA L4)`."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def model_runtime(model: nn.Module, device: torch.device, own_attention: str = "") -> Runtime:
    """What a loaded model runs on and with.

    Args:
        model: loaded in its dtype.
        device: that computes, wherever the weights lie meanwhile.
        own_attention: the kernel that takes the place of the model's own; empty where that is used.
    """
    config: Any = model.config
    own = getattr(config.get_text_config(), "_attn_implementation", None)
    return Runtime(
        device=format_device(device),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        attention=own_attention or own or "that of the model's code",
    )
