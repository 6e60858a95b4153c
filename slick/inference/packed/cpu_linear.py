"""Linear layers on the CPU by oneDNN, which multiplies float32 matrices faster than torch's default library.

For inference, weights are packed once into oneDNN's layout: with a few hundred rows, layers run 1.05 times as fast in
bfloat16 and 2.3 times in float32; with 16 rows 1.4 and 2.5 times. In training, float32 layers run 2.1 to 2.5 times as
fast forward and 1.3 to 2.4 times backward (one thread of an AMD Zen 5). The operators are private (see `slick.compat`),
so they are tested first, and torch's own layers stay in use where the test fails.
"""

from typing import Any

import torch
from torch import Tensor, nn

from slick.compat import onednn_linear, onednn_pack

_MIN_ROWS = 16


def num_padding_rows(num: int) -> int:
    """Rows to add to a matrix of `num` rows: oneDNN compiles a kernel of 0.7 MB for each new number, in 0.7 ms.

    The sum is a multiple of 16; above 512, a multiple of 1/32 of the next power of two.

    >>> [num_padding_rows(num) for num in (40, 512, 513, 2000)]
    [8, 0, 31, 48]
    """
    return -num % max(_MIN_ROWS, 1 << max(0, (num - 1).bit_length() - 5))


class PrepackedLinear(nn.Module):
    """`nn.Linear` with packed weights; cannot be trained or saved."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._packed = onednn_pack(weight)
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., out_features)."""
        return _multiply_rows(x, self._packed, self._bias)


def prepack_linears(model: nn.Module) -> bool:
    """Replace the model's linear layers by packed ones; return False and change nothing if torch does not support it.

    Each weight is freed once it is packed, unless another layer shares it, so the model takes no more memory. The model
    can no longer be trained or saved.
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
    """`nn.Linear` that computes float32 outputs and gradients by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., out_features)."""
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
    """Make the model's linear layers `OneDnnLinear`; return False and change nothing where that is not faster.

    The layers can be trained, saved, sharded and adapted as before.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not _is_supported(weight.dtype):
        return False
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
    return True


def _dense_weights(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight (out, in) and bias of a linear layer; None for any other module."""
    layer: Any = module
    if type(module) is nn.Linear:
        return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if type(module).__name__ == "Conv1D" and layer.weight.dim() == 2:  # GPT-2 stores weights transposed
        return layer.weight.detach().t().contiguous(), layer.bias.detach()
    return None


def _multiply_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    num_padding = num_padding_rows(len(rows))
    if not num_padding:
        return onednn_linear(x, weight, bias)
    padded = nn.functional.pad(rows, (0, 0, 0, num_padding))
    return onednn_linear(padded, weight, bias)[: len(rows)].view(*x.shape[:-1], -1)


def _is_supported(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators and they agree with `nn.functional.linear`."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight, bias = torch.arange(96.0).view(6, 16).to(dtype) / 96, torch.arange(6.0).to(dtype)
    x = torch.arange(48.0).view(1, 3, 16).to(dtype) / 48
    try:
        output = onednn_linear(x, onednn_pack(weight), bias)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    return torch.allclose(output.float(), nn.functional.linear(x, weight, bias).float(), rtol=2e-2, atol=2e-2)
