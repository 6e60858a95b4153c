"""Models and tokenizers by folder, hub id or GGUF file: found, fingerprinted and loaded, with one clear message if not.

Weights are read from safetensors or GGUF only, never from pickles; code that comes with a model runs only when asked.
What is found and loaded here is also validated here (`slick.model_files`, `slick.model_validation`).
"""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slick.cache import download_to_cache
from slick.errors import ModelError, StudyError, wrap_library_errors
from slick.model_files import (
    UNLIMITED_POSITIONS,
    check_adapter,
    check_model_files,
    ignored_settings,
    max_positions,
    read_config,
    text_config,
)
from slick.model_validation import check_causal, check_loading_info, check_tokenizer
from slick.storage import Folder

if TYPE_CHECKING:
    from torch import nn

_LOG = logging.getLogger(__name__)

_TOKENIZER_FILES = ("*.model", "vocab.*", "merges.txt", "*.tiktoken")
_HUB_FILES = ["*.safetensors", "*.json", "*.py", *_TOKENIZER_FILES]
_UNFINGERPRINTED = ("README", "LICENSE", "manifest.json", "started.json", "trainer_state.json", "training_args")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """Where a model's files lie on this machine."""

    name: str
    """As the user gave it."""
    folder: str
    gguf_file: str | None = None
    """Name of the one file inside `folder` that holds everything; None for a Hugging Face folder."""

    @property
    def path(self) -> str:
        """The folder, or the GGUF file in it."""
        return os.path.join(self.folder, self.gguf_file) if self.gguf_file else self.folder


def resolve_study_model(study: Folder, model: str) -> str:
    """The named model, or the study's own world/model when `model` is empty.

    Raises:
        ModelError: none is named and the study has no world.
    """
    if model:
        return model
    world = study.child("world")
    if not world.exists("manifest.json"):
        raise ModelError(
            f"no model is named and {world.uri} holds no finished world; "
            "name one with --model (a folder, a hub id or a .gguf file), or run `slick world` with this --out first"
        )
    return world.child("model").uri


