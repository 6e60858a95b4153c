"""What one worker's memory must hold in a training, from the shape of the model and the settings. Pure.

Measured beside it: bytes of every tensor that is alive before an optimizer step under ZeRO stages 0, 2 and 3, and of
every tensor that a forward pass keeps for the backward pass (tests/local/test_memory.py). Not in it: the allocator's
fragmentation and what libraries take for themselves, for which `fits` leaves room.
"""

from dataclasses import dataclass, fields

from slick.shapes import BYTES, ModelShape
from tuning.config import TrainConfig
from tuning.zero import BUCKET, MOST_GATHERED

ROOM = 0.1
"""Share of a GPU that is left free."""

TOKENS_A_ROW = 24
"""Of prompt and answer in the closed-book format, on average over EntityQuestions; tokenizers differ by a few."""
ANSWER_TOKENS_A_ROW = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes in one worker at the moment when all of them are needed."""

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

    @property
    def on_device(self) -> int:
        """All that is not offloaded."""
        return sum(int(getattr(self, field.name)) for field in fields(self)) - self.offloaded

    def fits(self, device_bytes: float) -> bool:
        """True if a device of this size holds it with room to spare."""
        return self.on_device <= (1 - ROOM) * device_bytes


def training_memory(
    shape: ModelShape, config: TrainConfig, num_workers: int, *, row_tokens: int = TOKENS_A_ROW
) -> TrainingMemory:
    """The memory of one of `num_workers`.

    Args:
        shape: of the model.
        config: of the training.
        num_workers: GPUs that share it.
        row_tokens: tokens of a row, prompt and answer.
    """
    width, stage = BYTES[config.dtype], config.zero_stage
    trained, frozen = _trained(shape, config)
    split = {at: num_workers if stage >= at else 1 for at in (1, 2, 3)}
    # Stages 1 to 3 train a copy of the weights, flat and in float32; without them only bfloat16 weights need one.
    copy = 4 if stage or config.dtype == "bfloat16" else 0
    weights = width * (trained + frozen) // split[3]
    gradients = width * trained // split[2]
    optimizer = (8 + copy) * trained // split[1]
    gathered = width * (BUCKET + min(shape.parameters, MOST_GATHERED)) if stage == 3 else 0
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
        activations=activation_bytes(shape, config, config.micro_rows(num_workers), row_tokens),
        teacher=teacher,
        offloaded=offloaded,
    )


def activation_bytes(shape: ModelShape, config: TrainConfig, num_rows: int, row_tokens: int) -> int:
    """What a forward pass keeps for the backward pass, and what the loss of its answer tokens takes.

    Counted by tensor: each norm keeps its input in float32 and its output before the scale; attention its input,
    queries, keys, values and output, once laid out by row and once flat; the feed-forward block its input, gate,
    activated gate, up and their product. With checkpointing a layer keeps its input alone, and one layer at a time
    all of this.
    """
    width, tokens = BYTES[config.dtype], num_rows * row_tokens
    heads, kv = shape.num_heads * shape.head, shape.num_kv_heads * shape.head
    norms = 2 * (4 + width) * shape.hidden
    layer = tokens * (norms + width * (2 * shape.hidden + 3 * heads + 2 * kv + 4 * shape.ffn))
    if config.activation_checkpointing:
        kept = shape.num_layers * tokens * width * shape.hidden + layer
    else:
        kept = shape.num_layers * layer
    kept += tokens * (4 + width) * shape.hidden  # the norm before the output embedding
    # Log-probabilities and their gradients in float32, and the gradients once more in the model's own type.
    logits = num_rows * ANSWER_TOKENS_A_ROW * shape.vocabulary * (8 + width)
    return kept + logits


def _trained(shape: ModelShape, config: TrainConfig) -> tuple[int, int]:
    """Numbers of parameters that are trained, and that are frozen."""
    if config.lora_rank:
        return shape.lora_parameters(config.lora_rank, config.trainable), shape.parameters
    parts = {
        "all": shape.parameters,
        "attention": shape.num_layers * shape.attention,
        "ffn": shape.num_layers * shape.feed_forward,
    }
    return parts[config.trainable], shape.parameters - parts[config.trainable]
