"""Annotation with its driver, an actor or a node killed: what was written is kept, labels are those of a quiet run."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from slick.annotation import AnnotateConfig, annotate
from slick.annotation.generations import read_generations
from slick.annotation.knowledge import read_knowledge
from slick.engines.base import SamplingConfig
from slick.storage import Folder
from tests.local.tiny import save_tiny_model, write_questions

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
    write_questions(study)
    annotate(study, config(model))
    return study


def wait_for(condition: Callable[[], object], limit_s: float = 90) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def assert_same(one: Folder, other: Folder) -> None:
    assert read_knowledge(one).equals(read_knowledge(other))
    assert read_generations(one).equals(read_generations(other))


def test_a_killed_driver_loses_nothing_it_wrote(undisturbed: Folder, model: str, tmp_path: Path) -> None:
    import ray

    study = Folder(str(tmp_path))
    write_questions(study)
    parts = study.child("annotate", "generations")
    cluster = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "disabled"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, study.uri, model],
        env={**os.environ, **cluster},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len(parts.names(".parquet")) >= 3 or driver.poll() is not None)
    finally:
        driver.kill()
        driver.wait()
    time.sleep(1)  # the actor ends with its driver; what it is writing is whole or absent
    kept = {name: parts.read_bytes(name) for name in parts.names(".parquet")}
    assert 3 <= len(kept) < NUM_QUESTIONS
    assert not study.child("annotate").exists("manifest.json")

    annotate(study, config(model))
    assert_same(undisturbed, study)
    assert {name: parts.read_bytes(name) for name in kept} == kept


def test_a_killed_actor_is_replaced(undisturbed: Folder, model: str, tmp_path: Path) -> None:
    import ray
    from ray.util.state import list_actors

    cluster = ray.get_runtime_context().gcs_address  # there may be others on this machine
    study = Folder(str(tmp_path))
    write_questions(study)
    parts = study.child("annotate", "generations")
    run = threading.Thread(target=annotate, args=(study, config(model)))
    run.start()
    wait_for(lambda: len(parts.names(".parquet")) >= 2)
    actors = [a for a in list_actors(cluster, filters=[("state", "=", "ALIVE")]) if "Asker" in a.class_name]
    assert actors
    os.kill(actors[0].pid, signal.SIGKILL)
    assert len(parts.names(".parquet")) < NUM_QUESTIONS, "the actor had nothing left to do"
    run.join(120)
    assert not run.is_alive()
    assert_same(undisturbed, study)


def lose_a_node(study: Folder, settings: AnnotateConfig) -> None:
    """Annotate on a cluster of three nodes, and kill one on which an actor runs; for a process of its own."""
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.state import list_actors

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # the test run's own cluster has the usual one
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 4, "include_dashboard": True, "dashboard_port": port, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    workers = [cluster.add_node(num_cpus=2) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    parts = study.child("annotate", "generations")
    running = ThreadPoolExecutor().submit(annotate, study, settings)
    wait_for(lambda: running.done() or len(parts.names(".parquet")) >= 6)
    assert not running.done(), running.exception()
    homes = {
        a.node_id for a in list_actors(cluster.address, filters=[("state", "=", "ALIVE")]) if "Asker" in a.class_name
    }
    (lost, *_) = [node for node in workers if node.node_id in homes]
    cluster.remove_node(lost, allow_graceful=False)
    kept = len(parts.names(".parquet"))
    assert kept < NUM_QUESTIONS, "the node had nothing left to do"
    running.result(240)
    print(f"lost a node after {kept} files")
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_a_lost_node_changes_nothing(model: str, tmp_path: Path, ray_cluster: None) -> None:
    """In labels mode, with an actor on each of three nodes."""
    settings = replace(config(model), mode="labels")
    quiet, study = Folder(str(tmp_path / "quiet")), Folder(str(tmp_path / "lost"))
    for folder in (quiet, study):
        write_questions(folder)
    annotate(quiet, settings)
    code = (
        "from tests.faults.test_annotate_killed import *; "
        f"settings = replace(config({model!r}), mode='labels', min_actors=3, max_actors=3, cpus_per_actor=1.5); "
        f"lose_a_node(Folder({study.uri!r}), settings)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lost a node after" in done.stdout
    assert_same(quiet, study)
