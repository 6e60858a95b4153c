"""Estimated memory of a training worker and its node, from the shape of the model and the settings. Pure.

`tests/local/test_memory.py` compares the estimate with measurements: the bytes of all tensors that are alive before an
optimizer step under ZeRO stages 0, 2 and 3, of all tensors that a forward pass keeps for the backward pass, and of the
weights that are gathered to be saved. The estimate excludes fragmentation of the allocator and memory of libraries, for
which `TrainingMemory.insufficient` reserves a share.
"""

from dataclasses import dataclass

from slick.precision import dtype_bytes
from slick.shapes import ModelShape
from tuning.config import TrainConfig
from tuning.zero import BUCKET_SIZE, MAX_LIVE_PARAMETERS

HEADROOM = 0.1
"""Share of GPU memory and of a node's memory to leave free; Ray kills processes at 95 % of a node's memory."""

TOKENS_PER_ROW = 24
"""Mean tokens of prompt and answer in the closed-book format on EntityQuestions; tokenizers differ by a few."""
ANSWER_TOKENS_PER_ROW = 5


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
    weights = width * (trained + frozen) // shards[3]
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
        loading=0 if stage == 3 else width * shape.parameters,
        saving=width * shape.parameters,
    )


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
