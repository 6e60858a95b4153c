"""Base weights in 8 and 4 bits under LoRA, on the CPU kernels of bitsandbytes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from slick.errors import SettingsError
from slick.models import load_model
from slick.quantization import bytes_per_weight, dequantized_weight, quantized_layers
from slick.storage import Folder
from tests.local.cli import ROOT
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.waiting import TIMEOUT_S
from tuning.config import TrainConfig
from tuning.data import Example
from tuning.trainable import CheckpointWriter, check_trainable, full_state_dict
from tuning.trainer import Trainer, WorkerContext, init_deepspeed

KINDS = ("8bit", "4bit")
EXAMPLES = [Example(prompt_ids=(5, 6, 7 + i), answer_ids=(3 + i, 4, 2)) for i in range(6)]
CONFIG = TrainConfig(dtype="float32", learning_rate=5e-3, batch_size=4, dropout=0.0, lora_rank=4)
SIZES = {"hidden_size": 64, "intermediate_size": 128}
IDS = torch.tensor([[5, 6, 7, 8, 9, 30, 31]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama", spread=0.1, **SIZES).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(("kind", "limit"), [("8bit", 0.03), ("4bit", 0.4)])
def test_quantized_model_is_close_to_the_model(folder: str, kind: Any, limit: float) -> None:
    model, quantized = load_model(folder), load_model(folder, quantization=kind)
    layers = quantized_layers(quantized)
    assert len(layers) == 3 * 7, "the linear layers of the blocks, and no others"
    with torch.no_grad():
        expected, logits = model(IDS).logits, quantized(IDS).logits
        assert 0 < float((logits - expected).std() / expected.std()) < limit
        for name, layer in layers.items():
            dense = model.get_submodule(name).weight
            assert (
                0 < float((dequantized_weight(layer) - dense).std() / dense.std()) < (0.02 if kind == "8bit" else 0.15)
            )
    for name, layer in layers.items():
        held = layer.weight.nbytes
        if kind == "4bit":
            state = layer.weight.quant_state
            held += state.absmax.nbytes + state.state2.absmax.nbytes
        num = model.get_submodule(name).weight.numel()
        assert held == pytest.approx(num * bytes_per_weight(kind, 4), rel=0.12)


def mean_loss(trainer: Trainer) -> float:
    from torch.nn import functional

    trainer.model.eval()
    with torch.inference_mode(), trainer.forward.rows(EXAMPLES) as rows:
        return float(functional.cross_entropy(trainer.forward.answer_logits(rows), rows.labels_K))


def train(path: Path, folder: str) -> dict[str, Any]:
    """Train with each kind of quantization; run in a subprocess, because a process has one process group."""
    import torch.distributed as dist

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    init_deepspeed()
    context = WorkerContext(rank=0, local_rank=0, num_workers=1, device="cpu")
    results = {}
    for kind in KINDS:
        state, runs = path / f"{kind}-state", Folder(str(path / kind))
        state.mkdir()
        weights, losses = {}, {}
        for stage in (0, 2):
            config = replace(CONFIG, quantization=kind, zero_stage=stage)  # type: ignore[arg-type]
            trainer = Trainer(folder, config, context, 0)
            before = full_state_dict(trainer.model, keep=True)
            for epoch in (1, 2):
                trainer.epoch(EXAMPLES, epoch)
                with torch.inference_mode():  # as the evaluation after each epoch
                    trainer.model.eval()(IDS)
            if stage == 0:
                trainer.save(str(state))
            losses[stage] = [mean_loss(trainer)]
            trainer.epoch(EXAMPLES, 3)
            losses[stage].append(mean_loss(trainer))
            weights[stage] = full_state_dict(trainer.model, keep=True)
        writer = CheckpointWriter(runs, tiny_tokenizer(), is_writer=True)
        writer.save(trainer.model, "checkpoint")
        writer.finish()
        with torch.no_grad():
            logits = trainer.model.eval()(IDS).logits
        saved = load_model(str(path / kind / "checkpoint"))
        resumed = Trainer(folder, replace(config, zero_stage=0), context, 0)
        resumed.load(Folder(str(state)), EXAMPLES[0])
        resumed.epoch(EXAMPLES, 3)
        again = full_state_dict(resumed.model, keep=True)
        moved = [name for name, weight in weights[0].items() if not torch.equal(weight, before[name])]
        results[kind] = {
            "packed": trainer.forward.uses_packing,
            "moved": sorted({name.split(".", 3)[-1] for name in moved}),
            "resumed": all(torch.equal(again[name], weight) for name, weight in weights[0].items()),
            "losses": losses[0],
            "dtype": trainer.runtime.dtype,
            "stages": max(float((weights[2][name] - weight).abs().max()) for name, weight in weights[0].items()),
            "saved": float((saved(IDS).logits - logits).std() / logits.std()),
            "config": json.loads((path / kind / "checkpoint" / "config.json").read_text()),
            "lora": sorted(os.listdir(path / kind / "checkpoint" / "lora")),
        }
    return results


@pytest.fixture(scope="module")
def trained(folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("training")
    subprocess.run([sys.executable, "-m", __name__, str(path), folder], cwd=ROOT, check=True, timeout=TIMEOUT_S)
    results: dict[str, Any] = json.loads((path / "results.json").read_text())
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_trained_on_quantized_weights(trained: dict[str, Any], kind: str) -> None:
    result = trained[kind]
    assert result["packed"]
    assert result["dtype"] == f"float32 with {kind} base weights"
    projections = [f"self_attn.{name}_proj.weight" for name in ("q", "k", "v", "o")]
    assert result["moved"] == sorted([*projections, *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))])
    assert result["resumed"], "a resumed training has the same bits"
    assert result["losses"][1] < result["losses"][0]
    assert result["stages"] < 1e-4, "ZeRO 2 trains like ZeRO 0"


@pytest.mark.parametrize(("kind", "limit"), [("8bit", 0.05), ("4bit", 1e-3)])
def test_checkpoint_is_a_plain_model(trained: dict[str, Any], kind: str, limit: float) -> None:
    """It has the logits of the trained model; LLM.int8 rounds activations too, which the checkpoint does not."""
    result = trained[kind]
    assert result["saved"] < limit
    assert "quantization_config" not in result["config"]
    assert "adapter_model.safetensors" in result["lora"]


def test_a_gguf_file_is_refused() -> None:
    with pytest.raises(SettingsError, match="is a GGUF file, whose weights are dequantized"):
        check_trainable("model.gguf", replace(CONFIG, quantization="4bit"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr("slick.quantization.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"needs bitsandbytes and accelerate: pip install 'slick-knowledge\[quant"):
        check_trainable(folder, replace(CONFIG, quantization="8bit"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lora_rank": 0}, "quantized weights cannot be trained; add --lora-rank"),
        ({"zero_stage": 3}, "ZeRO stage 3 shards them; give --zero-stage 0, 1 or 2"),
        ({"quantization": "3bit"}, "quantization is one of none, 8bit, 4bit, got '3bit'"),
    ],
)
def test_combinations_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        replace(CONFIG, **{"quantization": "4bit", **changed})


def test_identity_changes_only_if_it_is_used() -> None:
    assert "quantization" not in CONFIG.identity()
    assert replace(CONFIG, quantization="4bit").identity()["quantization"] == "4bit"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "results.json").write_text(json.dumps(train(target, sys.argv[2])))
