"""Finding, fingerprinting and loading models, and the one message when that fails."""

import json
import shutil
from pathlib import Path

import pytest

from slick.errors import ModelError
from slick.inference.devices import prepare_device
from slick.inference.engines import _gpu_arguments
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


def test_a_folder_loads_in_the_dtype_asked_for_and_in_eval_mode(model: Path) -> None:
    loaded = load_model(str(model), "bfloat16")
    assert {str(parameter.dtype) for parameter in loaded.parameters()} == {"torch.bfloat16"}
    assert not loaded.training
    assert load_tokenizer(str(model)).decode(load_tokenizer(str(model))("Q: Who?\n")["input_ids"]) == "Q: Who?\n"


def test_bfloat16_is_of_weights_and_not_of_positions(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    loaded, exact = load_model(str(model), "bfloat16"), load_model(str(model))
    frequencies = [dict(each.named_buffers())["model.rotary_emb.inv_freq"] for each in (loaded, exact)]
    assert torch.equal(*frequencies)
    assert frequencies[0].dtype == torch.float32
    as_transformers_does = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    ids = torch.arange(96)[None] % 64
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, as_transformers_does(ids).logits)


def test_the_fingerprint_is_of_content_not_of_place(model: Path, copy: Path) -> None:
    (copy / "README.md").write_text("not part of the model")
    (copy / "manifest.json").write_text("{}")
    print_of = [model_fingerprint(resolve_model(str(path))) for path in (model, copy)]
    assert print_of[0] == print_of[1]
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert model_fingerprint(resolve_model(str(copy))) != print_of[0]


def test_pickled_weights_are_named_and_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors, only \['pytorch_model\.bin'\]"):
        resolve_model(str(copy))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "two words", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="is no folder here"):
        resolve_model(name)


def test_a_folder_with_a_gguf_file_only_says_how_to_name_it(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"give the file itself: .*small\.gguf"):
        resolve_model(str(tmp_path))


def test_an_architecture_that_is_not_known_is_one_message(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "nonsense"}))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*nonsense"):
        load_model(str(copy))


def test_cut_off_weights_are_one_message(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(copy))


def test_a_dtype_that_is_none_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match="expected float32"):
        load_model(str(model), "int3")


def test_a_study_has_its_own_model_or_the_named_one(model: Path, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    assert resolve_study_model(study, str(model)) == str(model)
    with pytest.raises(ModelError, match="no finished world"):
        resolve_study_model(study, "")
    study.child("world").write_json("manifest.json", {})
    assert resolve_study_model(study, "") == str(tmp_path / "world" / "model")


def test_engines_that_share_a_gpu_take_no_more_than_their_part_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    set_to: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_to.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [prepare_device(num_gpus) for num_gpus in (0, 1, 0.25)] == ["cpu", "cuda", "cuda"]
    assert set_to == [0.25]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees none there"):
        prepare_device(0.25)

    assert [_gpu_arguments(num_gpus) for num_gpus in (0, 1, 2)] == [{}, {}, {"tensor_parallel_size": 2}]
    assert _gpu_arguments(0.25) == {"gpu_memory_utilization": pytest.approx(0.23)}
