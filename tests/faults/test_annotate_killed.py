"""Annotation with its driver, an actor or a node killed: what was written is kept, labels are those of a quiet run."""

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
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Folder:
    study = Folder(str(tmp_path_factory.mktemp("undisturbed")))
    write_birthplace_questions(study)
    annotate(study, config(model))
    return study


def assert_same(one: Folder, other: Folder) -> None:
    assert read_knowledge(one).equals(read_knowledge(other))
    assert read_generations(one).equals(read_generations(other))


def test_a_killed_driver_and_then_a_killed_actor_lose_nothing_that_was_written(
    undisturbed: Folder, model: str, tmp_path: Path
) -> None:
    study = Folder(str(tmp_path))
    write_birthplace_questions(study)
    parts = study.child("annotate", "generations")
    hold(study, at=3)
    start_and_kill_driver(DRIVER, study.uri, model, when=lambda: len(parts.names(".parquet")) >= 3)
    kept = {name: parts.read_bytes(name) for name in parts.names(".parquet")}
    assert len(kept) == 3
    assert not study.child("annotate").exists("manifest.json")

    annotate_and_kill_actors(study, model, 1)
    assert_same(undisturbed, study)
    assert {name: parts.read_bytes(name) for name in kept} == kept


@pytest.mark.slow
def test_actors_may_be_killed_again_and_again(undisturbed: Folder, model: str, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    write_birthplace_questions(study)
    annotate_and_kill_actors(study, model, 5)
    assert_same(undisturbed, study)


def annotate_and_kill_actors(study: Folder, model: str, times: int) -> None:
    """To the end; each time when some more files are there."""
    parts = study.child("annotate", "generations")
    before = len(parts.names(".parquet"))
    run = threading.Thread(target=annotate, args=(study, config(model)))
    hold(study, at=before + 2)
    with holdable():
        run.start()
        for time in range(times):
            wait_for(lambda: len(parts.names(".parquet")) >= before + 2 + 5 * time)  # noqa: B023 - called at once
            (actor, *_) = live_actors("AnnotationWorker")
            os.kill(actor.pid, signal.SIGKILL)
            assert len(parts.names(".parquet")) < NUM_QUESTIONS, "the actor had nothing left to do"
            wait_for(lambda: actor.pid not in {each.pid for each in live_actors("AnnotationWorker")})  # noqa: B023
            hold(study, at=before + 2 + 5 * (time + 1))
        release(study)
        run.join(TIMEOUT_S)
    assert not run.is_alive()


def annotate_and_lose_a_node(study: Folder, model: str, notice: bool) -> None:
    """With an actor on each of three nodes; for a process of its own."""
    settings = replace(config(model), mode="labels", min_actors=3, max_actors=3, cpus_per_actor=1.5)
    parts = Path(study.child("annotate", "generations").local_path)
    written: dict[Path, int] = {}

    def when() -> dict[Path, int]:
        return {part: part.stat().st_mtime_ns for part in parts.glob("*.parquet")}

    def after_notice() -> bool:
        hold(study, at=12)
        return len(when()) >= 12

    hold(study, at=6)
    num_actors, _ = run_and_kill_node(
        study,
        lambda: annotate(study, settings),
        lambda: len(when()) >= 6,
        "AnnotationWorker",
        head_cpus=4,
        node_cpus=2,
        after_notice=after_notice if notice else None,
        at_loss=lambda: written.update(when()),
    )
    twice = sum(written[part] != at for part, at in when().items() if part in written)
    print(f"lost a node, one of {num_actors} with an actor; {twice} of {len(written)} files written twice")


@pytest.mark.slow
@pytest.mark.parametrize("notice", [False, True])
def test_a_lost_node_changes_nothing(notice: bool, model: str, tmp_path: Path, ray_cluster: None) -> None:
    quiet, study = Folder(str(tmp_path / "quiet")), Folder(str(tmp_path / "lost"))
    for folder in (quiet, study):
        write_birthplace_questions(folder, num_train=40)
    annotate(quiet, replace(config(model), mode="labels"))
    call = f"annotate_and_lose_a_node(Folder({study.uri!r}), {model!r}, {notice})"
    out = run_in_subprocess(f"from tests.faults.test_annotate_killed import *; {call}")
    assert "lost a node, one of 3 " in out
    assert "; 0 of " in out, "what is written is not answered again"
    assert_same(quiet, study)
