"""Checks of a model folder that need no weights: config.json, the headers of *.safetensors, and files beside them.

They take milliseconds and no heavy library, so `slick.models.resolve_model` makes them on every call: in the driver,
before Ray starts, as well as in each worker.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slick import limits
from slick.errors import DataError, ModelError
from slick.strict_json import parse_user_json
from slick.user_files import too_large_error

UNLIMITED_POSITIONS = 1 << 30
"""Tokens of a context without an end."""

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_CAUSAL_LM_CLASS = re.compile(r"CausalLM|LMHead|ConditionalGeneration", re.I)
"""Names of architectures that predict the next token; those with an encoder are refused by another check."""
_QUANTIZED_DTYPES = {"I8", "U8", "I32", "U32", "F8_E4M3", "F8_E5M2", "F4"}
_MAX_LISTED = 4
_HINT = "fetch or save the model again"

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
"""Generation settings that change which text a model gives, and the value that changes nothing."""
_NEUTRAL_IF_ABSENT = (
    *("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
    *("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "penalty_alpha"),
    *("constraints", "watermarking_config", "prompt_lookup_num_tokens", "dola_layers"),
)
_SAMPLING_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_adapter(folder: str) -> None:
    """Refuse a folder with an adapter, alone or beside full weights, where transformers would add it unasked.

    Raises:
        ModelError: there is an adapter_config.json.
    """
    if "adapter_config.json" not in os.listdir(folder):
        return
    if os.path.exists(os.path.join(folder, "config.json")):
        raise ModelError(
            f"{folder} holds adapter_config.json beside a model's own config.json, so transformers would add the "
            "adapter to the weights without a word; wanted is one model: merge the adapter (peft's "
            "merge_and_unload, then save_pretrained), or move adapter_config.json out of the folder"
        )
    raise ModelError(
        f"{folder} holds an adapter alone (adapter_config.json), not a model; load it onto its base model, merge it "
        "(peft's merge_and_unload), save_pretrained, and give that folder"
    )


def check_model_files(folder: str) -> None:
    """Check config.json and the weights' files of a Hugging Face folder, without reading any weights.

    Raises:
        ModelError: the model is no causal LM, is quantized, or its files are incomplete or ambiguous.
    """
    check_adapter(folder)
    _check_config(folder, read_config(folder))
    _check_weights(folder)


def read_config(folder: str) -> dict[str, Any]:
    """config.json as it is.

    Raises:
        ModelError: it is no JSON object.
    """
    return _read_json(folder, "config.json")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that describes the language model: all of it, but for models with several parts."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def max_positions(text_config: Any) -> int | None:
    """Positions that a model's configuration names, an object or the content of config.json; None: it names none."""
    settings = text_config if isinstance(text_config, Mapping) else vars(text_config)
    for name in ("max_position_embeddings", "n_positions"):
        length = settings.get(name)
        if isinstance(length, int) and length > 0:
            return min(length, UNLIMITED_POSITIONS)
    return None


def end_token_ids(folder: str) -> list[int]:
    """Ids of all tokens that config.json and generation_config.json call an end of text, sorted."""
    found: set[int] = set()
    for settings in (text_config(read_config(folder)), _optional_json(folder, "generation_config.json")):
        ids = settings.get("eos_token_id")
        found.update(i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int))
    return sorted(found)


def ignored_settings(folder: str) -> list[str]:
    """What lies in a model's folder and is not used here, one sentence each; empty for most models."""
    found = []
    for name in ("generation_config.json", "config.json"):
        settings = _active_generation_settings(_optional_json(folder, name))
        if settings:
            text = ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
            found.append(
                f"{name} sets {text}: ignored, since answers are drawn greedily and by this program's own sampling "
                "settings"
            )
    if "auto_map" in _optional_json(folder, "config.json"):
        found.append("config.json names code of its own (auto_map), which runs only with --trust-remote-code")
    names = os.listdir(folder)
    read = set(_weight_files(folder, names))
    other = sorted(name for name in names if name.endswith((".safetensors", ".bin")) and name not in read)
    other = [name for name in other if not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))]
    if other:
        found.append(f"weights are read from {shorten_list(sorted(read))}; {shorten_list(other)} beside it: not read")
    return found


