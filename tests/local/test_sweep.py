"""A small grid through Ray Tune: points as the contract has them, nothing trained twice, failures told."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from slick.errors import SettingsError, SlickError
from slick.storage import Folder
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.local.tiny_study import write_study
from tuning.config import TrainConfig
from tuning.grid import GridConfig
from tuning.points import POINTS_SCHEMA
from tuning.sweep import SweepConfig, share_out, sweep

GRID = GridConfig(variants=("half", "known"), epochs=(2, 3), policies=("fixed", "best_dev", "fixed(1)"))
TRAIN = TrainConfig(learning_rate=1e-2, batch_size=4, dropout=0.0, max_new_tokens=6, keep_checkpoints="none")
CONFIG = SweepConfig(grid=GRID, train=TRAIN, trajectories_per_trial=None)


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    return write_study(tmp_path, tiny_model("llama", spread=0.1), tiny_tokenizer())


def written(study: Folder) -> dict[str, int]:
    """Finished runs, and when they were."""
    runs = Path(study.child("runs").local_path)
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/manifest.json")}


@pytest.mark.usefixtures("ray_cluster")
def test_a_grid_is_trained_once_and_can_grow(study: Folder) -> None:
    manifest = sweep(study, CONFIG)
    points = study.child("sweep").read_table("points.parquet")
    assert points.schema == POINTS_SCHEMA
    assert points.num_rows == manifest.counts["points"] == 2 * (2 * 3)
    check_points(study, points)
    first = written(study)
    assert sorted(first) == ["half-seed0", "known-seed0"]
    assert not study.child(".ray").exists()

    assert sweep(study, CONFIG) == manifest
    assert written(study) == first

    grown = replace(CONFIG, grid=replace(GRID, seeds=(0, 1), variants=("half",)))
    assert sweep(study, grown).counts["trained_now"] == 1
    after = written(study)
    assert after.pop("half-seed1")
    assert after == first
    assert set(study.child("sweep").read_table("points.parquet")["run_id"].to_pylist()) == {"half-seed0", "half-seed1"}


def check_points(study: Folder, points: pa.Table) -> None:
    for point in points.to_pylist():
        epochs = study.child("runs", point["run_id"]).read_table("epochs.parquet").to_pylist()
        dev = [r["num_correct"] / r["num"] for r in epochs if (r["split"], r["category"]) == ("dev", "all")]
        wanted = {
            f"fixed({point['epochs']})": (point["epochs"], point["epochs"]),
            "fixed(1)": (1, 1),
            "best_dev": (dev[: point["epochs"]].index(max(dev[: point["epochs"]])) + 1, point["epochs"]),
        }
        assert (point["stop_epoch"], point["cost_epochs"]) == wanted[point["policy"]]
        for row in epochs:
            if row["epoch"] == point["stop_epoch"]:
                assert point[f"{row['split']}_{row['category']}"] == row["num_correct"] / row["num"]
        assert point["unknown_share"] == {"half": 0.5, "known": 0.0}[point["variant"]]
        assert (point["train_Unknown"] is None) == (point["variant"] == "known")
        assert point["dev_Unknown"] is None


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_trial_is_named_and_the_rest_is_finished(study: Folder) -> None:
    rows = study.child("variants").read_table("known.parquet").to_pylist()
    rows[0]["target"] = ""
    study.child("variants").write_table("known.parquet", pa.Table.from_pylist(rows))
    with pytest.raises(SlickError, match=r"1 of 2 trials failed") as failure:
        sweep(study, replace(CONFIG, trajectories_per_trial=1))
    assert "known-seed0: row 0 (prompt" in str(failure.value)
    assert "empty prompt or target" in str(failure.value)
    assert "Traceback" not in str(failure.value)
    assert list(written(study)) == ["half-seed0"]
    assert not study.child("sweep").exists("manifest.json")


def test_a_schedule_that_depends_on_the_end_allows_one_budget() -> None:
    with pytest.raises(SettingsError, match="use schedule constant, or one budget"):
        SweepConfig(grid=GRID, train=replace(TRAIN, schedule="linear"))
    SweepConfig(grid=replace(GRID, epochs=(3,)), train=replace(TRAIN, schedule="linear"))


def test_packs_hold_every_training_once(study: Folder) -> None:
    from tuning.grid import trajectories
    from tuning.runs import plan_runs

    config = replace(CONFIG, grid=replace(GRID, seeds=(0, 1, 2)))
    plans = plan_runs(study, [config.config_of(trajectory) for trajectory in trajectories(config.grid)])
    for per_trial, concurrent, num_packs in ((1, 2, 6), (4, 2, 2), (None, 2, 2), (None, 3, 3)):
        packs = share_out(plans, per_trial, concurrent)
        assert len(packs) == num_packs
        assert sorted(plan.run_id for part in packs for plan in part) == sorted(plan.run_id for plan in plans)
