"""A training resumed from saved tensors is bitwise equal to the uninterrupted one, for every ZeRO stage."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from slick.storage import Folder
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.stored.interrupt import STORED_STATES, unpack
from tuning.config import TrainConfig
from tuning.state import find_states

CONFIG = TrainConfig(dtype="float32", learning_rate=5e-3, batch_size=4, epochs=3, dropout=0.1, num_workers=2)
CASES: dict[str, dict[str, Any]] = {
    **{f"zero-{stage}": {"zero_stage": stage} for stage in (0, 2, 3)},
    **{f"bfloat16-zero-{stage}": {"zero_stage": stage, "dtype": "bfloat16"} for stage in (0, 1)},
    "optimizer-offloaded": {"offload": "optimizer", "zero_stage": 2},
    "all-offloaded": {"offload": "all", "zero_stage": 3, "dtype": "bfloat16"},
    "attention": {"trainable": "attention", "zero_stage": 1, "micro_batch_size": 1},
    "lora-zero-3": {"lora_rank": 4, "zero_stage": 3},
}
SLOW = ("zero-2", "bfloat16-zero-0", "optimizer-offloaded", "attention")
QUICK = tuple(name for name in CASES if name not in SLOW)
STORED_STAGES = (0, 3)
"""ZeRO stages in which states of earlier versions are loaded."""
OTHERS = {"zero-0": 3, "zero-2": 0, "zero-3": 1}
"""Cases whose states are also loaded under another ZeRO stage."""


def work(settings: dict[str, Any]) -> None:
    """In each worker: train 2 epochs, save, train a third; load and train the third. Rank 0 writes the weights."""
    import ray.train
    import torch
    import torch.distributed as dist
    from safetensors.torch import save_file

    from tuning.data import Example
    from tuning.trainable import full_state_dict
    from tuning.trainer import Trainer, WorkerContext, init_deepspeed

    torch.set_num_threads(1)
    init_deepspeed()
    rank = ray.train.get_context().get_world_rank()
    context = WorkerContext(rank=rank, local_rank=rank, num_workers=2, device="cpu")
    examples = [Example(prompt_ids=(5, 6, 7 + i), answer_ids=(3 + i, 4, 2)) for i in range(6)]

    def write(trainer: Trainer, name: str) -> None:
        weights = full_state_dict(trainer.model, keep=rank == 0)
        if rank == 0:
            save_file(weights, f"{settings['path']}/{name}.safetensors")

    def resume(config: TrainConfig, state: str, name: str) -> None:
        trainer = Trainer(settings["model"], config, context, 0)
        trainer.load(Folder(state), examples[0])
        trainer.epoch(examples, 3)
        write(trainer, name)
        trainer.engine.destroy()

    for name, study in settings["stored"].items():
        (saved,) = find_states(Folder(study), []).values()
        for stage in STORED_STAGES:
            trainer = Trainer(f"{study}/world/model", replace(CONFIG, zero_stage=stage), context, 0)
            trainer.load(Folder(saved.uri), examples[0])
            folder = Path(settings["path"], f"{name}-zero-{stage}")
            folder.mkdir(exist_ok=True)
            trainer.save(str(folder))
            trainer.engine.destroy()

    for name in settings["names"]:
        config, state = replace(CONFIG, **CASES[name]), f"{settings['path']}/{name}-state"
        trainer = Trainer(settings["model"], config, context, 0)
        for epoch in (1, 2):
            trainer.epoch(examples, epoch)
        write(trainer, f"{name}-half")
        Path(state).mkdir(exist_ok=True)
        trainer.save(state)
        dist.barrier()
        trainer.epoch(examples, 3)
        write(trainer, f"{name}-whole")
        trainer.engine.destroy()
        resume(config, state, f"{name}-resumed")
        if name in OTHERS:
            resume(replace(config, zero_stage=OTHERS[name]), state, f"{name}-other")


def with_slow_marks(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.fixture(scope="module")
def trained(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case's weights and states. One worker group trains all slow cases, another the rest."""

    @cache
    def folder_of(names: tuple[str, ...]) -> Path:
        return train(names, tmp_path_factory.mktemp("states"))

    return lambda name: folder_of(SLOW if name in SLOW else QUICK)


