"""A study in an object store: the same as on a disk, with every step, and nothing of it on this machine but a copy of
its model."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from slick.storage import Folder
from tests.local.aws import SECRET, make_bucket, running_aws
from tests.local.cli import slick

URI = "s3://studies/smoke"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An object store with an empty bucket, and what a shell must say to reach it."""
    with running_aws(tmp_path_factory.mktemp("aws") / "log") as environ, pytest.MonkeyPatch.context() as patch:
        make_bucket(environ["AWS_ENDPOINT_URL"], "studies")
        for name, value in environ.items():
            patch.setenv(name, value)
        yield environ


def test_questions_of_a_file_in_an_object_store_are_prepared_there(store: dict[str, str]) -> None:
    rows = "".join(
        json.dumps({"relation": "P1", "split": split, "question": f"Where is {split} {i}?", "answers": ["London"]})
        + "\n"
        for split, num in (("train", 8), ("dev", 5), ("test", 3))
        for i in range(num)
    )
    Folder("s3://studies/in").write_bytes("tiny.jsonl", rows.encode())
    options = "?region=us-west-2"  # stand behind the path, whatever is added to it
    flags = ["--questions", f"s3://studies/in/tiny.jsonl{options}", "--filter", "none", "--unknown-relations", "id"]
    done = slick("questions", "smoke", *flags, "--out", f"s3://studies/small{options}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Folder("s3://studies/small").child("questions").read_tables().num_rows == 16


@pytest.mark.slow
def test_a_study_in_an_object_store_equals_one_on_a_disk(store: dict[str, str], study: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    worlds = Path(os.environ.get("SLICK_CACHE", Path.home() / ".cache" / "slick")) / "worlds"
    cache.mkdir()
    (cache / "worlds").symlink_to(worlds)  # building the world again is another test's matter
    done = slick("study", "smoke", "--out", URI, SLICK_CACHE=str(cache))
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr

    there = Folder(URI)
    for folder, name in (
        ("annotate", "knowledge.parquet"),
        ("sweep", "points.parquet"),
        ("variants", "idk-050.parquet"),
    ):
        assert there.child(folder).read_table(name).equals(pq.read_table(study / folder / name)), name
    for run in there.child("runs").folders():
        ours, theirs = there.child("runs", run), study / "runs" / run
        assert ours.read_table("epochs.parquet").equals(pq.read_table(theirs / "epochs.parquet")), run
        assert {"model.safetensors", "config.json"} <= set(ours.child("checkpoint-last").names()), run
    assert len(there.child("runs").folders()) == len(list((study / "runs").iterdir())) == 5
    assert there.child("report").read_bytes("index.html").startswith(b"<!doctype html>")
    assert there.child("report", "figures").names(".png")

    (copy,) = [path for path in (cache / "models").iterdir() if path.is_dir()]  # one for all processes of this machine
    assert (copy / "model.safetensors").read_bytes() == (study / "world" / "model" / "model.safetensors").read_bytes()

    again = slick("study", "smoke", "--out", URI, SLICK_CACHE=str(cache))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "generations/s" not in again.stdout
    assert "finetune:" not in again.stdout
    status = slick("status", "--out", URI).stdout
    assert status.count("done in") == 6, status


@pytest.mark.slow
def test_no_key_is_in_a_file_of_the_study_or_in_a_log_of_the_cluster(store: dict[str, str]) -> None:
    names = Folder(URI).sizes()
    assert "annotate/manifest.json" in names, "the study of the test before is there"
    texts = [name for name in names if name.endswith((".json", ".html", ".csv", ".parquet"))]
    assert len(texts) > 50
    for name in texts:
        *folders, last = name.split("/")
        assert SECRET.encode() not in Folder(URI).child(*folders).read_bytes(last), name
    logs = [path for path in Path("/tmp/ray/session_latest/logs").rglob("*") if path.is_file()]
    assert logs, "Ray keeps its logs elsewhere"
    for path in logs:
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_bucket_that_is_not_there_is_said_and_no_key_with_it(store: dict[str, str]) -> None:
    done = slick("questions", "smoke", "--out", "s3://nowhere/study")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    keys = slick("questions", "smoke", "--out", "s3://AKIAKEY:hidden@studies/x")
    assert keys.returncode == 2
    assert "AWS_SECRET_ACCESS_KEY" in keys.stderr
    assert "hidden" not in keys.stderr + keys.stdout
