"""How the workers of a training meet: as in Ray Train, but in a cluster on loopback through that interface alone.

torch's store, at which the members of a process group find each other, listens on every network interface and takes
keys from whoever connects; gloo and NCCL listen on the interface of the host name. In a cluster whose nodes have the
loopback address, other machines must reach none of them.
"""

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

import ray
from ray.train.torch import TorchConfig

# Checked with Ray 2.60; Ray Train has no public way to bring a store of one's own.
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from torch.distributed import TCPStore, init_process_group  # type: ignore[attr-defined]

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
