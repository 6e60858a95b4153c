"""Which weights of a model are trained (all, some layers, LoRA), and checkpoints of them in Hugging Face layout.

LoRA layers are inserted into the model, which keeps its class, so code for any model works with it. Checkpoints are
uploaded while training continues.
"""

import copy
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slick import compat
from slick.errors import ModelError, SettingsError, temporary_folder
from slick.models import init_empty_model
from slick.quantization import check_quantization, dequantized_weight, quantized_layers
from slick.rng import derive_seed
from slick.storage import Folder
from slick.uris import public_name
from tuning.config import TrainConfig
from tuning.liger import check_liger_package

if TYPE_CHECKING:
    from torch import Tensor, nn


_LAYER_PATTERNS = {
    "attention": re.compile(r"attention|attn", re.I),
    "ffn": re.compile(r"mlp|ffn|feed_?forward|moe|expert", re.I),
}
"""Patterns of the class names of modules, by group."""
_ADAPTER_NAME = "default"


def prepare_model(model: "nn.Module", config: TrainConfig) -> list[str]:
    """Freeze layers, insert LoRA, and set dropout and activation checkpointing, in place.

    Returns:
        Sorted kinds of dropout that were set; see `set_dropout`.

    Raises:
        SettingsError: there is nothing to train.
        ModelError: the model has no layers of the chosen kind.
    """
    if config.lora_rank:
        _add_lora(model, config)
    elif config.trainable != "all":
        chosen = set(parameters_in_group(model, config.trainable))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
    if config.activation_checkpointing:
        _check_gradient_checkpointing(model)
        # Re-entrant checkpointing needs inputs with gradients, which layers after frozen embeddings do not have.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    if not trainable_parameters(model):
        raise SettingsError(f"no parameter of {type(model).__name__} would be trained; give --trainable all")
    return set_dropout(model, config.dropout)


def check_trainable(model: str, config: TrainConfig) -> None:
    """Check, before any worker starts, that the model has the layers to be trained.

    Raises:
        SettingsError: there is nothing to train, or a package is missing.
        ModelError: the model cannot be found, or has no layers of the chosen kind.
    """
    check_quantization(model, config.quantization)
    if config.liger:
        check_liger_package()
    if (config.trainable, config.lora_rank, config.activation_checkpointing) == ("all", 0, False):
        return
    skeleton = init_empty_model(model, trust_remote_code=config.trust_remote_code)
    if skeleton is not None:
        prepare_model(skeleton, config)


def trainable_parameters(model: "nn.Module") -> list["nn.Parameter"]:
    """The parameters that the optimizer trains."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def parameters_in_group(model: "nn.Module", group: str) -> list[str]:
    """Names of the parameters inside modules of a group, `attention` or `ffn`.

    Raises:
        ModelError: no module of the model has a class name of this group.
    """
    names = [
        f"{module_name}.{name}"
        for module_name, module in _group_modules(model, group)
        for name, _ in module.named_parameters()
    ]
    if not names:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        raise ModelError(
            f"{type(model).__name__} has no module whose class name matches {group}, found {', '.join(kinds)}; give "
            "--trainable all"
        )
    return names


def _group_modules(model: "nn.Module", group: str) -> Iterator[tuple[str, "nn.Module"]]:
    outer: str | None = None
    for name, module in model.named_modules():
        if outer is not None and name.startswith(outer):
            continue
        if name and _LAYER_PATTERNS[group].search(type(module).__name__):
            outer = f"{name}."
            yield name, module


def _add_lora(model: "nn.Module", config: TrainConfig) -> None:
    import torch

    peft = _import_peft()
    groups = ("attention", "ffn") if config.trainable == "all" else (config.trainable,)
    targets = [
        f"{outer}.{name}" if name else outer
        for group in groups
        for outer, part in _group_modules(model, group)
        for name, module in part.named_modules()
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    if not targets:
        raise ModelError(
            f"{type(model).__name__} has no linear layers in its {' or '.join(groups)} for LoRA; give --lora-rank 0"
        )
    lora = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(derive_seed(config.seed, "lora") >> 1)  # the same initial weights on every worker
    peft.inject_adapter_in_model(lora, model, adapter_name=_ADAPTER_NAME)


def _import_peft() -> Any:
    # bitsandbytes, which peft imports, advises to install a package that downloads kernels, and repeats how it rounds.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        raise SettingsError("LoRA needs the package peft: pip install 'slick-knowledge[lora]'") from error
    return peft


def _check_gradient_checkpointing(model: "nn.Module") -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"{type(model).__name__} does not support activation checkpointing; give --no-activation-checkpointing and "
            "a smaller --micro-batch-size"
        )


def set_dropout(model: "nn.Module", rate: float) -> list[str]:
    """Set the rate of every dropout in the model: Dropout layers, and rates that attention layers store as numbers.

    Models of the Llama family have dropout in attention only; no dropout is added to an architecture. The configuration
    that is saved with checkpoints is unchanged.

    Returns:
        Sorted kinds of dropout that were set, such as `LlamaAttention.attention_dropout`; empty if there are none.
    """
    from torch import nn

    kinds = set()
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, nn.Dropout):
            module.p = rate
            kinds.add(kind)
            continue
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(module, name, rate)
                kinds.add(f"{kind}.{name}")
    return sorted(kinds)


def disable_lora(model: "nn.Module") -> AbstractContextManager[None]:
    """While active, the model computes like the base model."""
    return compat.disabled_adapters(module for _, module in _lora_layers(model))


def _lora_layers(model: "nn.Module") -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def full_state_dict(model: "nn.Module", *, keep: bool) -> dict[str, "Tensor"]:
    """All weights on the CPU, gathered from ZeRO partitions, dequantized and with LoRA merged; called by all workers.

    Args:
        model: the model.
        keep: False on workers that only take part in the gathering; they get an empty dict.
    """
    weights: dict[str, Tensor] = {}
    lora = dict(_lora_layers(model))
    lora_prefixes = tuple(f"{name}." for name in lora)
    quantized = quantized_layers(model)
    dtype = getattr(model, "dtype", None)  # of the parameters that are not quantized

    def dense(layer: str, part: str, parameter: "nn.Parameter") -> "Tensor":
        if part == "weight" and layer in quantized:
            return dequantized_weight(quantized[layer]).to(dtype)
        return parameter.detach()

    for name, parameter in model.named_parameters():
        if not name.startswith(lora_prefixes):
            with _gather_zero3([parameter]):
                if keep:
                    weights[name] = dense(*name.rpartition(".")[::2], parameter).cpu().clone()
    for name, layer in lora.items():
        with _gather_zero3(list(layer.parameters())):
            if keep:
                for part, parameter in layer.base_layer.named_parameters():
                    weight = dense(f"{name}.base_layer", part, parameter)
                    update = layer.get_delta_weight(_ADAPTER_NAME).to(weight.dtype) if part == "weight" else 0
                    weights[f"{name}.{part}"] = (weight + update).cpu().clone()
    if keep:
        persistent = {key for key in model.state_dict() if ".lora_" not in key}
        weights |= {name: buffer.cpu().clone() for name, buffer in model.named_buffers() if name in persistent}
    return weights


def lora_state_dict(model: "nn.Module", *, keep: bool) -> dict[str, "Tensor"]:
    """LoRA's weights on the CPU, by their names in the model; empty without LoRA; called by all workers."""
    weights = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            with _gather_zero3([parameter]):
                if keep:
                    weights[name.replace(f".{_ADAPTER_NAME}.", ".")] = parameter.detach().cpu().clone()
    return weights


