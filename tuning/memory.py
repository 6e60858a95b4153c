"""What a worker's GPU and its machine must hold in a training, from the shape of the model and the settings. Pure.

Measured beside it: bytes of every tensor that is alive before an optimizer step under ZeRO stages 0, 2 and 3, and of
every tensor that a forward pass keeps for the backward pass, and of the weights that are brought together to be saved
(tests/local/test_memory.py). Not in it: the allocator's fragmentation and what libraries take for themselves, for which
`lacks` leaves room.
"""

from dataclasses import dataclass

from slick.precision import dtype_bytes
from slick.shapes import ModelShape
from tuning.config import TrainConfig
from tuning.zero import BUCKET_SIZE, MAX_LIVE_PARAMETERS

HEADROOM = 0.1
"""Share of a GPU, and of a machine's memory, that is left free; at 95 % of the latter Ray ends processes."""

TOKENS_PER_ROW = 24
"""Of prompt and answer in the closed-book format, on average over EntityQuestions; tokenizers differ by a few."""
ANSWER_TOKENS_PER_ROW = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes of one worker at the moment when all of them are needed, and at those when its machine needs most."""

    weights: int
    gathered: int
    """Copies of weights that other workers hold (ZeRO 3), and buffers to exchange them."""
    gradients: int
    optimizer: int
    """Two moments, and a float32 copy of weights where training keeps one."""
    activations: int
    """What the forward pass of one micro batch keeps, with the logits of its answer tokens."""
    teacher: int
    """The frozen model of distillation."""
    offloaded: int
    """In the machine's memory instead of the GPU's."""
    loading: int
    """While the model is read, before all else: first in the machine's memory, then in the GPU's. 0 under ZeRO 3, which
    spreads weights as they are read from the file."""
    saving: int
    """Whole weights, in the memory of that machine alone which writes a checkpoint, while it does."""

    @property
    def training(self) -> int:
        """On the GPU at an optimizer step: all that is not offloaded."""
        return self.weights + self.gathered + self.gradients + self.optimizer + self.activations + self.teacher

    @property
    def peak_device_bytes(self) -> int:
        """The most that the GPU holds at any moment."""
        return max(self.training, self.loading)

    def peak_machine_bytes(self, num_workers: int) -> int:
        """The most that a machine's memory holds at any moment, on the one that writes checkpoints.

        Args:
            num_workers: of this training on that machine.
        """
        return max(num_workers * self.loading, num_workers * self.offloaded + self.saving)

    def insufficient(self, device_bytes: float, machine_bytes: float, num_workers: int) -> tuple[str, ...]:
        """What is too small to hold it with room to spare: `GPU`, `machine`, both or neither.

        Args:
            device_bytes: memory of a GPU.
            machine_bytes: memory of a machine.
            num_workers: of this training on that machine.
        """
        taken = {
            "GPU": (self.peak_device_bytes, device_bytes),
            "machine": (self.peak_machine_bytes(num_workers), machine_bytes),
        }
        return tuple(name for name, (needed, there) in taken.items() if needed > (1 - HEADROOM) * there)


def estimate_training_memory(
    shape: ModelShape, config: TrainConfig, num_workers: int, *, tokens_per_row: int = TOKENS_PER_ROW
) -> TrainingMemory:
    """The memory of one of `num_workers`.

    Args:
        shape: of the model.
        config: of the training, its dtype resolved.
        num_workers: GPUs that share it.
        row_tokens: tokens of a row, prompt and answer.
    """
    width, stage = dtype_bytes(config.dtype), config.zero_stage
    trained, frozen = _parameter_counts(shape, config)
    split = {at: num_workers if stage >= at else 1 for at in (1, 2, 3)}
    # Stages 1 to 3 train a copy of the weights, flat and in float32; without them only bfloat16 weights need one.
    copy = 4 if stage or config.dtype == "bfloat16" else 0
    weights = width * (trained + frozen) // split[3]
    gradients = width * trained // split[2]
    optimizer = (8 + copy) * trained // split[1]
    gathered = width * (BUCKET_SIZE + min(shape.parameters, MAX_LIVE_PARAMETERS)) if stage == 3 else 0
    teacher = width * shape.parameters if config.distill_weight and not config.lora_rank else 0
    offloaded = 0
    if config.offload != "none":
        # DeepSpeed adds gradients up in float32 there, from those that the device holds.
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
    """What a forward pass keeps for the backward pass, and what the loss of its answer tokens takes.

    Counted by tensor: each norm keeps its input in float32 and its output before the scale; attention its input,
    queries, keys, values and output, once laid out by row and once flat; the feed-forward block its input, gate,
    activated gate, up and their product. With checkpointing a layer keeps its input alone, and one layer at a time
    all of this.
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
    # Log-probabilities and their gradients in float32, and the gradients once more in the model's own type.
    logits = num_rows * ANSWER_TOKENS_PER_ROW * shape.vocab_size * (8 + width)
    return kept + logits


def _parameter_counts(shape: ModelShape, config: TrainConfig) -> tuple[int, int]:
    """Numbers of parameters that are trained, and that are frozen."""
    if config.lora_rank:
        return shape.lora_parameters(config.lora_rank, config.trainable), shape.parameters
    parts = {
        "all": shape.parameters,
        "attention": shape.num_layers * shape.attention,
        "ffn": shape.num_layers * shape.feed_forward,
    }
    return parts[config.trainable], shape.parameters - parts[config.trainable]
