"""Forward passes that all workers make together, as ZeRO stage 3 needs: each brings its part of every layer's weights.

Workers answer rows of their own, in as many passes as these take. Whoever is done first goes on with empty passes until
all are, as transformers' `generate` does with `synced_gpus`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@contextmanager
def synchronized_forward(model: nn.Module) -> Iterator[None]:
    """Within, every forward pass of the model waits for one of each other worker; all workers enter and leave."""
    device = next(model.parameters()).device
    helping = False

    def num_busy(busy: bool) -> int:
        flag = torch.tensor([int(busy)], device=device)
        dist.all_reduce(flag)
        return int(flag)

    def before(module: nn.Module, arguments: Any) -> None:
        if not helping:
            num_busy(True)

    # First of the model's hooks: ZeRO's own begin to fetch weights.
    hook = model.register_forward_pre_hook(before, prepend=True)
    try:
        yield
        helping = True
        token = torch.zeros((1, 1), dtype=torch.long, device=device)
        while num_busy(False):
            with torch.inference_mode():
                model(input_ids=token, use_cache=False)
    finally:
        hook.remove()