def resolve_model(model: str) -> ModelRef:
    """Find a model's files; those in an object store or in the Hugging Face hub are first copied to this machine.

    Args:
        model: a folder or .gguf file, by path or URI, or a hub id.

    Raises:
        ModelError: there is no such model, it has no weights in safetensors, or its files cannot be those of one causal
            language model (see `slick.model_files.check_model_files`).
    """
    path = _download_folder(model) if "://" in model else os.path.abspath(os.path.expanduser(model))
    if model.lower().endswith(".gguf"):
        if not os.path.isfile(path):
            raise ModelError(f"{path} is not there; --model wants a folder, a hub id such as org/name, or a .gguf file")
        return ModelRef(name=model, folder=os.path.dirname(path), gguf_file=os.path.basename(path))
    folder = path if os.path.isdir(path) else _hub_snapshot(model)
    names = os.listdir(folder)
    check_adapter(folder)
    if "config.json" not in names:
        ggufs = sorted(name for name in names if name.endswith(".gguf"))
        mend = (
            f"name the file itself: {os.path.join(folder, ggufs[0])}" if ggufs else "give a Hugging Face model folder"
        )
        raise ModelError(f"{folder} holds no config.json, so it is no model; {mend}")
    if not any(name.endswith(".safetensors") for name in names):
        found = [name for name in sorted(names) if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        raise ModelError(
            f"{folder} holds no *.safetensors{f', only {found}' if found else ''}; pickled weights are not loaded, "
            "since they can run code: save the model with save_pretrained of a recent transformers"
        )
    check_model_files(folder)
    return ModelRef(name=model, folder=folder)


def log_ignored_settings(model: str) -> None:
    """Log one line for each thing that lies in a model's folder and is not used; see `ignored_model_settings`."""
    for sentence in ignored_model_settings(model):
        _LOG.info("model: %s", sentence)


def ignored_model_settings(model: str) -> list[str]:
    """What lies in a model's folder and changes nothing here, such as settings of sampling; for people and manifests.

    Raises:
        ModelError: as `resolve_model`.
    """
    ref = resolve_model(model)
    return [] if ref.gguf_file else ignored_settings(ref.folder)


def _download_folder(uri: str) -> str:
    """The path of this machine's copy of a model folder, or of the folder that a .gguf file is in."""
    place = Folder(uri)
    try:
        if place.name.lower().endswith(".gguf"):
            return os.path.join(download_to_cache(place.parent), place.name)
        return download_to_cache(place)
    except StudyError as error:
        raise ModelError(f"the model {place} cannot be fetched: {error}") from error


def _hub_snapshot(model: str) -> str:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise ModelError(
            f"{model!r} is no folder here; --model wants a folder, a hub id such as org/name, or a .gguf file"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(model, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{model!r} is no folder here and could not be fetched from the Hugging Face hub ({reason}); check the "
            "spelling, the network, and for a gated model the HF_TOKEN, or give a local folder or .gguf file"
        ) from error


def model_fingerprint(ref: ModelRef) -> str:
    """16 hex digits over names and content of weights, config and tokenizer; the same wherever the files lie."""
    digest = hashlib.sha256()
    for name in [ref.gguf_file] if ref.gguf_file else _fingerprinted_files(ref.folder):
        # A GGUF file is the whole model, so what it is called does not matter.
        digest.update(b"gguf" if ref.gguf_file else name.encode())
        with open(os.path.join(ref.folder, name), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _fingerprinted_files(folder: str) -> list[str]:
    from fnmatch import fnmatch

    names = [name for name in os.listdir(folder) if not name.startswith((".", *_UNFINGERPRINTED))]
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in _HUB_FILES))


def load_tokenizer(model: str, *, trust_remote_code: bool = False, prefixes: Sequence[str] = ()) -> Any:
    """The tokenizer of a model, validated.

    Args:
        model: a folder, a hub id or a .gguf file.
        trust_remote_code: run code that lies beside the weights.
        prefixes: beginnings of the prompts that will be asked; they must survive the tokenizer.

    Raises:
        ModelError: it cannot be loaded, loses a part of prompts or answers, or has tokens that the model has not.
    """
    ref = resolve_model(model)
    _check_gguf(ref)
    from transformers import AutoTokenizer

    with _load_errors("tokenizer", ref, trust_remote_code):
        tokenizer = AutoTokenizer.from_pretrained(ref.folder, **_from_pretrained_kwargs(ref, trust_remote_code))
        # To read a GGUF file's settings takes as long as to read all of it: there the engine compares with the model.
        config = {} if ref.gguf_file else text_config(read_config(ref.folder))
        size = config.get("vocab_size")
        check_tokenizer(
            tokenizer,
            ref.path,
            num_embeddings=size if isinstance(size, int) else None,
            prefixes=prefixes,
        )
    return tokenizer


def context_length(model: str, *, trust_remote_code: bool = False) -> int:
    """Tokens that a sequence of the model may have; a large number where it names no limit.

    Raises:
        ModelError: the model cannot be found, or its configuration cannot be read.
    """
    ref = resolve_model(model)
    if not ref.gguf_file:
        named = max_positions(text_config(read_config(ref.folder)))
        if named is not None:
            return named  # without transformers, whose import takes seconds
    _check_gguf(ref)
    from transformers import AutoConfig

    with _load_errors("configuration", ref, trust_remote_code):
        config = AutoConfig.from_pretrained(ref.folder, **_from_pretrained_kwargs(ref, trust_remote_code))
    return max_positions(config.get_text_config()) or UNLIMITED_POSITIONS


def load_model(
    model: str, dtype: str = "float32", device: str = "cpu", *, trust_remote_code: bool = False
) -> "nn.Module":
    """A causal LM in eval mode, validated: whole, finite, and blind to what comes later in a text.

    Under ZeRO stage 3, which spreads weights while they are read, the last of these is left to `check_causal`, once
    the model can be called.

    Args:
        model: a folder, a hub id or a .gguf file.
        dtype: `float32`, `bfloat16` or `float16`.
        device: as torch names it, such as `cpu` or `cuda`.
        trust_remote_code: run code that lies beside the weights.

    Raises:
        ModelError: it cannot be found or loaded, or is no whole causal language model.
    """
    ref = resolve_model(model)
    _check_gguf(ref)
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype is {dtype!r}; choose float32, bfloat16 or float16")
    logging.disable_progress_bar()
    weights = (
        _dequantize_kwargs()
        if ref.gguf_file
        else {"use_safetensors": True, "config": _load_config(ref, trust_remote_code)}
    )
    with _load_errors("model", ref, trust_remote_code):
        loaded, info = AutoModelForCausalLM.from_pretrained(
            ref.folder,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told in `info`, of all tensors at once
            **weights,
            **_from_pretrained_kwargs(ref, trust_remote_code),
        )
        # Not cast any further: what is no weight, such as the frequencies of rotary positions, stays in float32.
        if not any(parameter.is_meta for parameter in loaded.parameters()):
            loaded.to(device)
        loaded.eval()
        check_loading_info(loaded, info, ref.path)
        if not any(hasattr(parameter, "ds_id") for parameter in loaded.parameters()):
            check_causal(loaded, ref.path)
    _reset_generation_config(loaded)
    built: nn.Module = loaded
    return built


def _reset_generation_config(model: Any) -> None:
    """Keep the token ids of generation_config.json alone.

    No engine reads the others (see `ignored_model_settings`), and some of them prevent a trained checkpoint from being
    saved.
    """
    from transformers import GenerationConfig

    before = getattr(model, "generation_config", None)
    if before is not None:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{name: getattr(before, name, None) for name in names})


