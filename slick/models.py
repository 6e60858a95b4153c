"""Finds, caches, fingerprints, loads and validates models and tokenizers, by folder, Hugging Face Hub id or GGUF file.

Weights are read from safetensors or GGUF only, never from pickles; code that comes with a model runs only with
`trust_remote_code`. Validation is in `slick.model_files` and `slick.model_validation`.
"""

import hashlib
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slick import compat
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
from slick.quantization import Quantization, check_quantization, loading_arguments, quantized_layers
from slick.storage import Folder

if TYPE_CHECKING:
    from torch import nn


_LOG = logging.getLogger(__name__)

_TOKENIZER_FILES = ("*.model", "vocab.*", "merges.txt", "*.tiktoken")
_HUB_FILES = ["*.safetensors", "*.json", "*.py", *_TOKENIZER_FILES]
_UNFINGERPRINTED = ("README", "LICENSE", "manifest.json", "started.json", "trainer_state.json", "training_args")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """The files of a model on this machine."""

    name: str
    """As the user gave it."""
    folder: str
    gguf_file: str | None = None
    """Name of the GGUF file in `folder`; None for a Hugging Face folder."""

    @property
    def path(self) -> str:
        """The folder, or the GGUF file in it."""
        return os.path.join(self.folder, self.gguf_file) if self.gguf_file else self.folder


def resolve_study_model(study: Folder, model: str) -> str:
    """The named model, or the study's own world/model when `model` is empty.

    Raises:
        ModelError: `model` is empty and the study has no world.
    """
    if model:
        return model
    world = study.child("world")
    if not world.exists("manifest.json"):
        raise ModelError(
            f"no --model was given, and {world.uri} has no finished world; pass --model (a folder, a Hugging Face Hub "
            "id or a .gguf file), or run `slick world` with the same --out first"
        )
    return world.child("model").uri


def resolve_model(model: str) -> ModelRef:
    """Find a model's files; download them from an object store or the Hugging Face Hub if necessary.

    Args:
        model: a folder or .gguf file, by path or URI, or a Hugging Face Hub id.

    Raises:
        ModelError: there is no such model, it has no safetensors weights, or its files do not describe one causal
            language model (see `slick.model_files.check_model_files`).
    """
    path = _download_folder(model) if "://" in model else os.path.abspath(os.path.expanduser(model))
    if model.lower().endswith(".gguf"):
        if not os.path.isfile(path):
            raise ModelError(
                f"{path} does not exist; --model takes a folder, a Hugging Face Hub id such as org/name, or a .gguf "
                "file"
            )
        return ModelRef(name=model, folder=os.path.dirname(path), gguf_file=os.path.basename(path))
    folder = path if os.path.isdir(path) else _hub_snapshot(model)
    names = os.listdir(folder)
    check_adapter(folder)
    if "config.json" not in names:
        ggufs = sorted(name for name in names if name.endswith(".gguf"))
        fix = f"give the file itself: {os.path.join(folder, ggufs[0])}" if ggufs else "give a Hugging Face model folder"
        raise ModelError(f"{folder} is not a model: it has no config.json; {fix}")
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in sorted(names) if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        raise ModelError(
            f"{folder} has no *.safetensors{f', only {pickles}' if pickles else ''}; pickled weights are not loaded, "
            "because they can run code: save the model with save_pretrained of a recent transformers"
        )
    check_model_files(folder)
    return ModelRef(name=model, folder=folder)


def log_ignored_settings(model: str) -> None:
    """Log each of `ignored_model_settings` on its own line."""
    for sentence in ignored_model_settings(model):
        _LOG.info("model: %s", sentence)


def ignored_model_settings(model: str) -> list[str]:
    """Files and settings of a model that have no effect, such as sampling settings, one sentence each.

    Raises:
        ModelError: see `resolve_model`.
    """
    ref = resolve_model(model)
    return [] if ref.gguf_file else ignored_settings(ref.folder)


def _download_folder(uri: str) -> str:
    """Local path of a model folder or .gguf file in an object store, downloaded to the cache."""
    remote = Folder(uri)
    try:
        if remote.name.lower().endswith(".gguf"):
            return os.path.join(download_to_cache(remote.parent), remote.name)
        return download_to_cache(remote)
    except StudyError as error:
        raise ModelError(f"the model {remote} cannot be downloaded: {error}") from error


