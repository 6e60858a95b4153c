"""A device that stands in for a GPU where there is none: what a GPU would refuse or wait for, seen on any machine.

Its tensors lie in the CPU's memory and are computed there, but count as being elsewhere: an operation that mixes them
with the CPU's is an error, as on a GPU, and every read of their values by the host is counted, since on a GPU each one
waits for all work that was given out. What it cannot tell is what a GPU's own arithmetic gives, and how fast.

Torch never forgets a device, so a test that needs this one is a program too, run in a process of its own.
"""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
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
    """A tensor that is on the device in name."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "DeviceTensor":
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=torch.device(NAME, 0),
        )
        made.on_cpu = on_cpu
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} of a tensor whose device is not in use")


class SimulatedDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While in use, tensors may be put on the device and computed with there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: Counter[str] = Counter()
        """Operations by which the host read values from the device."""
        self.largest_bytes = 0
        """Of any tensor so far."""
        self.limit_bytes: float = math.inf
        """A larger tensor finds no memory."""
        self.free_bytes = 1 << 33
        """What the device says is free, of twice as much."""
        self.fraction = 1.0
        """Of its memory, that this process may take."""
        self.times_emptied = 0
        """How often torch was told to let go of the memory it keeps in stock."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor | torch.device)]
        here = [x for x in given if isinstance(x, DeviceTensor)]
        targets = [x for x in given if isinstance(x, torch.device)]
        computed_here = targets[-1].type == NAME if targets else bool(here)
        self._check(func, args, given, here, bool(targets), computed_here)

        def bare(x: Any) -> Any:
            return (
                x.on_cpu if isinstance(x, DeviceTensor) else torch.device("cpu") if isinstance(x, torch.device) else x
            )

        result = func(*tree_map(bare, args), **tree_map(bare, kwargs or {}))
        # What an operation changed in place comes back as the same tensor.
        known = {id(x.on_cpu): x for x in here}

        def named(x: Any) -> Any:
            if not isinstance(x, Tensor) or not computed_here:
                return x
            self.largest_bytes = max(self.largest_bytes, x.nbytes)
            if x.nbytes > self.limit_bytes:
                raise torch.OutOfMemoryError("as a device would say")
            return known.get(id(x)) if id(x) in known else DeviceTensor(x)

        return tree_map(named, result)

    def _check(
        self, func: Any, args: Any, given: Sequence[Any], here: Sequence[Any], moves: bool, computed_here: bool
    ) -> None:
        name = func.overloadpacket.__name__
        if here and moves and not computed_here:
            self.reads[name] += 1
        elif name == "copy_":
            self.reads[name] += bool(here) and not isinstance(args[0], DeviceTensor)
        elif here and not moves:
            others = [tuple(x.shape) for x in given if not isinstance(x, DeviceTensor) and x.dim()]
            if others:
                raise RuntimeError(f"expected all tensors to be on the same device: {func} got of the CPU {others}")
            masks = name in ("index", "index_put_") and any(x.dtype == torch.bool for x in here[1:])
            self.reads[name] += name in _HOST_READ_OPS or masks

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Within, torch has the device."""
        with (
            _Constants(),
            self,
            patch("torch.cuda.mem_get_info", lambda _: (self.free_bytes, 1 << 34)),
            patch("torch.cuda.get_per_process_memory_fraction", lambda _: self.fraction),
            patch("torch.cuda.empty_cache", self._empty),
        ):
            yield

    def _empty(self) -> None:
        self.times_emptied += 1


def put_on_device(model: nn.Module) -> nn.Module:
    """Move a model's weights; those that are shared stay so."""
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


def run_cases_in_subprocess(test: str, cases: Sequence[str]) -> dict[str, Any]:
    """What the program that a test is prints of each of its cases."""
    ran = subprocess.run(
        [sys.executable, "-m", test, *cases],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def print_cases(found_in: Callable[[str], object]) -> None:
    """The program: what is found in each case that the command line names."""
    torch.set_num_threads(1)
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    print(json.dumps({case: found_in(case) for case in sys.argv[1:]}))


class _Backend:
    """What torch asks of the module of a device."""

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
    """`torch.tensor`, which asks no device of its own before it makes one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.tensor or kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = kwargs.pop("device")
        return func(*args, **kwargs).to(device)
