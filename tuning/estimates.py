"""Estimates for `slick plan`: shapes of models, memory of a training, hours from measured rates, cloud instances. Pure.

Shapes are from the config.json of published models; tests compare their parameter counts with the published ones.

`tests/local/test_memory.py` compares the memory with measurements: the bytes of all tensors that are alive before an
optimizer step under ZeRO stages 0, 2 and 3, of all tensors that a forward pass keeps for the backward pass, and of the
weights that are gathered to be saved. The estimate excludes fragmentation of the allocator and memory of libraries, for
which `TrainingMemory.insufficient` reserves a share.

Memory sizes of instances are nominal, in units of 10^9 bytes. Vendors count in GiB, which is 7 % more; that difference
is reserved for the system.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slick.errors import SettingsError, StudyError
from slick.model_files import read_config, text_config
from slick.models import resolve_model, resolve_study_model
from slick.precision import dtype_bytes
from slick.quantization import bytes_per_weight
from slick.storage import Folder
from slick.study import Manifest, read_manifest, require_manifest
from tuning.config import TrainConfig
from tuning.deepspeed_config import BUCKET_SIZE, MAX_LIVE_PARAMETERS

HEADROOM = 0.1
"""Share of GPU memory and of a node's memory to leave free; Ray kills processes at 95 % of a node's memory."""

TOKENS_PER_ROW = 24
"""Mean tokens of prompt and answer in the closed-book format on EntityQuestions; tokenizers differ by a few."""
ANSWER_TOKENS_PER_ROW = 5

PROMPT_TOKENS_PER_QUESTION, ANSWER_TOKENS_PER_QUESTION = 10 * 82, 170 * 5
"""Tokens of the 10 prompts of a question, each with 4 examples, and of its 170 answers, on EntityQuestions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes in a model's config.json. Parameter counts omit biases and norms of attention heads, about 0.1 %."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Size of the feed-forward layer, which has three matrices: gate, up and down."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Size of one attention head."""
    vocab_size: int
    tie_word_embeddings: bool
    """Input and output embeddings share one matrix."""

    @property
    def attention(self) -> int:
        """Parameters of the attention of one layer."""
        return self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)

    @property
    def feed_forward(self) -> int:
        """Parameters of one feed-forward layer."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def embeddings(self) -> int:
        """Parameters of the embeddings."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        """All parameters."""
        norms = self.hidden_size * (2 * self.num_layers + 1)
        return self.embeddings + norms + self.num_layers * (self.attention + self.feed_forward)

    def lora_parameters(self, rank: int, part: str = "all") -> int:
        """LoRA parameters of this rank on the linear layers of `all`, `attention` or `ffn`."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = 2 * (self.hidden_size + heads) + 2 * (self.hidden_size + kv_heads)
        ffn = 3 * (self.hidden_size + self.intermediate_size)
        return rank * self.num_layers * {"all": attention + ffn, "attention": attention, "ffn": ffn}[part]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype_bytes(dtype)

    def kv_bytes_per_question(self, dtype: str) -> int:
        """Bytes of the keys and values of a question's prompts and answers, if they share no prefixes."""
        return self.kv_bytes_per_token(dtype) * (PROMPT_TOKENS_PER_QUESTION + ANSWER_TOKENS_PER_QUESTION)


def _shape(*values: Any) -> ModelShape:
    """A shape from the values of its fields, in their order."""
    return ModelShape(**dict(zip(ModelShape.__slots__, values, strict=True)))


SHAPES = {
    "135M": _shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, True),
    "360M": _shape("SmolLM2-360M", 32, 960, 2560, 15, 5, 64, 49152, True),
    "1B": _shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, True),
    "1.7B": _shape("SmolLM2-1.7B", 24, 2048, 8192, 32, 32, 64, 49152, True),
    "3B": _shape("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256, True),
    "7B": _shape("Mistral-7B-v0.3", 32, 4096, 14336, 32, 8, 128, 32768, False),
    "8B": _shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, False),
    "13B": _shape("Llama-2-13B", 40, 5120, 13824, 40, 40, 128, 32000, False),
    "70B": _shape("Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128, 128256, False),
}
"""Published models by size."""


def published_shape(size: str) -> ModelShape:
    """The published model of this size.

    Raises:
        SettingsError: there is none.
    """
    for name, shape in SHAPES.items():
        if size.strip().lower() == name.lower():
            return shape
    raise SettingsError(
        f"--model-size {size} is unknown; choose one of {', '.join(SHAPES)}, or give --model FOLDER, whose "
        "config.json is read"
    )


