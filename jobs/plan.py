"""What a model of some size needs: memory of GPUs and machines in training, GPUs for answers, hours, and their cost.

slick plan --model-size 7B --gpus 8 --gpu-memory 80
slick plan --model-size 70B --gpus 16 --gpu-memory 80 --probe studies/small --price 2.5
slick plan --model FOLDER --gpus 4 --gpu-memory 48 --machine-memory 384 --gpus-a-machine 4

--probe STUDY    a study that was made on such machines, with as few questions and epochs as you like: its speeds are
                 taken, in proportion to the numbers of parameters. Without it no hours are told.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.common import is_help_command, parse_config, run_main
from jobs.memory_planner import GB, Fleet, training_table
from slick.errors import SettingsError
from slick.model_files import read_config
from slick.models import resolve_model
from slick.precision import ASSUMED_GPU, AUTO, TrainDtype, dtype_bytes, resolve_dtype, resolve_train_dtype
from slick.shapes import ModelShape, published_shape, shape_from_config
from slick.storage import Folder
from tuning.cost import MachineType, Throughput, default_machine_type, read_throughput
from tuning.memory import HEADROOM

_POSITIVE_FIELDS = ("gpus", "gpu_memory", "machine_memory", "gpus_a_machine", "rows_at_once",
            "questions", "trainings", "epochs", "train_rows", "asked_rows")  # fmt: skip
MAX_SCALE_FACTOR = 10.0
"""Speeds of a model so many times smaller or larger are taken without a warning."""
_PROMPT_TOKENS, _ANSWER_TOKENS = 82, 5
"""Of a question under 4 examples, and of an answer, in EntityQuestions; tokenizers differ by a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """What is to be planned; the numbers of the work are the paper's."""

    model_size: str = ""
    """135M, 360M, 1B, 1.7B, 3B, 7B, 8B, 13B or 70B: a published model of that size."""
    model: str = ""
    """Instead: a model folder or Hugging Face id, whose config.json is read."""
    gpus: int = 8
    """That one training is spread over."""
    gpu_memory: float = 80.0
    """Of one GPU, in GB of a thousand million bytes."""
    machine_memory: float | None = None
    """Of one machine itself, in GB, which holds what is offloaded, and models while they are read and saved; None: as a
    cloud's usual machine with such GPUs has, which is named."""
    gpus_a_machine: int | None = None
    """That share a machine's memory; None: as many as that machine has."""
    dtype: TrainDtype = "auto"
    """Of weights and arithmetic. `auto`: bfloat16, which a GPU of compute capability 8.0 or later takes (A10G, L4,
    A100, H100); older ones (V100, T4) take float32."""
    rows_at_once: int = 16
    """Rows that one GPU takes through the model at once, where the batch of the preset `large` has so many for each."""
    questions: int = 98_029
    """To annotate."""
    trainings: int = 17
    """Fine-tuning runs."""
    epochs: int = 50
    """Of each run."""
    train_rows: int = 6_142
    """Rows of a fine-tuning set."""
    asked_rows: int = 32_932
    """Questions asked after each epoch: those of the fine-tuning set, dev, test and ood."""
    probe: str = ""
    """A study whose speeds are taken; a path or a URI."""
    price: float = 0.0
    """Of one GPU-hour; 0: no cost is told."""

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
        """The GPUs in their machines: as told, and where nothing is, as a cloud lends them."""
        machine = default_machine_type(self.gpu_memory)
        if self.machine_memory is not None or self.gpus_a_machine is not None:
            machine = MachineType(
                gpus=self.gpus_a_machine or machine.gpus, memory=self.machine_memory or machine.memory, name=""
            )
        return Fleet(gpus=self.gpus, gpu_memory=self.gpu_memory, machine=machine)


def main(argv: Sequence[str]) -> None:
    """Parse, compute, print."""
    if is_help_command(argv):
        print(f"{(__doc__ or '').strip()}\n")
    print("\n".join(plan(parse_config(PlanConfig(), argv, "slick plan", ()))))