def _gather_zero3(parameters: Sequence["nn.Parameter"]) -> AbstractContextManager[None]:
    """While active, parameters that ZeRO stage 3 partitions are whole on every worker."""
    if not any(map(compat.is_partitioned, parameters)):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(parameters)
    return gathered


class CheckpointWriter:
    """Writes a model's checkpoints into the folder of its run, one upload at a time, in order."""

    def __init__(self, folder: Folder, tokenizer: Any, *, is_writer: bool) -> None:
        """Create the writer.

        Args:
            folder: the folder of the run.
            tokenizer: saved with every checkpoint.
            is_writer: True on the one worker that writes; the others only take part in gathering the weights.
        """
        self._folder, self._tokenizer, self._is_writer = folder, tokenizer, is_writer
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._uploads: list[Future[None]] = []

    def save(self, model: "nn.Module", *names: str) -> None:
        """Save the current weights under each name, with LoRA merged and also separately in `lora/`.

        All workers call this. It returns when the weights are on the local disk.

        Raises:
            StudyError: the local disk is full, or an earlier upload failed.
        """
        self._raise_upload_errors()
        weights = full_state_dict(model, keep=self._is_writer)
        lora = lora_state_dict(model, keep=self._is_writer)
        if not self._is_writer:
            return
        with temporary_folder("slick-checkpoint-") as part:
            with compat.without_quantization(model):
                model.save_pretrained(part, state_dict=weights)  # type: ignore[operator]
            self._tokenizer.save_pretrained(part)
            if lora:
                _save_lora(model, lora, Path(part, "lora"))
        self._uploads.append(self._pool.submit(_upload, part, [self._folder.child(name) for name in names]))

    def finish(self) -> None:
        """Wait for all uploads.

        Raises:
            StudyError: an upload failed.
        """
        self._pool.shutdown()
        self._raise_upload_errors()
        self._uploads.clear()

    def _raise_upload_errors(self) -> None:
        for upload in self._uploads:
            if upload.done():
                upload.result()


def _upload(part: str, folders: list[Folder]) -> None:
    try:
        for folder in folders:
            folder.upload(part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save_lora(model: "nn.Module", weights: dict[str, Any], folder: Path) -> None:
    """Save LoRA's weights in peft's layout, which peft loads onto the base model."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": weight for name, weight in weights.items()}, folder / "adapter_model.safetensors"
    )
    config: Any = model.peft_config
    shared = copy.copy(config["default"])
    shared.base_model_name_or_path = public_name(shared.base_model_name_or_path or "")
    shared.save_pretrained(str(folder))