def model_shape(model: str) -> ModelShape:
    """The shape of a model folder or a Hugging Face id.

    Raises:
        SettingsError: it is a GGUF file, or not a Llama-like decoder.
        ModelError: it cannot be read.
    """
    ref = resolve_model(model)
    if ref.gguf_file:
        raise SettingsError(
            f"{model} is a GGUF file; give --model-size, or the folder of the model from which it was made"
        )
    return shape_from_config(read_config(ref.folder), model)


def check_training_memory(model: str, config: TrainConfig, num_workers: int, device_bytes: int) -> None:
    """Refuse a training whose estimated memory exceeds that of its GPU, before the model is loaded.

    Models whose shape is not known are accepted.

    Args:
        model: folder, hub id or GGUF file.
        config: settings of the training, with a resolved dtype.
        num_workers: workers of the training.
        device_bytes: memory of the worker's GPU, or of its share of one.

    Raises:
        SettingsError: it cannot fit.
    """
    try:
        shape = model_shape(model)
    except SettingsError:
        return
    needed = estimate_training_memory(shape, config, num_workers).peak_device_bytes
    if needed > device_bytes:
        raise SettingsError(
            f"the training of {shape.name} takes about {needed / 1e9:,.1f} GB per worker with {num_workers} workers, "
            f"but a worker has {device_bytes / 1e9:,.1f} GB of GPU memory; use more GPUs, --zero-stage 3, --offload, "
            "--activation-checkpointing, a smaller --micro-batch-size or --lora-rank; `slick plan` compares them"
        )


def shape_from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape in a config.json.

    Raises:
        SettingsError: it does not describe a Llama-like decoder.
    """
    settings = text_config(config)
    try:
        heads = int(settings["num_attention_heads"])
        return _shape(
            name,
            int(settings["num_hidden_layers"]),
            int(settings["hidden_size"]),
            int(settings["intermediate_size"]),
            heads,
            int(settings.get("num_key_value_heads") or heads),
            int(settings.get("head_dim") or int(settings["hidden_size"]) // heads),
            int(settings["vocab_size"]),
            bool(settings.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"config.json of {name} does not describe a Llama-like decoder ({error!s} is missing or no number): "
            f"{json.dumps(dict(settings), default=str)[:200]}; give --model-size, one of {', '.join(SHAPES)}"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes of one worker, by purpose."""

    weights: int
    gathered: int
    """Gathered weights of other workers (ZeRO 3), and communication buffers."""
    gradients: int
    optimizer: int
    """Two moments, and a float32 copy of the weights if training keeps one."""
    activations: int
    """Activations that the forward pass of one micro batch keeps, and the logits of its answer tokens."""
    teacher: int
    """The frozen model for distillation."""
    offloaded: int
    """In CPU memory instead of GPU memory."""
    loading: int
    """The whole model while it is loaded, first in CPU memory, then in GPU memory. 0 under ZeRO 3, which partitions
    weights while it reads them."""
    saving: int
    """Whole weights, in CPU memory of the one node that writes a checkpoint."""

    @property
    def training(self) -> int:
        """Bytes on the GPU at an optimizer step."""
        return self.weights + self.gathered + self.gradients + self.optimizer + self.activations + self.teacher

    @property
    def peak_device_bytes(self) -> int:
        """Peak bytes on the GPU."""
        return max(self.training, self.loading)

    def peak_machine_bytes(self, num_workers: int) -> int:
        """Peak bytes in the memory of the node that writes checkpoints.

        Args:
            num_workers: workers of this training on that node.
        """
        return max(num_workers * self.loading, num_workers * self.offloaded + self.saving)

    def insufficient(self, device_bytes: float, machine_bytes: float, num_workers: int) -> tuple[str, ...]:
        """Which memory is too small, with `HEADROOM` reserved: `GPU`, `machine`, both or neither.

        Args:
            device_bytes: memory of a GPU.
            machine_bytes: memory of a node.
            num_workers: workers of this training on that node.
        """
        peaks = {
            "GPU": (self.peak_device_bytes, device_bytes),
            "machine": (self.peak_machine_bytes(num_workers), machine_bytes),
        }
        return tuple(name for name, (peak, available) in peaks.items() if peak > (1 - HEADROOM) * available)


