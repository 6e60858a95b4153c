"""Annotation with a killed driver, actor or node keeps written files and gives the labels of an uninterrupted run."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from slick.annotation import AnnotateConfig, annotate
from slick.annotation.store import read_generations
from slick.inference.base import SamplingConfig
from slick.storage import Folder
from slick.study_files import read_knowledge
from tests.faults.hold import hold, holdable, release
from tests.faults.nodes import live_actors, run_and_kill_node, run_in_subprocess, start_and_kill_driver
from tests.local.tiny import save_tiny_model, write_birthplace_questions
from tests.waiting import TIMEOUT_S, wait_for

DRIVER = """
import sys
from slick.annotation import annotate
from slick.storage import Folder
from tests.faults.test_annotate_killed import config
annotate(Folder(sys.argv[1]), config(sys.argv[2]))
"""
NUM_QUESTIONS = 61


def config(model: str) -> AnnotateConfig:
    sampling = SamplingConfig(num_samples=4, max_new_tokens=6, temperature=0.8)
    shape = {"num_exemplar_sets": 5, "num_shots": 2, "batch_questions": 1, "batches_per_file": 1, "max_actors": 1}
    return AnnotateConfig(model=model, sampling=sampling, **shape)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def uninterrupted(model: str, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Folder:
    study = Folder(str(tmp_path_factory.mktemp("uninterrupted")))
    write_birthplace_questions(study)
    annotate(study, config(model))
    return study


def assert_same(first: Folder, second: Folder) -> None:
    assert read_knowledge(first).equals(read_knowledge(second))
    assert read_generations(first).equals(read_generations(second))


def test_killed_driver_and_killed_actor_keep_written_files(uninterrupted: Folder, model: str, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    write_birthplace_questions(study)
    parts = study.child("annotate", "generations")
    hold(study, at=3)
    start_and_kill_driver(DRIVER, study.uri, model, when=lambda: len(parts.names(".parquet")) >= 3)
    kept = {name: parts.read_bytes(name) for name in parts.names(".parquet")}
    assert len(kept) == 3
    assert not study.child("annotate").exists("manifest.json")

    annotate_and_kill_actors(study, model, 1)
    assert_same(uninterrupted, study)
    assert {name: parts.read_bytes(name) for name in kept} == kept


@pytest.mark.slow
def test_actors_may_be_killed_repeatedly(uninterrupted: Folder, model: str, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    write_birthplace_questions(study)
    annotate_and_kill_actors(study, model, 5)
    assert_same(uninterrupted, study)


def annotate_and_kill_actors(study: Folder, model: str, times: int) -> None:
    """Annotate to the end, killing the actor several times, each time after some more files."""
    parts = study.child("annotate", "generations")
    before = len(parts.names(".parquet"))
    run = threading.Thread(target=annotate, args=(study, config(model)))
    hold(study, at=before + 2)
    with holdable():
        run.start()
        for kill_index in range(times):
            wait_for(lambda: len(parts.names(".parquet")) >= before + 2 + 5 * kill_index)  # noqa: B023 - called at once
            (actor, *_) = live_actors("AnnotationWorker")
            os.kill(actor.pid, signal.SIGKILL)
            assert len(parts.names(".parquet")) < NUM_QUESTIONS, "annotation ended before the actor was killed"
            wait_for(lambda: actor.pid not in {live.pid for live in live_actors("AnnotationWorker")})  # noqa: B023
            hold(study, at=before + 2 + 5 * (kill_index + 1))
        release(study)
        run.join(TIMEOUT_S)
    assert not run.is_alive()


def annotate_and_lose_a_node(study: Folder, model: str, notice: bool) -> None:
    """Annotate with an actor on each of three nodes and kill one node; run in another process."""
    settings = replace(config(model), mode="labels", min_actors=3, max_actors=3, cpus_per_actor=1.5)
    parts = Path(study.child("annotate", "generations").local_path)
    before_loss: dict[Path, int] = {}

    def modification_times() -> dict[Path, int]:
        return {part: part.stat().st_mtime_ns for part in parts.glob("*.parquet")}

    def after_notice() -> bool:
        hold(study, at=12)
        return len(modification_times()) >= 12

    hold(study, at=6)
    num_actors, _ = run_and_kill_node(
        study,
        lambda: annotate(study, settings),
        lambda: len(modification_times()) >= 6,
        "AnnotationWorker",
        head_cpus=4,
        node_cpus=2,
        after_notice=after_notice if notice else None,
        at_loss=lambda: before_loss.update(modification_times()),
    )
    num_rewritten = sum(
        before_loss[part] != modified for part, modified in modification_times().items() if part in before_loss
    )
    print(f"lost a node, one of {num_actors} with an actor; {num_rewritten} of {len(before_loss)} files written twice")


@pytest.mark.slow
@pytest.mark.parametrize("notice", [False, True])
def test_lost_node_does_not_change_labels(notice: bool, model: str, tmp_path: Path, ray_cluster: None) -> None:
    reference, study = Folder(str(tmp_path / "reference")), Folder(str(tmp_path / "lost"))
    for folder in (reference, study):
        write_birthplace_questions(folder, num_train=40)
    annotate(reference, replace(config(model), mode="labels"))
    call = f"annotate_and_lose_a_node(Folder({study.uri!r}), {model!r}, {notice})"
    out = run_in_subprocess(f"from tests.faults.test_annotate_killed import *; {call}")
    assert "lost a node, one of 3 " in out
    assert "; 0 of " in out, "written answers must not be generated again"
    assert_same(reference, study)
