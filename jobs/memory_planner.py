"""Ways to train a model on some GPUs in their machines, and which of them fit: the middle part of `slick plan`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jobs.presets import large_training, lora_training
from slick.precision import ASSUMED_GPU, AUTO, TrainDtype, resolve_train_dtype
from slick.shapes import ModelShape
from tuning.config import TrainConfig
from tuning.cost import MachineType
from tuning.memory import HEADROOM, TrainingMemory, estimate_training_memory

GB = 1e9
_MEMORY_PARTS = ("weights", "gathered", "gradients", "optimizer", "activations", "loading")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What one training is spread over."""

    gpus: int
    gpu_memory: float
    """GB of each."""
    machine: MachineType
    """That holds them; one machine is filled after another."""

    @property
    def max_gpus_per_machine(self) -> int:
        """GPUs of the training in one machine."""
        return self.machine.workers_per_machine(self.gpus)

    def insufficient(self, memory: TrainingMemory) -> tuple[str, ...]:
        """What is too small: `GPU`, `machine`, both or neither."""
        return memory.insufficient(self.gpu_memory * GB, self.machine.memory * GB, self.max_gpus_per_machine)


PLANNED_DTYPE: TrainDtype = resolve_train_dtype(AUTO, ASSUMED_GPU)
"""What runs on such GPUs take unless they are told another."""


def training_options(gpus: int, rows_at_once: int, dtype: TrainDtype = PLANNED_DTYPE) -> list[tuple[str, TrainConfig]]:
    """Ways to train, quickest first, each with the flags that choose it.

    Args:
        gpus: that share the training.
        rows_at_once: of each at most; fewer where the batch of the preset `large` leaves fewer to each.
        dtype: of the training, resolved.

    Source: what each stage shards, Rajbhandari et al. 2020, arXiv:1910.02054.
    """
    micro_rows, batch_rows = _batch_sizes(gpus, rows_at_once)
    whole = replace(
        large_training(),
        num_workers=gpus,
        min_workers=None,
        micro_batch_size=micro_rows,
        batch_size=batch_rows,
        activation_checkpointing=False,
        zero_stage=0,
        dtype=dtype,
    )
    lora = replace(whole, lora_rank=lora_training().lora_rank)
    kept = replace(whole, zero_stage=1 if gpus == 1 else 3, activation_checkpointing=True)
    found = [
        *([whole] if gpus == 1 else [replace(whole, zero_stage=stage) for stage in (1, 2, 3)]),
        kept,
        replace(kept, offload="optimizer"),
        replace(kept, zero_stage=3, offload="all"),
        lora,
        replace(lora, zero_stage=3, activation_checkpointing=True),
    ]
    return [(_option_flags(way), way) for way in found]


def _batch_sizes(gpus: int, rows_at_once: int) -> tuple[int, int]:
    """Rows of a GPU at once, and of a batch: that of the preset wherever the GPUs can share it."""
    batch = large_training().batch_size
    fair = [rows for rows in range(1, rows_at_once + 1) if batch % (gpus * rows) == 0]
    return (fair[-1], batch) if fair else (rows_at_once, gpus * rows_at_once)


def _option_flags(way: TrainConfig) -> str:
    """What tells a way of training from the preset `large`."""
    parts = [f"--lora-rank {way.lora_rank}"] if way.lora_rank else []
    parts.append(f"--zero-stage {way.zero_stage}")
    parts.append(f"--{'' if way.activation_checkpointing else 'no-'}activation-checkpointing")
    if way.offload != "none":
        parts.append(f"--offload {way.offload}")
    return " ".join(parts)


def finetune_command(flags: str, way: TrainConfig) -> str:
    """What starts a training of this way.

    Args:
        flags: of the way, as `ways` has them.
        way: the way.
    """
    usual = large_training()
    more = "" if way.dtype == resolve_train_dtype(usual.dtype, ASSUMED_GPU) else f" --dtype {way.dtype}"
    for name in ("micro_batch_size", "batch_size"):
        if getattr(way, name) != getattr(usual, name):
            more += f" --{name.replace('_', '-')} {getattr(way, name)}"
    return f"slick finetune large {flags} --num-workers {way.num_workers}{more}"


def training_table(
    shape: ModelShape, fleet: Fleet, rows_at_once: int, dtype: TrainDtype = PLANNED_DTYPE
) -> Iterator[str]:
    """A table of all ways, what each takes of a GPU and of a machine, and the quickest that fits both."""
    yield (
        f"Fine-tuning on {_gpu_count(fleet.gpus)} of {fleet.gpu_memory:g} GB, {dtype}, "
        f"{_batch_sizes(fleet.gpus, rows_at_once)[0]} rows at once: GB that each holds, {100 * HEADROOM:.0f} % of "
        f"it left free"
    )
    yield from _machine_lines(fleet)
    heads = "".join(f"{name:>12}" for name in (*_MEMORY_PARTS, "at most", "machine"))
    yield f"  {'settings':<66}{heads}  fits"
    first, lacking = "", set[str]()
    for flags, way in training_options(fleet.gpus, rows_at_once, dtype):
        memory = estimate_training_memory(shape, way, fleet.gpus)
        insufficient = fleet.insufficient(memory)
        if not way.lora_rank:
            first, lacking = (
                first or ("" if insufficient else finetune_command(flags, way)),
                lacking | set(insufficient),
            )
        sizes = [
            *(getattr(memory, name) for name in _MEMORY_PARTS),
            memory.peak_device_bytes,
            memory.peak_machine_bytes(fleet.max_gpus_per_machine),
        ]
        numbers = "".join(f"{size / GB:>12,.1f}" for size in sizes)
        yield f"  {flags:<66}{numbers}  {'no: ' + ' and '.join(insufficient) if insufficient else 'yes'}"
    if first:
        yield f"The quickest that trains all weights: {first}"
    else:
        larger = "machines with more memory, " if "machine" in lacking else ""
        yield f"None of these trains all weights: take more GPUs, {larger}fewer --rows-at-once, or LoRA."


def _machine_lines(fleet: Fleet) -> Iterator[str]:
    """What the machines are taken to be, and what of their memory is counted."""
    machine, num = fleet.machine, fleet.machine.num_machines(fleet.gpus)
    source = f" (AWS {machine.name}; --machine-memory, --gpus-a-machine: others)" if machine.name else ""
    yield (
        f"on {num} machine{'s' if num > 1 else ''} of {_gpu_count(machine.gpus)} and {machine.memory:,g} GB{source}, "
        "as much of it left free;"
    )
    yield "machine: the most of that in use, while the model is read, trained or saved, by one training alone on it"


def _gpu_count(num: int) -> str:
    return f"{num} GPU{'' if num == 1 else 's'}"
