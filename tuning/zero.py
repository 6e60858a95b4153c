"""The DeepSpeed configuration of a `TrainConfig`. Pure."""

from slick.errors import SettingsError
from tuning.config import TrainConfig

BUCKET_SIZE = 50_000_000
"""Elements per communication bucket."""
MAX_LIVE_PARAMETERS = 1_000_000_000
"""Gathered parameters that a worker keeps at a time under ZeRO stage 3; DeepSpeed's default."""


def deepspeed_config(config: TrainConfig, num_workers: int) -> dict[str, object]:
    """The configuration for `deepspeed.initialize`.

    The optimizer is PyTorch's AdamW: DeepSpeed's fused optimizers are compiled on first use, which takes minutes and a
    C++ compiler, and give the same results. The loss is already normalized over the whole batch (see `tuning.data`), so
    `train_batch_size` only has to be the product of its factors.

    Args:
        config: settings of the training.
        num_workers: the actual number of workers in the group.

    Raises:
        SettingsError: the group is larger or smaller than the settings allow.
    """
    minimum = config.num_workers if config.min_workers is None else config.min_workers
    if not minimum <= num_workers <= config.num_workers:
        expected = f"{config.num_workers}" if minimum == config.num_workers else f"{minimum} to {config.num_workers}"
        raise SettingsError(f"the worker group has {num_workers} workers, the settings expect {expected}")
    micro_batch_size = config.micro_batch_size_per_worker(num_workers)
    accumulation_steps = config.gradient_accumulation_steps(num_workers)
    settings: dict[str, object] = {
        "train_batch_size": micro_batch_size * accumulation_steps * num_workers,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": config.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.learning_rate,
                "weight_decay": config.weight_decay,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "torch_adam": True,
                "fused": True,
            },
        },
        "zero_optimization": _zero_config(config),
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
    if config.dtype == "bfloat16":
        settings["bf16"] = {"enabled": True}
    return settings


def _zero_config(config: TrainConfig) -> dict[str, object]:
    zero: dict[str, object] = {"stage": config.zero_stage}
    if config.zero_stage:
        # DeepSpeed's default buckets of 500 M elements are larger than many models that are trained here.
        zero |= {"reduce_bucket_size": BUCKET_SIZE, "allgather_bucket_size": BUCKET_SIZE}
    if config.zero_stage == 3:
        zero |= {"stage3_prefetch_bucket_size": BUCKET_SIZE, "sub_group_size": 2 * BUCKET_SIZE}
        zero["stage3_max_live_parameters"] = MAX_LIVE_PARAMETERS
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    return zero
