"""What the workers of a group tell each other."""

from collections.abc import Sequence
from typing import TypeVar

import torch.distributed as dist

from tuning.learning import WorkerContext

Value = TypeVar("Value")


def broadcast(value: Value, place: WorkerContext) -> Value:
    """What the first worker has, on all of them; all call this."""
    if place.num_workers == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_strided(own: Sequence[Value], num: int, place: WorkerContext) -> list[Value]:
    """All values on the first worker, nothing on the others; all call this.

    Args:
        own: worker r's are those of places r, r + num_workers, ...
        num: of all workers together.
    """
    if place.num_workers == 1:
        return list(own)
    parts: list[Sequence[Value]] | None = [[]] * place.num_workers if place.rank == 0 else None
    dist.gather_object(own, parts)
    if parts is None:
        return []
    return [parts[i % place.num_workers][i // place.num_workers] for i in range(num)]
