"""Shapes of Llama-like decoders, and the sizes of their weights, keys and values. Pure.

Shapes are from the config.json of published models; tests compare their parameter counts with the published ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slick.errors import SettingsError
from slick.precision import dtype_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes in a model's config.json. Parameter counts omit biases and norms of attention heads, about 0.1 %."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Size of the feed-forward layer, which has three matrices: gate, up and down."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Size of one attention head."""
    vocab_size: int
    tie_word_embeddings: bool
    """Input and output embeddings share one matrix."""

    @property
    def attention(self) -> int:
        """Parameters of the attention of one layer."""
        return self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)

    @property
    def feed_forward(self) -> int:
        """Parameters of one feed-forward layer."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def embeddings(self) -> int:
        """Parameters of the embeddings."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        """All parameters."""
        norms = self.hidden_size * (2 * self.num_layers + 1)
        return self.embeddings + norms + self.num_layers * (self.attention + self.feed_forward)

    def lora_parameters(self, rank: int, part: str = "all") -> int:
        """LoRA parameters of this rank on the linear layers of `all`, `attention` or `ffn`."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = 2 * (self.hidden_size + heads) + 2 * (self.hidden_size + kv_heads)
        ffn = 3 * (self.hidden_size + self.intermediate_size)
        return rank * self.num_layers * {"all": attention + ffn, "attention": attention, "ffn": ffn}[part]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype_bytes(dtype)


def _shape(
    name: str,
    layers: int,
    hidden_size: int,
    intermediate_size: int,
    heads: int,
    kv: int,
    head_dim: int,
    vocab_size: int,
    tie_word_embeddings: bool,
) -> ModelShape:
    return ModelShape(
        name=name,
        num_layers=layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=head_dim,
        vocab_size=vocab_size,
        tie_word_embeddings=tie_word_embeddings,
    )


SHAPES = {
    "135M": _shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, True),
    "360M": _shape("SmolLM2-360M", 32, 960, 2560, 15, 5, 64, 49152, True),
    "1B": _shape("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128256, True),
    "1.7B": _shape("SmolLM2-1.7B", 24, 2048, 8192, 32, 32, 64, 49152, True),
    "3B": _shape("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, 128256, True),
    "7B": _shape("Mistral-7B-v0.3", 32, 4096, 14336, 32, 8, 128, 32768, False),
    "8B": _shape("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, 128256, False),
    "13B": _shape("Llama-2-13B", 40, 5120, 13824, 40, 40, 128, 32000, False),
    "70B": _shape("Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128, 128256, False),
}
"""Published models by size."""


def published_shape(size: str) -> ModelShape:
    """The published model of this size.

    Raises:
        SettingsError: there is none.
    """
    for name, shape in SHAPES.items():
        if size.strip().lower() == name.lower():
            return shape
    raise SettingsError(
        f"--model-size {size} is unknown; choose one of {', '.join(SHAPES)}, or give --model FOLDER, whose "
        "config.json is read"
    )


def shape_from_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape in a config.json.

    Raises:
        SettingsError: it does not describe a Llama-like decoder.
    """
    text_config = config.get("text_config", config)
    try:
        heads = int(text_config["num_attention_heads"])
        return _shape(
            name,
            int(text_config["num_hidden_layers"]),
            int(text_config["hidden_size"]),
            int(text_config["intermediate_size"]),
            heads,
            int(text_config.get("num_key_value_heads") or heads),
            int(text_config.get("head_dim") or int(text_config["hidden_size"]) // heads),
            int(text_config["vocab_size"]),
            bool(text_config.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"config.json of {name} does not describe a Llama-like decoder ({error!s} is missing or no number): "
            f"{json.dumps(dict(text_config), default=str)[:200]}; give --model-size, one of {', '.join(SHAPES)}"
        ) from error
