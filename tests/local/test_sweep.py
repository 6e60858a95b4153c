"""A small sweep with Ray Tune: its points, resumption without repeated training, and reported failures."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.status import sweep_run_statuses
from slick.errors import SettingsError, SlickError
from slick.storage import Folder
from slick.study_files import POINTS_SCHEMA
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.study_builder import write_trainable_study
from tuning.config import TrainConfig
from tuning.grid import GridConfig, Scheduler
from tuning.probe import plan_sweep
from tuning.progress_table import LOG_INTERVAL_S
from tuning.run_status import status_table
from tuning.sweep import SweepConfig, pack_plans, sweep

GRID = GridConfig(variants=("half", "known"), epochs=(2, 3), policies=("fixed", "best_dev", "fixed(1)"))
TRAIN = TrainConfig(
    learning_rate=1e-2, batch_size=4, dropout=0.0, max_new_tokens=6, keep_checkpoints="none", dtype="float32"
)
DURATION = r"(?:\d+ min )?\d+ s"
CONFIG = SweepConfig(grid=GRID, train=TRAIN, trajectories_per_trial=None, max_concurrent=1)


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    return write_trainable_study(tmp_path, tiny_model("llama", spread=0.1), tiny_tokenizer())


def modification_times(study: Folder) -> dict[str, int]:
    """Finished runs and their modification times."""
    runs = Path(study.child("runs").local_path)
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/manifest.json")}


@pytest.mark.usefixtures("ray_cluster")
def test_grid_is_trained_once_and_can_be_extended(study: Folder, capsys: pytest.CaptureFixture) -> None:
    started_at = time.monotonic()
    manifest = sweep(study, CONFIG)
    duration_s = time.monotonic() - started_at
    points = study.child("sweep").read_table("points.parquet")
    assert points.schema == POINTS_SCHEMA
    assert points.num_rows == manifest.counts["points"] == 2 * (2 * 3)
    check_points(study, points)
    first = modification_times(study)
    assert sorted(first) == ["half-seed0", "known-seed0"]
    assert not study.child(".ray").folders()
    check_table(study, capsys.readouterr().err, duration_s)

    assert sweep(study, CONFIG) == manifest
    assert modification_times(study) == first

    extended = replace(CONFIG, grid=replace(GRID, seeds=(0, 1), variants=("half",)))
    assert sweep(study, extended).counts["trained_now"] == 1
    after = modification_times(study)
    assert after.pop("half-seed1")
    assert after == first
    assert set(study.child("sweep").read_table("points.parquet")["run_id"].to_pylist()) == {"half-seed0", "half-seed1"}


def check_table(study: Folder, log: str, duration_s: float) -> None:
    """The last table in the log has all trainings and equals that of `slick status`."""
    rows = sweep_run_statuses(study)
    assert [(row.run_id, row.epochs, row.budget, row.state) for row in rows] == [
        ("half-seed0", 3, 3, "done"),
        ("known-seed0", 3, 3, "done"),
    ]
    lines = log.splitlines()
    assert lines[-3:] == status_table(rows)
    assert lines[-4].startswith("sweep: 2 of 2 trainings, 6 of 6 epochs, best dev")
    tables = sum(line.startswith("sweep: ") for line in lines)
    assert 1 <= tables <= 1 + duration_s // LOG_INTERVAL_S, (
        "in a log the table is printed at intervals, not after every epoch"
    )
    for row in rows:
        epochs = study.child("runs", row.run_id).read_table("epochs.parquet").to_pylist()
        dev = [r["num_correct"] / r["num"] for r in epochs if (r["split"], r["category"]) == ("dev", "all")]
        assert (row.dev_accuracy, row.best_dev_accuracy, row.best_epoch) == (dev[-1], max(dev), dev.index(max(dev)) + 1)


def check_points(study: Folder, points: pa.Table) -> None:
    for point in points.to_pylist():
        epochs = study.child("runs", point["run_id"]).read_table("epochs.parquet").to_pylist()
        dev = [r["num_correct"] / r["num"] for r in epochs if (r["split"], r["category"]) == ("dev", "all")]
        expected = {
            f"fixed({point['epochs']})": (point["epochs"], point["epochs"]),
            "fixed(1)": (1, 1),
            "best_dev": (dev[: point["epochs"]].index(max(dev[: point["epochs"]])) + 1, point["epochs"]),
        }
        assert (point["stop_epoch"], point["cost_epochs"]) == expected[point["policy"]]
        for row in epochs:
            if row["epoch"] == point["stop_epoch"]:
                assert point[f"{row['split']}_{row['category']}"] == row["num_correct"] / row["num"]
        assert point["unknown_share"] == {"half": 0.5, "known": 0.0}[point["variant"]]
        assert (point["train_Unknown"] is None) == (point["variant"] == "known")
        assert point["dev_Unknown"] is None


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_failed_trial_is_reported_after_all_others_finish(study: Folder) -> None:
    rows = study.child("variants").read_table("known.parquet").to_pylist()
    rows[0]["target"] = ""
    study.child("variants").write_table("known.parquet", pa.Table.from_pylist(rows))
    with pytest.raises(SlickError, match=r"1 of 2 trials failed") as failure:
        sweep(study, replace(CONFIG, trajectories_per_trial=1))
    assert "known-seed0: row 0 (prompt" in str(failure.value)
    assert "no tokens in its prompt or target" in str(failure.value)
    assert "Traceback" not in str(failure.value)
    assert list(modification_times(study)) == ["half-seed0"]
    assert not study.child("sweep").exists("manifest.json")


def point_rows(study: Folder, *omitted: str) -> list[dict]:
    table = study.child("sweep").read_table("points.parquet")
    rows = table.drop_columns(list(omitted)).to_pylist()
    return sorted(
        rows, key=lambda row: [str(row[name]) for name in ("variant", "seed", "epochs", "policy", "settings")]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_points_of_a_shared_trajectory_equal_those_of_separate_trainings(study: Folder, tmp_path: Path) -> None:
    """Weights, answers and all numbers of all points are bitwise equal."""
    separate = write_trainable_study(tmp_path / "alone", tiny_model("llama", spread=0.1), tiny_tokenizer())
    train = replace(TRAIN, keep_checkpoints="last", dropout=0.1)
    config = replace(
        CONFIG, train=train, grid=replace(GRID, epochs=(2, 4), policies=("fixed", "best_dev", "patience(1)"))
    )
    assert sweep(study, config).counts["epochs_trained"] == 2 * 4
    assert sweep(separate, replace(config, independent=True)).counts["epochs_trained"] == 2 * (2 + 4)
    assert point_rows(study, "run_id") == point_rows(separate, "run_id")
    assert len(point_rows(study)) == 12
    for epochs in (2, 4):
        path = f"predictions/epoch-{epochs:03d}.parquet"
        expected = separate.child("runs", f"half-seed0-epochs{epochs}")
        assert study.child("runs", "half-seed0").read_bytes(path) == expected.read_bytes(path)
    name = "checkpoint-last/model.safetensors"
    runs = study.child("runs", "half-seed0"), separate.child("runs", "half-seed0-epochs4")
    assert runs[0].read_bytes(name) == runs[1].read_bytes(name)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_live_sweep_has_the_same_points_with_fewer_epochs_and_can_be_extended(study: Folder, tmp_path: Path) -> None:
    full = write_trainable_study(tmp_path / "full", tiny_model("llama", spread=0.1), tiny_tokenizer())
    grid = GridConfig(variants=("half",), epochs=(6, 8), policies=("fixed(2)", "patience(1)"))
    config = replace(CONFIG, grid=grid, train=replace(TRAIN, keep_state=True))
    assert sweep(full, config).counts["epochs_trained"] == 8
    driver_status = sweep(study, replace(config, stop="live"))
    assert driver_status.counts["epochs_trained"] < 8
    assert point_rows(study) == point_rows(full)
    assert sweep(study, replace(config, stop="live")) == driver_status

    before = {
        run: study.child("runs", run).read_json("manifest.json")["counts"]["epochs"]
        for run in modification_times(study)
    }
    assert min(before.values()) < 8
    assert sweep(study, config).counts["epochs_trained"] == 8
    assert point_rows(study) == point_rows(full)
    fewer = replace(config, grid=replace(grid, epochs=(6,)))
    assert sweep(study, fewer).counts["trained_now"] == 0
    assert {row["epochs"] for row in point_rows(study)} == {6}
    for run, epochs in before.items():
        manifest = study.child("runs", run).read_json("manifest.json")
        assert manifest["counts"]["epochs"] == 8
        if epochs < 8:
            assert manifest["counts"]["epochs_now"] == 8 - epochs
        for epoch in range(1, 9):
            path = f"predictions/epoch-{epoch:03d}.parquet"
            assert study.child("runs", run).read_bytes(path) == full.child("runs", run).read_bytes(path)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_axes_of_settings_and_a_schedule_with_separate_budgets(study: Folder, capsys: pytest.CaptureFixture) -> None:
    grid = replace(GRID, variants=("half",), epochs=(1, 2), policies=("fixed",), axes=("learning_rate=0.01,0.05",))
    sweep(study, replace(CONFIG, grid=grid, train=replace(TRAIN, schedule="linear")))
    assert "every epoch budget is trained separately: schedule linear" in capsys.readouterr().out
    rows = point_rows(study)
    assert [(row["epochs"], row["run_id"], row["settings"]) for row in rows] == [
        (1, "half-seed0-epochs1", ""),
        (1, "half-seed0-learning_rate=0.05-epochs1", "learning_rate=0.05"),
        (2, "half-seed0-epochs2", ""),
        (2, "half-seed0-learning_rate=0.05-epochs2", "learning_rate=0.05"),
    ]
    configs = [study.child("runs", row["run_id"]).read_json("config.json")["settings"] for row in rows]
    assert [settings["learning_rate"] for settings in configs] == [0.01, 0.05, 0.01, 0.05]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [("asha", "0.01,0.000001,0.000002"), ("median", "0.01,0.011,0.012,0.000001")],
)
@pytest.mark.usefixtures("ray_cluster")
def test_scheduler_stops_trainings_with_low_accuracy(study: Folder, scheduler: Scheduler, rates: str) -> None:
    grid = GridConfig(variants=("half",), epochs=(2, 9), policies=("fixed",), axes=(f"learning_rate={rates}",))
    config = replace(CONFIG, grid=grid, scheduler=scheduler, trajectories_per_trial=1, max_concurrent=1)
    manifest = sweep(study, config)
    ended = manifest.counts["ended_early"]
    assert ended
    assert "half-seed0" not in ended
    lengths = {
        run: study.child("runs", run).read_json("manifest.json")["counts"]["epochs"]
        for run in modification_times(study)
    }
    assert all((lengths[run] < 9) == (run in ended) for run in lengths)
    budgets = {(row["run_id"], row["epochs"]) for row in point_rows(study)}
    assert ("half-seed0", 9) in budgets
    assert not any((run, 9) in budgets for run in ended)
    assert sweep(study, config) == manifest


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_search_trains_samples_and_a_longer_search_continues(study: Folder, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed: pip install 'slick-knowledge[optuna]'")
    grid = replace(GRID, variants=("half",), axes=("learning_rate=1e-4..1e-1:log", "dropout=0.0,0.1"))
    config = replace(CONFIG, grid=grid, search="optuna", samples=1, samples_at_once=1)
    assert sweep(study, config).counts["trained_now"] == 1
    first = modification_times(study)
    capsys.readouterr()
    longer = replace(config, samples=2)
    manifest = sweep(study, longer)
    assert (manifest.counts["trainings"], manifest.counts["trained_now"]) == (2, 1)
    assert {run: at for run, at in modification_times(study).items() if run in first} == first
    assert sweep(study, longer) == manifest
    rows = point_rows(study)
    assert len(rows) == 2 * 2 * 3
    assert len({row["settings"] for row in rows}) == 2
    (line,) = {
        line for line in capsys.readouterr().out.splitlines() if line.startswith(f"sweep: {rows[-1]['settings']}:")
    }
    assert f"best dev accuracy {max(r['dev_all'] for r in rows if r['settings'] == rows[-1]['settings']):.3f}" in line


def test_missing_highlyknown_dev_rows_are_reported_before_training(study: Folder) -> None:
    grid = replace(GRID, policies=("dev_highlyknown",))
    with pytest.raises(
        SettingsError, match=r"dev_highlyknown needs dev questions .* HighlyKnown, and there are none.*--annotate-dev"
    ):
        sweep(study, replace(CONFIG, grid=grid))
    assert not modification_times(study)


def test_packs_contain_every_training_once(study: Folder) -> None:
    from tuning.runs import plan_runs

    config = replace(CONFIG, grid=replace(GRID, seeds=(0, 1, 2)))
    plans = plan_runs(study, {run.run_id: run.config(config.train) for run in config.trajectories})
    for per_trial, concurrent, num_packs in ((1, 2, 6), (4, 2, 2), (None, 2, 2), (None, 3, 3)):
        packs = pack_plans(plans, per_trial, concurrent)
        assert len(packs) == num_packs
        assert sorted(plan.run_id for pack in packs for plan in pack) == sorted(plan.run_id for plan in plans)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_plan_sweep_logs_costs_and_trains_nothing(study: Folder, capsys: pytest.CaptureFixture) -> None:
    plan_sweep(study, replace(CONFIG, grid=replace(GRID, axes=("learning_rate=0.01,0.05", "lora_rank=0,8"))))
    out = capsys.readouterr().out
    assert "2 variants x 1 seed x 4 combinations of settings = 8 trainings, 24 epochs in all" in out
    for run in ("half-seed0", "known-seed0-lora_rank=8", "half-seed0-learning_rate=0.05-lora_rank=8"):
        assert re.search(rf"^  {run} +3 epochs  {DURATION}$", out, re.MULTILINE)
    cost = rf"{DURATION} of one worker group, \d+\.\d\d worker-hours, measured on 3 steps and 256 questions"
    assert re.search(cost, out)
    measured = re.findall(r"  measured with (.*): (\S+) ms per row trained, (\S+) ms per row evaluated", out)
    assert [name for name, *_ in measured] == ["lora_rank=0", "lora_rank=8"], (
        "the learning rate does not change the cost"
    )
    assert all(float(train_ms) > 0 and float(eval_ms) > 0 for _, train_ms, eval_ms in measured)
    assert not study.child("runs").exists()
    assert not study.child(".ray").folders()
