"""Save and load weights and optimizer state of a DeepSpeed engine as safetensors: whole tensors by parameter name.

Safetensors files hold numbers only, so opening them runs no code. The format does not depend on how the model is
sharded: each worker writes the whole tensors of a share of the parameters, and a group of another size or ZeRO stage
reads the same files. Values are copied without conversion: the optimizer's float32 weights, AdamW's moments and step
counter, and the model's buffers. Frozen weights are read from the base model again.

Under ZeRO, DeepSpeed gathers and sets one tensor at a time (`deepspeed.utils.safe_get_full_*`), so no worker ever
holds the whole model.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slick import compat
from slick.errors import StudyError

_WEIGHT, _STEP, _BUFFER = "weight", "step", "buffer"
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names of its moments."""
_MAX_FILE_BYTES = 1 << 30
"""A worker buffers about this much before it writes a file."""
_REMEDY = "delete that folder to start this training again; nothing else is lost"


def save_tensors(engine: Any, folder: str, *, rank: int, num_workers: int) -> None:
    """Write this worker's share of the tensors into a local folder; called by all workers."""
    part: dict[str, Tensor] = {}
    num_bytes = num_files = 0

    def write() -> None:
        nonlocal num_bytes, num_files
        save_file(part, Path(folder, f"tensors-{rank:05d}-{num_files:05d}.safetensors"))
        part.clear()
        num_bytes, num_files = 0, num_files + 1

    for i, kind, name, value in _iter_tensors(engine):
        if i % num_workers == rank:
            part[_tensor_key(kind, name)] = value.detach().cpu().contiguous()
            num_bytes += value.nbytes
            if num_bytes >= _MAX_FILE_BYTES:
                write()
    if part:
        write()


def load_tensors(engine: Any, folder: str, *, origin: str) -> None:
    """Load weights, optimizer state and buffers; called by all workers.

    Under ZeRO the optimizer must have done a step, which creates its state.

    Args:
        engine: the DeepSpeed engine.
        folder: local folder with the shares of all workers.
        origin: the folder that it was copied from, for messages.

    Raises:
        StudyError: a file is not safetensors, or the tensors are not those of this model.
    """
    with _open_tensors(folder, origin) as saved:
        saved.check(engine)
        with torch.no_grad():
            if not engine.zero_optimization_stage():
                _load_unsharded(engine, saved)
            else:
                _load_sharded(engine, saved)
            for name, buffer in _persistent_buffers(engine.module).items():
                buffer.copy_(saved.tensor(_BUFFER, name))


def _tensor_key(kind: str, name: str) -> str:
    return f"{kind}/{name}"


def _trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers in the model's state dict; others are computed from its configuration."""
    persistent = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def _iter_tensors(engine: Any) -> Iterator[tuple[int, str, str, Tensor]]:
    """Index of the parameter, kind of tensor, name, and the whole tensor."""
    yield from _sharded_tensors(engine) if engine.zero_optimization_stage() else _unsharded_tensors(engine)
    for name, buffer in _persistent_buffers(engine.module).items():
        yield 0, _BUFFER, name, buffer


def _unsharded_tensors(engine: Any) -> Iterator[tuple[int, str, str, Tensor]]:
    """Without ZeRO every worker has all tensors."""
    states = compat.base_optimizer(engine).state
    for i, (name, _, master) in enumerate(_master_weights(engine)):
        yield i, _WEIGHT, name, master
        # A parameter without any gradient so far, such as an expert that got no tokens, has no state.
        for kind, value in states.get(master, {}).items():
            yield i, kind, name, value


def _master_weights(engine: Any) -> list[tuple[str, nn.Parameter, Tensor]]:
    """Name, parameter, and the optimizer's float32 weights: with bfloat16 a copy, else the parameter itself."""
    masters = [master for group in compat.base_optimizer(engine).param_groups for master in group["params"]]
    pairs = zip(_trainable_parameters(engine.module), masters, strict=True)
    return [(name, parameter, master) for (name, parameter), master in pairs]


def _sharded_tensors(engine: Any) -> Iterator[tuple[int, str, str, Tensor]]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    steps = [state[_STEP] for state in compat.base_optimizer(engine).state.values()]
    for i, (name, parameter) in enumerate(_trainable_parameters(engine.module)):
        yield i, _WEIGHT, name, safe_get_full_fp32_param(parameter)
        if steps:  # DeepSpeed concatenates parameters into flat tensors, which all count the same steps
            for kind in _MOMENTS:
                yield i, kind, name, safe_get_full_optimizer_state(parameter, kind)
            # A new tensor, because safetensors refuses those that share memory; DeepSpeed's AdamW counts in integers.
            yield i, _STEP, name, torch.tensor(float(steps[0]))


