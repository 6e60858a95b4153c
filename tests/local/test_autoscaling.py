"""A cluster that starts without workers: nodes are added for a job and removed when they are idle."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slick.storage import Folder
from slick.study_files import read_knowledge
from tests.local.cli import run_slick
from tests.local.head import HeadCluster, running_cluster
from tests.local.tiny import save_tiny_model, tiny_model, tiny_tokenizer, write_birthplace_questions
from tests.study_builder import write_trainable_study
from tests.waiting import wait_for

FLAGS = [
    "--num-exemplar-sets",
    "4",
    "--num-shots",
    "2",
    "--sampling.num-samples",
    "3",
    "--sampling.max-new-tokens",
    "6",
]
FLAGS += ["--repeats-per-relation", "0", "--controls-per-relation", "0", "--batch-questions", "1"]
FLAGS += ["--batches-per-file", "1", "--no-p-true"]


@contextmanager
def autoscaling_cluster(home: Path, max_nodes: int) -> Iterator[HeadCluster]:
    """A cluster with a head and up to `max_nodes` nodes of three CPUs, started on demand."""
    node = {"resources": {"CPU": 3}, "node_config": {}, "min_workers": 0, "max_workers": max_nodes}
    home.mkdir()
    with running_cluster(home, {"worker": node}) as started:
        yield started


def num_workers(cluster: HeadCluster) -> int:
    nodes = json.loads(cluster.get("/api/v0/nodes"))["data"]["result"]["result"]
    return sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in nodes)


@contextmanager
def record_num_workers(cluster: HeadCluster) -> Iterator[list[int]]:
    """Yields the numbers of worker nodes during the block, in order of observation."""
    counts, done = [num_workers(cluster)], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if (count := num_workers(cluster)) != counts[-1]:
                counts.append(count)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield counts
    finally:
        done.set()
        thread.join()


def test_actors_add_a_node_that_is_removed_when_idle(tmp_path: Path) -> None:
    """One node only: nodes on one machine would share the folder of uploaded code, and each unpacks it again."""
    model = save_tiny_model(tmp_path / "model")
    alone, study = Folder(str(tmp_path / "alone")), Folder(str(tmp_path / "study"))
    for folder in (alone, study):
        write_birthplace_questions(folder, num_train=60)
    with autoscaling_cluster(tmp_path / "home", 1) as cluster:
        assert num_workers(cluster) == 0
        with record_num_workers(cluster) as counts:
            result = cluster.slick(
                "submit", "annotate", "smoke", "--model", model, *FLAGS, "--max-actors", "2", "--out", study.uri
            )
            assert result.returncode == 0, result.stdout + result.stderr
            assert "Ray dashboard" not in result.stdout, "no second cluster was started"
        assert counts[:2] == [0, 1]
        local = run_slick("annotate", "smoke", "--model", model, *FLAGS, "--max-actors", "1", "--out", alone.uri)
        assert local.returncode == 0, local.stdout + local.stderr
        assert read_knowledge(study).equals(read_knowledge(alone))
        wait_for(lambda: num_workers(cluster) == 0, lambda: "the idle node was not removed")


@pytest.mark.slow
def test_trainer_uses_several_nodes(tmp_path: Path) -> None:
    study = write_trainable_study(tmp_path / "study", tiny_model("llama", spread=0.05), tiny_tokenizer())
    flags = ["--variant", "half", "--num-workers", "4", "--wait-for-nodes", "--zero-stage", "3", "--epochs", "2"]
    flags += ["--batch-size", "4", "--max-new-tokens", "4", "--out", study.uri]
    with autoscaling_cluster(tmp_path / "home", 2) as cluster:
        refused = cluster.slick("submit", "finetune", "smoke", *[flag for flag in flags if flag != "--wait-for-nodes"])
        assert refused.returncode == 2
        assert "--wait-for-nodes" in refused.stdout + refused.stderr
        with record_num_workers(cluster) as counts:
            result = cluster.slick("submit", "finetune", "smoke", *flags)
            assert result.returncode == 0, result.stdout + result.stderr
    assert max(counts) == 2, f"4 workers of one CPU each need two nodes of 3; seen {counts}"
    assert study.child("runs", "half-seed0").read_table("epochs.parquet").num_rows > 0
