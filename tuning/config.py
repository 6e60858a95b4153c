"""The settings of one fine-tuning. No heavy imports: `--help` reads this."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from slick.errors import SettingsError
from slick.matching import Matcher
from slick.precision import TrainDtype
from slick.settings import identity_settings, register_settings, setting


@register_settings("finetune")
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a model is fine-tuned on one variant; the paper's settings where it states any (arXiv:2405.05904, E).

    How rows are spread over workers affects cost alone: it changes the order in which the same numbers are added up and
    which dropout masks are drawn. Results are equal in law, and without dropout equal up to rounding.
    """

    variant: str = setting("unknown-050", "result")
    """Name of a fine-tuning set in the study's variants/ folder."""
    seed: int = setting(0, "seed")
    """Of the order of the rows and of dropout."""
    model: str = setting("", "content")
    """Hugging Face id or folder of the base model; empty for the one of the study's own world."""
    epochs: int = setting(50, "length")
    """Passes over the variant; the model is evaluated after each."""
    learning_rate: float = setting(1e-5, "result")
    """Of AdamW, at its peak."""
    schedule: Literal["constant", "linear", "cosine"] = setting("constant", "result")
    """Of the learning rate after the warm-up; `linear` and `cosine` fall to 0 at the last step."""
    warmup_steps: int = setting(0, "result")
    """Steps in which the learning rate rises linearly from 0."""
    batch_size: int = 128
    """Rows in one optimizer step, over all workers; the last batch of an epoch may be smaller."""
    micro_batch_size: int | None = setting(None, "cost")
    """Rows that one worker takes through the model at once; None: its whole part of the batch."""
    packing: bool = setting(True, "cost")
    """Put the rows of a micro batch one behind the other, none seeing another, so that no padding is computed; a model
    that cannot do it is given padded rows, and a line says so."""
    activation_checkpointing: bool = setting(False, "cost")
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    weight_decay: float = setting(0.0, "result")
    """Of AdamW; the paper does not state it."""
    max_grad_norm: float = setting(1.0, "result")
    """Gradients are scaled down to this norm; 0 for no limit. The paper does not state it."""
    dropout: float = 0.05
    """Put into every dropout that the architecture has, and into LoRA's; models of the Llama family have it on
    attention alone."""
    trainable: Literal["all", "attention", "ffn"] = "all"
    """Which layers are trained, the rest being frozen: all, or those of attention or of feed-forward blocks alone, as
    arXiv:2604.15574 compares them."""
    lora_rank: int = 0
    """Rank of LoRA on the linear layers of what is trainable (arXiv:2106.09685); 0: weights themselves are trained."""
    lora_alpha: float | None = setting(None, "result")
    """LoRA's products are scaled by this over the rank; None: twice the rank."""
    replay_known: int = setting(0, "result")
    """Known train rows, from outside the variant where there are enough, that are trained on after all others of the
    last epoch (KnownPatch, arXiv:2511.02626)."""
    distill_weight: float = 0.0
    """Weight of a second loss, which keeps answers near those of the frozen model the training began from: the KL
    divergence of its next-token distribution from the trained model's, on answer tokens (arXiv:2604.15574 has 1). The
    frozen model is a whole copy on every worker, but with LoRA, which needs none."""
    distill_temperature: float = setting(0.5, "result")
    """At which both distributions are compared."""
    dtype: TrainDtype = "auto"
    """Of weights in the forward and backward pass; `bfloat16` keeps a float32 copy for the optimizer. `auto`: the dtype
    in which the training, or the sweep, was begun, else bfloat16 on a GPU that computes it and float32 elsewhere."""
    matcher: Matcher = setting("exact", "result")
    """How a generated answer is compared with the gold answers."""
    max_new_tokens: int = 32
    """Tokens after which an evaluated answer is cut off."""
    loss_of_all: bool = False
    """Compute the loss of dev, test and ood targets too, not of train targets alone: one more forward pass over them,
    which saves generating those that are right."""
    keep_checkpoints: Literal["both", "best", "last", "none"] = setting("both", "result")
    """Which checkpoints are left in the run's folder: of the best dev epoch, of the last epoch."""
    zero_stage: int = setting(0, "cost")
    """DeepSpeed ZeRO: 0 nothing is sharded, 1 optimizer states, 2 and gradients, 3 and parameters."""
    offload: Literal["none", "optimizer", "all"] = setting("none", "cost")
    """What is kept in the machine's memory instead of the GPU's: states of the optimizer (ZeRO 1 to 3), or parameters
    too (ZeRO 3)."""
    num_workers: int = setting(1, "cost")
    """Processes that share each batch."""
    min_workers: int | None = setting(None, "cost")
    """Start with as few workers as this if the cluster holds no more, and go on with fewer when machines are lost;
    None: always `num_workers`."""
    gpus_per_worker: float | None = setting(None, "cost")
    """0 or 1, or for one worker a part of a GPU that several trainings share; None: 1 where the cluster has GPUs."""
    eval_batch_size: int | None = setting(None, "cost")
    """Rows that one worker evaluates at once; None: 512, and where answers are generated on a GPU as many as fit."""
    state_share: float = setting(0.05, "cost")
    """Share of the time that may be spent on saving the state from which an interrupted training goes on; it is saved
    after as many epochs as that allows. 0: never, so it begins again."""
    keep_state: bool = setting(False, "nothing")
    """Leave the last state in the run's folder, of about 12 bytes a trained parameter, so that more epochs later go on
    from it; without it they begin again."""
    max_failures: int = setting(3, "nothing")
    """Times that a training goes on from one and the same state after a worker or a machine was lost: with every state
    it saves the count begins anew. Machines that were taken back with notice are not counted."""
    track: tuple[Literal["mlflow", "wandb"], ...] = setting((), "nothing")
    """Where curves are sent, beside the TensorBoard files in the run's folder."""
    max_set_aside_share: float = setting(0.01, "nothing")
    """Rows that are too long for the model's context are neither trained on nor evaluated, but listed in the run's
    set_aside.parquet. Above this share of all rows the training stops."""
    allow_other_model: bool = setting(False, "nothing")
    """Train a model other than the one whose knowledge the variants were drawn from."""
    trust_remote_code: bool = setting(False, "nothing")
    """Run code that comes with the model."""
    wait_for_nodes: bool = setting(False, "nothing")
    """Ask for more workers than the cluster holds now, and wait for its autoscaler."""

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_choices(self)
        _check_combinations(self)
        rows = self.num_workers * (self.micro_batch_size or 1)
        if self.batch_size % rows:
            raise SettingsError(
                f"a batch of {self.batch_size} rows cannot be shared by {self.num_workers} workers"
                + (f" in micro batches of {self.micro_batch_size}" if self.micro_batch_size else "")
                + f"; make batch_size a multiple of {rows}"
            )

    def micro_batch_size_per_worker(self, num_workers: int) -> int:
        """Rows that one of `num_workers` takes through the model at once."""
        part = -(-self.batch_size // num_workers)
        return min(self.micro_batch_size or part, part)

    def gradient_accumulation_steps(self, num_workers: int) -> int:
        """Micro batches whose gradients make one optimizer step."""
        return -(-self.batch_size // (self.micro_batch_size_per_worker(num_workers) * num_workers))

    @property
    def epoch_dependence_reason(self) -> str:
        """Why a short training is not the beginning of a longer one; empty if it is."""
        if self.schedule != "constant":
            return f"schedule {self.schedule} lowers the learning rate towards the last epoch"
        if self.replay_known:
            return f"{self.replay_known} Known rows are replayed in the last epoch"
        return ""

    def identity(self) -> dict[str, object]:
        """The settings that change results; the number of epochs only where they depend on it."""
        return identity_settings(self) | ({"epochs": self.epochs} if self.epoch_dependence_reason else {})


def _check_numbers(config: TrainConfig) -> None:
    lowest = {
        "seed": 0, "epochs": 1, "batch_size": 1, "num_workers": 1, "eval_batch_size": 1, "max_new_tokens": 1,
        "warmup_steps": 0, "learning_rate": 0.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "micro_batch_size": 1,
        "lora_rank": 0, "lora_alpha": 0.0, "replay_known": 0, "distill_weight": 0.0, "min_workers": 1,
        "max_failures": 0,
    }  # fmt: skip
    for name, least in lowest.items():
        value = getattr(config, name)
        if value is not None and not (value >= least and math.isfinite(value)):
            raise SettingsError(f"{name} must be {least} or more, got {value}")
    if not 0.0 <= config.dropout < 1.0:
        raise SettingsError(f"dropout is a share in [0, 1), got {config.dropout}; 5 percent is 0.05")
    if not 0.0 <= config.state_share <= 1.0:
        raise SettingsError(f"state_share is a share in [0, 1], got {config.state_share}; 5 percent is 0.05")
    if not 0.0 <= config.max_set_aside_share <= 1.0:
        raise SettingsError(
            f"max_set_aside_share is a share in [0, 1], got {config.max_set_aside_share}; 1 percent is 0.01"
        )
    if not (config.distill_temperature > 0 and math.isfinite(config.distill_temperature)):
        raise SettingsError(f"distill_temperature must be above 0, got {config.distill_temperature}")
    if config.zero_stage not in (0, 1, 2, 3):
        raise SettingsError(f"zero_stage is 0, 1, 2 or 3, got {config.zero_stage}")
    gpus = config.gpus_per_worker
    if gpus is not None and (not 0 <= gpus <= 1 or (0 < gpus < 1 and config.num_workers > 1)):
        raise SettingsError(
            f"gpus_per_worker is 0 or 1, or for one worker a part of 1, got {gpus} for {config.num_workers} workers; "
            "for more GPUs raise num_workers"
        )


def _check_choices(config: TrainConfig) -> None:
    for name, allowed in (
        ("schedule", ("constant", "linear", "cosine")),
        ("dtype", get_args(TrainDtype)),
        ("keep_checkpoints", ("both", "best", "last", "none")),
        ("trainable", ("all", "attention", "ffn")),
        ("offload", ("none", "optimizer", "all")),
        ("matcher", get_args(Matcher)),
    ):
        if getattr(config, name) not in allowed:
            raise SettingsError(f"{name} is one of {', '.join(allowed)}, got {getattr(config, name)!r}")
    unknown = set(config.track) - {"mlflow", "wandb"}
    if unknown:
        raise SettingsError(f"track knows mlflow and wandb, got {', '.join(sorted(unknown))}")


def _check_combinations(config: TrainConfig) -> None:
    least = {"none": 0, "optimizer": 1, "all": 3}[config.offload]
    if config.zero_stage < least:
        raise SettingsError(
            f"offload {config.offload} needs ZeRO stage {least} or more, got stage {config.zero_stage}; "
            f"give --zero-stage {least} or --offload none"
        )
    if config.lora_alpha is not None and not config.lora_rank:
        raise SettingsError(f"lora_alpha is {config.lora_alpha}, but lora_rank is 0, so there is no LoRA to scale")
    if config.min_workers is not None and config.min_workers > config.num_workers:
        raise SettingsError(
            f"min_workers is {config.min_workers}, more than num_workers, which is {config.num_workers}"
        )


def learning_rate_at(config: TrainConfig, step: int, num_steps: int) -> float:
    """Learning rate of an optimizer step.

    Args:
        step: from 0.
        num_steps: of the whole training.

    >>> [learning_rate_at(TrainConfig(learning_rate=1.0, schedule="linear", warmup_steps=2), s, 6) for s in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    share = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[config.schedule]
    return config.learning_rate * share
