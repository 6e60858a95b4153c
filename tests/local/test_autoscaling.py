"""A cluster that holds no worker until a job asks: nodes come for the work, and go when it is done."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slick.storage import Folder
from slick.study_files import read_knowledge
from tests.local.cli import slick
from tests.local.head import HeadCluster, running_cluster
from tests.local.tiny import save_tiny_model, tiny_model, tiny_tokenizer, write_birthplace_questions
from tests.study_builder import write_trainable_study
from tests.waiting import wait_for

ASKED = [
    "--num-exemplar-sets",
    "4",
    "--num-shots",
    "2",
    "--sampling.num-samples",
    "3",
    "--sampling.max-new-tokens",
    "6",
]
ASKED += ["--repeats-per-relation", "0", "--controls-per-relation", "0", "--batch-questions", "1"]
ASKED += ["--batches-per-file", "1", "--no-p-true"]


@contextmanager
def growing(home: Path, most: int) -> Iterator[HeadCluster]:
    """A cluster of a head and as many nodes of three CPUs as are needed, at most `most`."""
    node = {"resources": {"CPU": 3}, "node_config": {}, "min_workers": 0, "max_workers": most}
    home.mkdir()
    with running_cluster(home, {"worker": node}) as started:
        yield started


def num_workers(cluster: HeadCluster) -> int:
    nodes = json.loads(cluster.get("/api/v0/nodes"))["data"]["result"]["result"]
    return sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in nodes)


@contextmanager
def watched(cluster: HeadCluster) -> Iterator[list[int]]:
    """The numbers of worker nodes while the block lasts, in the order seen."""
    seen, done = [num_workers(cluster)], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if (now := num_workers(cluster)) != seen[-1]:
                seen.append(now)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_actors_bring_a_node_that_leaves_when_it_is_idle(tmp_path: Path) -> None:
    """One node: nodes on one machine share the folder of the code that travels, and each unpacks it anew."""
    model = save_tiny_model(tmp_path / "model")
    alone, study = Folder(str(tmp_path / "alone")), Folder(str(tmp_path / "study"))
    for folder in (alone, study):
        write_birthplace_questions(folder, num_train=60)
    with growing(tmp_path / "home", 1) as cluster:
        assert num_workers(cluster) == 0
        with watched(cluster) as seen:
            done = cluster.slick(
                "submit", "annotate", "smoke", "--model", model, *ASKED, "--max-actors", "2", "--out", study.uri
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Ray dashboard" not in done.stdout, "no second cluster was started"
        assert seen[:2] == [0, 1]
        here = slick("annotate", "smoke", "--model", model, *ASKED, "--max-actors", "1", "--out", alone.uri)
        assert here.returncode == 0, here.stdout + here.stderr
        assert read_knowledge(study).equals(read_knowledge(alone))
        wait_for(lambda: num_workers(cluster) == 0, lambda: "the node stays although nothing runs")


@pytest.mark.slow
def test_one_trainer_is_given_several_nodes(tmp_path: Path) -> None:
    study = write_trainable_study(tmp_path / "study", tiny_model("llama", spread=0.05), tiny_tokenizer())
    flags = ["--variant", "half", "--num-workers", "4", "--wait-for-nodes", "--zero-stage", "3", "--epochs", "2"]
    flags += ["--batch-size", "4", "--max-new-tokens", "4", "--out", study.uri]
    with growing(tmp_path / "home", 2) as cluster:
        refused = cluster.slick("submit", "finetune", "smoke", *[flag for flag in flags if flag != "--wait-for-nodes"])
        assert refused.returncode == 2
        assert "--wait-for-nodes" in refused.stdout + refused.stderr
        with watched(cluster) as seen:
            done = cluster.slick("submit", "finetune", "smoke", *flags)
            assert done.returncode == 0, done.stdout + done.stderr
    assert max(seen) == 2, f"4 workers of one CPU each need two nodes of 3; seen {seen}"
    assert study.child("runs", "half-seed0").read_table("epochs.parquet").num_rows > 0