def unpack_stored(path: Path) -> dict[str, str]:
    """The studies with states of earlier versions, by name."""
    for archive in STORED_STATES:
        unpack(archive, path / archive.stem)
    return {archive.stem: str(path / archive.stem / "study") for archive in STORED_STATES}


def train(names: tuple[str, ...], path: Path) -> Path:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    tiny_model("llama", spread=0.1).save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    TorchTrainer(
        work,
        train_loop_config={
            "path": str(path),
            "model": str(path / "model"),
            "names": names,
            "stored": unpack_stored(path / "stored") if names == QUICK else {},
        },
        scaling_config=ScalingConfig(num_workers=2),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(name=f"states-{len(names)}", storage_path=str(path / "ray")),
    ).fit()
    return path


def weights(path: Path, name: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / f"{name}.safetensors")


def assert_close(first: dict[str, Any], second: dict[str, Any], atol: float) -> None:
    import torch

    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", with_slow_marks(CASES))
def test_resumed_training_equals_the_uninterrupted_one(trained: Callable[[str], Path], name: str) -> None:
    folder = trained(name)
    uninterrupted = weights(folder, f"{name}-whole")
    assert_close(uninterrupted, weights(folder, f"{name}-resumed"), 0)
    with pytest.raises(AssertionError):
        assert_close(uninterrupted, weights(folder, f"{name}-half"), 0)


@pytest.mark.parametrize("name", with_slow_marks(OTHERS))
def test_training_resumes_with_another_zero_stage(trained: Callable[[str], Path], name: str) -> None:
    """Equal up to the order of summation."""
    folder = trained(name)
    assert_close(weights(folder, f"{name}-whole"), weights(folder, f"{name}-other"), 1e-4)


@pytest.mark.parametrize("name", with_slow_marks(CASES))
def test_state_has_every_trained_tensor_once(trained: Callable[[str], Path], name: str) -> None:
    from safetensors import safe_open

    folder = trained(name) / f"{name}-state"
    assert {path.suffix for path in folder.iterdir()} == {".safetensors"}
    files = [safe_open(path, framework="pt") for path in folder.iterdir()]
    assert len(files) == 2, "both workers wrote"
    keys = [key for file in files for key in file.keys()]  # noqa: SIM118 - not a dict
    assert len(keys) == len(set(keys))
    kinds = {
        kind: {key.partition("/")[2] for key in keys if key.startswith(f"{kind}/")}
        for kind in ("weight", "exp_avg", "exp_avg_sq", "step")
    }
    assert len(set(map(frozenset, kinds.values()))) == 1
    assert all((".lora_" in key) == ("lora_rank" in CASES[name]) for key in kinds["weight"])
    for file in files:
        assert all(file.get_slice(key).get_dtype() == "F32" for key in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("archive", STORED_STATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", STORED_STAGES)
def test_stored_state_of_an_earlier_version_is_loaded(
    trained: Callable[[str], Path], archive: Path, stage: int
) -> None:
    """Every tensor, bit for bit, also under another ZeRO stage than the one that it was saved with."""
    folder = trained(QUICK[0])
    ((_, state),) = find_states(Folder(str(folder / "stored" / archive.stem / "study")), []).items()
    loaded = tensors(folder / f"{archive.stem}-zero-{stage}")
    assert_close(tensors(Path(Folder(state.uri).local_path)), loaded, 0)
    assert any(bool(value.any()) for key, value in loaded.items() if key.startswith("exp_avg/"))


def tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a state."""
    from safetensors.torch import load_file

    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}
