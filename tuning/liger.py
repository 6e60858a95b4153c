"""Liger's fused Triton kernels for norms, rotary positions and feed-forward blocks in training (arXiv:2410.10989).

The loss stays slick's own: it needs the logits of answer tokens only.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from slick import compat
from slick.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from torch import nn


def check_liger_package() -> None:
    """Check that the package is installed.

    Raises:
        SettingsError: it is not.
    """
    if find_spec("liger_kernel") is None:
        raise SettingsError(
            "--liger needs the package liger-kernel: pip install 'slick-knowledge[liger]', or leave out --liger"
        )


def apply_liger(model: "nn.Module", device: str) -> None:
    """Replace parts of the model by Liger's kernels, in place.

    Args:
        model: a loaded model, before LoRA is inserted.
        device: torch device of the training.

    Raises:
        SettingsError: the training is on a CPU, or the package is missing.
        ModelError: Liger has no kernels for the model's architecture.
    """
    check_liger_package()
    if device == "cpu":
        raise SettingsError("--liger has kernels for GPUs only, and this training runs on the CPU; leave it out")
    if not compat.apply_liger_kernels(model):
        raise ModelError(
            f"--liger: the installed liger-kernel has no kernels for {type(model).__name__}; leave it out, or install "
            "a later version"
        )