def _load_config(ref: ModelRef, trust_remote_code: bool) -> Any:
    """The configuration of a Hugging Face folder; a pad token without an embedding is replaced by the end of text."""
    from transformers import AutoConfig

    with _load_errors("model", ref, trust_remote_code):
        config = AutoConfig.from_pretrained(ref.folder, **_from_pretrained_kwargs(ref, trust_remote_code))
        for part in {id(part): part for part in (config, config.get_text_config())}.values():
            pad, size = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
            if isinstance(pad, int) and isinstance(size, int) and pad >= size:
                ends = part.eos_token_id if isinstance(part.eos_token_id, list) else [part.eos_token_id]
                part.pad_token_id = ends[0] if isinstance(ends[0], int) and ends[0] < size else None
    return config


def init_empty_model(model: str, *, trust_remote_code: bool = False) -> "nn.Module | None":
    """The modules of a model without its weights; None for a GGUF file, whose modules are known only once it is read.

    Raises:
        ModelError: it cannot be found, or its architecture is not known.
    """
    ref = resolve_model(model)
    if ref.gguf_file:
        return None
    import torch
    from transformers import AutoModelForCausalLM

    config = _load_config(ref, trust_remote_code)
    with _load_errors("model", ref, trust_remote_code), torch.device("meta"):
        built: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return built


def _dequantize_kwargs() -> dict[str, Any]:
    """Settings by which GGUF weights become ordinary ones of the wanted dtype, trained and saved like others."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):
        return {}  # versions before it know no other way
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def _from_pretrained_kwargs(ref: ModelRef, trust_remote_code: bool) -> dict[str, Any]:
    source: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    return source | ({"gguf_file": ref.gguf_file} if ref.gguf_file else {})


def _check_gguf(ref: ModelRef) -> None:
    from importlib.util import find_spec

    missing = [name for name in ("gguf", "accelerate") if ref.gguf_file and find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise ModelError(f"{ref.name} is a GGUF file and needs {names}: pip install 'slick-knowledge[gguf]'")


def _load_errors(what: str, ref: ModelRef, trust_remote_code: bool) -> AbstractContextManager[None]:
    """Within, an error of a library is one ModelError."""

    def mend(reason: str) -> str:
        if "trust_remote_code" in reason and not trust_remote_code:
            return "it comes with code of its own: read that code, and if you trust it give --trust-remote-code"
        return "check that the files are whole and that this version of transformers knows the architecture"

    return wrap_library_errors(f"the {what} in {ref.path} cannot be loaded", ModelError, mend)
