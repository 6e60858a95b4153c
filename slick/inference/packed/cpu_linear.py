"""Linear layers on CPU by oneDNN, which multiplies float32 matrices faster than the library torch asks.

For models that are only asked, weights are packed once in the order in which oneDNN multiplies them: products of a few
hundred rows run 1.05 times as fast in bfloat16 and 2.3 times in float32, those of 16 rows 1.4 and 2.5 times. For models
that are trained, float32 products run 2.1 to 2.5 times as fast forward and 1.3 to 2.4 times backward (one thread of an
AMD Zen 5). The
operators are those that torch's own compiler emits; torch does not document them, so they are tried out first, and a
torch without them computes as ever.
"""

from typing import Any

import torch
from torch import Tensor, nn

from slick.compat import onednn_linear, onednn_pack

_MIN_ROWS = 16


def num_padding_rows(num: int) -> int:
    """Rows to add to so many: for each new number oneDNN compiles a kernel of 0.7 MB, in 0.7 ms.

    Products have a multiple of 16 rows; beyond 512, of a 32nd of the next power of two.

    >>> [num_padding_rows(num) for num in (40, 512, 513, 2000)]
    [8, 0, 31, 48]
    """
    return -num % max(_MIN_ROWS, 1 << max(0, (num - 1).bit_length() - 5))


class PrepackedLinear(nn.Module):
    """What `nn.Linear` computes, from packed weights; cannot be trained or saved."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._packed = onednn_pack(weight)
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """The product, shape (..., rows of the weight)."""
        return _multiply_rows(x, self._packed, self._bias)


def prepack_linears(model: nn.Module) -> bool:
    """Replace the model's linear layers by packed ones; False, and nothing done, where torch cannot do it.

    Weights are let go as soon as they are packed, unless another layer shares them, so the model takes no more memory.
    It can still be asked, and no longer be trained or saved.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu" or not _is_supported(weight.dtype):
        return False
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            dense = _dense_weights(child)
            if dense is not None:
                setattr(module, name, PrepackedLinear(*dense))
    return True


class OneDnnLinear(nn.Linear):
    """`nn.Linear` whose float32 products are oneDNN's, also those of its gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """The product, shape (..., rows of the weight)."""
        if x.dtype != torch.float32 or self.weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if not torch.is_grad_enabled():
            return _multiply_rows(x, self.weight, self.bias)
        product: Tensor = _LinearFunction.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        rows = gradient.reshape(-1, gradient.shape[-1])
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            onednn_linear(gradient, weight.t(), None) if for_x else None,
            onednn_linear(rows.t(), x.reshape(-1, x.shape[-1]).t(), None) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def use_onednn_linears(model: nn.Module) -> bool:
    """Let the model's linear layers multiply by oneDNN; False, and nothing done, where that brings nothing.

    They stay what they are: trained, saved, sharded and adapted as before.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not _is_supported(weight.dtype):
        return False
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
    return True


def _dense_weights(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight (out, in) and bias of a layer that multiplies by a matrix; None for any other."""
    layer: Any = module
    if type(module) is nn.Linear:
        return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if type(module).__name__ == "Conv1D" and layer.weight.dim() == 2:  # GPT-2 writes its weights the other way round
        return layer.weight.detach().t().contiguous(), layer.bias.detach()
    return None


def _multiply_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    spare = num_padding_rows(len(rows))
    if not spare:
        return onednn_linear(x, weight, bias)
    padded = nn.functional.pad(rows, (0, 0, 0, spare))
    return onednn_linear(padded, weight, bias)[: len(rows)].view(*x.shape[:-1], -1)


def _is_supported(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators and they give what a linear layer gives."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight, bias = torch.arange(96.0).view(6, 16).to(dtype) / 96, torch.arange(6.0).to(dtype)
    x = torch.arange(48.0).view(1, 3, 16).to(dtype) / 48
    try:
        found = onednn_linear(x, onednn_pack(weight), bias)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return torch.allclose(found.float(), nn.functional.linear(x, weight, bias).float(), rtol=2e-2, atol=2e-2)
