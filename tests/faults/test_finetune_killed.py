"""Fine-tuning with a killed worker, driver or node resumes from its state and equals an uninterrupted training."""

import os
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slick.errors import StudyError
from slick.storage import Folder
from slick.study import Manifest
from tests.faults.hold import hold, holdable, release
from tests.faults.nodes import (
    beside_another_cluster,
    live_actors,
    run_and_kill_node,
    run_in_subprocess,
    start_and_kill_driver,
)
from tests.local.tiny import tiny_model, tiny_tokenizer
from tests.study_builder import write_trainable_study
from tests.waiting import TIMEOUT_S, wait_for
from tuning.config import TrainConfig
from tuning.finetune import finetune
from tuning.ray_trainer import progress_failure_policy
from tuning.state import find_states

EPOCHS = 12
CONFIG = TrainConfig(
    variant="half",
    epochs=EPOCHS,
    learning_rate=5e-3,
    batch_size=4,
    dropout=0.1,
    max_new_tokens=6,
    num_workers=2,
    zero_stage=2,
    state_share=1.0,
    keep_checkpoints="both",
)
DRIVER = """
import sys
from slick.storage import Folder
from tests.faults.test_finetune_killed import CONFIG, finetune, replace
finetune(Folder(sys.argv[1]), replace(CONFIG, **eval(sys.argv[2])))
"""


def new_study(path: Path) -> Folder:
    return write_trainable_study(path, tiny_model("llama", spread=0.1), tiny_tokenizer())


def run_folder(study: Folder) -> Folder:
    return study.child("runs", "half-seed0")


def num_epochs(study: Folder) -> int:
    run = run_folder(study)
    return max(run.read_table("epochs.parquet")["epoch"].to_pylist()) if run.exists("epochs.parquet") else 0


def saved_epoch(study: Folder) -> int:
    """The epoch of the latest state from which a training can resume; 0 if there is none.

    On a busy machine, where saving takes longer than an epoch, some epochs are not saved although `state_share` is 1.
    """
    try:
        return max((state.progress.epoch for state in find_states(study, []).values()), default=0)
    except StudyError:
        return 0  # it was replaced during the read