def _hub_snapshot(model: str) -> str:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise ModelError(
            f"{model!r} is not a folder here; --model takes a folder, a Hugging Face Hub id such as org/name, or a "
            ".gguf file"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(model, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{model!r} is not a folder here and cannot be downloaded from the Hugging Face Hub ({reason}); "
            f"{hub_advice('model')}, or give a local folder or .gguf file"
        ) from error


def hub_advice(kind: str) -> str:
    """How to fix a failed download from the Hugging Face Hub.

    Args:
        kind: `model` or `data set`.
    """
    from huggingface_hub import constants

    if not constants.is_offline_mode():
        return f"check the spelling, the network, and for a gated {kind} HF_TOKEN"
    name = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), "HF_HUB_OFFLINE")
    return (
        f"{name} is set, so the {kind} is only read from the cache {constants.HF_HUB_CACHE}: unset {name}, or copy the "
        f"{kind} to the cache with `hf download` where there is a network"
    )


def model_fingerprint(ref: ModelRef) -> str:
    """16 hex digits from names and contents of weights, config and tokenizer; independent of their location."""
    digest = hashlib.sha256()
    for name in [ref.gguf_file] if ref.gguf_file else _fingerprinted_files(ref.folder):
        # A GGUF file is the whole model, so its name does not matter.
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
        model: a folder, a Hugging Face Hub id or a .gguf file.
        trust_remote_code: run code that comes with the model.
        prefixes: prefixes of the prompts to come, which the tokenizer must preserve.

    Raises:
        ModelError: it cannot be loaded, changes prompts or answers, or has tokens without an embedding.
    """
    ref = resolve_model(model)
    _check_gguf(ref)
    from transformers import AutoTokenizer

    with _load_errors("tokenizer", ref, trust_remote_code):
        tokenizer = AutoTokenizer.from_pretrained(ref.folder, **_from_pretrained_kwargs(ref, trust_remote_code))
        # Reading the configuration of a GGUF file takes as long as reading all of it, so there the engine checks ids.
        config = {} if ref.gguf_file else text_config(read_config(ref.folder))
        size = config.get("vocab_size")
        check_tokenizer(
            tokenizer,
            ref.path,
            num_embeddings=size if isinstance(size, int) else None,
            prefixes=prefixes,
        )
    return tokenizer


def num_trailing_special_tokens(tokenizer: Any) -> int:
    """Number of special tokens, such as an end of text, that the tokenizer appends to a text.

    Prompts are fed without them, because an answer must follow.
    """
    bare = tokenizer("Q", add_special_tokens=False)["input_ids"]
    full = tokenizer("Q")["input_ids"]
    for num_leading in range(len(full) - len(bare) + 1):
        if full[num_leading : num_leading + len(bare)] == bare:
            return len(full) - len(bare) - num_leading
    return 0


def context_length(model: str, *, trust_remote_code: bool = False) -> int:
    """Maximum number of tokens of a sequence; a large number if the configuration has no limit.

    Raises:
        ModelError: the model does not exist, or its configuration cannot be read.
    """
    ref = resolve_model(model)
    if not ref.gguf_file:
        length = max_positions(text_config(read_config(ref.folder)))
        if length is not None:
            return length  # without transformers, whose import takes seconds
    _check_gguf(ref)
    from transformers import AutoConfig

    with _load_errors("configuration", ref, trust_remote_code):
        config = AutoConfig.from_pretrained(ref.folder, **_from_pretrained_kwargs(ref, trust_remote_code))
    return max_positions(config.get_text_config()) or UNLIMITED_POSITIONS


def load_model(
    model: str,
    dtype: str = "float32",
    device: str = "cpu",
    *,
    trust_remote_code: bool = False,
    attention: str = "",
    quantization: Quantization = "none",
) -> "nn.Module":
    """Load a causal LM in eval mode and validate it: all weights present and finite, and attention causal.

    Under ZeRO stage 3, which shards weights while they are read, the caller runs `check_causal` later, once the model
    can be called.

    Args:
        model: a folder, a Hugging Face Hub id or a .gguf file.
        dtype: `float32`, `bfloat16` or `float16`.
        device: a torch device such as `cpu` or `cuda`.
        trust_remote_code: run code that comes with the model.
        attention: name of an attention kernel in transformers; empty for the default.
        quantization: of the linear layers of decoder blocks; see `slick.quantization`.

    Raises:
        ModelError: it does not exist, cannot be loaded, or is not a complete causal language model.
        SettingsError: a package for the quantization is missing, or the model is a GGUF file.
    """
    ref = resolve_model(model)
    _check_gguf(ref)
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype is {dtype!r}, expected float32, bfloat16 or float16")
    logging.disable_progress_bar()
    check_quantization(ref.path, quantization)
    weights = _weight_kwargs(ref, trust_remote_code)
    if quantization != "none":
        weights |= loading_arguments(quantization, getattr(torch, dtype), device)
    with _load_errors("model", ref, trust_remote_code):
        loaded, info = AutoModelForCausalLM.from_pretrained(
            ref.folder,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `info` lists all of them
            **weights,
            **({"attn_implementation": attention} if attention else {}),
            **_from_pretrained_kwargs(ref, trust_remote_code),
        )
        # Only moved, not cast: buffers such as rotary frequencies stay in float32.
        if not any(parameter.is_meta for parameter in loaded.parameters()):
            loaded.to(device)
        loaded.eval()
        compat.keep_4bit_layout(quantized_layers(loaded).values())
        check_loading_info(loaded, info, ref.path)
        if not any(map(compat.is_partitioned, loaded.parameters())):
            check_causal(loaded, ref.path)
    _reset_generation_config(loaded)
    built: nn.Module = loaded
    return built


def _reset_generation_config(model: Any) -> None:
    """Keep only the token ids of generation_config.json.

    No engine reads the other settings (see `ignored_model_settings`), and some prevent saving a trained checkpoint.
    """
    from transformers import GenerationConfig

    before = getattr(model, "generation_config", None)
    if before is not None:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{name: getattr(before, name, None) for name in names})


def _load_config(ref: ModelRef, trust_remote_code: bool) -> Any:
    """The configuration of a Hugging Face folder; end of text replaces a pad token without an embedding."""
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
    """A model on the meta device, without weights; None for a GGUF file, whose modules are unknown until it is read.

    Raises:
        ModelError: it does not exist, or its architecture is unknown.
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


