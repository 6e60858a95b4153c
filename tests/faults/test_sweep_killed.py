"""A sweep with a killed driver, trial, worker or node resumes, and its points equal those of an uninterrupted one."""

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.status import sweep_run_statuses
from slick.errors import SlickError, StudyError
from slick.storage import Folder
from slick.study import STARTED, Manifest
from tests.faults.hold import hold, holdable, release, saw_preemption_notice
from tests.faults.nodes import live_actors, run_and_kill_node, run_in_subprocess, start_and_kill_driver
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.study_builder import write_trainable_study
from tests.waiting import TIMEOUT_S, wait_for
from tuning.config import TrainConfig
from tuning.grid import GridConfig
from tuning.state import find_states
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
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes background jobs ignore Ctrl-C
from jobs.common import run_main
from slick.storage import Folder
from tests.faults.test_sweep_killed import CONFIG, sweep
run_main(lambda arguments: sweep(Folder(arguments[0]), CONFIG))
"""


def new_study(path: Path) -> Folder:
    return write_trainable_study(path, tiny_model("llama", spread=0.1), tiny_tokenizer())


@pytest.fixture(scope="module")
def uninterrupted_study(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Folder:
    study = new_study(tmp_path_factory.mktemp("uninterrupted"))
    sweep(study, CONFIG)
    return study


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    return new_study(tmp_path)


def assert_same(first: Folder, second: Folder) -> None:
    points = [folder.child("sweep").read_table("points.parquet") for folder in (first, second)]
    assert points[0].equals(points[1])
    assert points[0].num_rows == 2 * 2 * 2


def epochs_done(study: Folder, run: str) -> int:
    return len(study.child("runs", run, "predictions").names(".parquet"))


def saved_epoch(study: Folder, run: str) -> int:
    """The epoch of the state from which a run can resume; 0 if there is none."""
    try:
        started = study.child("runs", run).read_json(STARTED)
        state = find_states(study, []).get(started["fingerprint"])
    except StudyError:
        return 0  # the run has not begun, or the state was replaced during the read
    return state.progress.epoch if state else 0


def states(study: Folder) -> dict[str, str]:
    return {row.run_id: row.state for row in sweep_run_statuses(study)}


def epochs_of_last_attempt(study: Folder, run: str) -> int:
    """Number of epochs of the last attempt."""
    return study.child("runs", run).read_json("manifest.json")["counts"]["epochs_now"]


def in_background(study: Folder, config: SweepConfig) -> Future[Manifest]:
    def work() -> Manifest:
        with holdable():
            return sweep(study, config)

    pool = ThreadPoolExecutor()
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


def kill_actor(future: Future[Manifest], name: str) -> None:
    """Kill the process of the only actor of that class, and wait until Ray detects it."""
    assert not future.done(), future.exception() or "the sweep ended before the process was killed"
    (actor,) = live_actors(name)
    os.kill(actor.pid, signal.SIGKILL)
    wait_for(lambda: actor.actor_id not in {live.actor_id for live in live_actors(name)})


@pytest.mark.slow
def test_sweep_resumes_after_killed_driver_and_killed_worker(uninterrupted_study: Folder, study: Folder) -> None:
    hold(study, at=5, run="half-seed0", saved=True)
    start_and_kill_driver(DRIVER, study.uri, when=lambda: saved_epoch(study, "half-seed0") >= 5)
    before = epochs_done(study, "half-seed0")
    assert 5 <= before < EPOCHS
    assert not study.child("sweep").exists("manifest.json")
    finished = study.child("runs", "known-seed0").read_bytes("manifest.json")
    assert states(study)["known-seed0"] == "done"

    hold(study, at=before + 1)
    running = in_background(study, CONFIG)
    wait_for(lambda: epochs_done(study, "half-seed0") > before or running.done())
    kill_actor(running, "TrainWorker")
    assert epochs_done(study, "half-seed0") < EPOCHS, "the run ended before the worker was killed"
    release(study)
    assert running.result(TIMEOUT_S).counts["retried"] == 0, "Ray Train restarts workers without a retry of the trial"
    assert study.child("runs", "known-seed0").read_bytes("manifest.json") == finished
    assert epochs_of_last_attempt(study, "half-seed0") < EPOCHS
    assert_same(uninterrupted_study, study)
    shorter = replace(CONFIG, grid=replace(CONFIG.grid, seeds=(0,), epochs=(5,)))
    assert sweep(study, shorter).counts["trained_now"] == 0


@pytest.mark.slow
def test_sweep_resumes_after_ctrl_c(uninterrupted_study: Folder, study: Folder) -> None:
    hold(study, at=5, run="known-seed0", saved=True)
    status = start_and_kill_driver(
        DRIVER, study.uri, when=lambda: saved_epoch(study, "known-seed0") >= 5, by=signal.SIGINT
    )
    release(study)
    assert status == 130
    before = epochs_done(study, "known-seed0")
    assert 5 <= before < EPOCHS
    assert states(study) == {"half-seed0": "waiting", "known-seed0": "interrupted"}
    sweep(study, CONFIG)
    assert EPOCHS - epochs_of_last_attempt(study, "known-seed0") >= before - 1, "at most one epoch may be repeated"
    assert_same(uninterrupted_study, study)


@pytest.mark.slow
def test_killed_trial_is_retried_from_its_state(uninterrupted_study: Folder, study: Folder) -> None:
    hold(study, at=6, run="known-seed0", saved=True)
    running = in_background(study, CONFIG)
    wait_for(lambda: saved_epoch(study, "known-seed0") >= 6 or running.done())
    kill_actor(running, "ImplicitFunc")
    wait_for(lambda: "retried" in states(study).values() or running.done())
    release(study)
    assert not running.done()
    assert running.result(TIMEOUT_S).counts["retried"] == 1
    assert epochs_of_last_attempt(study, "known-seed0") < EPOCHS
    assert [(row.state, row.attempts) for row in sweep_run_statuses(study)] == [("done", 2)] * 2
    assert_same(uninterrupted_study, study)


@pytest.mark.slow
def test_failing_trial_is_reported_after_the_others_finish(uninterrupted_study: Folder, study: Folder) -> None:
    train = replace(
        CONFIG.train, max_failures=0, state_share=0.0
    )  # failures that Ray Train does not retry are retried by Tune
    config = replace(CONFIG, train=train, trajectories_per_trial=1, retries=1)
    before = 0
    hold(study, at=1, run="known-seed0")
    running = in_background(study, config)
    for _ in range(2):
        wait_for(lambda: epochs_done(study, "known-seed0") > before or running.done())  # noqa: B023 - called at once
        kill_actor(running, "TrainWorker")
        before = epochs_done(study, "known-seed0")
        hold(study, at=before + 1, run="known-seed0")
    release(study)
    with pytest.raises(SlickError, match=r"(?s)1 of 2 trials failed, all others are finished.*\n +known-seed0: .*died"):
        running.result(TIMEOUT_S)
    assert states(study) == {"half-seed0": "done", "known-seed0": "failed"}
    (failed,) = [row for row in sweep_run_statuses(study) if row.state == "failed"]
    assert failed.attempts == 2
    assert "died" in failed.error
    assert "\n" not in failed.error

    assert sweep(study, config).counts["trained_now"] == 1
    assert_same(uninterrupted_study, study)


@pytest.mark.slow
def test_trial_deaths_may_exceed_retries_if_trials_progress(uninterrupted_study: Folder, study: Folder) -> None:
    assert CONFIG.retries == 1
    before = 0
    hold(study, at=4, run="known-seed0", saved=True)
    running = in_background(study, CONFIG)
    for _ in range(2):
        wait_for(lambda: saved_epoch(study, "known-seed0") >= before + 4 or running.done())  # noqa: B023 - called at once
        kill_actor(running, "ImplicitFunc")
        before = epochs_done(study, "known-seed0")
        hold(study, at=before + 4, run="known-seed0", saved=True)
    release(study)
    assert running.result(TIMEOUT_S).counts["retried"] == 2
    assert_same(uninterrupted_study, study)


def sweep_and_lose_a_node(study: Folder, notice: bool) -> None:
    """Sweep with two trials on two nodes; run in another process."""
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"
    config = replace(CONFIG, max_concurrent=2)
    if notice:
        config = replace(config, retries=0, train=replace(CONFIG.train, max_failures=0))
    runs = [f"{name}-seed0" for name in CONFIG.grid.variants]
    hold(study, at=5, saved=True, until_notice=notice)
    num_workers, manifest = run_and_kill_node(
        study,
        lambda: sweep(study, config),
        lambda: all(epochs_done(study, run) >= 5 if notice else saved_epoch(study, run) >= 5 for run in runs),
        "TrainWorker",
        head_cpus=0,
        node_cpus=1,
        after_notice=(lambda: saw_preemption_notice(study) and all(saved_epoch(study, run) for run in runs))
        if notice
        else None,
    )
    counts = manifest.counts
    print(f"began with {num_workers} trainings, trained {counts['trained_now']}, trials retried: {counts['retried']}")


@pytest.mark.slow
@pytest.mark.parametrize("notice", [False, True])
def test_sweep_finishes_on_the_remaining_node(notice: bool, uninterrupted_study: Folder, study: Folder) -> None:
    call = f"sweep_and_lose_a_node(Folder({study.uri!r}), {notice})"
    out = run_in_subprocess(f"from tests.faults.test_sweep_killed import *; {call}")
    assert "began with 2 trainings, trained 2, trials retried: 0" in out, "trials must run on the node of the driver"
    assert min(epochs_of_last_attempt(study, f"{name}-seed0") for name in CONFIG.grid.variants) < EPOCHS
    assert_same(uninterrupted_study, study)
