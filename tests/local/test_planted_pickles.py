"""Pickles planted where a training or sweep resumes are reported or ignored, and never loaded."""

import pickle  # noqa: TID251 - the files under test
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slick.errors import SlickError, StudyError
from slick.storage import Folder
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.planted import MaliciousPickle
from tests.study_builder import write_trainable_study
from tuning.config import TrainConfig
from tuning.finetune import finetune, group_name
from tuning.grid import GridConfig
from tuning.runs import plan_runs
from tuning.state import TrainingProgress, save_state
from tuning.sweep import SweepConfig, sweep

CONFIG = TrainConfig(
    variant="half",
    epochs=1,
    learning_rate=5e-3,
    batch_size=4,
    max_new_tokens=2,
    keep_checkpoints="none",
    dropout=0.0,
    dtype="float32",
)
DEEPSPEED = ("state/mp_rank_00_model_states.pt", "state/zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest")
TUNE = ("tuner.pkl", "trainable.pkl", "searcher-state.pkl", "search_gen_state.pkl", "experiment_state-1.json")
"""Names of the pickles that Ray Tune loads."""


@pytest.fixture
def pickle_marker(tmp_path: Path) -> Iterator[Path]:
    """A folder that a planted pickle would create."""
    path = tmp_path / "code-ran"
    yield path
    assert not path.exists()


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    return write_trainable_study(tmp_path / "study", tiny_model("llama", spread=0.1), tiny_tokenizer())


def plant(folder: Folder, names: tuple[str, ...], pickle_marker: Path) -> None:
    for name in names:
        path = Path(folder.local_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(MaliciousPickle(pickle_marker)))


class PlantingTrainer:
    """A fake trainer that saves pickles under the names of tensor files."""

    def __init__(self, pickle_marker: Path) -> None:
        self._pickle_marker = pickle_marker

    def save(self, folder: str) -> None:
        plant(Folder(folder), ("tensors-00000-00000.safetensors", *DEEPSPEED), self._pickle_marker)


def planted_state(study: Folder, config: TrainConfig, folder: Folder, pickle_marker: Path) -> None:
    """Write a seemingly complete state of the requested training whose tensor files are pickles."""
    (plan,) = plan_runs(study, {"half-seed0": config})
    progress = TrainingProgress(identity=plan.identity, epoch=1, best_dev_accuracy=0.0, best_dev_epoch=1, num_workers=1)
    folder.add(save_state(PlantingTrainer(pickle_marker), progress, 0))


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_training_never_loads_a_planted_pickle(
    study: Folder, pickle_marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    finetune(study, CONFIG)
    longer = replace(CONFIG, epochs=2)
    (plan,) = plan_runs(study, {"half-seed0": longer})
    kept = study.child("runs", "half-seed0", "state")
    group = study.child(".ray", "finetune-half-seed0", group_name([plan]))

    plant(kept, DEEPSPEED, pickle_marker)
    with pytest.raises(StudyError, match=f"{kept} has pickle files of an earlier version.*delete that folder"):
        finetune(study, longer)
    kept.delete()

    planted_state(study, longer, kept, pickle_marker)
    with pytest.raises(SlickError, match=rf"training state in {kept} cannot be read .*delete that folder"):
        finetune(study, longer)
    assert study.child("runs", "half-seed0").exists("manifest.json"), "the finished run must be kept"
    kept.delete()

    precious = tmp_path / "precious"
    precious.mkdir()
    plant(group.child("checkpoint_2"), DEEPSPEED, pickle_marker)
    result = {"checkpoint_dir_name": "../../../../precious", "metrics": {}}
    content = {"checkpoint_results": [result], "pending_training_results": [], "latest_checkpoint_result": result}
    group.write_json("checkpoint_manager_snapshot.json", content)
    assert finetune(study, longer).counts["epochs"] == 2
    assert "checkpoint_2 has pickle files of an earlier version" in capsys.readouterr().out
    assert precious.exists(), "Ray Train must not delete folders that a stored list names"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_sweep_never_loads_a_planted_pickle(study: Folder, pickle_marker: Path) -> None:
    """Tune writes pickles, but neither planted pickles nor its own are read back."""
    tune = study.child(".ray", "sweep", "tune")
    plant(tune, (*TUNE, *(f"half-seed0/{name}" for name in ("error.pkl", "params.pkl"))), pickle_marker)
    config = SweepConfig(grid=GridConfig(variants=("half",), epochs=(1,), policies=("fixed",)), train=CONFIG)
    sweep(study, replace(config, keep_ray_files=True))
    assert "tuner.pkl" in tune.names()
    assert pickle.dumps(MaliciousPickle(pickle_marker)) not in {tune.read_bytes(name) for name in tune.names()}


def test_planted_pickle_runs_code_when_loaded(tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    import torch

    plant(Folder(str(tmp_path)), ("state.pt",), tmp_path / "code-ran")
    with pytest.raises(Exception, match=r"nsupported|weights"):
        torch.load(tmp_path / "state.pt", weights_only=True)
    assert not (tmp_path / "code-ran").exists()
    with pytest.raises(RuntimeError, match="magic number"):  # checked after the first pickle is loaded
        torch.load(tmp_path / "state.pt", weights_only=False)
    assert (tmp_path / "code-ran").exists()
