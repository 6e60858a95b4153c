"""Checks of a model folder without reading weights: config.json, headers of *.safetensors, and other files.

They take milliseconds and no heavy library, so `slick.models.resolve_model` runs them on every call: in the driver,
before Ray starts, and in each worker.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from slick import limits
from slick.errors import DataError, ModelError
from slick.stored_files import Count, MismatchError, convert, format_value
from slick.strict_json import parse_user_json
from slick.user_files import too_large_error

UNLIMITED_POSITIONS = 1 << 30
"""Context length of a model without a limit."""

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_CAUSAL_LM_CLASS = re.compile(r"CausalLM|LMHead|ConditionalGeneration", re.I)
"""Matches architectures that predict the next token; another check refuses those with an encoder."""
_QUANTIZED_DTYPES = {"I8", "U8", "I32", "U32", "F8_E4M3", "F8_E5M2", "F4"}
_MAX_LISTED = 4
_HINT = "download or save the model again"

_NEUTRAL_GENERATION_VALUES: Mapping[str, object] = {
    "do_sample": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "diversity_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "renormalize_logits": False,
}
"""Generation settings that change answers, and their neutral values."""
_NEUTRAL_IF_ABSENT = (
    *("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
    *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "penalty_alpha"),
    *("constraints", "watermarking_config", "prompt_lookup_num_tokens", "dola_layers"),
)
_SAMPLING_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_adapter(folder: str) -> None:
    """Refuse a folder with an adapter, alone or beside full weights, because transformers would merge them silently.

    Raises:
        ModelError: there is an adapter_config.json.
    """
    if "adapter_config.json" not in os.listdir(folder):
        return
    if os.path.exists(os.path.join(folder, "config.json")):
        raise ModelError(
            f"{folder} holds both adapter_config.json and a model's config.json, so transformers would silently add "
            "the adapter to the weights; give one model: merge the adapter (peft's merge_and_unload, then "
            "save_pretrained), or move adapter_config.json out of the folder"
        )
    raise ModelError(
        f"{folder} holds an adapter alone (adapter_config.json), not a model; load it onto its base model, merge it "
        "(peft's merge_and_unload), save_pretrained, and give that folder"
    )


def check_model_files(folder: str) -> None:
    """Check config.json and the weight files of a Hugging Face folder, without reading weights.

    Raises:
        ModelError: the model is not a causal LM, is quantized, or its files are incomplete or ambiguous.
    """
    check_adapter(folder)
    _check_config(folder, read_config(folder))
    _check_weights(folder)


def read_config(folder: str) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        ModelError: it is not a JSON object.
    """
    return _read_json(folder, "config.json")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that describes the language model: all of it, except for multimodal models."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def max_positions(text_config: Any) -> int | None:
    """Context length in a configuration, an object or the content of config.json; None if it has none."""
    settings = text_config if isinstance(text_config, Mapping) else vars(text_config)
    for name in ("max_position_embeddings", "n_positions"):
        length = settings.get(name)
        if isinstance(length, int) and length > 0:
            return min(length, UNLIMITED_POSITIONS)
    return None


def count_parameters(folder: str) -> int:
    """Number of weights in a folder, from the headers of its files; tied weights that are stored once count once.

    Raises:
        ModelError: a file is missing or invalid.
    """
    files = _weight_files(folder, os.listdir(folder))
    return sum(math.prod(entry["shape"]) for name in files for entry in _header(folder, name).values())


def ignored_settings(folder: str) -> list[str]:
    """Files and settings in a model folder that have no effect, one sentence each; empty for most models."""
    sentences = []
    for name in ("generation_config.json", "config.json"):
        settings = _active_generation_settings(_optional_json(folder, name))
        if settings:
            text = ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
            sentences.append(
                f"{name} sets {text}: ignored, because greedy decoding and the study's own sampling settings are used"
            )
    if "auto_map" in _optional_json(folder, "config.json"):
        sentences.append("config.json refers to custom code (auto_map), which runs only with --trust-remote-code")
    names = os.listdir(folder)
    used = set(_weight_files(folder, names))
    other = sorted(name for name in names if name.endswith((".safetensors", ".bin")) and name not in used)
    other = [name for name in other if not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))]
    if other:
        sentences.append(f"weights are read from {shorten_list(sorted(used))}; {shorten_list(other)}: not read")
    return sentences


def _active_generation_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Generation settings that would change answers if they were used."""
    active = {
        name: settings[name]
        for name, neutral in _NEUTRAL_GENERATION_VALUES.items()
        if settings.get(name) not in (None, neutral)
    }
    active |= {name: settings[name] for name in _NEUTRAL_IF_ABSENT if settings.get(name)}
    if active.get("do_sample"):
        active |= {name: settings[name] for name in _SAMPLING_SETTINGS if settings.get(name) is not None}
    return active


def _check_config(folder: str, config: Mapping[str, Any]) -> None:
    names = _architectures(folder, config)
    kind = f"{folder} holds {shorten_list(names or [str(config.get('model_type'))])}"
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{kind}, an encoder-decoder (is_encoder_decoder in config.json); give a causal language model, such as "
            "one whose architecture ends in ForCausalLM"
        )
    if names and "auto_map" not in config and not any(_CAUSAL_LM_CLASS.search(name) for name in names):
        raise ModelError(
            f"{kind}, saved without a head that predicts the next token (architectures in config.json); give a "
            "causal language model such as LlamaForCausalLM: the model it was made from, or, if the weights are those "
            "of a language model, load them with AutoModelForCausalLM and save_pretrained"
        )
    for name in ("quantization_config", "compression_config"):
        if config.get(name):
            method = config[name].get("quant_method", "an unnamed method") if isinstance(config[name], dict) else ""
            raise ModelError(
                f"{folder}/config.json has a {name} ({method}): the weights are quantized, which is not "
                "supported; give the original weights, dequantize them (model.dequantize(), then save_pretrained), or "
                "give a GGUF file, which is dequantized as it is read"
            )


def _architectures(folder: str, config: Mapping[str, Any]) -> list[str]:
    """Names of the model classes in config.json; empty if there are none."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"{folder}/config.json has architectures = {json.dumps(names)[:80]}; expected a list of class names such "
            f'as ["LlamaForCausalLM"]; {_HINT}'
        )
    return names