class _TensorReader:
    """Reads tensors from the open files of a state."""

    def __init__(self, origin: str, files: list[Any]) -> None:
        self._origin = origin
        self._file_by_key = {key: file for file in files for key in file.keys()}  # noqa: SIM118 - not a dict

    def tensor(self, kind: str, name: str) -> Tensor:
        key = _tensor_key(kind, name)
        tensor: Tensor = self._file_by_key[key].get_tensor(key)
        return tensor

    def moments(self, name: str) -> dict[str, Tensor]:
        """AdamW's state of a parameter; empty if the parameter never had a gradient."""
        if _tensor_key(_STEP, name) not in self._file_by_key:
            return {}
        return {kind: self.tensor(kind, name) for kind in (*_MOMENTS, _STEP)}

    def check(self, engine: Any) -> None:
        """Check that the tensors are those of the engine's model.

        Raises:
            StudyError: a tensor is missing, unexpected, or of another shape or type.
        """
        expected: dict[str, tuple[int, ...]] = {}
        for name, parameter in _trainable_parameters(engine.module):
            shape = compat.full_shape(parameter)
            expected[_tensor_key(_WEIGHT, name)] = shape
            if any(_tensor_key(kind, name) in self._file_by_key for kind in (*_MOMENTS, _STEP)):
                expected |= {_tensor_key(kind, name): shape for kind in _MOMENTS} | {_tensor_key(_STEP, name): ()}
        buffers = {
            _tensor_key(_BUFFER, name): tuple(buffer.shape)
            for name, buffer in _persistent_buffers(engine.module).items()
        }
        stored = {key: tuple(file.get_slice(key).get_shape()) for key, file in self._file_by_key.items()}
        wrong = sorted(key for key, _ in stored.items() ^ (expected | buffers).items())
        wrong += [key for key in expected.keys() & stored if self._file_by_key[key].get_slice(key).get_dtype() != "F32"]
        if wrong:
            raise StudyError(
                f"the training state in {self._origin} is not of this model ({len(wrong)} tensors are missing, "
                f"unexpected, or of another shape or type, such as {wrong[0]}); {_REMEDY}"
            )


@contextlib.contextmanager
def _open_tensors(folder: str, origin: str) -> Iterator[_TensorReader]:
    with contextlib.ExitStack() as stack:
        try:
            paths = sorted(Path(folder).glob("tensors-*.safetensors"))
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
            yield _TensorReader(origin, files)
        except (SafetensorError, OSError) as error:
            raise StudyError(f"the training state in {origin} cannot be read ({error}); {_REMEDY}") from error


def _load_unsharded(engine: Any, saved: _TensorReader) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for i, (name, parameter, master) in enumerate(_master_weights(engine)):
        master.copy_(saved.tensor(_WEIGHT, name))
        parameter.copy_(master)
        if moments := saved.moments(name):
            states[i] = moments
    optimizer = compat.base_optimizer(engine)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _load_sharded(engine: Any, saved: _TensorReader) -> None:
    steps = torch.zeros(())
    for name, parameter in _trainable_parameters(engine.module):
        moments = saved.moments(name)
        steps = torch.maximum(steps, moments.get(_STEP, steps))
        weight = saved.tensor(_WEIGHT, name)
        states = {kind: moments.get(kind, torch.zeros_like(weight)) for kind in _MOMENTS}
        if compat.is_partitioned(parameter):
            _load_partition(parameter, weight, states)
        else:
            _load_fragment(parameter, weight, states)
    for state in compat.base_optimizer(engine).state.values():
        if isinstance(state[_STEP], Tensor):
            state[_STEP].copy_(steps)
        else:
            state[_STEP] = int(steps)


def _load_fragment(parameter: nn.Parameter, weight: Tensor, states: Mapping[str, Tensor]) -> None:
    """ZeRO stages 1 and 2: every worker has the parameter, and a fragment of its optimizer state."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    parameter.copy_(weight)
    safe_set_full_fp32_param(parameter, weight)
    for kind, state in states.items():
        safe_set_full_optimizer_state(parameter, state, kind)


def _load_partition(parameter: Any, weight: Tensor, states: Mapping[str, Tensor]) -> None:
    """ZeRO stage 3: every worker has a partition of the parameter and its optimizer state; the last one is padded."""
    import deepspeed
    import torch.distributed as dist
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size, rank = compat.partition_size(parameter), dist.get_rank()

    def partition(whole: Tensor) -> Tensor:
        own = whole.flatten()[rank * size : (rank + 1) * size]
        return nn.functional.pad(own, (0, size - own.numel()))

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(weight)
    safe_set_local_fp32_param(parameter, partition(weight))
    for kind, state in states.items():
        safe_set_local_optimizer_state(parameter, partition(state), kind)
