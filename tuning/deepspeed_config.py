"""The DeepSpeed configuration of a training: from its settings, and from the user's configuration file. Pure."""

from collections.abc import Mapping
from typing import Any

from slick.errors import DataError, SettingsError
from slick.storage import Folder
from slick.strict_json import parse_user_json
from tuning.config import TrainConfig

Settings = Mapping[str, Any]

BUCKET_SIZE = 50_000_000
"""Elements per communication bucket."""
MAX_LIVE_PARAMETERS = 1_000_000_000
"""Gathered parameters that a worker keeps at a time under ZeRO stage 3; DeepSpeed's default."""

_GOVERNED = {
    "train_batch_size": "--batch-size",
    "train_micro_batch_size_per_gpu": "--micro-batch-size",
    "gradient_accumulation_steps": "--micro-batch-size",
    "gradient_clipping": "--max-grad-norm",
    "optimizer.params.lr": "--learning-rate",
    "optimizer.params.weight_decay": "--weight-decay",
    "optimizer": "--cpu-adam, or else it is PyTorch's AdamW",
    "scheduler": "--schedule and --warmup-steps",
    "bf16.enabled": "--dtype",
    "fp16.enabled": "--dtype",
    "amp.enabled": "--dtype",
    "torch_autocast.enabled": "--dtype",
    "zero_optimization.stage": "--zero-stage",
    "zero_optimization.offload_optimizer.device": "--offload",
    "zero_optimization.offload_param.device": "--offload",
    "zero_force_ds_cpu_optimizer": "--cpu-adam",
    "elasticity.enabled": "--min-workers",
}
"""Dotted name of an entry of DeepSpeed, or of a group of entries, to what sets it here."""

_DEFAULTS = {name: False for name in _GOVERNED if name.endswith(".enabled")} | {
    "zero_optimization.offload_optimizer.device": "none",
    "zero_optimization.offload_param.device": "none",
}
"""The values of governed entries that the configuration does not have."""

_OTHERS = (
    *("zero_optimization", "bf16", "communication_data_type", "prescale_gradients", "gradient_predivide_factor"),
    *("sparse_gradients", "zero_allow_untested_optimizer", "steps_per_print", "wall_clock_breakdown", "aio"),
    *("memory_breakdown", "dump_state", "comms_logger", "flops_profiler", "disable_allgather", "graph_harvesting"),
)
"""Other entries that a file may have. DeepSpeed ignores unknown entries outside `zero_optimization`, so that a
misspelled one would have no effect; others, such as `compression_training`, change what is trained."""

AUTO = "auto"
"""In files for Hugging Face's Trainer: the value that the trainer's settings give."""


def read_deepspeed_file(location: str) -> dict[str, Any]:
    """The content of a DeepSpeed configuration file.

    Args:
        location: a path or URI.

    Raises:
        DataError: it does not exist, or is not a JSON object.
    """
    *_, name = location.rstrip("/").rsplit("/", 1)
    folder = Folder(location[: -len(name)] or ".")
    if not folder.exists(name):
        raise DataError(f"--train.deepspeed {location} does not exist; give the path or URI of a DeepSpeed JSON file")
    expected = "expected a JSON object with entries of DeepSpeed's configuration"
    content = parse_user_json(folder.read_bytes(name), location, expected)
    if not isinstance(content, dict):
        raise DataError(f"{location} holds a {type(content).__name__}; {expected}")
    return content


