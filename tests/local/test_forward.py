"""Packed rows have the logits and gradients of single rows, for many architectures."""

import logging

import numpy as np
import pytest
import torch
from torch.nn import functional

from slick.errors import ModelError, SettingsError
from slick.inference.packed.cpu_linear import OneDnnLinear, use_onednn_linears
from tests.local.plain_training import answer_logits
from tests.local.tiny import CONFIGS, UNPACKED, tiny_model
from tuning.config import TrainConfig
from tuning.data import Example
from tuning.forward import ForwardRunner
from tuning.trainable import parameters_in_group, prepare_model

EXAMPLES = [
    Example(prompt_ids=tuple(range(10, 10 + length)), answer_ids=(*range(40, 40 + answer), 1))
    for length, answer in ((7, 3), (2, 1), (11, 5), (1, 2))
]


def single_row_logits(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([answer_logits(model, example) for example in EXAMPLES])


def gradients(model: torch.nn.Module, logits_KV: torch.Tensor) -> dict[str, np.ndarray]:
    labels = torch.tensor([token for example in EXAMPLES for token in example.answer_ids])
    model.zero_grad()
    functional.cross_entropy(logits_KV, labels).backward()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "activation-checkpointing"])
@pytest.mark.parametrize("name", [*CONFIGS, *UNPACKED])
def test_packed_rows_do_not_attend_to_each_other(
    name: str, checkpointing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reference_model, model = tiny_model(name).train(), tiny_model(name).train()
    prepare_model(reference_model, TrainConfig(dropout=0.0))
    prepare_model(model, TrainConfig(activation_checkpointing=checkpointing, dropout=0.0))
    use_onednn_linears(model)
    with caplog.at_level(logging.WARNING):
        forward = ForwardRunner(model, 0, packing=True)
    assert forward.uses_packing == (name in CONFIGS)
    assert ("gets padded rows" in caplog.text) == (name in UNPACKED)
    single_logits = single_row_logits(reference_model)
    with forward.rows(EXAMPLES) as rows:
        packed_logits = forward.answer_logits(rows)
        np.testing.assert_allclose(packed_logits.detach(), single_logits.detach(), atol=2e-4)
        assert rows.labels_K.tolist() == [token for example in EXAMPLES for token in example.answer_ids]
        packed_gradients = gradients(model, packed_logits)
    for key, value in gradients(reference_model, single_logits).items():
        np.testing.assert_allclose(packed_gradients[key], value, atol=2e-4, err_msg=key)
    assert model.training


def test_rows_longer_than_a_sliding_window_are_padded(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("mistral", sliding_window=4)
    with caplog.at_level(logging.WARNING):
        assert not ForwardRunner(model, 0, packing=True).uses_packing
    assert "beyond its window of 4" in caplog.text


@pytest.mark.parametrize(("group", "inside"), [("attention", "self_attn"), ("ffn", "mlp")])
def test_only_the_selected_layers_are_trained(group: str, inside: str) -> None:
    model = tiny_model("llama")
    assert parameters_in_group(model, group) == [name for name, _ in model.named_parameters() if f".{inside}." in name]
    prepare_model(model, TrainConfig(trainable=group))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(parameters_in_group(model, group))


def test_missing_layers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"no module whose class name matches ffn, found .*OPTAttention.*--trainable"):
        prepare_model(tiny_model("opt"), TrainConfig(trainable="ffn"))
    with pytest.raises(ModelError, match="no linear layers in its attention or ffn"):
        prepare_model(tiny_model("mamba"), TrainConfig(lora_rank=2))
    frozen = tiny_model("llama").requires_grad_(False)
    with pytest.raises(SettingsError, match="no parameter of LlamaForCausalLM would be trained"):
        prepare_model(frozen, TrainConfig())


@pytest.mark.parametrize("bias", [True, False])
def test_onednn_products_equal_those_of_torch(bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 40, bias=bias)
    onednn = torch.nn.Linear(24, 40, bias=bias)
    onednn.load_state_dict(plain.state_dict())
    model = torch.nn.Sequential(onednn)
    if not use_onednn_linears(model):
        pytest.skip("torch was built without oneDNN's operators for this processor")
    assert type(onednn) is OneDnnLinear
    inputs = [torch.randn(3, 7, 24, requires_grad=True) for _ in range(2)]
    inputs[1].data = inputs[0].data.clone()
    outputs = [layer(x) for layer, x in zip((plain, onednn), inputs, strict=True)]
    (outputs[0] ** 2).sum().backward()
    (outputs[1] ** 2).sum().backward()
    pairs = [(outputs[0], outputs[1]), (inputs[0].grad, inputs[1].grad), (plain.weight.grad, onednn.weight.grad)]
    for expected, actual in [*pairs, *([(plain.bias.grad, onednn.bias.grad)] if bias else [])]:
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(model(inputs[0]), plain(inputs[0]), atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(inputs[0]).dtype == torch.bfloat16
