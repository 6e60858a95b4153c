"""A sweep with its driver, a trial, a worker or a node killed: it goes on, and its points are those of a quiet one."""

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.status import standings
from slick.errors import SlickError
from slick.storage import Folder
from slick.study import Manifest
from tests.faults.nodes import alive, apart, lose_a_node, start_and_kill_driver, wait_for
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
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore Ctrl-C
from jobs.door import run_main
from slick.storage import Folder
from tests.faults.test_sweep_killed import CONFIG, sweep
run_main(lambda arguments: sweep(Folder(arguments[0]), CONFIG))
"""


def new_study(path: Path) -> Folder:
    return write_study(path, tiny_model("llama", spread=0.1), tiny_tokenizer())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Folder:
    study = new_study(tmp_path_factory.mktemp("undisturbed"))
    sweep(study, CONFIG)
    return study


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    return new_study(tmp_path)


def assert_same(one: Folder, other: Folder) -> None:
    points = [folder.child("sweep").read_table("points.parquet") for folder in (one, other)]
    assert points[0].equals(points[1])
    assert points[0].num_rows == 2 * 2 * 2


def epochs_done(study: Folder, run: str) -> int:
    return len(study.child("runs", run, "predictions").names(".parquet"))


def states(study: Folder) -> dict[str, str]:
    return {row.run_id: row.state for row in standings(study)}


def epochs_now(study: Folder, run: str) -> int:
    """Epochs that the last try did."""
    return study.child("runs", run).read_json("manifest.json")["counts"]["epochs_now"]


def in_background(study: Folder, config: SweepConfig) -> Future[Manifest]:
    pool = ThreadPoolExecutor()
    running = pool.submit(sweep, study, config)
    pool.shutdown(wait=False)
    return running


def kill(running: Future[Manifest], name: str) -> None:
    """End the process of the one actor of that class."""
    assert not running.done(), running.exception() or "it had nothing left to do"
    (actor,) = alive(name)
    os.kill(actor.pid, signal.SIGKILL)


@pytest.mark.slow
def test_with_its_driver_and_then_a_worker_killed(undisturbed: Folder, study: Folder) -> None:
    start_and_kill_driver(DRIVER, study.uri, when=lambda: epochs_done(study, "half-seed0") >= 5)
    before = epochs_done(study, "half-seed0")
    assert 5 <= before < EPOCHS
    assert not study.child("sweep").exists("manifest.json")
    finished = study.child("runs", "known-seed0").read_bytes("manifest.json")
    assert states(study)["known-seed0"] == "done"

    running = in_background(study, CONFIG)
    wait_for(lambda: epochs_done(study, "half-seed0") > before or running.done())
    kill(running, "TrainWorker")
    assert epochs_done(study, "half-seed0") < EPOCHS, "the worker had nothing left to do"
    assert running.result(200).counts["retried"] == 0, "Ray Train starts a worker anew by itself"
    assert study.child("runs", "known-seed0").read_bytes("manifest.json") == finished
    assert epochs_now(study, "half-seed0") < EPOCHS
    assert_same(undisturbed, study)
    shorter = replace(CONFIG, grid=replace(CONFIG.grid, seeds=(0,), epochs=(5,)))
    assert sweep(study, shorter).counts["trained_now"] == 0


@pytest.mark.slow
def test_with_ctrl_c(undisturbed: Folder, study: Folder) -> None:
    status = start_and_kill_driver(
        DRIVER, study.uri, when=lambda: epochs_done(study, "known-seed0") >= 5, by=signal.SIGINT
    )
    assert status == 130
    before = epochs_done(study, "known-seed0")
    assert 5 <= before < EPOCHS
    assert states(study) == {"half-seed0": "waiting", "known-seed0": "interrupted"}
    sweep(study, CONFIG)
    assert EPOCHS - epochs_now(study, "known-seed0") >= before - 1, "more than an epoch was lost"
    assert_same(undisturbed, study)


@pytest.mark.slow
def test_with_a_trial_killed_tune_tries_it_again_from_its_state(undisturbed: Folder, study: Folder) -> None:
    running = in_background(study, CONFIG)
    wait_for(lambda: epochs_done(study, "known-seed0") >= 6 or running.done())
    kill(running, "ImplicitFunc")
    wait_for(lambda: "retried" in states(study).values() or running.done())
    assert not running.done()
    assert running.result(200).counts["retried"] == 1
    assert epochs_now(study, "known-seed0") < EPOCHS
    assert [(row.state, row.tries) for row in standings(study)] == [("done", 2)] * 2
    assert_same(undisturbed, study)


@pytest.mark.slow
def test_a_trial_that_always_fails_is_listed_while_the_others_finish(undisturbed: Folder, study: Folder) -> None:
    train = replace(CONFIG.train, max_failures=0)  # what Ray Train does not mend is Tune's
    config = replace(CONFIG, train=train, trajectories_per_trial=1, retries=1)
    running = in_background(study, config)
    before = 0
    for _ in range(2):
        wait_for(lambda: epochs_done(study, "known-seed0") > before or running.done())  # noqa: B023 - called at once
        kill(running, "TrainWorker")
        before = epochs_done(study, "known-seed0")
    with pytest.raises(SlickError, match=r"(?s)1 of 2 trials failed; all others are finished.*\n +known-seed0: .*died"):
        running.result(200)
    assert states(study) == {"half-seed0": "done", "known-seed0": "failed"}
    (failed,) = [row for row in standings(study) if row.state == "failed"]
    assert failed.tries == 2
    assert "died" in failed.why
    assert "\n" not in failed.why

    assert sweep(study, config).counts["trained_now"] == 1
    assert_same(undisturbed, study)


@pytest.mark.slow
def test_a_trial_may_be_lost_more_often_than_retries(undisturbed: Folder, study: Folder) -> None:
    running = in_background(study, CONFIG)
    assert CONFIG.retries == 1
    before = 0
    for _ in range(2):
        wait_for(lambda: epochs_done(study, "known-seed0") >= before + 4 or running.done())  # noqa: B023 - called at once
        kill(running, "ImplicitFunc")
        wait_for(lambda: not alive("ImplicitFunc"))
        before = epochs_done(study, "known-seed0")
    assert running.result(200).counts["retried"] == 2
    assert_same(undisturbed, study)


def sweep_and_lose_a_node(study: Folder, notice_s: int) -> None:
    """With two trials on two nodes; for a process of its own."""
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"
    config = replace(CONFIG, max_concurrent=2)
    if notice_s:
        config = replace(config, retries=0, train=replace(CONFIG.train, max_failures=0))
    num_workers, manifest = lose_a_node(
        lambda: sweep(study, config),
        lambda: all(epochs_done(study, f"{name}-seed0") >= 5 for name in CONFIG.grid.variants),
        "TrainWorker",
        head_cpus=0,
        node_cpus=1,
        notice_s=notice_s,
    )
    counts = manifest.counts
    print(f"began with {num_workers} trainings, trained {counts['trained_now']}, trials retried: {counts['retried']}")


@pytest.mark.slow
@pytest.mark.parametrize("notice_s", [0, 4])
def test_with_a_node_lost_the_other_one_does_the_rest(notice_s: int, undisturbed: Folder, study: Folder) -> None:
    call = f"sweep_and_lose_a_node(Folder({study.uri!r}), {notice_s})"
    out = apart(f"from tests.faults.test_sweep_killed import *; {call}")
    assert "began with 2 trainings, trained 2, trials retried: 0" in out, "trials run on the driver's node"
    assert min(epochs_now(study, f"{name}-seed0") for name in CONFIG.grid.variants) < EPOCHS
    assert_same(undisturbed, study)
