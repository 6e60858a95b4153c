"""Training and evaluation of a model on a simulated device: no tensor stays on the CPU."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.nn import functional

from tests.local.simulated_device import (
    DeviceTensor,
    SimulatedDevice,
    print_cases,
    put_on_device,
    run_cases_in_subprocess,
)
from tests.local.test_forward import EXAMPLES
from tests.local.tiny import CONFIGS, tiny_model
from tuning.config import TrainConfig
from tuning.forward import ForwardRunner
from tuning.trainable import prepare_model

CASES = ("llama once", "llama twice", "gemma3_text once", "gpt2 once", "mamba once")


@cache
def run_all_cases() -> dict[str, Any]:
    return run_cases_in_subprocess("tests.local.test_training_on_device", CASES)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_those_on_the_cpu(case: str) -> None:
    result = run_all_cases()[case]
    cpu, device = result["cpu"], result["device"]
    assert cpu["uses_packing"] == device["uses_packing"] == (case.split()[0] in CONFIGS)
    assert device["loss"] == pytest.approx(cpu["loss"], rel=1e-5)
    assert cpu["gradients"].keys() == device["gradients"].keys()
    assert any(np.abs(gradient).max() > 1e-3 for gradient in cpu["gradients"].values())
    for name, gradient in cpu["gradients"].items():
        np.testing.assert_allclose(device["gradients"][name], gradient, atol=1e-5, err_msg=name)


def run_case(case: str) -> dict[str, Any]:
    """Loss and gradients of an architecture on the CPU and on the device, with and without recomputation."""
    name, recomputation = case.split()
    models = [tiny_model(name).train() for _ in range(2)]
    for model in models:
        prepare_model(model, TrainConfig(dropout=0.0, activation_checkpointing=recomputation == "twice"))
    result = {"cpu": _train_step(models[0])}
    with SimulatedDevice().activated():
        result["device"] = _train_step(put_on_device(models[1]))
    return result


def _train_step(model: nn.Module) -> dict[str, Any]:
    forward = ForwardRunner(model, 0, packing=True)
    with forward.rows(EXAMPLES) as rows:
        loss = functional.cross_entropy(forward.answer_logits(rows), rows.labels_K)
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    return {
        "uses_packing": forward.uses_packing,
        "loss": float(loss.detach()),
        "gradients": {key: (g.on_cpu if isinstance(g, DeviceTensor) else g).tolist() for key, g in gradients.items()},
    }


if __name__ == "__main__":
    print_cases(run_case)
