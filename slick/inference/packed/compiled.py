"""Decoder layers compiled by torch.compile, which fuses their kernels.

Only what surrounds the attention is compiled: norms, projections, rotary positions and the feed-forward block. The
attention of packed batches stays as it is. One compiled kernel serves every number of tokens, so it is compiled once.
"""

from torch import nn


def compile_layers(model: nn.Module) -> None:
    """Compile the decoder layers in place; they are compiled when they are first called.

    On devices that Inductor does not know, the graphs are traced but run by torch's own kernels.
    """
    device = next(model.parameters()).device.type
    backend = "inductor" if device in ("cpu", "cuda", "xpu", "mps") else "aot_eager"
    for layer in decoder_layers(model):
        layer.compile(dynamic=True, backend=backend)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a model: its longest list of modules."""
    return max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