def _weight_kwargs(ref: ModelRef, trust_remote_code: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained` about the weights: safetensors with their configuration, or a GGUF file."""
    if ref.gguf_file:
        return _dequantize_kwargs()
    return {"use_safetensors": True, "config": _load_config(ref, trust_remote_code)}


def _dequantize_kwargs() -> dict[str, Any]:
    """Arguments that dequantize GGUF weights, so that they can be trained and saved like others."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):
        return {}  # older versions always dequantize
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def _from_pretrained_kwargs(ref: ModelRef, trust_remote_code: bool) -> dict[str, Any]:
    source: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    return source | ({"gguf_file": ref.gguf_file} if ref.gguf_file else {})


def _check_gguf(ref: ModelRef) -> None:
    from importlib.util import find_spec

    missing = [name for name in ("gguf", "accelerate") if ref.gguf_file and find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise ModelError(f"{ref.name} is a GGUF file, which needs {names}: pip install 'slick-knowledge[gguf]'")


def _load_errors(what: str, ref: ModelRef, trust_remote_code: bool) -> AbstractContextManager[None]:
    """A context that turns errors of a library into a ModelError."""

    def fix(reason: str) -> str:
        if "trust_remote_code" in reason and not trust_remote_code:
            return "it comes with its own code: read that code, and if you trust it give --trust-remote-code"
        return "check that the files are complete and that this version of transformers supports the architecture"

    return wrap_library_errors(f"the {what} in {ref.path} cannot be loaded", ModelError, fix)


def cache_folder(kind: str) -> Path:
    """The path `$SLICK_CACHE/kind`, or `slick/kind` in the user's cache folder."""
    named = os.environ.get("SLICK_CACHE")
    if named:
        return Path(named).expanduser() / kind
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "slick" / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slick" / kind


def ensure_cache_folder(kind: str) -> Path:
    """The path of `cache_folder`, as an existing folder.

    Raises:
        StudyError: it cannot be created, for example because there is no home directory.
    """
    try:
        folder = cache_folder(kind)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: unknown home directory
        raise StudyError(
            f"this machine's cache cannot be written ({error}); set SLICK_CACHE to a folder that you can write to"
        ) from error
    return folder


def download_to_cache(folder: Folder) -> str:
    """A local path with the files of a folder: the folder itself, or a cached copy of its present files.

    Concurrent processes of one machine make one copy. Copies are never deleted.

    Raises:
        StudyError: the folder is empty or cannot be read.
    """
    if folder.is_local:
        return folder.uri
    etag = folder.etag()
    if etag is None:
        raise StudyError(f"{folder} has no files; check the address, and that this machine may read it")
    target = ensure_cache_folder("models") / etag
    if target.is_dir():
        return str(target)
    from filelock import FileLock  # comes with huggingface_hub

    with FileLock(f"{target}.lock"):
        if not target.is_dir():  # otherwise another process has made it
            part = tempfile.mkdtemp(prefix=f".{etag}-", dir=target.parent)
            try:
                folder.download(part)
                os.rename(part, target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return str(target)
