"""Estimate the memory, GPU hours and cost of a study with a model of a given size.

slick plan --model-size 7B --gpus 8 --gpu-memory 80
slick plan --model-size 70B --gpus 16 --gpu-memory 80 --probe studies/small --price 2.5
slick plan --model FOLDER --gpus 4 --gpu-memory 48 --machine-memory 384 --gpus-a-machine 4

--probe STUDY    a study made on such machines, of any size: hours are estimated from its speeds, in proportion to the
                 numbers of parameters. Without it no hours are estimated.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jobs.common import is_help_command, parse_config, run_main
from jobs.presets import large_training, lora_training
from slick.errors import SettingsError
from slick.formatting import format_percent, format_table
from slick.inference.base import PACKED_ENGINE
from slick.inference.selection import VLLM_ENGINE, num_gpus_for_weights
from slick.precision import ASSUMED_GPU, AUTO, TrainDtype, dtype_bytes, resolve_dtype, resolve_train_dtype
from slick.storage import Folder
from tuning.config import TrainConfig
from tuning.estimates import (
    HEADROOM,
    MachineType,
    ModelShape,
    Throughput,
    TrainingMemory,
    default_machine_type,
    estimate_training_memory,
    model_shape,
    published_shape,
    read_throughput,
)

GB = 1e9
_MEMORY_PARTS = ("weights", "gathered", "gradients", "optimizer", "activations", "loading")
_POSITIVE_FIELDS = ("gpus", "gpu_memory", "machine_memory", "gpus_a_machine", "rows_at_once",
            "questions", "trainings", "epochs", "train_rows", "asked_rows")  # fmt: skip
MAX_SCALE_FACTOR = 10.0
"""Speeds of a model that is larger or smaller by more than this factor are used with a warning."""


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
        dtype: the resolved dtype of the training.

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
        replace(lora, quantization="4bit", activation_checkpointing=True),
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
    if config.quantization != "none":
        parts.append(f"--quantization {config.quantization}")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """The model, machines and work to estimate; the defaults of the work are the paper's."""

    model_size: str = ""
    """135M, 360M, 1B, 1.7B, 3B, 7B, 8B, 13B or 70B: a published model of that size."""
    model: str = ""
    """Instead of `model_size`: a model folder or Hugging Face id, whose config.json is read."""
    gpus: int = 8
    """GPUs of one training."""
    gpu_memory: float = 80.0
    """Memory of one GPU, in GB (1e9 bytes)."""
    machine_memory: float | None = None
    """CPU memory of one machine, in GB, for offloaded tensors and for models while they are loaded and saved; None:
    that of the default cloud instance with such GPUs."""
    gpus_a_machine: int | None = None
    """GPUs of one machine; None: those of the default cloud instance."""
    dtype: TrainDtype = "auto"
    """Dtype of weights and computation. `auto`: bfloat16, for GPUs of compute capability 8.0 or later (A10G, L4, A100,
    H100); older ones (V100, T4) need float32."""
    rows_at_once: int = 16
    """Largest micro batch of one GPU."""
    questions: int = 98_029
    """Questions to annotate."""
    trainings: int = 17
    """Fine-tuning runs."""
    epochs: int = 50
    """Epochs of each run."""
    train_rows: int = 6_142
    """Rows of a fine-tuning set."""
    asked_rows: int = 32_932
    """Questions evaluated after each epoch: those of the variant, dev, test and ood."""
    probe: str = ""
    """Path or URI of a study whose speeds are used."""
    price: float = 0.0
    """Price of one GPU hour; 0: no cost is estimated."""

    def __post_init__(self) -> None:
        for name in _POSITIVE_FIELDS:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise SettingsError(f"{name} must be above 0, got {value}")
        if not (self.price >= 0 and math.isfinite(self.price)):
            raise SettingsError(f"price must be 0 or more, got {self.price}")

    @property
    def planned_dtype(self) -> TrainDtype:
        """The dtype that the runs will take, by the rule that they use themselves."""
        return resolve_train_dtype(self.dtype, ASSUMED_GPU)

    @property
    def fleet(self) -> Fleet:
        """The GPUs and their machines: as set, else the default cloud instance."""
        machine = default_machine_type(self.gpu_memory)
        if self.machine_memory is not None or self.gpus_a_machine is not None:
            machine = MachineType(
                gpus=self.gpus_a_machine or machine.gpus, memory=self.machine_memory or machine.memory, name=""
            )
        return Fleet(gpus=self.gpus, gpu_memory=self.gpu_memory, machine=machine)


def main(argv: Sequence[str]) -> None:
    """Print the estimate for the settings of the command line."""
    if is_help_command(argv):
        print(f"{(__doc__ or '').strip()}\n")
    print("\n".join(plan(parse_config(PlanConfig(), argv, "slick plan", ()))))


