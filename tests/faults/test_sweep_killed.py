"""A sweep with its driver and a worker killed: it goes on, and its points are those of an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slick.storage import Folder
from tests.faults.test_annotate_killed import wait_for
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.local.tiny_study import write_study
from tuning.config import TrainConfig
from tuning.grid import GridConfig
from tuning.sweep import SweepConfig, sweep

EPOCHS = 16
CONFIG = SweepConfig(
    grid=GridConfig(variants=("half", "known"), epochs=(5, EPOCHS), policies=("fixed", "best_dev")),
    train=TrainConfig(
        learning_rate=5e-3, batch_size=4, dropout=0.1, max_new_tokens=6, keep_checkpoints="none", state_share=1.0
    ),
    trajectories_per_trial=None,
    max_concurrent=1,
)
DRIVER = """
import sys
from slick.storage import Folder
from tests.faults.test_sweep_killed import CONFIG, sweep
sweep(Folder(sys.argv[1]), CONFIG)
"""


def epochs_done(study: Folder, run: str) -> int:
    return len(study.child("runs", run, "predictions").names(".parquet"))


def kill_driver(study: Folder) -> None:
    """In the middle of the second training."""
    import ray

    cluster = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "disabled"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, study.uri],
        env={**os.environ, **cluster},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: epochs_done(study, "half-seed0") >= 5 or driver.poll() is not None)
    finally:
        driver.kill()
        driver.wait()
    time.sleep(3)  # the workers end with their driver
    assert 5 <= epochs_done(study, "half-seed0") < EPOCHS
    assert not study.child("sweep").exists("manifest.json")


def kill_worker(study: Folder, run: str, after: int) -> None:
    import ray
    from ray.util.state import list_actors

    cluster = ray.get_runtime_context().gcs_address
    wait_for(lambda: epochs_done(study, run) >= after)
    (worker,) = [a for a in list_actors(cluster, filters=[("state", "=", "ALIVE")]) if "TrainWorker" in a.class_name]
    os.kill(worker.pid, signal.SIGKILL)
    assert epochs_done(study, run) < EPOCHS, "the worker had nothing left to do"


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_its_points_are_the_same(tmp_path: Path, ray_cluster: None) -> None:
    from concurrent.futures import ThreadPoolExecutor

    quiet, study = (
        write_study(tmp_path / name, tiny_model("llama", spread=0.1), tiny_tokenizer()) for name in ("quiet", "killed")
    )
    sweep(quiet, CONFIG)
    kill_driver(study)
    finished = study.child("runs", "known-seed0").read_bytes("manifest.json")
    before = epochs_done(study, "half-seed0")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(sweep, study, CONFIG)
        wait_for(lambda: epochs_done(study, "half-seed0") > before or running.done())
        kill_worker(study, "half-seed0", before + 1)
        running.result(200)
    assert study.child("runs", "known-seed0").read_bytes("manifest.json") == finished
    assert study.child("runs", "half-seed0").read_json("manifest.json")["counts"]["epochs_now"] < EPOCHS
    points = [folder.child("sweep").read_table("points.parquet") for folder in (quiet, study)]
    assert points[0].equals(points[1])
    assert points[0].num_rows == 2 * 2 * 2
    longer = replace(CONFIG, grid=replace(CONFIG.grid, seeds=(0,), epochs=(5,)))
    assert sweep(study, longer).counts["trained_now"] == 0
