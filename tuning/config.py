"""Settings of one fine-tuning. No heavy imports: `--help` reads this module."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from slick.errors import SettingsError
from slick.matching import MATCHERS, make_matcher
from slick.precision import TrainDtype
from slick.prompt_formats import parse_template_arguments
from slick.quantization import Quantization
from slick.settings import check_settings, identity_settings, register_settings, setting

TrackerName = Literal["mlflow", "wandb"]


def _evaluates_needed(values: Mapping[str, Any]) -> bool:
    return bool(values.get("evaluate", "all") == "needed")


@register_settings("finetune")
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a model is fine-tuned on one variant; the paper's settings where it states any (arXiv:2405.05904, E).

    The number of workers and the micro batch size change the order in which the same numbers are summed and which
    dropout masks are drawn. Results follow the same distribution, and without dropout they are equal up to rounding.
    """

    variant: str = setting("unknown-050", "result")
    """Name of a fine-tuning set in the study's variants/ folder."""
    seed: int = setting(0, "seed", minimum=0)
    """Seed of the row order and of dropout."""
    model: str = setting("", "content")
    """Hugging Face id or folder of the base model; empty for the model of the study's own world."""
    epochs: int = setting(50, "length", minimum=1)
    """Passes over the variant; the model is evaluated after each (see `evaluate`)."""
    learning_rate: float = setting(1e-5, "result", minimum=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = setting("constant", "result")
    """Learning rate after the warm-up; `linear` and `cosine` fall to 0 at the last step."""
    warmup_steps: int = setting(0, "result", minimum=0)
    """Steps in which the learning rate rises linearly from 0."""
    batch_size: int = setting(128, minimum=1)
    """Rows per optimizer step, over all workers; the last batch of an epoch may be smaller."""
    micro_batch_size: int | None = setting(None, "cost", minimum=1)
    """Rows per forward pass of one worker; None: its whole share of the batch."""
    packing: bool = setting(True, "cost")
    """Concatenate the rows of a micro batch into one sequence without padding; attention stays within each row. Models
    that do not support it get padded rows, and a line says so."""
    attention: str = setting("", "cost")
    """Attention kernel of the training by its name in transformers, such as `flash_attention_2`, `sdpa` or `eager`;
    results are equal up to rounding. Flash kernels get packed rows with their boundaries, others padded rows. Empty:
    slick's own, which packs rows. Answers are generated with slick's own in any case."""
    liger: bool = setting(False, "cost")
    """Use Liger's fused kernels for norms, rotary positions and feed-forward blocks; equal up to rounding. Needs a GPU
    and the package liger-kernel."""
    activation_checkpointing: bool = setting(False, "cost")
    """Recompute activations in the backward pass: less memory, a third more time."""
    weight_decay: float = setting(0.0, "result", minimum=0)
    """Weight decay of AdamW; not stated in the paper."""
    max_grad_norm: float = setting(1.0, "result", minimum=0)
    """Gradients are clipped to this norm; 0: no clipping. Not stated in the paper."""
    dropout: float = setting(0.05, minimum=0, below=1, only_zero_changes_cost=True)
    """Rate of every dropout that the architecture has, and of LoRA's; models of the Llama family have dropout in
    attention only."""
    trainable: Literal["all", "attention", "ffn"] = "all"
    """Which layers are trained, the rest being frozen: all, or only those of attention or feed-forward blocks, as
    arXiv:2604.15574 compares them."""
    lora_rank: int = setting(0, minimum=0)
    """Rank of LoRA on the linear layers of what is trainable (arXiv:2106.09685); 0: full fine-tuning."""
    lora_alpha: float | None = setting(None, "result", minimum=0)
    """LoRA scales its update by this over the rank; None: twice the rank."""
    quantization: Quantization = setting("none", when=lambda values: values["quantization"] != "none")
    """Keep the frozen base weights of linear layers in 8 bits (LLM.int8) or 4 bits (NF4, as in QLoRA) while LoRA is
    trained. Needs bitsandbytes. Checkpoints hold dequantized weights, with LoRA merged."""
    replay_known: int = setting(0, "result", minimum=0)
    """Known train rows, preferably from outside the variant, that are trained on after all others in the last epoch
    (KnownPatch, arXiv:2511.02626)."""
    distill_weight: float = setting(0.0, minimum=0, only_zero_changes_cost=True)
    """Weight of a distillation loss that keeps answers close to the frozen base model: the KL divergence between its
    next-token distribution and the trained model's, on answer tokens (arXiv:2604.15574 uses 1). Every worker holds a
    copy of the frozen model, except with LoRA, which needs none."""
    distill_temperature: float = setting(0.5, "result", above=0)
    """Temperature of both distributions."""
    dtype: TrainDtype = "auto"
    """Dtype of the weights in the forward and backward pass; `bfloat16` keeps a float32 copy for the optimizer. `auto`:
    the dtype in which the training or the sweep began, else bfloat16 on GPUs that support it and float32 elsewhere."""
    prompt_format: Literal["qa", "chat"] = setting("qa", when=lambda values: values["prompt_format"] != "qa")
    """`qa`: the paper's closed-book prompt. `chat`: the model's chat template with the question's own system message
    and earlier turns; targets end with the end of the turn. For training and evaluation."""
    template_arguments: str | None = setting(None, when=lambda values: bool(values["template_arguments"]))
    """JSON object of arguments for the chat template; switches of reasoning are off by default."""
    matcher: str = setting("exact", "result", registry=MATCHERS)
    """How a generated answer is compared with the gold answers. In a shell, quote names such as 'f1>=0.7'."""
    max_length: int | None = setting(None, when=lambda values: values["max_length"] is not None, minimum=2)
    """Most tokens of a row's prompt and target; None: no limit but the model's context, which must also hold the prompt
    and `max_new_tokens`. For longer rows see `long_rows`."""
    long_rows: Literal["set-aside", "truncate"] = setting(
        "set-aside", when=lambda values: values["long_rows"] != "set-aside"
    )
    """`set-aside`: rows that are too long are neither trained on nor evaluated, but listed in the run's
    set_aside.parquet. `truncate`: training targets are cut to the length, without their end token, and their number is
    stored; rows whose prompts alone have as many tokens are set aside."""
    max_new_tokens: int = setting(32, minimum=1)
    """Maximum number of tokens of an evaluated answer."""
    loss_of_all: bool = False
    """Compute the loss of dev, test and ood targets too, not only of train targets: one more forward pass over them,
    after which correct ones need no generation."""
    evaluate: Literal["all", "needed"] = setting("all", "evaluations", "cost", when=_evaluates_needed)
    """`all`: evaluate all rows after every epoch. `needed`: test and out-of-distribution rows only after epochs that
    budgets and stopping policies select, each new best dev epoch, the last epoch, and every `evaluate_stride`-th. The
    weights and the stored results are the same; sections of the report that need every epoch state it."""
    evaluate_stride: int = setting(5, "evaluations", "cost", when=_evaluates_needed, minimum=0)
    """With `evaluate` needed: evaluate all rows after every epoch that is a multiple of this, for the linear model of
    test accuracy; 0: after no further epochs."""
    keep_checkpoints: Literal["both", "best", "last", "none"] = setting("both", "result")
    """Checkpoints to keep in the run's folder: of the best dev epoch, of the last epoch."""
    zero_stage: int = setting(0, "cost", minimum=0, maximum=3)
    """DeepSpeed ZeRO: 0 shards nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
    offload: Literal["none", "optimizer", "all"] = setting("none", "cost")
    """What is kept in CPU memory instead of GPU memory: optimizer states (ZeRO 1 to 3), or parameters too (ZeRO 3)."""
    cpu_adam: bool = setting(False, "cost")
    """With offload, update the weights by DeepSpeed's AdamW in C++ instead of PyTorch's; equal up to rounding. It is
    compiled on first use, in a minute or two, and needs a C++ compiler and ninja on every node."""
    deepspeed: str = setting("", "content")
    """Path or URI of a DeepSpeed JSON file with further entries, such as bucket sizes of ZeRO. Entries that other
    settings determine may be `auto` or equal to them."""
    num_workers: int = setting(1, "cost", minimum=1)
    """Processes that share each batch."""
    min_workers: int | None = setting(None, "cost", minimum=1)
    """Start with as few workers as this if the cluster has no more, and continue with fewer when nodes are lost; None:
    always `num_workers`."""
    gpus_per_worker: float | None = setting(None, "cost")
    """0 or 1, or for one worker a fraction of a GPU that several trainings share; None: 1 where the cluster has
    GPUs."""
    eval_batch_size: int | None = setting(None, "cost", minimum=1)
    """Rows that one worker evaluates at once; None: 512, and for generation on a GPU as many as fit."""
    state_share: float = setting(0.05, "cost", minimum=0, maximum=1)
    """Largest share of the time spent on saving the training state, from which an interrupted training resumes. 0:
    never saved, so an interrupted training starts again."""
    keep_state: bool = setting(False, "nothing")
    """Keep the last state in the run's folder, about 12 bytes per trained parameter, so that a later training with more
    epochs resumes from it; otherwise it starts again."""
    max_failures: int = setting(3, "nothing", minimum=0)
    """Times that a training is resumed from the same state after a worker or node was lost; each new state resets the
    count. Preemptions with notice are not counted."""
    track: tuple[TrackerName, ...] = setting((), "nothing")
    """Trackers that receive the curves, besides the TensorBoard files in the run's folder."""
    max_set_aside_share: float = setting(0.01, "nothing", minimum=0, maximum=1)
    """The training is refused if more than this share of all rows is set aside because they are too long; see
    `long_rows`."""
    allow_other_model: bool = setting(False, "nothing")
    """Train a model other than the one whose knowledge the variants were drawn from."""
    trust_remote_code: bool = setting(False, "nothing")
    """Run code that comes with the model."""
    wait_for_nodes: bool = setting(False, "nothing")
    """Request more workers than the cluster has now, and wait for its autoscaler."""

    def __post_init__(self) -> None:
        check_settings(self)
        parse_template_arguments(self.template_arguments)
        make_matcher([], self.matcher)  # refuses `judge`, which cannot match an answer while a model is trained
        _check_combinations(self)

    def micro_batch_size_per_worker(self, num_workers: int) -> int:
        """Rows per forward pass of one of `num_workers`."""
        share = -(-self.batch_size // num_workers)
        return min(self.micro_batch_size or share, share)

    def gradient_accumulation_steps(self, num_workers: int) -> int:
        """Micro batches per optimizer step."""
        return -(-self.batch_size // (self.micro_batch_size_per_worker(num_workers) * num_workers))

    @property
    def epoch_dependence_reason(self) -> str:
        """Why the first epochs of a longer training differ from a shorter training; empty if they do not."""
        if self.schedule != "constant":
            return f"schedule {self.schedule} lowers the learning rate towards the last epoch"
        if self.replay_known:
            return f"{self.replay_known} Known rows are replayed in the last epoch"
        return ""

    def identity(self) -> dict[str, object]:
        """The settings that change results; the number of epochs only if earlier epochs depend on it."""
        return identity_settings(self) | ({"epochs": self.epochs} if self.epoch_dependence_reason else {})


def _check_combinations(config: TrainConfig) -> None:
    gpus = config.gpus_per_worker
    if gpus is not None and (not 0 <= gpus <= 1 or (0 < gpus < 1 and config.num_workers > 1)):
        raise SettingsError(
            f"gpus_per_worker is 0 or 1, or for one worker a fraction of 1, got {gpus} for {config.num_workers} "
            "workers; for more GPUs raise num_workers"
        )
    min_stage = {"none": 0, "optimizer": 1, "all": 3}[config.offload]
    if config.zero_stage < min_stage:
        raise SettingsError(
            f"offload {config.offload} needs ZeRO stage {min_stage} or more, got stage {config.zero_stage}; "
            f"give --zero-stage {min_stage} or --offload none"
        )
    if config.cpu_adam and config.offload == "none":
        raise SettingsError(
            "cpu_adam updates weights in CPU memory, but offload is none; give --offload optimizer or all, or leave "
            "out --cpu-adam"
        )
    if config.lora_alpha is not None and not config.lora_rank:
        raise SettingsError(f"lora_alpha is {config.lora_alpha}, but lora_rank is 0, so there is no LoRA to scale")
    if config.quantization != "none" and not config.lora_rank:
        raise SettingsError(
            f"quantization is {config.quantization}, but quantized weights cannot be trained; add --lora-rank, which "
            "trains LoRA on top of them"
        )
    if config.quantization != "none" and config.zero_stage == 3:
        raise SettingsError(
            f"quantization {config.quantization} needs whole weights on every worker, but ZeRO stage 3 shards them; "
            "give --zero-stage 0, 1 or 2"
        )
    if config.min_workers is not None and config.min_workers > config.num_workers:
        raise SettingsError(
            f"min_workers is {config.min_workers}, more than num_workers, which is {config.num_workers}"
        )
    rows = config.num_workers * (config.micro_batch_size or 1)
    if config.batch_size % rows:
        raise SettingsError(
            f"a batch of {config.batch_size} rows cannot be shared by {config.num_workers} workers"
            + (f" in micro batches of {config.micro_batch_size}" if config.micro_batch_size else "")
            + f"; make batch_size a multiple of {rows}"
        )


def learning_rate_at(config: TrainConfig, step: int, num_steps: int) -> float:
    """Learning rate of an optimizer step.

    Args:
        config: peak, schedule and warm-up.
        step: from 0.
        num_steps: optimizer steps of the whole training.

    >>> [learning_rate_at(TrainConfig(learning_rate=1.0, schedule="linear", warmup_steps=2), s, 6) for s in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    factors = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return config.learning_rate * factors[config.schedule]
