"""A study in an object store equals one on a disk; the only local copy is that of its model."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from slick.storage import Folder
from tests.faults.store_proxy import CUT, ERRORS, LATENCY, running_proxy
from tests.local.aws import SECRET, make_bucket, running_aws
from tests.local.cli import ROOT, run_slick
from tests.waiting import wait_for

URI = "s3://studies/smoke"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An object store with an empty bucket; yields the environment variables to reach it."""
    with running_aws(tmp_path_factory.mktemp("aws") / "log") as environ, pytest.MonkeyPatch.context() as patch:
        make_bucket(environ["AWS_ENDPOINT_URL"], "studies")
        for name, value in environ.items():
            patch.setenv(name, value)
        yield environ


def test_questions_are_read_from_and_written_to_an_object_store(store: dict[str, str]) -> None:
    rows = "".join(
        json.dumps({"relation": "P1", "split": split, "question": f"Where is {split} {i}?", "answers": ["London"]})
        + "\n"
        for split, num in (("train", 8), ("dev", 5), ("test", 3))
        for i in range(num)
    )
    Folder("s3://studies/in").write_bytes("tiny.jsonl", rows.encode())
    options = "?region=us-west-2"  # stay at the end of the URI when a path is appended
    flags = ["--questions", f"s3://studies/in/tiny.jsonl{options}", "--filter", "none", "--unknown-relations", "id"]
    result = run_slick("questions", "smoke", *flags, "--out", f"s3://studies/small{options}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert Folder("s3://studies/small").child("questions").read_tables().num_rows == 16


@pytest.mark.slow
def test_study_in_an_object_store_equals_one_on_a_disk(store: dict[str, str], study: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    worlds = Path(os.environ.get("SLICK_CACHE", Path.home() / ".cache" / "slick")) / "worlds"
    cache.mkdir()
    (cache / "worlds").symlink_to(worlds)  # reuse the world that is already built
    result = run_slick("study", "smoke", "--out", URI, SLICK_CACHE=str(cache))
    assert result.returncode == 0, result.stdout + result.stderr
    assert SECRET not in result.stdout + result.stderr

    remote = Folder(URI)
    for folder, name in (
        ("annotate", "knowledge.parquet"),
        ("sweep", "points.parquet"),
        ("variants", "idk-050.parquet"),
    ):
        assert remote.child(folder).read_table(name).equals(pq.read_table(study / folder / name)), name
    for run in remote.child("runs").folders():
        remote_run, local_run = remote.child("runs", run), study / "runs" / run
        assert remote_run.read_table("epochs.parquet").equals(pq.read_table(local_run / "epochs.parquet")), run
        assert {"model.safetensors", "config.json"} <= set(remote_run.child("checkpoint-last").names()), run
    assert len(remote.child("runs").folders()) == len(list((study / "runs").iterdir())) == 5
    assert remote.child("report").read_bytes("index.html").startswith(b"<!doctype html>")
    assert remote.child("report", "figures").names(".png")

    (copy,) = [
        path for path in (cache / "models").iterdir() if path.is_dir()
    ]  # one copy for all processes on this machine
    assert (copy / "model.safetensors").read_bytes() == (study / "world" / "model" / "model.safetensors").read_bytes()

    again = run_slick("study", "smoke", "--out", URI, SLICK_CACHE=str(cache))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "generations/s" not in again.stdout
    assert "finetune:" not in again.stdout
    status = run_slick("status", "--out", URI).stdout
    assert status.count("done in") == 6, status


@pytest.mark.slow
def test_no_secret_is_in_study_files_or_cluster_logs(store: dict[str, str]) -> None:
    names = Folder(URI).sizes()
    assert "annotate/manifest.json" in names, "the previous test must have written the study"
    files = [name for name in names if name.endswith((".json", ".html", ".csv", ".parquet"))]
    assert len(files) > 50
    for name in files:
        *folders, file_name = name.split("/")
        assert SECRET.encode() not in Folder(URI).child(*folders).read_bytes(file_name), name
    logs = [path for path in Path("/tmp/ray/session_latest/logs").rglob("*") if path.is_file()]
    assert logs, "no Ray logs"
    for path in logs:
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.parametrize("fault", [ERRORS, LATENCY, CUT])
def test_files_are_complete_after_faults_of_the_store(
    fault: str, store: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = os.urandom(11 << 20)  # more than one part of an upload
    for name in ("model", "copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "weights").write_bytes(content)
    with running_proxy(store["AWS_ENDPOINT_URL"], random.Random(5)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        folder = Folder(f"s3://studies/{fault}")
        proxy.disturb(fault, share=0.3)
        folder.write_bytes("large", content)
        folder.add(str(tmp_path / "model"))
        with folder.open_output("small") as file:
            file.write(b"content")
        assert folder.read_bytes("large") == content
        folder.download(str(tmp_path / "copy"))
        assert (tmp_path / "copy" / "weights").read_bytes() == content
        for name in [f"{number:03}" for number in range(4)]:
            folder.child("many").write_bytes(name, name.encode())
            assert folder.child("many").read_bytes(name) == name.encode()
        folder.child("many").delete("000")
        assert proxy.num_disturbed
    monkeypatch.setenv("AWS_ENDPOINT_URL", store["AWS_ENDPOINT_URL"])
    sizes = {f"many/{number:03}": 3 for number in range(1, 4)}
    assert folder.sizes() == sizes | {"large": len(content), "weights": len(content), "small": 7}


WRITER = """
import sys
from slick.storage import Folder
folder = Folder("s3://studies/interrupted")
folder.exists("file")
print("ready", flush=True)
sys.stdin.readline()
folder.write_bytes("file", b"content")
"""


@pytest.mark.slow
def test_interrupted_write_leaves_no_incomplete_object(store: dict[str, str]) -> None:
    with running_proxy(store["AWS_ENDPOINT_URL"], random.Random(5)) as proxy:
        environ = {**os.environ, "AWS_ENDPOINT_URL": proxy.address}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        writer = subprocess.Popen([sys.executable, "-c", WRITER], env=environ, cwd=ROOT, text=True, **pipes)
        assert writer.stdin
        assert writer.stdout
        writer.stdout.readline()
        proxy.disturb(LATENCY)
        writer.stdin.write("go\n")
        writer.stdin.flush()
        wait_for(lambda: proxy.num_disturbed)  # the first request of the write is delayed
        writer.send_signal(signal.SIGINT)
        assert writer.wait() == -signal.SIGINT
    assert Folder("s3://studies/interrupted").sizes() in ({}, {"file": 7})


def test_missing_bucket_is_one_message_without_the_secret(store: dict[str, str]) -> None:
    result = run_slick("questions", "smoke", "--out", "s3://nowhere/study")
    assert result.returncode == 2
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr
    with_key = run_slick("questions", "smoke", "--out", "s3://AKIAKEY:hidden@studies/x")
    assert with_key.returncode == 2
    assert "AWS_SECRET_ACCESS_KEY" in with_key.stderr
    assert "hidden" not in with_key.stderr + with_key.stdout
