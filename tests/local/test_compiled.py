"""Compiled decoder layers give the answers of the layers as they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from slick.errors import EngineError
from slick.inference.base import ENGINES, PACKED_ENGINE, EngineConfig
from slick.inference.packed.compiled import compile_layers, decoder_layers
from slick.inference.packed.engine import TransformersEngine
from tests.local.engine_results import all_results
from tests.local.tiny import tiny_model, tiny_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_answers_of_compiled_layers_are_the_same(name: str, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    tiny_model(name, spread=0.2).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    spec, config = ENGINES.get(PACKED_ENGINE), EngineConfig(model=str(tmp_path))
    expected = all_results(spec.load(config))
    counters.clear()
    engine = spec.load(replace(config, compile=True))
    num_graphs = counters["stats"]["unique_graphs"]
    results = all_results(engine)
    assert num_graphs > 0
    assert counters["stats"]["unique_graphs"] == num_graphs, "no batch size is compiled anew"
    assert (results["full"], results["labels"]) == (expected["full"], expected["labels"])
    for kind in ("probability", "choices"):
        np.testing.assert_allclose(results[kind], expected[kind], rtol=1e-4)


def test_decoder_layers_of_each_architecture() -> None:
    for name in ("llama", "gpt2", "gpt_neox", "opt"):
        assert len(decoder_layers(tiny_model(name))) == 3


def test_models_without_packed_batches_are_refused() -> None:
    with pytest.raises(EngineError, match="--compile is for packed batches"):
        TransformersEngine(tiny_model("mamba"), tiny_tokenizer(), compiled=True)


def replace_layers(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    """Replace what the compiler makes of each layer."""

    def compile_model(model: nn.Module) -> None:
        for layer in decoder_layers(model):
            layer.register_forward_hook(function)

    monkeypatch.setattr("slick.inference.packed.full_forward.compile_layers", compile_model)


def test_other_logits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_layers(monkeypatch, lambda _, __, output: output * 1.01 + 0.02)
    with pytest.raises(EngineError, match="compiled layers of LlamaForCausalLM give logits that differ by"):
        TransformersEngine(tiny_model("llama", spread=0.2), tiny_tokenizer(), compiled=True)


def test_a_compiler_that_fails_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no C++ compiler\nfound")

    replace_layers(monkeypatch, fail)
    with pytest.raises(EngineError, match=r"torch.compile fails on LlamaForCausalLM \(RuntimeError: no C\+\+ compiler"):
        TransformersEngine(tiny_model("llama"), tiny_tokenizer(), compiled=True)


def test_compiling_keeps_the_names_of_weights() -> None:
    model = tiny_model("llama")
    names = list(model.state_dict())
    compile_layers(model)
    assert list(model.state_dict()) == names
