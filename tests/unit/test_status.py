"""How far a sweep is, as `slick status`, the terminal and the job's line tell it."""

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.status import describe, main, standings
from slick.storage import Folder
from slick.study import Manifest
from tuning.board import Course
from tuning.config import TrainConfig
from tuning.grid import Trajectory
from tuning.records import Measure, epochs_table
from tuning.runs import RunPlan
from tuning.standing import Live, Standing, headline, read_live, table, write_live, write_planned

RUNS = [
    Trajectory(variant="natural", seed=seed, epochs=5, settings=settings)
    for seed, settings in ((0, ()), (1, ()), (1, (("lora_rank", 8),)), (2, ()))
]
DONE, HALF, BROKEN, LAST = (run.run_id for run in RUNS)
NOW = datetime.now(UTC).isoformat(timespec="seconds")


def finish(folder: Folder) -> None:
    manifest = Manifest(step="finetune", fingerprint="x", settings={}, inputs={}, counts={}, seconds=1.0, versions={})
    folder.write_json("manifest.json", {name: getattr(manifest, name) for name in Manifest.__slots__})


def write_epochs(study: Folder, run_id: str, dev: list[int]) -> None:
    """Right answers out of 10 dev and 20 test questions, the latter twice as many."""
    epochs = [
        [
            Measure(split=split, category="all", num=num, num_correct=right * num // 10, loss=None)
            for split, num in (("dev", 10), ("test", 20))
        ]
        for right in dev
    ]
    study.child("runs", run_id).write_table("epochs.parquet", epochs_table(run_id, epochs))


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    study = Folder(str(tmp_path))
    write_planned(study.child("sweep"), RUNS)
    write_epochs(study, DONE, [4, 6, 5])  # it was ended before its last epoch
    finish(study.child("runs", DONE))
    write_epochs(study, HALF, [3, 2])
    write_epochs(study, "older-seed0", [9])
    return study


def live(**changed: object) -> Live:
    known = Live(at=NOW, seconds_left=130.0, running=(HALF,), failed={BROKEN: "no room"}, retries={HALF: 1, BROKEN: 2})
    return replace(known, **changed)


def test_a_sweep_under_way_is_told_with_every_training(study: Folder, capsys: pytest.CaptureFixture) -> None:
    write_live(study.child("sweep"), live())
    assert read_live(study.child("sweep")) == live()
    line = (
        "1 of 4 trainings, 5 of 18 epochs, 2 min 10 s left, 1 failed, 3 retried, "
        "best dev 60.0 % (natural-seed0, epoch 2)"
    )
    assert describe(study, "sweep") == f"begun, not finished, {line}; last heard of {NOW}"
    main(["--out", study.uri])
    out = capsys.readouterr().out.splitlines()
    at = next(i for i, text in enumerate(out) if text.startswith("  sweep "))
    assert line in out[at]
    assert [text.split() for text in out[at + 1 : at + 6]] == [
        ["variant", "seed", "settings", "epochs", "dev", "test", "best", "dev", "(epoch)", "state"],
        ["natural", "0", "3/5", "50.0", "%", "50.0", "%", "60.0", "%", "(2)", "done"],
        ["natural", "1", "2/5", "20.0", "%", "20.0", "%", "30.0", "%", "(1)", "retried,", "try", "2"],
        ["natural", "1", "lora_rank=8", "0/5", "failed,", "try", "3:", "no", "room"],
        ["natural", "2", "0/5", "waiting"],
    ]


@pytest.mark.parametrize(
    "gone", [{"has_ended": True}, {"at": (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")}]
)
def test_trainings_whose_driver_has_gone_are_interrupted(study: Folder, gone: dict[str, object]) -> None:
    write_live(study.child("sweep"), live(**gone))
    assert [row.state for row in standings(study)] == ["done", "interrupted", "failed", "waiting"]


def test_a_study_tells_what_its_settings_plan_before_the_sweep_does(study: Folder) -> None:
    study.child("sweep").delete()
    assert describe(study, "sweep") == "not begun"
    grid = {"variants": ["natural"], "seeds": [0, 7], "epochs": [2, 5]}
    study.write_json("study.json", {"settings": {"sweep": {"grid": grid}}})
    study.child("sweep").write_json("started.json", {})
    assert describe(study, "sweep").startswith("begun, not finished, 1 of 2 trainings, 3 of 8 epochs")
    assert [row.run_id for row in standings(study)] == ["natural-seed0", "natural-seed7"]


def test_a_long_table_leaves_out_those_that_wait_and_says_so() -> None:
    row = Standing(run_id="x", variant="x", seed=0, settings="", epochs=0, budget=3, state="waiting")
    states = ("waiting", "done", "running", "waiting", "failed", "done")
    rows = [replace(row, seed=seed, state=state) for seed, state in enumerate(states)]
    lines = [line.split() for line in table(rows, 3)]
    assert [(line[1], line[3]) for line in lines[1:-1]] == [("1", "done"), ("2", "running"), ("4", "failed")]
    assert lines[-1] == ["and", "1", "done,", "2", "waiting"]
    assert len(table(rows)) == 1 + 6
    assert table([]) == []
    assert "settings" not in table(rows)[0]


def test_nothing_is_said_of_accuracy_before_the_first_epoch() -> None:
    row = Standing(run_id="x", variant="x", seed=0, settings="", epochs=0, budget=3, state="running")
    assert headline([row], None) == "0 of 1 trainings, 0 of 3 epochs"


def plan(run_id: str) -> RunPlan:
    config = TrainConfig(epochs=5)
    return RunPlan(run_id=run_id, config=config, identity=run_id, inputs={}, model="m", num_train=1, num_asked=1)


def test_of_a_trial_its_first_unfinished_training_runs() -> None:
    course = Course([[plan("a"), plan("b")], [plan("c")], [plan("d")]])
    assert course.live(set(), float("inf"), has_ended=False).seconds_left is None
    course.started(0)
    course.started(1)
    assert course.live(set(), 1.0, has_ended=False).running == ("a", "c")
    course.tried_again(0)
    course.ended(1, "no room")
    course.ended(2)
    told = course.live({"a", "d"}, 1.25, has_ended=True)
    assert (told.running, told.retries, told.failed) == (("b",), {"a": 1, "b": 1}, {"c": "no room"})
    assert (told.seconds_left, told.has_ended, told.is_running) == (1.2, True, False)
    assert course.completed_runs() == {"d"}
    assert course.num_retries == 1


def test_what_tune_writes_down_of_a_course_is_how_it_began() -> None:
    course = Course([[plan("a")]])
    course.tried_again(0)
    again = copy.deepcopy(course)
    assert again.packs == course.packs
    assert again.num_retries == 0
