"""Resolving, fingerprinting and loading models, and their error messages."""

import json
import shutil
from pathlib import Path

import pytest

from slick.errors import ModelError
from slick.inference.devices import prepare_device
from slick.inference.vllm_engine import _gpu_arguments
from slick.models import (
    load_model,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
    resolve_study_model,
)
from slick.storage import Folder
from tests.local.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny_model(tmp_path_factory.mktemp("model"), steps=0))


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_model_loads_in_the_given_dtype_and_in_eval_mode(model: Path) -> None:
    loaded = load_model(str(model), "bfloat16")
    assert {str(parameter.dtype) for parameter in loaded.parameters()} == {"torch.bfloat16"}
    assert not loaded.training
    assert load_tokenizer(str(model)).decode(load_tokenizer(str(model))("Q: Who?\n")["input_ids"]) == "Q: Who?\n"


def test_rotary_frequencies_stay_float32_in_bfloat16(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    loaded, exact = load_model(str(model), "bfloat16"), load_model(str(model))
    frequencies = [dict(m.named_buffers())["model.rotary_emb.inv_freq"] for m in (loaded, exact)]
    assert torch.equal(*frequencies)
    assert frequencies[0].dtype == torch.float32
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    ids = torch.arange(96)[None] % 64
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, reference(ids).logits)


def test_fingerprint_depends_on_content_only(model: Path, copy: Path) -> None:
    (copy / "README.md").write_text("not part of the model")
    (copy / "manifest.json").write_text("{}")
    fingerprints = [model_fingerprint(resolve_model(str(path))) for path in (model, copy)]
    assert fingerprints[0] == fingerprints[1]
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert model_fingerprint(resolve_model(str(copy))) != fingerprints[0]


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors, only \['pytorch_model\.bin'\]"):
        resolve_model(str(copy))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "two words", "a/b/c"])
def test_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="is not a folder here"):
        resolve_model(name)


def test_folder_with_only_a_gguf_file_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"give the file itself: .*small\.gguf"):
        resolve_model(str(tmp_path))


def test_unknown_architecture_is_one_message(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "nonsense"}))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*nonsense"):
        load_model(str(copy))


def test_truncated_weights_are_one_message(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(copy))


def test_unknown_dtype_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match="expected float32"):
        load_model(str(model), "int3")


def test_study_model_is_the_world_model_or_the_given_one(model: Path, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    assert resolve_study_model(study, str(model)) == str(model)
    with pytest.raises(ModelError, match="no finished world"):
        resolve_study_model(study, "")
    study.child("world").write_json("manifest.json", {})
    assert resolve_study_model(study, "") == str(tmp_path / "world" / "model")


def test_engines_sharing_a_gpu_limit_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [prepare_device(num_gpus) for num_gpus in (0, 1, 0.25)] == ["cpu", "cuda", "cuda"]
    assert fractions == [0.25]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees none there"):
        prepare_device(0.25)

    assert [_gpu_arguments(num_gpus) for num_gpus in (0, 1, 2)] == [{}, {}, {"tensor_parallel_size": 2}]
    assert _gpu_arguments(0.25) == {"gpu_memory_utilization": pytest.approx(0.23)}
