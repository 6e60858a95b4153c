"""Another attention inside a Hugging Face causal LM, for one forward pass at a time.

The model keeps its own code; only the attention inside its layers is ours, entered through the attention interface of
transformers.

Legend of array suffixes: N tokens of the batch, H query heads, K key heads, D width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

ATTENTION_NAME = "slick_own"


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a layer asks of its attention beside the scale."""

    softcap: float | None
    window: int | None
    sink_H: Tensor | None
    dropout: float = 0.0
    """Share of the weights; 0 unless the model is being trained."""


class AttentionBackend(Protocol):
    """What takes the place of a model's attention during one forward pass."""

    def attend(
        self,
        layer: int,
        query_HND: Tensor,
        key_KND: Tensor,
        value_KND: Tensor,
        scaling: float,
        options: AttentionOptions,
    ) -> Tensor:
        """Attention of one layer, shape (N, H, D)."""
        ...


_ACTIVE_BACKENDS: dict[int, AttentionBackend] = {}
"""By the id of the layers' config, not by thread: a thread of the backward pass may compute activations again."""


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention; arrays come as (1, heads, N, D)."""
    config: Any = module.config
    running = _ACTIVE_BACKENDS[id(config)]
    options = AttentionOptions(softcap, sliding_window, s_aux, dropout)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    return running.attend(int(layer), query[0], key[0], value[0], scale, options)[None], None


class AttentionOverride:
    """Puts a model's layers under an attention of our own, one forward pass at a time."""

    def __init__(self, model: nn.Module) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION_NAME, _attention_forward)
        found = [getattr(module, "config", None) for module in model.modules()]
        self._configs: list[Any] = list(
            {id(config): config for config in found if hasattr(config, "_attn_implementation_internal")}.values()
        )

    @contextmanager
    def use_backend(self, running: AttentionBackend) -> Iterator[None]:
        """Within, the model attends as `running` says; afterwards it is as it was."""
        before = [config._attn_implementation_internal for config in self._configs]
        try:
            for config in self._configs:
                _ACTIVE_BACKENDS[id(config)] = running
                config._attn_implementation_internal = ATTENTION_NAME
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                del _ACTIVE_BACKENDS[id(config)]
                config._attn_implementation_internal = name
