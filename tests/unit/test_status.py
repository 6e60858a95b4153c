"""`slick status`, and the state of runs while a sweep is running."""

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.presets import StudyConfig, paper_study, smoke_study
from jobs.status import describe_step, main, sweep_run_statuses
from jobs.study import resolve
from slick.annotation import AnnotateConfig
from slick.annotation.config import PTrueScope
from slick.annotation.judge_pool import JUDGE_FOLDER
from slick.annotation.p_true import p_true_settings
from slick.storage import Folder
from slick.study import STEP_FOLDERS, Manifest, begin_step, settings_to_json
from slick.study_files import JUDGEMENT_SCHEMA
from slick.types import Category
from slick.variants import VariantsConfig
from tests.study_builder import AnsweredQuestion, finish_step, write_questions
from tests.unit.curated_study import CODE_ROW, fact, write_curated_study
from tuning.config import TrainConfig
from tuning.grid import Trajectory
from tuning.progress_table import TrialTracker
from tuning.records import SplitMetrics, epochs_table
from tuning.run_status import (
    DriverStatus,
    RunStatus,
    progress_line,
    read_driver_status,
    status_table,
    write_driver_status,
    write_planned,
)
from tuning.runs import RunPlan

RUNS = [
    Trajectory(variant="natural", seed=seed, epochs=5, settings=settings)
    for seed, settings in ((0, ()), (1, ()), (1, (("lora_rank", 8),)), (2, ()))
]
DONE, UNFINISHED, FAILED, WAITING = (run.run_id for run in RUNS)
NOW = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")
"""A time in the future: a driver without updates for minutes counts as ended, and a test may take that long."""


def finish_step_in(folder: Folder) -> None:
    step = folder.name if folder.name in STEP_FOLDERS else "finetune"
    manifest = Manifest(step=step, fingerprint="x", settings={}, inputs={}, counts={}, seconds=1.0, versions={})
    folder.write_json("manifest.json", {name: getattr(manifest, name) for name in Manifest.__slots__})