def estimate_training_memory(
    shape: ModelShape, config: TrainConfig, num_workers: int, *, tokens_per_row: int = TOKENS_PER_ROW
) -> TrainingMemory:
    """The memory of one worker.

    Args:
        shape: shape of the model.
        config: settings of the training, with a resolved dtype.
        num_workers: workers of the training, one per GPU.
        tokens_per_row: tokens of prompt and answer.
    """
    width, stage = dtype_bytes(config.dtype), config.zero_stage
    trained, frozen = _parameter_counts(shape, config)
    shards = {first_stage: num_workers if stage >= first_stage else 1 for first_stage in (1, 2, 3)}
    # Stages 1 to 3 train a flat float32 copy of the weights; stage 0 keeps a copy only of bfloat16 weights.
    copy = 4 if stage or config.dtype == "bfloat16" else 0
    weights = (width * trained + _frozen_bytes(shape, config, frozen)) // shards[3]
    gradients = width * trained // shards[2]
    optimizer = (8 + copy) * trained // shards[1]
    gathered = width * (BUCKET_SIZE + min(shape.parameters, MAX_LIVE_PARAMETERS)) if stage == 3 else 0
    teacher = width * shape.parameters if config.distill_weight and not config.lora_rank else 0
    offloaded = 0
    if config.offload != "none":
        # DeepSpeed accumulates gradients there in float32, in addition to those on the device.
        offloaded, optimizer = optimizer + 4 * trained // num_workers, 0
    if config.offload == "all":
        offloaded, weights = offloaded + weights, 0
    return TrainingMemory(
        weights=weights,
        gathered=gathered,
        gradients=gradients,
        optimizer=optimizer,
        activations=activation_bytes(shape, config, config.micro_batch_size_per_worker(num_workers), tokens_per_row),
        teacher=teacher,
        offloaded=offloaded,
        loading=0 if stage == 3 else _frozen_bytes(shape, config, shape.parameters),
        saving=width * shape.parameters,
    )


def _frozen_bytes(shape: ModelShape, config: TrainConfig, num_parameters: int) -> int:
    """Bytes of weights that are not trained; with quantization, those of the linear layers of decoder blocks shrink."""
    width = dtype_bytes(config.dtype)
    if config.quantization == "none":
        return width * num_parameters
    quantized = shape.num_layers * (shape.attention + shape.feed_forward)
    return round(quantized * bytes_per_weight(config.quantization, width)) + width * (num_parameters - quantized)


def activation_bytes(shape: ModelShape, config: TrainConfig, num_rows: int, tokens_per_row: int) -> int:
    """Bytes that a forward pass keeps for the backward pass, and that the loss of its answer tokens takes.

    Counted by tensor: each norm keeps its input in float32 and its output before scaling; attention keeps its input,
    queries, keys, values and output, once by row and once packed; the feed-forward block keeps its input, gate,
    activated gate, up projection and their product. With activation checkpointing, a layer keeps only its input, and
    one layer at a time keeps all of this.
    """
    width, tokens = dtype_bytes(config.dtype), num_rows * tokens_per_row
    heads, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    norms = 2 * (4 + width) * shape.hidden_size
    layer = tokens * (norms + width * (2 * shape.hidden_size + 3 * heads + 2 * kv + 4 * shape.intermediate_size))
    if config.activation_checkpointing:
        kept = shape.num_layers * tokens * width * shape.hidden_size + layer
    else:
        kept = shape.num_layers * layer
    kept += tokens * (4 + width) * shape.hidden_size  # the norm before the output embedding
    # Log-probabilities and their gradients in float32, and the gradients again in the model's dtype.
    logits = num_rows * ANSWER_TOKENS_PER_ROW * shape.vocab_size * (8 + width)
    return kept + logits


