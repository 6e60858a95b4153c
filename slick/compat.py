"""Every private or undocumented API of other libraries that slick uses.

Each entry names the versions it was checked against and what could replace it. Heavy libraries are imported inside
functions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# --- transformers -----------------------------------------------------------------------------------------------------


def attention_implementation(config: Any) -> str | None:
    """Name of the attention kernel of a loaded model, such as `sdpa`; None if its code does not name one.

    `PretrainedConfig._attn_implementation`, checked with transformers 5.23.0. No public replacement; the
    documented `set_attn_implementation` only writes it.
    """
    name: str | None = getattr(config.get_text_config(), "_attn_implementation", None)
    return name


def attention_configs(model: "nn.Module") -> list[Any]:
    """The configurations, each once, from which a model's layers read their attention kernel.

    `PretrainedConfig._attn_implementation_internal`, checked with transformers 5.23.0; see `attention_override`.
    """
    configs = [getattr(module, "config", None) for module in model.modules()]
    has_kernel = [config for config in configs if hasattr(config, "_attn_implementation_internal")]
    return list({id(config): config for config in has_kernel}.values())


@contextmanager
def attention_override(configs: Sequence[Any], name: str) -> Iterator[None]:
    """Within, layers with these configurations use the attention function registered as `name`.

    `PretrainedConfig._attn_implementation_internal`, checked with transformers 5.23.0. Replacement:
    `PreTrainedModel.set_attn_implementation`, which today visits all submodules on each call.
    """
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config._attn_implementation_internal = value


def has_recurrent_state(model: "nn.Module") -> bool:
    """Whether a model keeps a recurrent state instead of keys and values, as Mamba does.

    `PreTrainedModel._is_stateful`, checked with transformers 5.23.0. Without it, `find_logit_mismatch` detects
    such models by their logits.
    """
    return bool(getattr(model, "_is_stateful", False))


def tied_weight_names(model: "nn.Module") -> Sequence[str]:
    """Names of the parameters that a model class ties to its input embeddings.

    `PreTrainedModel._tied_weights_keys`, checked with transformers 5.23.0. No public replacement.
    """
    return list(getattr(model, "_tied_weights_keys", None) or ())


# --- torch ------------------------------------------------------------------------------------------------------------


def onednn_pack(weight: "Tensor") -> "Tensor":
    """A weight in the memory layout that oneDNN multiplies fastest.

    `torch.ops.mkldnn._reorder_linear_weight`, which Inductor emits; checked with torch 2.13.0. Replacement:
    `torch.compile`, which packs weights itself, but recompiles for each batch shape.

    Raises:
        AttributeError: this torch lacks the operator.
    """
    import torch

    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def onednn_linear(x: "Tensor", weight: "Tensor", bias: "Tensor | None") -> "Tensor":
    """`nn.functional.linear` by oneDNN, with a plain or a packed weight.

    `torch.ops.mkldnn._linear_pointwise`, which Inductor emits; checked with torch 2.13.0. Replacement: see
    `onednn_pack`.

    Raises:
        AttributeError: this torch lacks the operator.
    """
    import torch

    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


# --- vLLM -------------------------------------------------------------------------------------------------------------


def vllm_attention_backend(llm: Any) -> str | None:
    """The attention backend in the settings of a `vllm.LLM`; None if vLLM chose it itself, which it does not report.

    `LLM.llm_engine.vllm_config.attention_config.backend`, checked with vLLM 0.32.0. No public replacement.
    """
    settings = getattr(getattr(getattr(llm, "llm_engine", None), "vllm_config", None), "attention_config", None)
    backend = getattr(settings, "backend", None)
    return str(getattr(backend, "name", backend)) if backend else None
