"""What a cluster costs: from submit to the first answer, a study in an object store, a second node.

    python -m tests.benchmarks.cluster --study studies/demo

All on one machine: the head is a real one with token authentication, nodes are processes, the object store is an
imitation of S3 on loopback, so its speed is no measure of a real one's; what is measured is what slick does beside it.
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


def prepared_study(source: str, target: Folder) -> None:
    """World and questions of a finished study, not yet annotated."""
    for step in ("world", "questions"):
        target.child(step).add(str(Path(source, step)))


def annotate_s(out: str, *flags: str, **environ: str) -> float:
    """Seconds of `slick annotate demo` in a process of its own."""
    began = time.monotonic()
    words = [sys.executable, "-c", ANNOTATE, out, *flags]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic() - began


def object_store(source: str, folder: Path, rounds: int) -> None:
    """The same annotation on a disk and in an object store, in turns."""
    with running_aws(folder / "aws.log") as environ:
        make_bucket(environ["AWS_ENDPOINT_URL"], "bench")
        os.environ.update(environ)
        found: dict[str, list[float]] = {"disk": [], "object store": []}
        for number in range(rounds):
            for place, uri in (("disk", str(folder / f"disk{number}")), ("object store", f"s3://bench/{number}")):
                prepared_study(source, Folder(uri))
                flags = ("--limit-per-relation", "60")
                found[place].append(annotate_s(uri, *flags, SLICK_CACHE=str(folder / "cache")))
        for place, seconds in found.items():
            print(f"annotate, {place}: {', '.join(f'{one:.1f}' for one in seconds)} s, start of Ray included")


def first_answer(source: str, folder: Path) -> None:
    """Seconds from `slick submit` to the first file of answers, on a head that is up."""
    with running_cluster(folder / "home") as cluster:
        study = folder / "submitted"
        prepared_study(source, Folder(str(study)))
        began = time.monotonic()
        flags = ("--no-p-true", "--batches-per-file", "1", "--no-wait")
        done = cluster.slick("submit", "annotate", "demo", "--out", str(study), *flags)
        assert done.returncode == 0, done.stdout + done.stderr
        accepted = time.monotonic() - began
        while not list((study / "annotate" / "generations").glob("part-*.parquet")):
            assert time.monotonic() - began < 300, "no answer in 5 minutes"
            time.sleep(0.1)
        print(f"submit: accepted after {accepted:.1f} s, first file of answers after {time.monotonic() - began:.1f} s")


def nodes(source: str, folder: Path) -> None:
    """The same annotation on one node and on two, each with room for one actor."""
    from ray.cluster_utils import Cluster

    seconds = {}
    for number in (1, 2):
        with ExitStack() as stack:
            os.environ["RAY_AUTH_MODE"] = "disabled"
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            stack.callback(cluster.shutdown)
            for _ in range(number):
                cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            study = folder / f"nodes{number}"
            prepared_study(source, Folder(str(study)))
            flags = ("--min-actors", str(number), "--max-actors", str(number), "--cpus-per-actor", "1")
            annotate_s(str(study), *flags, RAY_ADDRESS=cluster.address)
        manifest = Folder(str(study)).child("annotate").read_json("manifest.json")
        seconds[number] = manifest["seconds"]
        speed = manifest["counts"]["questions"] / manifest["seconds"]
        print(f"{number} node{'s' if number > 1 else ''}: {speed:.0f} questions/s")
    print(f"two nodes: {seconds[1] / seconds[2]:.2f} times as fast, start of the actors included")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True, help="a finished demo study")
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="slick-bench-"))
    try:
        (folder / "home").mkdir()
        first_answer(asked.study, folder)
        object_store(asked.study, folder, asked.rounds)
        nodes(asked.study, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
