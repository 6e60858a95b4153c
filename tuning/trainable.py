"""Which weights of a model are trained (all, chosen layers, LoRA), and checkpoints of them in Hugging Face layout.

The one import of peft. LoRA layers are inserted into the model, which keeps its class, so that all code that takes a
model takes this one too. Checkpoints are uploaded while training continues.
"""

import copy
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slick.errors import ModelError, SettingsError
from slick.file_errors import temporary_folder
from slick.models import init_empty_model
from slick.rng import derive_seed
from slick.storage import Folder
from slick.uris import public_name
from tuning.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn


_LAYER_PATTERNS = {
    "attention": re.compile(r"attention|attn", re.I),
    "ffn": re.compile(r"mlp|ffn|feed_?forward|moe|expert", re.I),
}
"""Class names of the parts of a layer."""
_ADAPTER_NAME = "default"


def prepare_model(model: "nn.Module", config: TrainConfig) -> list[str]:
    """Make the model ready to be trained as the settings say, in place.

    Returns:
        Sorted kinds of dropout that were set.

    Raises:
        SettingsError: there is nothing to train.
        ModelError: the model has no layers of the wanted kind.
    """
    if config.lora_rank:
        _add_lora(model, config)
    elif config.trainable != "all":
        chosen = set(parameters_in_group(model, config.trainable))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
    if config.activation_checkpointing:
        _check_gradient_checkpointing(model)
        # Without re-entry, layers whose input needs no gradient are no trouble, as below frozen embeddings.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    if not trainable_parameters(model):
        raise SettingsError(f"no parameter of {type(model).__name__} would be trained; give --trainable all")
    return set_dropout(model, config.dropout)


def check_trainable(model: str, config: TrainConfig) -> None:
    """See, before any worker is started, that the model has what the settings want to train.

    Raises:
        SettingsError: there is nothing to train, or LoRA's package is missing.
        ModelError: the model cannot be found, or has no layers of the wanted kind.
    """
    if (config.trainable, config.lora_rank, config.activation_checkpointing) == ("all", 0, False):
        return
    skeleton = init_empty_model(model, trust_remote_code=config.trust_remote_code)
    if skeleton is not None:
        prepare_model(skeleton, config)


