"""Saved states: only whole ones are gone on from, and of each training the furthest."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from slick.errors import SettingsError, StudyError
from slick.storage import Folder, file_errors
from tuning.config import TrainConfig
from tuning.state import Progress, find_states, needs_universal, read_state, states_of

PROGRESS = Progress(identity="a", epoch=3, best_dev_accuracy=0.5, best_dev_epoch=2, num_workers=2, zero_stage=2)


def write(folder: Folder, progress: Progress, ranks: tuple[int, ...] = (0, 1)) -> Folder:
    path = Path(folder.local_path)
    (path / "state").mkdir(parents=True)
    (path / "progress.json").write_text(json.dumps(asdict(progress)))
    for rank in ranks:
        (path / "state" / f"part-{rank}.pt").write_bytes(b"weights")
        (path / f"files-{rank}.json").write_text(json.dumps({f"state/part-{rank}.pt": 7}))
    return folder


def test_a_state_counts_when_every_workers_part_is_whole(tmp_path: Path) -> None:
    assert read_state(Folder(str(tmp_path / "nothing"))) is None
    assert read_state(write(Folder(str(tmp_path / "one")), PROGRESS, ranks=(0,))) is None
    whole = write(Folder(str(tmp_path / "both")), PROGRESS)
    found = read_state(whole)
    assert found is not None
    assert found.progress == PROGRESS
    Path(whole.local_path, "state", "part-1.pt").write_bytes(b"wei")
    assert read_state(whole) is None


@pytest.mark.parametrize("name", ["progress.json", "files-1.json"])
def test_a_state_that_cannot_be_read_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = write(Folder(str(tmp_path / "state")), PROGRESS)
    path = Path(folder.local_path, name)
    content = path.read_bytes()
    for broken in (b"", content[:-1], b"\xff" + content):
        path.write_bytes(broken)
        assert read_state(folder) is None
    path.write_bytes(content)
    assert read_state(folder) is not None

    failure: OSError = FileNotFoundError(2, "removed since it was listed")
    read_bytes = Folder.read_bytes

    def failing(self: Folder, read: str) -> bytes:
        with file_errors(f"{self}/{read}", "read"):
            if read == name:
                raise failure
        return read_bytes(self, read)

    monkeypatch.setattr(Folder, "read_bytes", failing)
    assert read_state(folder) is None
    failure = OSError(5, "the storage does not answer")
    with pytest.raises(StudyError, match=f"{name}.*does not answer"):
        read_state(folder)


def test_the_furthest_state_of_each_training_is_found(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    groups = study.child(".ray", "sweep")
    write(groups.child("g", "checkpoint_1"), PROGRESS)
    write(groups.child("g", "checkpoint_2"), replace(PROGRESS, epoch=5))
    write(groups.child("g", "checkpoint_3"), replace(PROGRESS, epoch=9), ranks=(1,))
    write(study.child("runs", "b-seed0", "state"), replace(PROGRESS, identity="b", epoch=7))
    found = find_states(study, ["a-seed0", "b-seed0"])
    assert {identity: state.progress.epoch for identity, state in found.items()} == {"a": 5, "b": 7}
    assert states_of(groups.child("g")) == {"a": found["a"]}
    assert states_of(groups.child("another")) == {}


def test_another_sharding_needs_the_universal_format() -> None:
    config = TrainConfig(batch_size=8, num_workers=2, zero_stage=2)
    assert not needs_universal(PROGRESS, config, 2)
    assert needs_universal(PROGRESS, config, 1)
    assert needs_universal(PROGRESS, replace(config, zero_stage=1), 2)
    assert not needs_universal(replace(PROGRESS, zero_stage=0), replace(config, zero_stage=0), 1)
    with pytest.raises(SettingsError, match="under ZeRO stage 2 and cannot go on under stage 0; give --zero-stage 2"):
        needs_universal(PROGRESS, replace(config, zero_stage=0), 2)