def _check_weights(folder: str) -> None:
    names = os.listdir(folder)
    files = _weight_files(folder, names)
    if not files:
        found = sorted(name for name in names if name.endswith(".safetensors"))
        raise ModelError(
            f"{folder} holds {shorten_list(found)} but neither {_ONE_FILE} nor {_INDEX}, so it is unclear which "
            f"weights are the model's; rename a single file to {_ONE_FILE}, or download the index as well"
        )
    stale = sorted(name for name in names if _SHARD.search(name) and name not in files)
    if _INDEX in names:
        indexed = set(_index(folder).values())
        if _ONE_FILE in files and indexed != {_ONE_FILE}:
            stale = sorted(indexed - {_ONE_FILE})
    if stale:
        raise ModelError(
            f"{folder} holds two sets of weights: {shorten_list(files)}, which is read, and {shorten_list(stale)}, "
            "possibly from another save; delete the set that is not the model's"
        )
    tensors = {name: _header(folder, name) for name in files}
    if files != [_ONE_FILE]:
        absent = sorted(key for key, name in _index(folder).items() if key not in tensors[name])
        if absent:
            raise ModelError(
                f"{folder}/{_INDEX} names {shorten_list(absent)}, absent from the files it names; the checkpoint is "
                "incomplete or its index is from another save: download or save it again"
            )
    _check_not_quantized(folder, tensors)


def _check_not_quantized(folder: str, tensors: Mapping[str, Mapping[str, Any]]) -> None:
    packed = sorted(
        f"{key} ({entry['dtype']})"
        for entries in tensors.values()
        for key, entry in entries.items()
        if key.endswith("weight") and len(entry["shape"]) > 1 and entry["dtype"] in _QUANTIZED_DTYPES
    )
    if packed:
        raise ModelError(
            f"{folder} holds weights in a packed format: {shorten_list(packed)}; expected are float32, bfloat16 or "
            "float16: give the original weights, or dequantize them and save_pretrained"
        )


def _weight_files(folder: str, names: Sequence[str]) -> list[str]:
    """Files that transformers reads weights from, sorted.

    Raises:
        ModelError: a shard is missing.
    """
    if _ONE_FILE in names:
        return [_ONE_FILE]
    if _INDEX not in names:
        return []
    files = sorted(set(_index(folder).values()))
    missing = [name for name in files if name not in names]
    if missing:
        raise ModelError(
            f"{folder}/{_INDEX} names {len(files)} files, of which {shorten_list(missing)} is missing; the "
            "checkpoint is incomplete: download or save it again"
        )
    return files


def _index(folder: str) -> dict[str, str]:
    """Tensor name -> file name."""
    weight_map = _read_json(folder, _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder}/{_INDEX} has no weight_map; download or save the checkpoint again")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise ModelError(
                f"{folder}/{_INDEX} names {format_value(file)} for tensor {tensor[:200]!r}, expected the name of a "
                "file; download or save the checkpoint again"
            )
    return weight_map


class _TensorEntry(TypedDict):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


def _header(folder: str, name: str) -> dict[str, Any]:
    """Dtype, shape and offsets of each tensor of a safetensors file, whose size must agree with them."""
    path = os.path.join(folder, name)
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if limits.MAX_SETTINGS_BYTES < length < size:
                raise ModelError(
                    str(too_large_error(f"the header of {path}", length, limits.MAX_SETTINGS_BYTES, _HINT))
                )
            header: dict[str, Any] = parse_user_json(file.read(length), path, _HINT) if 0 < length < size else {}
        header.pop("__metadata__", None)
        for entry in header.values():
            convert(entry, _TensorEntry)
        expected_size = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (DataError, MismatchError, AttributeError) as error:
        raise ModelError(f"{path} cannot be loaded: it is not a safetensors file; download or save it again") from error
    if size != expected_size:
        raise ModelError(
            f"{path} cannot be loaded: it has {size:,} bytes where its header says {expected_size:,}, so it was cut "
            "off or changed; download or save it again"
        )
    return header


def _optional_json(folder: str, name: str) -> dict[str, Any]:
    return _read_json(folder, name) if os.path.exists(os.path.join(folder, name)) else {}


def _read_json(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    try:
        size = os.path.getsize(path)
        if size > limits.MAX_SETTINGS_BYTES:
            raise too_large_error(path, size, limits.MAX_SETTINGS_BYTES, _HINT)
        with open(path, "rb") as file:
            content = parse_user_json(file.read(), path, _HINT, lenient=True)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error}); {_HINT}") from error
    except DataError as error:
        raise ModelError(str(error)) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object; {_HINT}")
    return content


def shorten_list(names: Sequence[str]) -> str:
    """The first few names, and the number of the others.

    >>> shorten_list(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