def _active_generation_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Generation settings that would change answers if anything read them."""
    found = {
        name: settings[name]
        for name, neutral in _NEUTRAL_GENERATION_VALUES.items()
        if settings.get(name) not in (None, neutral)
    }
    found |= {name: settings[name] for name in _NEUTRAL_IF_ABSENT if settings.get(name)}
    if found.get("do_sample"):
        found |= {name: settings[name] for name in _SAMPLING_SETTINGS if settings.get(name) is not None}
    return found


def _check_config(folder: str, config: Mapping[str, Any]) -> None:
    names = _architectures(folder, config)
    kind = f"{folder} holds {shorten_list(names or [str(config.get('model_type'))])}"
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{kind}, an encoder-decoder (is_encoder_decoder in config.json); wanted is a causal language model, which "
            "goes on with a text, such as one whose architecture ends in ForCausalLM"
        )
    if names and "auto_map" not in config and not any(_CAUSAL_LM_CLASS.search(name) for name in names):
        raise ModelError(
            f"{kind}, saved without a head that predicts the next token (architectures in config.json); wanted is a "
            "causal language model such as LlamaForCausalLM: give the model it was made from, or, if the weights are "
            "those of a language model, load them with AutoModelForCausalLM and save_pretrained"
        )
    for name in ("quantization_config", "compression_config"):
        if config.get(name):
            method = config[name].get("quant_method", "an unnamed method") if isinstance(config[name], dict) else ""
            raise ModelError(
                f"{folder}/config.json has a {name} ({method}): the weights are quantized, which no engine or training "
                "here takes; give the original weights, dequantize them (model.dequantize(), then save_pretrained), or "
                "give a GGUF file, which is dequantized as it is read"
            )


def _architectures(folder: str, config: Mapping[str, Any]) -> list[str]:
    """Names of the model's classes as config.json gives them; empty where it gives none."""
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"{folder}/config.json has architectures = {json.dumps(names)[:80]}; wanted is a list of class names such "
            f'as ["LlamaForCausalLM"]; {_HINT}'
        )
    return names


def _check_weights(folder: str) -> None:
    names = os.listdir(folder)
    files = _weight_files(folder, names)
    if not files:
        found = sorted(name for name in names if name.endswith(".safetensors"))
        raise ModelError(
            f"{folder} holds {shorten_list(found)} but neither {_ONE_FILE} nor {_INDEX}, so nothing says which "
            f"weights are "
            f"the model's; rename a single file to {_ONE_FILE}, or fetch the index as well"
        )
    stale = sorted(name for name in names if _SHARD.search(name) and name not in files)
    if _INDEX in names:
        indexed = set(_index(folder).values())
        if _ONE_FILE in files and indexed != {_ONE_FILE}:
            stale = sorted(indexed - {_ONE_FILE})
    if stale:
        raise ModelError(
            f"{folder} holds two sets of weights: {shorten_list(files)}, which is read, and {shorten_list(stale)}, "
            f"maybe of another "
            "save; wanted is one set: delete the one that is not meant"
        )
    tensors = {name: _header(folder, name) for name in files}
    if files != [_ONE_FILE]:
        absent = sorted(key for key, name in _index(folder).items() if key not in tensors[name])
        if absent:
            raise ModelError(
                f"{folder}/{_INDEX} names {shorten_list(absent)}, absent from the files it names; the checkpoint is "
                "incomplete or its index is of another save: fetch or save it again"
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
            f"{folder} holds weights in a packed format: {shorten_list(packed)}; wanted are float32, bfloat16 or "
            f"float16: "
            "give the original weights, or dequantize them and save_pretrained"
        )


def _weight_files(folder: str, names: Sequence[str]) -> list[str]:
    """Files that transformers reads weights from, sorted; a shard that is missing is refused."""
    if _ONE_FILE in names:
        return [_ONE_FILE]
    if _INDEX not in names:
        return []
    files = sorted(set(_index(folder).values()))
    missing = [name for name in files if name not in names]
    if missing:
        raise ModelError(
            f"{folder}/{_INDEX} names {len(files)} files, of which {shorten_list(missing)} is missing; the "
            f"checkpoint is "
            "incomplete: fetch or save it again"
        )
    return files


def _index(folder: str) -> dict[str, str]:
    """File of each tensor."""
    found = _read_json(folder, _INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{folder}/{_INDEX} has no weight_map; fetch or save the checkpoint again")
    return found


def _header(folder: str, name: str) -> dict[str, Any]:
    """Dtype, shape and place of each tensor of a safetensors file, which must be as long as these say."""
    path = os.path.join(folder, name)
    size = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if limits.MAX_SETTINGS_BYTES < length < size:
                raise ModelError(
                    str(too_large_error(f"the header of {path}", length, limits.MAX_SETTINGS_BYTES, _HINT))
                )
            found: dict[str, Any] = parse_user_json(file.read(length), path, _HINT) if 0 < length < size else {}
        found.pop("__metadata__", None)
        wanted = 8 + length + max((entry["data_offsets"][1] for entry in found.values()), default=0)
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be loaded: it is no safetensors file; fetch or save it again") from error
    if size != wanted:
        raise ModelError(
            f"{path} cannot be loaded: it has {size:,} bytes where its header says {wanted:,}, so it was cut off or "
            "changed; fetch or save it again"
        )
    return found


def _optional_json(folder: str, name: str) -> dict[str, Any]:
    return _read_json(folder, name) if os.path.exists(os.path.join(folder, name)) else {}


def _read_json(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    try:
        size = os.path.getsize(path)
        if size > limits.MAX_SETTINGS_BYTES:
            raise too_large_error(path, size, limits.MAX_SETTINGS_BYTES, _HINT)
        with open(path, "rb") as file:
            found = parse_user_json(file.read(), path, _HINT, lenient=True)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error}); {_HINT}") from error
    except DataError as error:
        raise ModelError(str(error)) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is no JSON object; fetch or save the model again")
    return found


def shorten_list(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are.

    >>> shorten_list(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
