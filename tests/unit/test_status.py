"""What `slick status` says of a sweep that is under way."""

from pathlib import Path

import pytest

from jobs.status import describe
from slick.storage import Folder
from slick.study import Manifest


def finish(folder: Folder) -> None:
    manifest = Manifest(step="finetune", fingerprint="x", settings={}, inputs={}, counts={}, seconds=1.0, versions={})
    folder.write_json("manifest.json", {name: getattr(manifest, name) for name in Manifest.__slots__})


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    study = Folder(str(tmp_path))
    study.child("sweep").write_json("planned.json", {"a-seed0": 5, "b-seed0": 5, "c-seed0": 5})
    for run, epochs in (("a-seed0", 5), ("b-seed0", 2), ("older-seed0", 9)):
        for epoch in range(1, epochs + 1):
            study.child("runs", run, "predictions").write_bytes(f"epoch-{epoch:03d}.parquet", b"")
    for run in ("a-seed0", "older-seed0"):
        finish(study.child("runs", run))
    return study


def test_a_sweep_under_way_tells_how_far_it_is(study: Folder) -> None:
    study.child("sweep").write_json("pace.json", {"seconds_left": 130.0, "at": "2024-05-09T10:00:00+00:00"})
    assert describe(study, "sweep") == (
        "begun, not finished, 1 of 3 trainings finished, 7 of 15 epochs; 2 min 10 s left when last looked at, "
        "2024-05-09T10:00:00+00:00; b-seed0 after epoch 2"
    )


def test_trainings_without_a_sweep_are_counted(study: Folder) -> None:
    study.child("sweep").delete()
    assert describe(study, "sweep") == "not begun"
    study.write_json("study.json", {"settings": {"sweep": {"grid": {"variants": ["a"], "seeds": [0], "epochs": [5]}}}})
    study.child("sweep").write_json("started.json", {})
    assert describe(study, "sweep").startswith("begun, not finished, 1 of 1 trainings finished, 5 of 5 epochs")