def _parameter_counts(shape: ModelShape, config: TrainConfig) -> tuple[int, int]:
    """Number of trained and of frozen parameters."""
    if config.lora_rank:
        return shape.lora_parameters(config.lora_rank, config.trainable), shape.parameters
    parts = {
        "all": shape.parameters,
        "attention": shape.num_layers * shape.attention,
        "ffn": shape.num_layers * shape.feed_forward,
    }
    return parts[config.trainable], shape.parameters - parts[config.trainable]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Rates of one annotation actor or one training worker, on the machines of the measured study."""

    parameters: int
    """Parameters of its model."""
    answers_per_question: float
    """Greedy and sampled answers; fewer in labels mode."""
    answers_per_second: float
    train_rows_per_second: float | None
    """None if nothing was trained."""
    eval_rows_per_second: float | None
    """Rows evaluated after an epoch; None if nothing was trained."""

    def estimate_annotation_seconds(self, num_questions: int, parameters: int) -> float:
        """Seconds of one actor, for time proportional to the number of parameters."""
        return num_questions * self.answers_per_question / self.answers_per_second * parameters / self.parameters

    def estimate_training_seconds(
        self, num_epochs: int, train_rows: int, eval_rows: int, parameters: int
    ) -> float | None:
        """Seconds of one worker; None if no training was measured.

        Args:
            num_epochs: epochs of the training.
            train_rows: rows trained on per epoch.
            eval_rows: rows evaluated after each epoch.
            parameters: parameters of the model; time is proportional to them.
        """
        if self.train_rows_per_second is None or self.eval_rows_per_second is None:
            return None
        return (
            num_epochs
            * (train_rows / self.train_rows_per_second + eval_rows / self.eval_rows_per_second)
            * parameters
            / self.parameters
        )


def read_throughput(study: Folder) -> Throughput:
    """The rates of a study's annotation and of its finished trainings.

    Raises:
        StudyError: the study has no finished annotation by sampling with a measured time.
        ModelError: its model cannot be found.
    """
    annotated = require_manifest(study.child("annotate"), "annotate")
    counts = annotated.counts
    seconds, answers = float(counts.get("engine_seconds") or 0), int(counts.get("generations") or 0)
    if not (seconds and answers):
        raise StudyError(
            f"{study}/annotate has no measured generation time (engine_seconds {seconds:g}, generations {answers:,}); "
            "annotate some questions with --limit-per-relation and --estimator sampled, and give that folder as --probe"
        )
    runs = [read_manifest(study.child("runs", name)) for name in study.child("runs").folders()]
    timed = [run for run in runs if run is not None and run.counts.get("training_seconds")]
    model = resolve_model(resolve_study_model(study, str(annotated.settings.get("model") or "")))
    config = read_config(model.folder) if model.gguf_file is None else {}
    return Throughput(
        parameters=shape_from_config(config, model.name).parameters,
        answers_per_question=answers / int(annotated.count("questions")),
        answers_per_second=answers / seconds,
        train_rows_per_second=_rows_per_second(timed, _rows_trained, "training_seconds"),
        eval_rows_per_second=_rows_per_second(timed, _rows_evaluated, "evaluation_seconds"),
    )


def _rows_trained(run: Manifest) -> int:
    return int(run.count("train_rows")) * int(run.count("epochs_now"))


def _rows_evaluated(run: Manifest) -> int:
    """Rows evaluated after the epochs of a run; manifests of earlier versions have those of one epoch."""
    counted = run.counts.get("rows_evaluated_now")
    return int(run.count("evaluated_rows")) * int(run.count("epochs_now")) if counted is None else int(counted)


def _rows_per_second(runs: list[Manifest], count_rows: Callable[[Manifest], int], seconds: str) -> float | None:
    """Rows per second of one worker, over all runs."""
    num_rows = sum(map(count_rows, runs))
    worker_seconds = sum(float(run.count(seconds)) * int(run.count("num_workers")) for run in runs)
    return num_rows / worker_seconds if num_rows and worker_seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """A node type of a cluster."""

    gpus: int
    memory: float
    """GB of CPU memory."""
    name: str = ""
    """AWS instance type; empty for a node type that the user described."""

    def workers_per_machine(self, num_workers: int) -> int:
        """Workers of a training on one node, with one GPU per worker and nodes filled one after another."""
        return min(num_workers, self.gpus)

    def num_machines(self, num_workers: int) -> int:
        """Nodes that a training needs."""
        return -(-num_workers // self.gpus)


_DEFAULT_MACHINE_TYPES = (
    (24.0, MachineType(gpus=1, memory=32.0, name="g6.2xlarge")),
    (40.0, MachineType(gpus=8, memory=1_152.0, name="p4d.24xlarge")),
    (80.0, MachineType(gpus=8, memory=1_152.0, name="p4de.24xlarge")),
    (float("inf"), MachineType(gpus=8, memory=2_048.0, name="p5e.48xlarge")),
)
"""Largest GB of a GPU, and the node type for it; the first two are those of cluster.yaml."""


def default_machine_type(gpu_memory: float) -> MachineType:
    """A node type with such GPUs.

    Args:
        gpu_memory: GB per GPU.

    >>> default_machine_type(80.0).memory, default_machine_type(141.0).memory
    (1152.0, 2048.0)
    """
    return next(machine for max_memory, machine in _DEFAULT_MACHINE_TYPES if gpu_memory <= max_memory)
