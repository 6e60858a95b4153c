"""TrainConfig to DeepSpeed's dict. Pure."""

from slick.errors import SettingsError
from tuning.config import TrainConfig


def deepspeed_settings(config: TrainConfig, num_workers: int | None = None) -> dict[str, object]:
    """What `deepspeed.initialize` is given.

    The optimizer is PyTorch's own AdamW: DeepSpeed's fused ones are compiled on first use, which takes minutes and a
    C++ compiler, and the results are the same. The loss is already divided for the whole batch (see `tuning.examples`).

    Args:
        num_workers: of the group that really runs; by default the number asked for.

    Raises:
        SettingsError: that group cannot share the batch.
    """
    workers = config.num_workers if num_workers is None else num_workers
    if workers != config.num_workers:
        raise SettingsError(f"the worker group has {workers} workers, the settings say {config.num_workers}")
    settings: dict[str, object] = {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_rows,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.learning_rate,
                "weight_decay": config.weight_decay,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "torch_adam": True,
            },
        },
        "zero_optimization": {"stage": config.zero_stage},
        "steps_per_print": 1_000_000_000,
    }
    if config.dtype == "bfloat16":
        settings["bf16"] = {"enabled": True}
    return settings
