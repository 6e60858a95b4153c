"""Saved states: training resumes from the latest complete state."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from slick.errors import StudyError, file_errors
from slick.storage import Folder
from tuning.state import TrainingProgress, check_other_formats, find_states, latest_states, read_state

PROGRESS = TrainingProgress(identity="a", epoch=3, best_dev_accuracy=0.5, best_dev_epoch=2, num_workers=2)


def write_state(folder: Folder, progress: TrainingProgress, ranks: tuple[int, ...] = (0, 1)) -> Folder:
    path = Path(folder.local_path)
    path.mkdir(parents=True)
    (path / "progress.json").write_text(json.dumps({"format": 2} | asdict(progress)))
    for rank in ranks:
        (path / f"tensors-{rank}.safetensors").write_bytes(b"weights")
        (path / f"files-{rank}.json").write_text(json.dumps({f"tensors-{rank}.safetensors": 7}))
    return folder


def write_legacy_state(folder: Folder) -> Folder:
    """A state of the previous version, in DeepSpeed's format, with a valid progress file."""
    path = Path(folder.local_path)
    (path / "state").mkdir(parents=True)
    (path / "state" / "mp_rank_00_model_states.pt").write_bytes(b"weights")
    (path / "progress.json").write_text(json.dumps(asdict(replace(PROGRESS, num_workers=1)) | {"zero_stage": 2}))
    (path / "files-0.json").write_text(json.dumps({"state/mp_rank_00_model_states.pt": 7}))
    return folder


def test_state_is_complete_with_the_shares_of_all_workers(tmp_path: Path) -> None:
    assert read_state(Folder(str(tmp_path / "nothing"))) is None
    assert read_state(write_state(Folder(str(tmp_path / "one")), PROGRESS, ranks=(0,))) is None
    folder = write_state(Folder(str(tmp_path / "both")), PROGRESS)
    state = read_state(folder)
    assert state is not None
    assert state.progress == PROGRESS
    Path(folder.local_path, "tensors-1.safetensors").write_bytes(b"wei")
    assert read_state(folder) is None


@pytest.mark.parametrize("name", ["progress.json", "files-1.json"])
def test_unreadable_state_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = write_state(Folder(str(tmp_path / "state")), PROGRESS)
    path = Path(folder.local_path, name)
    content = path.read_bytes()
    for broken in (b"", content[:-1], b"\xff" + content):
        path.write_bytes(broken)
        assert read_state(folder) is None
    path.write_bytes(content)
    assert read_state(folder) is not None

    failure: OSError = FileNotFoundError(2, "removed since it was listed")
    read_bytes = Folder.read_bytes

    def fail_to_read(self: Folder, read: str) -> bytes:
        with file_errors(f"{self}/{read}", "read"):
            if read == name:
                raise failure
        return read_bytes(self, read)

    monkeypatch.setattr(Folder, "read_bytes", fail_to_read)
    assert read_state(folder) is None
    failure = OSError(5, "the storage does not answer")
    with pytest.raises(StudyError, match=f"{name}.*does not answer"):
        read_state(folder)


def test_latest_state_of_each_training_is_found(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    groups = study.child(".ray", "sweep")
    write_state(groups.child("g", "checkpoint_1"), PROGRESS)
    write_state(groups.child("g", "checkpoint_2"), replace(PROGRESS, epoch=5))
    write_state(groups.child("g", "checkpoint_3"), replace(PROGRESS, epoch=9), ranks=(1,))
    write_state(study.child("runs", "b-seed0", "state"), replace(PROGRESS, identity="b", epoch=7))
    states = find_states(study, ["a-seed0", "b-seed0"])
    assert {identity: state.progress.epoch for identity, state in states.items()} == {"a": 5, "b": 7}
    assert latest_states(groups.child("g")) == {"a": states["a"]}
    assert latest_states(groups.child("another")) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "a training state of format 3, and this version of slick reads format 2"),
        ({"more": 1}, "a training state of another version"),
    ],
)
def test_state_of_a_later_version_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict[str, object], message: str
) -> None:
    study = Folder(str(tmp_path))
    interrupted = write_state(study.child(".ray", "finetune-a", "group", "checkpoint_1"), PROGRESS)
    kept = write_state(study.child("runs", "a-seed0", "state"), PROGRESS)
    check_other_formats(study, ["a-seed0", "b-seed0"])
    for folder in (interrupted, kept):
        content = folder.read_json("progress.json")
        folder.write_json("progress.json", content | change)
    check_other_formats(study, ["b-seed0"])
    assert f"{interrupted} has {message}" in capsys.readouterr().out
    with pytest.raises(StudyError, match=f"{kept} has {message}.*the version of slick that wrote it, or delete"):
        check_other_formats(study, ["a-seed0"])
    for name in ("progress.json", "files-0.json"):
        kept.delete(name)
        check_other_formats(study, ["a-seed0"])  # incomplete


@pytest.mark.parametrize(
    "change",
    [{"format": 1}, {"format": 3}, {"epoch": "9"}, {"num_workers": None}, {"best_dev_accuracy": []}, {"more": 1}],
)
def test_state_of_another_format_is_ignored(tmp_path: Path, change: dict[str, object]) -> None:
    folder = write_state(Folder(str(tmp_path / "state")), PROGRESS)
    path = Path(folder.local_path, "progress.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert read_state(folder) is None
    path.write_text("[]")
    assert read_state(folder) is None


def test_pickles_of_the_previous_version_are_reported_and_never_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    study = Folder(str(tmp_path))
    interrupted = write_legacy_state(study.child(".ray", "finetune-a", "group", "checkpoint_1"))
    kept = write_legacy_state(study.child("runs", "a-seed0", "state"))
    assert find_states(study, ["a-seed0"]) == {}
    assert latest_states(study.child(".ray", "finetune-a", "group")) == {}
    check_other_formats(study, [])
    assert capsys.readouterr().out == "", "no run resumes from pickles"
    check_other_formats(study, ["b-seed0"])
    assert f"{interrupted} has pickle files of an earlier version" in capsys.readouterr().out
    with pytest.raises(StudyError, match=f"{kept} has pickle files of an earlier version.*delete that folder"):
        check_other_formats(study, ["a-seed0"])