def write_epochs(study: Folder, run_id: str, dev: list[int]) -> None:
    """Write epochs with `dev` correct answers of 10 dev questions, and twice as many of 20 test questions."""
    epochs = [
        [
            SplitMetrics(split=split, category="all", num=num, num_correct=num_correct * num // 10, loss=None)
            for split, num in (("dev", 10), ("test", 20))
        ]
        for num_correct in dev
    ]
    study.child("runs", run_id).write_table("epochs.parquet", epochs_table(run_id, epochs))


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    study = Folder(str(tmp_path))
    write_planned(study.child("sweep"), RUNS)
    write_epochs(study, DONE, [4, 6, 5])  # ended before its last epoch
    finish_step_in(study.child("runs", DONE))
    write_epochs(study, UNFINISHED, [3, 2])
    write_epochs(study, "older-seed0", [9])
    return study


def driver_status(**changed: object) -> DriverStatus:
    status = DriverStatus(
        at=NOW,
        seconds_left=130.0,
        running=(UNFINISHED,),
        failed={FAILED: "no room"},
        retries={UNFINISHED: 1, FAILED: 2},
    )
    return replace(status, **changed)


def test_status_of_an_unfinished_sweep_lists_all_runs(study: Folder, capsys: pytest.CaptureFixture) -> None:
    write_driver_status(study.child("sweep"), driver_status())
    assert read_driver_status(study.child("sweep")) == driver_status()
    line = (
        "1 of 4 trainings, 5 of 18 epochs, 2 min 10 s left, 1 failed, 3 retried, "
        "best dev 60.0 % (natural-seed0, epoch 2)"
    )
    assert describe_step(study, "sweep") == f"begun, not finished, {line}; last update {NOW}"
    main(["--out", study.uri])
    out = capsys.readouterr().out.splitlines()
    index = next(i for i, text in enumerate(out) if text.startswith("  sweep "))
    assert line in out[index]
    assert [text.split() for text in out[index + 1 : index + 6]] == [
        ["variant", "seed", "settings", "epochs", "dev", "test", "best", "dev", "(epoch)", "state"],
        ["natural", "0", "3/5", "50.0", "%", "50.0", "%", "60.0", "%", "(2)", "done"],
        ["natural", "1", "2/5", "20.0", "%", "20.0", "%", "30.0", "%", "(1)", "retried,", "try", "2"],
        ["natural", "1", "lora_rank=8", "0/5", "failed,", "try", "3:", "no", "room"],
        ["natural", "2", "0/5", "waiting"],
    ]


@pytest.mark.parametrize(
    "changes", [{"has_ended": True}, {"at": (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")}]
)
def test_runs_without_a_driver_are_interrupted(study: Folder, changes: dict[str, object]) -> None:
    write_driver_status(study.child("sweep"), driver_status(**changes))
    assert [row.state for row in sweep_run_statuses(study)] == ["done", "interrupted", "failed", "waiting"]


def test_status_before_the_sweep_lists_planned_runs(study: Folder) -> None:
    study.child("sweep").delete()
    assert describe_step(study, "sweep") == "not begun"
    grid = {"variants": ["natural"], "seeds": [0, 7], "epochs": [2, 5]}
    study.write_json("study.json", {"settings": {"sweep": {"grid": grid}}})
    study.child("sweep").write_json("started.json", {})
    assert describe_step(study, "sweep").startswith("begun, not finished, 1 of 2 trainings, 3 of 8 epochs")
    assert [row.run_id for row in sweep_run_statuses(study)] == ["natural-seed0", "natural-seed7"]


def test_long_table_omits_waiting_runs() -> None:
    row = RunStatus(run_id="x", variant="x", seed=0, settings="", epochs=0, budget=3, state="waiting")
    states = ("waiting", "done", "running", "waiting", "failed", "done")
    rows = [replace(row, seed=seed, state=state) for seed, state in enumerate(states)]
    lines = [line.split() for line in status_table(rows, 3)]
    assert [(line[1], line[3]) for line in lines[1:-1]] == [("1", "done"), ("2", "running"), ("4", "failed")]
    assert lines[-1] == ["and", "1", "done,", "2", "waiting"]
    assert len(status_table(rows)) == 1 + 6
    assert status_table([]) == []
    assert "settings" not in status_table(rows)[0]


def test_status_before_the_first_epoch_has_no_accuracy() -> None:
    row = RunStatus(run_id="x", variant="x", seed=0, settings="", epochs=0, budget=3, state="running")
    assert progress_line([row], None) == "0 of 1 trainings, 0 of 3 epochs"


def plan(run_id: str) -> RunPlan:
    config = TrainConfig(epochs=5)
    return RunPlan(
        run_id=run_id, config=config, identity=run_id, inputs={}, model="m", num_train_rows=1, num_eval_rows=1
    )


def test_first_unfinished_run_of_a_trial_is_running() -> None:
    tracker = TrialTracker([[plan("a"), plan("b")], [plan("c")], [plan("d")]])
    assert tracker.driver_status(set(), float("inf"), has_ended=False).seconds_left is None
    tracker.mark_started(0)
    tracker.mark_started(1)
    assert tracker.driver_status(set(), 1.0, has_ended=False).running == ("a", "c")
    tracker.mark_retried(0)
    tracker.mark_ended(1, "no room")
    tracker.mark_ended(2)
    stored = tracker.driver_status({"a", "d"}, 1.25, has_ended=True)
    assert (stored.running, stored.retries, stored.failed) == (("b",), {"a": 1, "b": 1}, {"c": "no room"})
    assert (stored.seconds_left, stored.has_ended, stored.is_running) == (1.2, True, False)
    assert tracker.completed_runs() == {"d"}
    assert tracker.num_retries == 1


def test_pickling_resets_the_trial_tracker() -> None:
    tracker = TrialTracker([[plan("a")]])
    tracker.mark_retried(0)
    copied = copy.deepcopy(tracker)
    assert copied.packs == tracker.packs
    assert copied.num_retries == 0


QUESTIONS = [
    AnsweredQuestion(
        question_id=f"{relation}-{split}-{i}",
        gold=("Oslo",),
        greedy=("Oslo",),
        sampled=(("Rome",),),
        relation=relation,
        split=split,
    )
    for relation in ("P19", "P36")
    for split, num in (("train", 6), ("test", 5), ("dev", 4))
    for i in range(num)
]
ANNOTATE_CONFIG = AnnotateConfig(repeats_per_relation=3, controls_per_relation=2)


@pytest.fixture
def annotating(tmp_path: Path) -> Folder:
    """A study with an unfinished annotation of 22 questions."""
    study = Folder(str(tmp_path))
    write_questions(study, [question.question for question in QUESTIONS])
    study.child("annotate").write_json("exemplars.json", {"P19": [], "P36": []})
    begin_step(study.child("annotate"), "annotate", "x", ANNOTATE_CONFIG)
    return study


def write_answers(folder: Folder, num: int) -> None:
    ids = [question.question_id for question in QUESTIONS if question.split != "dev"][:num]
    folder.write_table("part-0.parquet", pa.table({"question_id": ids}))


def status_lines(study: Folder, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    main(["--out", study.uri])
    lines = capsys.readouterr().out.splitlines()[1:]
    return {line[2:12].strip(): line[13:] for line in lines}


def test_status_of_an_unfinished_annotation_counts_each_store(
    annotating: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(annotating.child("annotate", "generations"), 22)
    write_answers(annotating.child("annotate", "repeats"), 4)
    lines = status_lines(annotating, capsys)
    assert lines["annotate"] == (
        "begun, not finished, 22 of 22 questions answered, 4 of 6 repeated, 0 of 4 about fictional subjects"
    )
    assert "P(True)" not in lines, "it was not requested"
    gold = replace(ANNOTATE_CONFIG, estimator="gold", repeats_per_relation=0)
    annotating.child("annotate").delete("started.json")
    begin_step(annotating.child("annotate"), "annotate", "x", gold)
    write_answers(annotating.child("annotate", "gold"), 7)
    assert ", 7 of 22 questions answered, 0 of 4 about fictional" in status_lines(annotating, capsys)["annotate"]


@pytest.mark.parametrize(("scope", "expected"), [("test", 10), ("all", 22)])
def test_status_of_p_true(
    annotating: Folder, scope: PTrueScope, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = replace(ANNOTATE_CONFIG, p_true=True, p_true_of=scope), annotating.child("annotate", "p_true")
    annotating.child("annotate").delete("started.json")
    begin_step(annotating.child("annotate"), "annotate", "x", config)
    assert status_lines(annotating, capsys)["P(True)"] == "not begun"
    begin_step(folder, "P(True)", "x", p_true_settings(config))
    assert status_lines(annotating, capsys)["P(True)"] == f"begun, not finished, 0 of {expected} gold answers scored"
    write_answers(folder, 6)
    assert status_lines(annotating, capsys)["P(True)"] == f"begun, not finished, 6 of {expected} gold answers scored"
    write_answers(folder, expected)
    finish_step_in(folder)
    assert status_lines(annotating, capsys)["P(True)"] == f"done in 1 s, {expected} of {expected} gold answers scored"


def test_status_of_scores_of_stored_answers(annotating: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder = annotating.child("annotate", "hidden")
    finish_step_in(annotating.child("annotate"))
    assert "hidden" not in status_lines(annotating, capsys)
    write_settings(annotating, replace(smoke_study(), experiments=("hidden",), annotate=AnnotateConfig(hidden=True)))
    lines = status_lines(annotating, capsys)
    assert lines["hidden"] == "not begun"
    assert lines["left"] == "hidden (scores of stored answers)"
    begin_step(folder, "hidden", "x", {})
    for store, num in (("log_probabilities", 3), ("p_true", 2)):
        folder.child(store).write_table("part-000000.parquet", pa.table({"question_id": ["q"] * num}))
    assert status_lines(annotating, capsys)["hidden"] == "begun, not finished, 5 scores"
    finish_step(folder, "hidden", identity="x", counts={"candidates": 5, "questions": 2})
    lines = status_lines(annotating, capsys)
    assert lines["hidden"].endswith(", 5 answers to 2 questions scored")
    assert "left" not in lines


def test_p_true_requested_later_has_status_not_started(annotating: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    finish_step_in(annotating.child("annotate"))
    write_settings(annotating, replace(smoke_study(), experiments=("counts",)))
    assert "P(True)" not in status_lines(annotating, capsys)
    config = replace(smoke_study(), variants=VariantsConfig(), experiments=("counts,p_true,idk",))
    write_settings(annotating, config)
    lines = status_lines(annotating, capsys)
    assert lines["P(True)"] == "not begun"
    assert lines["requested"] == "counts, p_true, idk"
    assert lines["left"] == "p_true (P(True), 1 of 1 trainings); idk (2 of 2 trainings)"
    finish_step_in(annotating.child("annotate", "p_true"))
    finish_step_in(annotating.child("runs", "natural-seed0"))
    finish_step_in(annotating.child("runs", "idk-050-seed0"))
    assert status_lines(annotating, capsys)["left"] == "idk (1 of 2 trainings)"
    finish_step_in(annotating.child("runs", "unknown-050-seed0"))
    assert "left" not in status_lines(annotating, capsys)


def write_settings(study: Folder, config: StudyConfig) -> None:
    study.write_json("study.json", {"settings": settings_to_json(resolve(config)), "versions": {}})


def test_runs_of_an_added_experiment_are_pending(annotating: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """Until the sweep begins again, its stored plan is that of the old grid."""
    finish_step_in(annotating.child("annotate"))
    write_planned(annotating.child("sweep"), [Trajectory(variant="unknown-050", seed=0, epochs=3)])
    for folder in (annotating.child("sweep"), annotating.child("runs", "unknown-050-seed0")):
        finish_step_in(folder)
    write_settings(annotating, replace(smoke_study(), experiments=("concentration",)))
    lines = status_lines(annotating, capsys)
    assert lines["left"] == "concentration (1 of 2 trainings)"
    assert lines["sweep"].startswith("done in 1 s, 1 of 1 trainings")


def test_unneeded_steps_state_the_reason(annotating: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    write_settings(annotating, replace(smoke_study(), experiments=("counts,stability",)))
    lines = status_lines(annotating, capsys)
    assert lines["variants"] == lines["sweep"] == "not begun: no requested experiment needs training"
    assert lines["world"] == "not begun"
    config = replace(paper_study(), model="org/model", questions="q.zip", experiments=("idk",))
    write_settings(annotating, config)
    lines = status_lines(annotating, capsys)
    assert lines["world"] == "not begun: the model is org/model"
    assert lines["sweep"] == "not begun"


def test_status_counts_graded_answers(annotating: Folder) -> None:
    finish_step_in(annotating.child("report"))
    tables = annotating.child("report", "tables")
    assert describe_step(annotating, "report") == "done in 1 s"
    for grades, expected in ((",", ""), ("wrong,", ", 1 of 2 wrong answers graded")):
        first, second = grades.split(",")
        tables.write_bytes("error_audit.csv", f"sheet,answer_id,grade\ns,a,{first}\ns,b,{second}\n".encode())
        assert describe_step(annotating, "report") == f"done in 1 s{expected}"
    tables.write_bytes("error_audit.csv", b"nonsense")
    assert describe_step(annotating, "report") == "done in 1 s, error_audit.csv cannot be read"


def test_status_of_a_curation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_curated_study(tmp_path, [fact(1), fact(2), CODE_ROW], [Category.UNKNOWN] * 2).study
    main(["--out", study.uri])
    assert "curate" not in capsys.readouterr().out, "it is not a step of other studies"
    rows = [{"key": str(i), "outcome": "fact", "reply": "A", "item": "", "attempts": 1} for i in range(3)]
    table = pa.Table.from_pylist(rows, schema=JUDGEMENT_SCHEMA)
    study.child("curate", JUDGE_FOLDER).write_table("part-000000.parquet", table)
    assert describe_step(study, "curate") == "begun, not finished, 3 prompts judged"
    finish_step(study.child("curate"), "curate", counts={"asked": 2, "rows": 3})
    main(["--out", study.uri])
    assert ", 2 of 3 rows labelled" in capsys.readouterr().out
    study.child("annotate", JUDGE_FOLDER).write_table("part-000000.parquet", table)
    assert "3 answers graded by the judge" in describe_step(study, "annotate")
