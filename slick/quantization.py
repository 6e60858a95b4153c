"""Frozen base weights in 8 or 4 bits under LoRA, by bitsandbytes through transformers.

`8bit` is LLM.int8 (arXiv:2208.07339), `4bit` is NF4 with double quantization as in QLoRA (arXiv:2305.14314). The linear
layers of the decoder blocks are quantized while the weights are read; embeddings, norms and the output layer are not.
Checkpoints hold the dequantized weights.
"""

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from slick.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor, nn

Quantization = Literal["none", "8bit", "4bit"]

_BITS_BLOCK, _SCALE_BLOCK = 64, 256
"""Weights that share a scale of 8 bits, and scales that share one of 32 bits, in NF4 with double quantization."""


def bytes_per_weight(quantization: Quantization, dense_bytes: int) -> float:
    """Bytes of one weight of a quantized linear layer, scales included.

    Args:
        quantization: of the layer.
        dense_bytes: bytes of a weight that is not quantized.

    >>> bytes_per_weight("8bit", 2), round(bytes_per_weight("4bit", 2), 4)
    (1.0, 0.5159)
    """
    if quantization == "8bit":
        return 1.0  # and one scale of 4 bytes per output feature, which is negligible
    if quantization == "4bit":
        return 0.5 + 1 / _BITS_BLOCK + 4 / (_BITS_BLOCK * _SCALE_BLOCK)
    return float(dense_bytes)


def check_quantization(model: str, quantization: Quantization) -> None:
    """Check that a model can be quantized here.

    Args:
        model: folder, hub id or GGUF file.
        quantization: the one that is requested.

    Raises:
        SettingsError: a package is missing, or the model is a GGUF file.
    """
    if quantization == "none":
        return
    if model.lower().endswith(".gguf"):
        raise SettingsError(
            f"{model} is a GGUF file, whose weights are dequantized as they are read, so --quantization {quantization} "
            "would round them twice; give the model folder from which it was made"
        )
    missing = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"--quantization {quantization} needs {' and '.join(missing)}: pip install 'slick-knowledge[quantized]'"
        )


def loading_arguments(quantization: Quantization, dtype: Any, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantize the weights while they are read.

    Args:
        quantization: `8bit` or `4bit`.
        dtype: torch dtype of the computation.
        device: the torch device of the model, on which 8-bit weights must be made.
    """
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it repeats how it rounds activations
    if quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def quantized_layers(model: "nn.Module") -> dict[str, Any]:
    """The quantized linear layers of a model by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(getattr(module, "weight", None)).__name__ in ("Params4bit", "Int8Params")
        and not hasattr(module, "base_layer")  # LoRA's layers pass their base layer's weight through
    }


def model_quantization(model: "nn.Module") -> Quantization:
    """The quantization of a loaded model."""
    kinds = {type(layer.weight).__name__ for layer in quantized_layers(model).values()}
    return "8bit" if "Int8Params" in kinds else "4bit" if kinds else "none"


def dequantized_weight(layer: Any) -> "Tensor":
    """The weight of a quantized layer as floating-point numbers, shape (out features, in features)."""
    from bitsandbytes import functional

    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        dense: Tensor = functional.dequantize_4bit(weight.data, weight.quant_state)
        return dense
    scales = layer.state.SCB if layer.state.SCB is not None else weight.SCB
    restored: Tensor = weight.data * scales.view(-1, 1) / 127
    return restored