def plan(config: PlanConfig) -> Iterator[str]:
    """The lines of the estimate.

    Raises:
        SettingsError: no model or two models are named, or the size is unknown.
        StudyError: the probe has no timings.
    """
    shape = resolve_shape(config)
    rates = read_throughput(Folder(config.probe)) if config.probe else None
    yield f"{shape.name}: {shape.parameters / GB:,.2f} billion parameters in {shape.num_layers} layers"
    yield ""
    yield from training_table(shape, config.fleet, config.rows_at_once, config.planned_dtype)
    yield ""
    yield from _annotation_lines(shape, config)
    yield ""
    yield from _time_lines(shape, config, rates)


def resolve_shape(config: PlanConfig) -> ModelShape:
    """The shape of the named model.

    Raises:
        SettingsError: no model or two models are named.
        ModelError: the model cannot be read.
    """
    if bool(config.model_size) == bool(config.model):
        raise SettingsError("slick plan needs either --model-size SIZE (such as 7B) or --model FOLDER_OR_ID")
    if config.model_size:
        return published_shape(config.model_size)
    return model_shape(config.model)


def _annotation_lines(shape: ModelShape, config: PlanConfig) -> Iterator[str]:
    dtype, available = config.planned_dtype, (1 - HEADROOM) * config.gpu_memory * GB
    weights, per_token = dtype_bytes(dtype) * shape.parameters, shape.kv_bytes_per_token(dtype)
    flag = "" if dtype == resolve_dtype(AUTO, ASSUMED_GPU) else f" --dtype {dtype}"
    per_question = shape.kv_bytes_per_question(dtype)
    num_gpus = num_gpus_for_weights(weights, config.gpu_memory * GB, shape.num_heads)
    yield (
        f"Annotation, {dtype}: weights {weights / GB:.1f} GB, KV cache {per_token / 1024:.0f} KiB per token; "
        f"{per_question / GB:.2f} GB for a question and its 170 answers without prefix sharing"
    )
    if num_gpus == 1:
        num_questions = (available - weights) / per_question
        yield (
            f"One GPU per actor holds the model, so --engine auto chooses {PACKED_ENGINE}: slick annotate paper "
            f"--gpus-per-actor 1{flag}; memory for {num_questions:,.0f} questions at once"
        )
    elif num_gpus is None:
        yield "The model and its KV cache do not fit 16 such GPUs; use GPUs with more memory."
    else:
        command = f"slick annotate paper --engine {VLLM_ENGINE} --gpus-per-actor {num_gpus}{flag}"
        yield f"{num_gpus} GPUs per actor hold the model, so --engine auto chooses {VLLM_ENGINE}: {command}"


def _time_lines(shape: ModelShape, config: PlanConfig, rates: Throughput | None) -> Iterator[str]:
    generations = config.questions * (rates.answers_per_question if rates else 170)
    yield (
        f"Work: {config.questions:,} questions, {generations / 1e6:,.1f} million answers; {config.trainings} trainings "
        f"x {config.epochs} epochs, each with {config.train_rows:,} rows trained and {config.asked_rows:,} evaluated"
    )
    if rates is None:
        yield "Hours: give --probe STUDY, a small study made on such machines, to estimate them from its speeds."
        return
    answers = rates.estimate_annotation_seconds(config.questions, shape.parameters) / 3600
    epochs = rates.estimate_training_seconds(
        config.trainings * config.epochs, config.train_rows, config.asked_rows, shape.parameters
    )
    scaled = shape.parameters / rates.parameters
    measured = f"Measured: {rates.answers_per_second:,.0f} answers per second and actor"
    if rates.train_rows_per_second:
        measured += f", {rates.train_rows_per_second:,.1f} rows trained per second and worker"
    if abs(scaled - 1) > 0.05:
        measured += f"; the estimate is {scaled:,.1f} times slower, since the model is {scaled:,.1f} times larger"
    yield measured
    if not 1 / MAX_SCALE_FACTOR <= scaled <= MAX_SCALE_FACTOR:
        least = shape.parameters / MAX_SCALE_FACTOR / GB
        yield f"This extrapolation is uncertain: probe a model of {least:,.2g} billion parameters or more."
    yield f"Annotation: {answers:,.1f} hours of one actor{_cost(answers, config)}"
    if epochs is None:
        yield "Trainings: the probe has no finished training; run `slick finetune` there for one epoch."
    else:
        yield f"Trainings: {epochs / 3600:,.1f} hours of one worker{_cost(epochs / 3600, config)}"


def _cost(hours: float, config: PlanConfig) -> str:
    return f", {hours * config.price:,.0f} at {config.price:g} an hour" if config.price else ""


if __name__ == "__main__":
    run_main(main)