def plan(config: PlanConfig) -> Iterator[str]:
    """The plan, line by line.

    Raises:
        SettingsError: no model is named, or two; or its shape cannot be told.
        StudyError: the probe was not timed.
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
    """The shape of the model that is named.

    Raises:
        SettingsError: none is, or two are.
        ModelError: it cannot be found.
    """
    if bool(config.model_size) == bool(config.model):
        raise SettingsError("slick plan needs --model-size SIZE (such as 7B) or --model FOLDER_OR_ID, and one of them")
    if config.model_size:
        return published_shape(config.model_size)
    ref = resolve_model(config.model)
    if ref.gguf_file:
        raise SettingsError(
            f"{config.model} is a GGUF file; give --model-size, or the folder of the model it was made of"
        )
    return shape_from_config(read_config(ref.folder), config.model)


def _annotation_lines(shape: ModelShape, config: PlanConfig) -> Iterator[str]:
    dtype, room = config.planned_dtype, (1 - HEADROOM) * config.gpu_memory * GB
    weights, a_token = dtype_bytes(dtype) * shape.parameters, shape.kv_bytes_per_token(dtype)
    flag = "" if dtype == resolve_dtype(AUTO, ASSUMED_GPU) else f" --dtype {dtype}"
    a_question = a_token * (10 * _PROMPT_TOKENS + 170 * _ANSWER_TOKENS)
    needed = next((gpus for gpus in (1, 2, 4, 8, 16) if weights / gpus < 0.8 * room), None)
    yield (
        f"Annotation, {dtype}: weights {weights / GB:.1f} GB, {a_token / 1024:.0f} KiB of keys and values a token; a "
        f"question and its 170 answers, nothing shared, {a_question / GB:.2f} GB"
    )
    if needed == 1:
        left = (room - weights) / a_question
        yield f"One GPU an actor: slick annotate paper --gpus-per-actor 1{flag}; room for {left:,.0f} questions at once"
    elif needed is None:
        yield "It does not fit 16 such GPUs with room for keys and values; take GPUs with more memory."
    else:
        yield f"{needed} GPUs an actor, by vLLM: slick annotate paper --engine vllm --gpus-per-actor {needed}{flag}"


def _time_lines(shape: ModelShape, config: PlanConfig, rates: Throughput | None) -> Iterator[str]:
    generations = config.questions * (rates.answers_per_question if rates else 170)
    yield (
        f"Work: {config.questions:,} questions, {generations / 1e6:,.1f} million answers; {config.trainings} trainings "
        f"x {config.epochs} epochs, {config.train_rows:,} rows trained and {config.asked_rows:,} asked in each"
    )
    if rates is None:
        yield "Hours: give --probe STUDY, a small study made on such machines, and its speeds are taken."
        return
    answers = rates.estimate_annotation_seconds(config.questions, shape.parameters) / 3600
    epochs = rates.estimate_training_seconds(
        config.trainings * config.epochs, config.train_rows, config.asked_rows, shape.parameters
    )
    scaled = shape.parameters / rates.parameters
    yield (
        f"Measured: {rates.answers_per_second:,.0f} answers a second and actor"
        + (
            f", {rates.train_rows_per_second:,.1f} rows trained a second and worker"
            if rates.train_rows_per_second
            else ""
        )
        + (
            f"; taken {scaled:,.1f} times as slow for {scaled:,.1f} times the parameters"
            if abs(scaled - 1) > 0.05
            else ""
        )
    )
    if not 1 / MAX_SCALE_FACTOR <= scaled <= MAX_SCALE_FACTOR:
        least = shape.parameters / MAX_SCALE_FACTOR / GB
        yield f"Such a proportion is a guess: probe a model of {least:,.2g} billion parameters or more."
    yield f"Annotation: {answers:,.1f} hours of one actor{_cost(answers, config)}"
    if epochs is None:
        yield "Trainings: the probe has no finished training; finetune one variant there for an epoch."
    else:
        yield f"Trainings: {epochs / 3600:,.1f} hours of one worker{_cost(epochs / 3600, config)}"


def _cost(hours: float, config: PlanConfig) -> str:
    return f", {hours * config.price:,.0f} at {config.price:g} an hour" if config.price else ""


if __name__ == "__main__":
    run_main(main)
