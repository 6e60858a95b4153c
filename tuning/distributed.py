"""Communication within a worker group: rendezvous, broadcast, gather, and synchronized forward passes for ZeRO-3."""

import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import ray
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig
from torch import nn
from torch.distributed import TCPStore, init_process_group  # type: ignore[attr-defined]

from slick import compat
from tuning.trainer import WorkerContext

_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_RayTorchBackend, _set_rank_variables = compat.torch_backend()

_tcp_stores: list[Any] = []
"""The store that this process serves; it lives as long as this reference."""


class ProcessGroupSettings(TorchConfig):  # type: ignore[misc]
    """Ray Train's settings of a torch process group, for workers that may all be on one machine's loopback address.

    Ray binds its rendezvous store to all interfaces. On a single machine this store listens on loopback only.
    """

    @property
    def backend_cls(self) -> type:
        """The backend that sets up the process group."""
        return LoopbackTorchBackend


class LoopbackTorchBackend(_RayTorchBackend):  # type: ignore[misc, valid-type]
    """Sets up a torch process group, over loopback if all workers are there."""

    def on_start(self, worker_group: Any, backend_config: ProcessGroupSettings) -> None:
        """Connect the workers; called by Ray Train before the training function."""
        address = worker_group.execute_single(0, ray.util.get_node_ip_address)
        if not ipaddress.ip_address(address).is_loopback:
            super().on_start(worker_group, backend_config)
            return
        num_workers, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        port = worker_group.execute_single(0, start_tcp_store, address, num_workers, timeout)
        worker_group.execute(_set_rank_variables)
        settings = (backend_config.backend, address, port, num_workers, timeout)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join_process_group, *settings, rank)
                for rank in range(num_workers)
            ]
        )


def start_tcp_store(address: str, num_workers: int, timeout: timedelta) -> int:
    """Serve a rendezvous store from this process on a loopback address; returns its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        port = int(listener.getsockname()[1])
        store = TCPStore(
            address,
            port,
            num_workers,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),  # the store takes ownership
        )
    _tcp_stores[:] = [store]
    return port


def _join_process_group(backend: str, address: str, port: int, num_workers: int, timeout: timedelta, rank: int) -> None:
    """Join the process group in this worker."""
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}  # DeepSpeed reads them
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for name in _INTERFACE_VARIABLES:
        os.environ.setdefault(name, loopback)
    store = _tcp_stores[0] if rank == 0 else TCPStore(address, port, num_workers, timeout=timeout)
    init_process_group(backend, store=store, rank=rank, world_size=num_workers, timeout=timeout)


Value = TypeVar("Value")


def broadcast(value: Value, context: WorkerContext) -> Value:
    """The first worker's value, on all workers; called by all."""
    if context.num_workers == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_strided(own: Sequence[Value], num: int, context: WorkerContext) -> list[Value]:
    """The values of all workers on the first worker, an empty list on the others; called by all.

    Args:
        own: values r, r + num_workers, ... for the worker of rank r.
        num: number of values of all workers.
        context: the calling worker.
    """
    if context.num_workers == 1:
        return list(own)
    parts: list[Sequence[Value]] | None = [[]] * context.num_workers if context.rank == 0 else None
    dist.gather_object(own, parts)
    if parts is None:
        return []
    return [parts[i % context.num_workers][i // context.num_workers] for i in range(num)]


@contextmanager
def synchronized_forward(model: nn.Module) -> Iterator[None]:
    """While active, all workers run the same number of forward passes; all enter and leave the context.

    ZeRO stage 3 gathers weights in every forward pass, so a worker that has finished runs passes on a single token
    until all workers have finished.
    """
    device = next(model.parameters()).device
    is_finished = False

    def count_busy_workers(*, is_busy: bool) -> int:
        flag = torch.tensor([int(is_busy)], device=device)
        dist.all_reduce(flag)
        return int(flag)

    def synchronize(module: nn.Module, arguments: Any) -> None:
        if not is_finished:
            count_busy_workers(is_busy=True)

    # Before ZeRO's own hooks, which start to gather weights.
    hook = model.register_forward_pre_hook(synchronize, prepend=True)
    try:
        yield
        is_finished = True
        token = torch.zeros((1, 1), dtype=torch.long, device=device)
        while count_busy_workers(is_busy=False):
            with torch.inference_mode():
                model(input_ids=token, use_cache=False)
    finally:
        hook.remove()
