"""Collectives of a training's worker group: rendezvous, broadcasts, and lockstep of ZeRO-3."""

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
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from torch import nn
from torch.distributed import TCPStore, init_process_group  # type: ignore[attr-defined]

from tuning.trainer import WorkerContext

# Checked with Ray 2.60; Ray Train has no public way to bring a store of one's own.

_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

_tcp_stores: list[Any] = []
"""The store that this process serves: it lives as long as the reference."""


class LoopbackTorchConfig(TorchConfig):  # type: ignore[misc]
    """Settings of a process group; see the module."""

    @property
    def backend_cls(self) -> type:
        """What Ray Train sets the process group up with."""
        return LoopbackTorchBackend


class LoopbackTorchBackend(_TorchBackend):  # type: ignore[misc]
    """Sets up a process group of torch among the workers."""

    def on_start(self, worker_group: Any, backend_config: LoopbackTorchConfig) -> None:
        """Connect the workers; called by Ray Train before the training function."""
        address = worker_group.execute_single(0, ray.util.get_node_ip_address)
        if not ipaddress.ip_address(address).is_loopback:
            super().on_start(worker_group, backend_config)
            return
        num_workers, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        port = worker_group.execute_single(0, start_tcp_store, address, num_workers, timeout)
        worker_group.execute(_set_torch_distributed_env_vars)
        settings = (backend_config.backend, address, port, num_workers, timeout)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join_process_group, *settings, rank)
                for rank in range(num_workers)
            ]
        )


def start_tcp_store(address: str, num_workers: int, timeout: timedelta) -> int:
    """Serve a store on a loopback address from this process.

    Returns:
        Its port.
    """
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
            master_listen_fd=listener.detach(),  # the store closes it
        )
    _tcp_stores[:] = [store]
    return port


def _join_process_group(backend: str, address: str, port: int, num_workers: int, timeout: timedelta, rank: int) -> None:
    """Make this worker a member of the process group."""
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}  # DeepSpeed looks for them
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for name in _INTERFACE_VARIABLES:
        os.environ.setdefault(name, loopback)
    store = _tcp_stores[0] if rank == 0 else TCPStore(address, port, num_workers, timeout=timeout)
    init_process_group(backend, store=store, rank=rank, world_size=num_workers, timeout=timeout)


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
