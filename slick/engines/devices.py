"""What a device still has room for."""

import torch


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that tensors may still take: what nobody has, and what torch keeps in stock for this process."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