def assert_same(first_study: Folder, second_study: Folder, *, rounding: float = 0.0, epochs: int = EPOCHS) -> None:
    """Equal curves, predictions and weights; `rounding` is a tolerance, with which one answer may differ at a tie."""
    from safetensors.numpy import load_file

    first, second = (
        run_folder(study).read_table("epochs.parquet").to_pylist() for study in (first_study, second_study)
    )
    assert len(first) == len(second)
    assert {row["epoch"] for row in first} == set(range(1, epochs + 1))
    for row, expected in zip(second, first, strict=True):
        assert [row[name] for name in ("epoch", "split", "category", "num")] == [
            expected[name] for name in ("epoch", "split", "category", "num")
        ]
        assert abs(row["num_correct"] - expected["num_correct"]) <= (1 if rounding else 0)
        assert row["loss"] == (
            None if expected["loss"] is None else pytest.approx(expected["loss"], rel=rounding or 1e-6)
        )
    weights, expected_weights = (
        load_file(Path(run_folder(study).local_path) / "checkpoint-last/model.safetensors")
        for study in (first_study, second_study)
    )
    for name, value in weights.items():
        np.testing.assert_allclose(value, expected_weights[name], atol=rounding or 1e-6)
    if not rounding:
        for epoch in range(1, epochs + 1):
            name = f"predictions/epoch-{epoch:03d}.parquet"
            assert run_folder(first_study).read_bytes(name) == run_folder(second_study).read_bytes(name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Folder:
    study = new_study(tmp_path_factory.mktemp("uninterrupted"))
    assert finetune(study, CONFIG).counts["epochs_now"] == EPOCHS
    return study


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Folder:
    """Without dropout, because groups of another size draw other masks."""
    study = new_study(tmp_path_factory.mktemp("without-dropout"))
    finetune(study, replace(CONFIG, dropout=0.0, num_workers=1, zero_stage=0))
    return study


def interrupt(study: Folder, changes: dict[str, object]) -> None:
    """Start a training in another process, and kill it after a few epochs."""
    hold(study, at=3, saved=True)
    status = start_and_kill_driver(DRIVER, study.uri, repr(changes), when=lambda: saved_epoch(study) >= 3)
    assert status == -signal.SIGKILL, "the driver ended by itself"
    assert 3 <= saved_epoch(study) <= num_epochs(study) < EPOCHS
    assert not run_folder(study).exists("manifest.json")


def was_resumed(manifest: Manifest) -> bool:
    """Whether some epochs were not repeated."""
    return EPOCHS - manifest.counts["epochs_now"] > 0


@pytest.mark.parametrize(
    ("stage", "num_workers", "resumed_num_workers"),
    [
        pytest.param(2, 2, 1, marks=pytest.mark.slow),
        pytest.param(3, 1, 2, marks=pytest.mark.slow),
        pytest.param(0, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_training_resumes_with_another_number_of_workers(
    stage: int, num_workers: int, resumed_num_workers: int, without_dropout: Folder, tmp_path: Path
) -> None:
    study = new_study(tmp_path)
    changes = {"dropout": 0.0, "zero_stage": stage}
    interrupt(study, {**changes, "num_workers": num_workers})
    manifest = finetune(study, replace(CONFIG, **changes, num_workers=resumed_num_workers))
    assert was_resumed(manifest)
    assert manifest.counts["num_workers"] == resumed_num_workers
    assert_same(without_dropout, study, rounding=2e-3)


def in_background(work: Callable[[], object]) -> threading.Thread:
    def holdable_work() -> None:
        with holdable():
            work()

    thread = threading.Thread(target=holdable_work)
    thread.start()
    return thread


@pytest.mark.slow
def test_killed_driver_and_killed_worker_do_not_change_results(uninterrupted: Folder, tmp_path: Path) -> None:
    study = new_study(tmp_path)
    with beside_another_cluster():
        interrupt(study, {})
        wait_for(lambda: not live_actors("PlacementGroupCleaner"))  # then the CPUs of the killed training are free
    saved = saved_epoch(study)
    before = evaluations(study)
    hold(study, at=saved + 2, saved=True)
    run = in_background(lambda: finetune(study, CONFIG))
    wait_for(lambda: saved_epoch(study) >= saved + 2 or not run.is_alive())
    _, worker = live_actors("TrainWorker")
    os.kill(worker.pid, signal.SIGKILL)
    release(study)
    run.join(TIMEOUT_S)
    assert not run.is_alive()
    assert 0 < run_folder(study).read_json("manifest.json")["counts"]["epochs_now"] <= EPOCHS - saved - 2
    after = evaluations(study)
    repeated = {epoch for epoch in before if after[epoch] != before[epoch]}
    assert repeated == set(range(saved + 1, max(before) + 1)), "only epochs after the last state are repeated"
    assert_same(uninterrupted, study)
    assert not study.child(".ray").folders(), "the state of a finished training must be deleted"


def evaluations(study: Folder) -> dict[int, int]:
    """Modification time of every epoch's predictions, in ns."""
    paths = Path(run_folder(study).local_path, "predictions").glob("epoch-*.parquet")
    return {int(path.stem.removeprefix("epoch-")): path.stat().st_mtime_ns for path in paths}


def test_failures_are_counted_since_the_last_state() -> None:
    from ray.train import FailureConfig, WorkerGroupError

    state = 0
    policy = progress_failure_policy(FailureConfig(max_failures=1), lambda: state)
    lost = WorkerGroupError("a node was lost", worker_failures={0: RuntimeError("connection reset")})

    def decisions(num: int) -> list[str]:
        return [policy.make_decision(lost).value for _ in range(num)]

    for state in range(1, 41):  # noqa: B007 - the policy reads it
        assert decisions(1) == ["RETRY"], "there was progress before each failure"
    assert decisions(1) == ["RAISE"], "two failures without progress"


@pytest.mark.slow
def test_worker_deaths_may_exceed_max_failures_if_training_progresses(uninterrupted: Folder, tmp_path: Path) -> None:
    study = new_study(tmp_path)
    hold(study, at=2, saved=True)
    run = in_background(lambda: finetune(study, replace(CONFIG, max_failures=1)))
    for epoch in (2, 4, 6, 8):
        wait_for(lambda: saved_epoch(study) >= epoch or not run.is_alive())  # noqa: B023 - called at once
        _, worker = live_actors("TrainWorker")
        os.kill(worker.pid, signal.SIGKILL)
        wait_for(lambda: worker.actor_id not in {live.actor_id for live in live_actors("TrainWorker")})  # noqa: B023
        hold(study, at=epoch + 2, saved=True)
    release(study)
    run.join(TIMEOUT_S)
    assert not run.is_alive()
    assert_same(uninterrupted, study)


PREEMPTED_CONFIG = replace(
    CONFIG, dropout=0.0, num_workers=1, zero_stage=0, epochs=80, max_failures=0, state_share=1e-9
)
"""No failure is allowed, and no state is saved during the test."""


def finetune_until_preempted(study: Folder) -> None:
    """Fine-tune on a node that is preempted with notice; run in another process."""
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"
    epochs_at_loss: list[int] = []
    hold(study, at=6, until_notice=True)
    _, manifest = run_and_kill_node(
        study,
        lambda: finetune(study, PREEMPTED_CONFIG),
        lambda: num_epochs(study) >= 6 and live_actors("PreemptionWatcher"),
        "TrainWorker",
        head_cpus=0,
        node_cpus=1,
        after_notice=lambda: saved_epoch(study) > 0,
        at_loss=lambda: epochs_at_loss.append(num_epochs(study)),
    )
    (num_done,) = epochs_at_loss
    print(f"{num_done + manifest.counts['epochs_now'] - PREEMPTED_CONFIG.epochs} of {num_done} epochs were repeated")


@pytest.mark.slow
def test_state_is_saved_after_a_preemption_notice(tmp_path: Path, ray_cluster: None) -> None:
    reference, study = (new_study(tmp_path / name) for name in ("reference", "noticed"))
    finetune(reference, PREEMPTED_CONFIG)
    out = run_in_subprocess(
        f"from tests.faults.test_finetune_killed import *; finetune_until_preempted(Folder({study.uri!r}))"
    )
    repeated, done = map(int, re.search(r"(\d+) of (\d+) epochs were repeated", out).groups())
    assert repeated <= 3 < done, out
    assert_same(reference, study, epochs=PREEMPTED_CONFIG.epochs)


def finetune_and_lose_a_node(study: Folder) -> None:
    """Fine-tune with up to four workers on two nodes with one worker each; run in another process."""
    settings = replace(CONFIG, dropout=0.0, num_workers=4, min_workers=1)
    hold(study, at=4, saved=True)
    num_workers, manifest = run_and_kill_node(
        study,
        lambda: finetune(study, settings),
        lambda: saved_epoch(study) >= 4,
        "TrainWorker",
        head_cpus=0,
        node_cpus=1,
    )
    print(f"began with {num_workers} workers, ended with {manifest.counts['num_workers']}")


@pytest.mark.slow
def test_elastic_training_starts_and_resumes_with_available_workers(without_dropout: Folder, tmp_path: Path) -> None:
    study = new_study(tmp_path)
    out = run_in_subprocess(
        f"from tests.faults.test_finetune_killed import *; finetune_and_lose_a_node(Folder({study.uri!r}))"
    )
    assert "began with 2 workers, ended with 1" in out
    assert was_resumed(finetune(study, replace(CONFIG, dropout=0.0)))
    assert_same(without_dropout, study, rounding=2e-3)
