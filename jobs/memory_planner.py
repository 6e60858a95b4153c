"""The memory that a training needs with different settings, and which settings fit the GPUs: part of `slick plan`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jobs.presets import large_training, lora_training
from slick.formatting import format_percent, format_table
from slick.precision import ASSUMED_GPU, AUTO, TrainDtype, resolve_train_dtype
from slick.shapes import ModelShape
from tuning.config import TrainConfig
from tuning.cost import MachineType
from tuning.memory import HEADROOM, TrainingMemory, estimate_training_memory

GB = 1e9
_MEMORY_PARTS = ("weights", "gathered", "gradients", "optimizer", "activations", "loading")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The GPUs and machines of one training."""

    gpus: int
    gpu_memory: float
    """GB per GPU."""
    machine: MachineType
    """The type of the machines; GPUs fill one machine after another."""

    @property
    def max_gpus_per_machine(self) -> int:
        """The most GPUs of the training in one machine."""
        return self.machine.workers_per_machine(self.gpus)

    def insufficient(self, memory: TrainingMemory) -> tuple[str, ...]:
        """The memories that are too small: `GPU`, `machine`, both or neither."""
        return memory.insufficient(self.gpu_memory * GB, self.machine.memory * GB, self.max_gpus_per_machine)


PLANNED_DTYPE: TrainDtype = resolve_train_dtype(AUTO, ASSUMED_GPU)
"""The default dtype of trainings on current GPUs."""


def training_options(gpus: int, rows_at_once: int, dtype: TrainDtype = PLANNED_DTYPE) -> list[tuple[str, TrainConfig]]:
    """Settings of a training, fastest first, each with its flags.

    Args:
        gpus: workers of the training, one GPU each.
        rows_at_once: largest micro batch of a GPU; smaller if the batch of the preset `large` has fewer rows per GPU.
        dtype: of the training, resolved.

    Source: what each ZeRO stage shards, Rajbhandari et al. 2020, arXiv:1910.02054.
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
    checkpointed = replace(whole, zero_stage=1 if gpus == 1 else 3, activation_checkpointing=True)
    options = [
        *([whole] if gpus == 1 else [replace(whole, zero_stage=stage) for stage in (1, 2, 3)]),
        checkpointed,
        replace(checkpointed, offload="optimizer"),
        replace(checkpointed, zero_stage=3, offload="all"),
        lora,
        replace(lora, zero_stage=3, activation_checkpointing=True),
    ]
    return [(_option_flags(config), config) for config in options]


def _batch_sizes(gpus: int, rows_at_once: int) -> tuple[int, int]:
    """Rows of a micro batch and of a batch; the batch is that of the preset if the GPUs can divide it."""
    batch = large_training().batch_size
    divisors = [rows for rows in range(1, rows_at_once + 1) if batch % (gpus * rows) == 0]
    return (divisors[-1], batch) if divisors else (rows_at_once, gpus * rows_at_once)


def _option_flags(config: TrainConfig) -> str:
    """The flags by which a training differs from the preset `large`."""
    parts = [f"--lora-rank {config.lora_rank}"] if config.lora_rank else []
    parts.append(f"--zero-stage {config.zero_stage}")
    parts.append(f"--{'' if config.activation_checkpointing else 'no-'}activation-checkpointing")
    if config.offload != "none":
        parts.append(f"--offload {config.offload}")
    return " ".join(parts)


def finetune_command(flags: str, config: TrainConfig) -> str:
    """The command of a training.

    Args:
        flags: its flags, as `training_options` gives them.
        config: its settings.
    """
    preset = large_training()
    more = "" if config.dtype == resolve_train_dtype(preset.dtype, ASSUMED_GPU) else f" --dtype {config.dtype}"
    for name in ("micro_batch_size", "batch_size"):
        if getattr(config, name) != getattr(preset, name):
            more += f" --{name.replace('_', '-')} {getattr(config, name)}"
    return f"slick finetune large {flags} --num-workers {config.num_workers}{more}"


def training_table(
    shape: ModelShape, fleet: Fleet, rows_at_once: int, dtype: TrainDtype = PLANNED_DTYPE
) -> Iterator[str]:
    """A table of the settings and their memory on a GPU and a machine, and the fastest settings that fit."""
    yield (
        f"Fine-tuning on {_gpu_count(fleet.gpus)} of {fleet.gpu_memory:g} GB, {dtype}, "
        f"{_batch_sizes(fleet.gpus, rows_at_once)[0]} rows at once: GB per GPU, of which {format_percent(HEADROOM)} "
        "stay free"
    )
    yield from _machine_lines(fleet)
    rows: list[tuple[str, ...]] = [("settings", *_MEMORY_PARTS, "at most", "machine", "fits")]
    fastest, lacking = "", set[str]()
    for flags, config in training_options(fleet.gpus, rows_at_once, dtype):
        memory = estimate_training_memory(shape, config, fleet.gpus)
        insufficient = fleet.insufficient(memory)
        if not config.lora_rank:
            fastest = fastest or ("" if insufficient else finetune_command(flags, config))
            lacking |= set(insufficient)
        sizes = [getattr(memory, name) for name in _MEMORY_PARTS]
        sizes += [memory.peak_device_bytes, memory.peak_machine_bytes(fleet.max_gpus_per_machine)]
        fits = f"no: {' and '.join(insufficient)}" if insufficient else "yes"
        rows.append((flags, *(f"{size / GB:,.1f}" for size in sizes), fits))
    yield from (f"  {line}" for line in format_table(rows, right=range(1, len(rows[0]) - 1)))
    if fastest:
        yield f"The fastest that trains all weights: {fastest}"
    else:
        larger = "machines with more memory, " if "machine" in lacking else ""
        yield f"None of these trains all weights: use more GPUs, {larger}fewer --rows-at-once, or LoRA."


def _machine_lines(fleet: Fleet) -> Iterator[str]:
    """The assumed machines, and the meaning of the column `machine`."""
    machine, num = fleet.machine, fleet.machine.num_machines(fleet.gpus)
    source = f" (AWS {machine.name}; --machine-memory, --gpus-a-machine: others)" if machine.name else ""
    yield (
        f"on {num} machine{'s' if num > 1 else ''} of {_gpu_count(machine.gpus)} and {machine.memory:,g} GB{source}, "
        "of which the same share stays free;"
    )
    yield "machine: its peak memory while one training loads, trains or saves the model"


def _gpu_count(num: int) -> str:
    return f"{num} GPU{'' if num == 1 else 's'}"