def trainable_parameters(model: "nn.Module") -> list["nn.Parameter"]:
    """Those that the optimizer is given."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def parameters_in_group(model: "nn.Module", group: str) -> list[str]:
    """Names of the parameters inside modules of a group, `attention` or `ffn`.

    Raises:
        ModelError: the model has no module whose class name tells that it is of this group.
    """
    found = [
        f"{module_name}.{name}"
        for module_name, module in _group_modules(model, group)
        for name, _ in module.named_parameters()
    ]
    if not found:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        raise ModelError(
            f"{type(model).__name__} has no module whose class name tells that it is {group}; it is made of "
            f"{', '.join(kinds)}; give --trainable all"
        )
    return found


def _group_modules(model: "nn.Module", group: str) -> Iterator[tuple[str, "nn.Module"]]:
    inside: str | None = None
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if name and _LAYER_PATTERNS[group].search(type(module).__name__):
            inside = f"{name}."
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
    torch.manual_seed(derive_seed(config.seed, "lora") >> 1)  # the same beginning on every worker
    peft.inject_adapter_in_model(lora, model, adapter_name=_ADAPTER_NAME)


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise SettingsError("LoRA needs the package peft: pip install 'slick-knowledge[lora]'") from error
    return peft


def _check_gradient_checkpointing(model: "nn.Module") -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"{type(model).__name__} cannot compute its activations twice; give --no-activation-checkpointing and a "
            "smaller --micro-batch-size"
        )


def set_dropout(model: "nn.Module", share: float) -> list[str]:
    """Put `share` into every dropout of the model: its Dropout layers, and rates that attention layers keep as numbers.

    Models of the Llama family have dropout in attention only; nothing is added to an architecture. The configuration
    that is saved with checkpoints stays as it was.

    Returns:
        Sorted kinds of what was set, such as `LlamaAttention.attention_dropout`; empty if the model has no dropout.
    """
    from torch import nn

    found = set()
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, nn.Dropout):
            module.p = share
            found.add(kind)
            continue
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(module, name, share)
                found.add(f"{kind}.{name}")
    return sorted(found)


@contextmanager
def disable_lora(model: "nn.Module") -> Iterator[None]:
    """Within, the model is as it was before its LoRA layers were trained."""
    layers = [module for _, module in _lora_layers(model)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def _lora_layers(model: "nn.Module") -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def full_state_dict(model: "nn.Module", *, keep: bool) -> dict[str, "Tensor"]:
    """Weights of the model as it would be without ZeRO and with LoRA added in, on the CPU; called by all workers.

    Args:
        keep: False on workers that only help to bring the weights together, which get none.
    """
    weights: dict[str, Tensor] = {}
    lora = dict(_lora_layers(model))
    with_lora = tuple(f"{name}." for name in lora)
    for name, parameter in model.named_parameters():
        if not name.startswith(with_lora or (" ",)):
            with _gather_zero3([parameter]):
                if keep:
                    weights[name] = parameter.detach().cpu().clone()
    for name, layer in lora.items():
        with _gather_zero3(list(layer.parameters())):
            if keep:
                for part, parameter in layer.base_layer.named_parameters():
                    added = layer.get_delta_weight(_ADAPTER_NAME) if part == "weight" else 0
                    weights[f"{name}.{part}"] = (parameter.detach() + added).cpu().clone()
    if keep:
        kept = {key for key in model.state_dict() if ".lora_" not in key}
        weights |= {name: buffer.cpu().clone() for name, buffer in model.named_buffers() if name in kept}
    return weights


def lora_state_dict(model: "nn.Module", *, keep: bool) -> dict[str, "Tensor"]:
    """LoRA's own weights by their names in the model, on the CPU; empty without LoRA; called by all workers."""
    weights = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            with _gather_zero3([parameter]):
                if keep:
                    weights[name.replace(f".{_ADAPTER_NAME}.", ".")] = parameter.detach().cpu().clone()
    return weights


def _gather_zero3(parameters: Sequence["nn.Parameter"]) -> AbstractContextManager[None]:
    """Within, parameters that ZeRO stage 3 has spread over the workers are whole."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(parameters)
    return gathered


class CheckpointWriter:
    """Writes a model's checkpoints into the folder of its run; one upload at a time, in order."""

    def __init__(self, folder: Folder, tokenizer: Any, *, is_writer: bool) -> None:
        """Hold where to write.

        Args:
            writes: True on the one worker that writes; the others only help to bring the weights together.
        """
        self._folder, self._tokenizer, self._is_writer = folder, tokenizer, is_writer
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._uploads: list[Future[None]] = []

    def save(self, model: "nn.Module", *names: str) -> None:
        """Save the model as it is now under each name; LoRA is added in, and lies beside it in `lora/` as well.

        All workers call this. It returns when the weights are on this machine's disk.

        Raises:
            StudyError: that disk is full, or an earlier upload failed.
        """
        self._raise_upload_errors()
        weights = full_state_dict(model, keep=self._is_writer)
        lora = lora_state_dict(model, keep=self._is_writer)
        if not self._is_writer:
            return
        with temporary_folder("slick-checkpoint-") as part:
            model.save_pretrained(part, state_dict=weights)  # type: ignore[operator]
            self._tokenizer.save_pretrained(part)
            if lora:
                _save_lora(model, lora, Path(part, "lora"))
        self._uploads.append(self._pool.submit(_upload, part, [self._folder.child(name) for name in names]))

    def finish(self) -> None:
        """Wait until everything is uploaded.

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
    """In the layout of peft, which loads it onto the base model."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": weight for name, weight in weights.items()}, folder / "adapter_model.safetensors"
    )
    config: Any = model.peft_config
    shared = copy.copy(config["default"])
    shared.base_model_name_or_path = public_name(shared.base_model_name_or_path or "")
    shared.save_pretrained(str(folder))
