"""Overhead of a cluster: time from submit to the first answer, a study in an object store, and a second node.

    python -m tests.benchmarks.cluster --study studies/demo

Everything runs on one machine: a real head with token authentication, nodes that are processes, and a local S3 mock.
The speed of the mock says nothing about a real object store; only the overhead of slick is measured.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from slick.storage import Folder
from tests.local.aws import make_bucket, running_aws
from tests.local.head import ROOT, running_cluster

ANNOTATE = """
import sys
from jobs.annotate import main
main(["demo", "--no-p-true", "--out", *sys.argv[1:]])
"""


def copy_prepared_steps(source: str, target: Folder) -> None:
    """Copy the world and questions of a finished study."""
    for step in ("world", "questions"):
        target.child(step).add(str(Path(source, step)))


def time_annotation(out: str, *flags: str, **environ: str) -> float:
    """Seconds of `slick annotate demo` in a subprocess."""
    started_at = time.monotonic()
    command = [sys.executable, "-c", ANNOTATE, out, *flags]
    completed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return time.monotonic() - started_at


def object_store(source: str, folder: Path, rounds: int) -> None:
    """The same annotation on a disk and in an object store, alternating."""
    with running_aws(folder / "aws.log") as environ:
        make_bucket(environ["AWS_ENDPOINT_URL"], "bench")
        os.environ.update(environ)
        seconds_by_store: dict[str, list[float]] = {"disk": [], "object store": []}
        for index in range(rounds):
            for store, uri in (("disk", str(folder / f"disk{index}")), ("object store", f"s3://bench/{index}")):
                copy_prepared_steps(source, Folder(uri))
                flags = ("--limit-per-relation", "60")
                seconds_by_store[store].append(time_annotation(uri, *flags, SLICK_CACHE=str(folder / "cache")))
        for store, seconds in seconds_by_store.items():
            print(f"annotate, {store}: {', '.join(f'{value:.1f}' for value in seconds)} s, including the start of Ray")


def first_answer(source: str, folder: Path) -> None:
    """Seconds from `slick submit` to the first file of answers, on a running head."""
    with running_cluster(folder / "home") as cluster:
        study = folder / "submitted"
        copy_prepared_steps(source, Folder(str(study)))
        started_at = time.monotonic()
        flags = ("--no-p-true", "--batches-per-file", "1", "--no-wait")
        completed = cluster.slick("submit", "annotate", "demo", "--out", str(study), *flags)
        assert completed.returncode == 0, completed.stdout + completed.stderr
        accepted = time.monotonic() - started_at
        while not list((study / "annotate" / "generations").glob("part-*.parquet")):
            assert time.monotonic() - started_at < 300, "no answer in 5 minutes"
            time.sleep(0.1)
        answered = time.monotonic() - started_at
        print(f"submit: accepted after {accepted:.1f} s, first file of answers after {answered:.1f} s")


def nodes(source: str, folder: Path) -> None:
    """The same annotation on one and on two nodes with one actor each."""
    from ray.cluster_utils import Cluster

    seconds = {}
    for num_nodes in (1, 2):
        with ExitStack() as stack:
            os.environ["RAY_AUTH_MODE"] = "disabled"
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            stack.callback(cluster.shutdown)
            for _ in range(num_nodes):
                cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            study = folder / f"nodes{num_nodes}"
            copy_prepared_steps(source, Folder(str(study)))
            flags = ("--min-actors", str(num_nodes), "--max-actors", str(num_nodes), "--cpus-per-actor", "1")
            time_annotation(str(study), *flags, RAY_ADDRESS=cluster.address)
        manifest = Folder(str(study)).child("annotate").read_json("manifest.json")
        seconds[num_nodes] = manifest["seconds"]
        speed = manifest["counts"]["questions"] / manifest["seconds"]
        print(f"{num_nodes} node{'s' if num_nodes > 1 else ''}: {speed:.0f} questions/s")
    print(f"two nodes: {seconds[1] / seconds[2]:.2f} times as fast, including the start of the actors")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, help="a finished demo study")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="slick-bench-"))
    try:
        (folder / "home").mkdir()
        first_answer(arguments.study, folder)
        object_store(arguments.study, folder, arguments.rounds)
        nodes(arguments.study, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