def merge_settings(settings: Settings, file_settings: Settings, origin: str) -> dict[str, Any]:
    """The configuration of a training with the entries of the user's file.

    Entries with the value `auto`, and those that only repeat what the settings give, change nothing.

    Args:
        settings: the configuration that follows from the training's settings.
        file_settings: the content of the file.
        origin: the file, for messages.

    Raises:
        SettingsError: the file contradicts the settings, or has an entry that is not supported.
    """
    governed = {name.split(".")[0] for name in _GOVERNED}
    unknown = sorted(set(file_settings) - governed - set(_OTHERS))
    if unknown:
        raise SettingsError(
            f"{origin}: {', '.join(unknown)} is not supported; remove it. A file may have {', '.join(_OTHERS)}"
        )
    merged: dict[str, Any] = {
        name: dict(part) if isinstance(part, Mapping) else part for name, part in settings.items()
    }
    for path, value in _entries(file_settings):
        name = ".".join(path)
        flag = next((_GOVERNED[prefix] for prefix in _prefixes(path) if prefix in _GOVERNED), None)
        if value == AUTO:
            continue
        if flag is None:
            if path[0] not in governed - set(_OTHERS):  # such as fp16.loss_scale, which has no effect if fp16 is off
                _set_entry(merged, path, value)
            continue
        own = _get_entry(settings, path, _DEFAULTS.get(name))
        if own != value:
            given = "nothing" if own is None else repr(own)
            raise SettingsError(
                f"{origin}: {name} is {value!r}, but the settings of the training give {given}; remove it from the "
                f"file, or write {AUTO!r}: it is set by {flag}"
            )
    return merged


def _entries(settings: Settings, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Path and value of every entry that is not an object."""
    entries: list[tuple[tuple[str, ...], Any]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            entries += _entries(value, (*path, name))
        else:
            entries.append(((*path, name), value))
    return entries


def _prefixes(path: tuple[str, ...]) -> list[str]:
    """The dotted names of an entry and of the groups that it is in, the entry first."""
    return [".".join(path[:end]) for end in range(len(path), 0, -1)]


def _get_entry(settings: Settings, path: tuple[str, ...], default: Any) -> Any:
    value: Any = settings
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value


def _set_entry(settings: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        part = settings.get(name)
        settings[name] = dict(part) if isinstance(part, Mapping) else {}
        settings = settings[name]
    settings[path[-1]] = value


def deepspeed_config(
    config: TrainConfig, num_workers: int, *, file_settings: Settings | None = None, on_gpu: bool = False
) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.

    The optimizer is PyTorch's AdamW unless `cpu_adam` is set: DeepSpeed's optimizers are compiled on first use, which
    takes minutes and a C++ compiler, and give the same results up to rounding. The loss is already normalized over the
    whole batch (see `tuning.data`), so `train_batch_size` only has to be the product of its factors.

    Args:
        config: settings of the training.
        num_workers: the actual number of workers in the group.
        file_settings: the content of the user's configuration file; see `merge_settings`.
        on_gpu: the workers train on GPUs, to which offloaded tensors are copied faster from page-locked memory.

    Raises:
        SettingsError: the group is larger or smaller than the settings allow, or the file contradicts the settings.
    """
    minimum = config.num_workers if config.min_workers is None else config.min_workers
    if not minimum <= num_workers <= config.num_workers:
        expected = f"{config.num_workers}" if minimum == config.num_workers else f"{minimum} to {config.num_workers}"
        raise SettingsError(f"the worker group has {num_workers} workers, the settings expect {expected}")
    micro_batch_size = config.micro_batch_size_per_worker(num_workers)
    accumulation_steps = config.gradient_accumulation_steps(num_workers)
    settings: dict[str, Any] = {
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
                **({"torch_adam": False} if config.cpu_adam else {"torch_adam": True, "fused": True}),
            },
        },
        "zero_optimization": _zero_config(config, pin_memory=on_gpu),
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
    if config.dtype == "bfloat16":
        settings["bf16"] = {"enabled": True}
    return merge_settings(settings, file_settings or {}, config.deepspeed)


def _zero_config(config: TrainConfig, *, pin_memory: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage:
        # DeepSpeed's default buckets of 500 M elements are larger than many models that are trained here.
        zero |= {"reduce_bucket_size": BUCKET_SIZE, "allgather_bucket_size": BUCKET_SIZE}
    if config.zero_stage == 3:
        zero |= {"stage3_prefetch_bucket_size": BUCKET_SIZE, "sub_group_size": 2 * BUCKET_SIZE}
        zero["stage3_max_live_parameters"] = MAX_LIVE_PARAMETERS
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin_memory}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin_memory}
    return zero
