"""A simulated device that detects on any machine what a GPU would reject or wait for.

Its tensors are stored and computed on the CPU but report another device. As on a GPU, an operation that mixes them with
CPU tensors is an error. Every read of their values by the host is counted, because on a GPU it waits for all queued
work. GPU arithmetic and speed are not simulated.

With a total size, the memory of all live tensors is counted, and allocating more than there is raises
`torch.OutOfMemoryError`. Several processes that share the device are simulated one inside another; each has its own
count and limit.

A device cannot be unregistered from torch, so tests that use this one run it in a subprocess.
"""

import json
import math
import os
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
_HOST_READ_OPS = (
    "item",
    "is_nonzero",
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "unique_dim",
    "_unique2",
)


class DeviceTensor(Tensor):
    """A CPU tensor that reports the simulated device."""

    on_cpu: Tensor
    on_create: ClassVar[Callable[["DeviceTensor"], None] | None] = None

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "DeviceTensor":
        tensor: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.on_cpu = on_cpu
        if DeviceTensor.on_create is not None:
            DeviceTensor.on_create(tensor)
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} of a tensor whose device is not active")


@dataclass(slots=True)
class DeviceMemory:
    """Memory of a device that several processes share; bytes of live tensors, by process."""

    total: int
    process: str = ""
    """The process that allocates now."""
    fractions: dict[str, float] = field(default_factory=dict)
    """Share of the memory that a process may use, by process."""
    used: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)
    num_refused: int = 0
    """Number of allocations that raised `torch.OutOfMemoryError`."""
    _num_tensors: dict[int, int] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Bytes that no process uses."""
        return max(0, self.total - self.used.total())

    @property
    def fraction(self) -> float:
        """Share of the memory that this process may use."""
        return self.fractions.get(self.process, 1.0)

    def allocate(self, tensor: DeviceTensor) -> None:
        """Count the storage of a new tensor until its last tensor is gone.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        storage = tensor.on_cpu.untyped_storage()
        key, size, process = storage.data_ptr(), storage.nbytes(), self.process
        if not size:
            return
        if key not in self._num_tensors:
            if size > self.free or self.used[process] + size > self.fraction * self.total:
                self.num_refused += 1
                raise torch.OutOfMemoryError("simulated")
            self._num_tensors[key] = 0
            self.used[process] += size
            self.peak[process] = max(self.peak[process], self.used[process])
        self._num_tensors[key] += 1
        weakref.finalize(tensor, self._release, key, size, process).atexit = False

    def _release(self, key: int, size: int, process: str) -> None:
        self._num_tensors[key] -= 1
        if not self._num_tensors[key]:
            del self._num_tensors[key]
            self.used[process] -= size

    @contextmanager
    def running(self, process: str) -> Iterator[None]:
        """Simulate another process inside the block."""
        previous, self.process = self.process, process
        yield
        self.process = previous


class SimulatedDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, tensors can be moved to the device and computed with."""

    def __init__(self, memory: DeviceMemory | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = memory
        """Counts the memory of all tensors; if None, only `limit_bytes`, `free_bytes` and `fraction` apply."""
        self.reads: Counter[str] = Counter()
        """Number of reads of device values by the host, by operation."""
        self.largest_bytes = 0
        """Size of the largest tensor so far."""
        self.limit_bytes: float = math.inf
        """Allocating a larger tensor raises `torch.OutOfMemoryError`."""
        self.free_bytes = 1 << 33
        """Free memory that the device reports; its total is 16 GiB."""
        self.fraction = 1.0
        """Share of the memory that this process may use."""
        self.times_emptied = 0
        """Number of calls of `torch.cuda.empty_cache`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor | torch.device)]
        device_tensors = [x for x in inputs if isinstance(x, DeviceTensor)]
        targets = [x for x in inputs if isinstance(x, torch.device)]
        computed_on_device = targets[-1].type == NAME if targets else bool(device_tensors)
        self._check(func, args, inputs, device_tensors, bool(targets), computed_on_device)

        def to_cpu(x: Any) -> Any:
            return (
                x.on_cpu if isinstance(x, DeviceTensor) else torch.device("cpu") if isinstance(x, torch.device) else x
            )

        result = func(*tree_map(to_cpu, args), **tree_map(to_cpu, kwargs or {}))
        # An operation in place returns the same tensor.
        known_tensors = {id(x.on_cpu): x for x in device_tensors}

        def to_device(x: Any) -> Any:
            if not isinstance(x, Tensor) or not computed_on_device:
                return x
            self.largest_bytes = max(self.largest_bytes, x.nbytes)
            if x.nbytes > self.limit_bytes:
                raise torch.OutOfMemoryError("simulated")
            return known_tensors.get(id(x)) if id(x) in known_tensors else DeviceTensor(x)

        return tree_map(to_device, result)

    def _check(
        self,
        func: Any,
        args: Any,
        inputs: Sequence[Any],
        device_tensors: Sequence[Any],
        moves: bool,
        computed_on_device: bool,
    ) -> None:
        name = func.overloadpacket.__name__
        if device_tensors and moves and not computed_on_device:
            self.reads[name] += 1
        elif name == "copy_":
            self.reads[name] += bool(device_tensors) and not isinstance(args[0], DeviceTensor)
        elif device_tensors and not moves:
            others = [tuple(x.shape) for x in inputs if not isinstance(x, DeviceTensor) and x.dim()]
            if others:
                raise RuntimeError(f"expected all tensors to be on the same device: {func} got CPU tensors {others}")
            masks = name in ("index", "index_put_") and any(x.dtype == torch.bool for x in device_tensors[1:])
            self.reads[name] += name in _HOST_READ_OPS or masks

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Make torch use the device inside the block."""
        memory = self.memory
        with (
            _Constants(),
            self,
            patch(
                "torch.cuda.mem_get_info",
                lambda _: (memory.free, memory.total) if memory else (self.free_bytes, 1 << 34),
            ),
            patch("torch.cuda.get_per_process_memory_fraction", lambda _: memory.fraction if memory else self.fraction),
            patch("torch.cuda.memory_reserved", lambda _: memory.used[memory.process] if memory else 0),
            patch("torch.cuda.memory_allocated", lambda _: memory.used[memory.process] if memory else 0),
            patch("torch.cuda.empty_cache", self._empty),
            patch.object(DeviceTensor, "on_create", memory.allocate if memory else None),
        ):
            yield

    def _empty(self) -> None:
        self.times_emptied += 1


def put_on_device(model: nn.Module) -> nn.Module:
    """Move a model's weights to the device; shared weights stay shared."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    trained = torch.is_grad_enabled()
    for module in model.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                if weight not in moved:
                    moved[weight] = nn.Parameter(DeviceTensor(weight.detach()), weight.requires_grad and trained)
                module._parameters[key] = moved[weight]
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else DeviceTensor(buffer)
    return model


def run_cases_in_subprocess(module: str, cases: Sequence[str]) -> dict[str, Any]:
    """Run a test module as a program; returns the JSON object that it prints, by case."""
    completed = subprocess.run(
        [sys.executable, "-m", module, *cases],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    results: dict[str, Any] = json.loads(completed.stdout)
    return results


def print_cases(run_case: Callable[[str], object]) -> None:
    """Run `run_case` for each case on the command line and print the results as JSON."""
    torch.set_num_threads(1)
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    print(json.dumps({case: run_case(case) for case in sys.argv[1:]}))


class _Backend:
    """The backend module that torch requires of a device."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


class _Constants(TorchFunctionMode):
    """Creates `torch.tensor` constants on the CPU and moves them: its factory does not dispatch to the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.tensor or kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = kwargs.pop("device")
        return func(*args, **kwargs).to(device)
