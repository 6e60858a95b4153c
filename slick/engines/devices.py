"""What a GPU still has room for."""

import torch


def free_bytes(device: torch.device) -> int:
    """Bytes of a GPU that tensors may still take: what nobody has, and what torch keeps in stock for this process.

    A process that has a part of the GPU counts on no more than that part of the memory.
    """
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - reserved
    return max(0, min(int(free), allowed)) + reserved - torch.cuda.memory_allocated(device)
