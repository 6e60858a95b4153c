"""TrainConfig to DeepSpeed's dict. Pure."""

from slick.errors import SettingsError
from tuning.config import TrainConfig

BUCKET_SIZE = 50_000_000
"""Numbers that workers exchange at once."""
MAX_LIVE_PARAMETERS = 1_000_000_000
"""Parameters of other workers that one keeps at a time under ZeRO stage 3; DeepSpeed's default."""


def deepspeed_config(config: TrainConfig, num_workers: int) -> dict[str, object]:
    """What `deepspeed.initialize` is given.

    The optimizer is PyTorch's own AdamW: DeepSpeed's fused ones are compiled on first use, which takes minutes and a
    C++ compiler, and the results are the same. The loss is already divided for the whole batch (see `tuning.data`),
    so the batch size that is told here only has to be the product of its parts.

    Args:
        num_workers: of the group that really runs.

    Raises:
        SettingsError: the group is larger or smaller than the settings allow.
    """
    least = config.num_workers if config.min_workers is None else config.min_workers
    if not least <= num_workers <= config.num_workers:
        wanted = f"{config.num_workers}" if least == config.num_workers else f"{least} to {config.num_workers}"
        raise SettingsError(f"the worker group has {num_workers} workers, the settings say {wanted}")
    micro_batch_size_per_worker, gradient_accumulation_steps = (
        config.micro_batch_size_per_worker(num_workers),
        config.gradient_accumulation_steps(num_workers),
    )
    settings: dict[str, object] = {
        "train_batch_size": micro_batch_size_per_worker * gradient_accumulation_steps * num_workers,
        "train_micro_batch_size_per_gpu": micro_batch_size_per_worker,
        "gradient_accumulation_steps": gradient_accumulation_steps,
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
        # DeepSpeed's own buckets of 500 M numbers are larger than the models that are often trained here.
        zero |= {"reduce_bucket_size": BUCKET_SIZE, "allgather_bucket_size": BUCKET_SIZE}
    if config.zero_stage == 3:
        zero |= {"stage3_prefetch_bucket_size": BUCKET_SIZE, "sub_group_size": 2 * BUCKET_SIZE}
        zero["stage3_max_live_parameters"] = MAX_LIVE_PARAMETERS
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    return zero
