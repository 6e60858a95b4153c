"""`Folder` on a local disk and in an object store: atomic writes, and messages for unreadable files."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from slick.errors import SettingsError, StudyError, file_errors, format_file_error, is_disk_error, temporary_folder
from slick.models import ensure_cache_folder
from slick.storage import Folder
from tests.conftest import SmallDisk
from tests.planted import MaliciousPickle
from tests.waiting import wait_for

TABLE = pa.table({"number": list(range(1000)), "text": [f"row {i}" for i in range(1000)]})


class ObjectStore(Folder):
    """A folder of pyarrow's in-memory file system, in place of a bucket: no local path, no rename."""

    store: pafs.FileSystem

    def _open(self) -> tuple[pafs.FileSystem, str]:
        return self.store, self.uri.removeprefix("memory://")

    def _upload(self, name: str, data: bytes | pa.Buffer) -> None:
        path = f"{self.uri.removeprefix('memory://')}/{name}"
        self.store.create_dir(os.path.dirname(path))  # a bucket needs no folders, this file system does
        super()._upload(name, data)


@pytest.fixture(params=["path", "file uri", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    path = tmp_path / "a folder" / "study"
    if request.param == "object store":
        ObjectStore.store = pafs._MockFileSystem()
        return ObjectStore("memory://bucket/study")
    return Folder(str(path) if request.param == "path" else path.as_uri())


def test_written_files_are_read_back(folder: Folder) -> None:
    folder.write_bytes("a.bin", b"\x00\xff")
    folder.write_json("b.json", {"Zürich": [1, None, True]})
    folder.write_table("c.parquet", TABLE)
    assert folder.read_bytes("a.bin") == b"\x00\xff"
    assert folder.read_json("b.json") == {"Zürich": [1, None, True]}
    assert folder.read_table("c.parquet").equals(TABLE)
    assert folder.read_table("c.parquet", ["text"]).column_names == ["text"]
    assert "Zürich" in folder.read_bytes("b.json").decode(), "non-ASCII text must be readable"


def test_missing_folder_is_empty(folder: Folder) -> None:
    assert not folder.exists()
    assert not folder.exists("a.bin")
    assert folder.names() == folder.folders() == []
    folder.delete()
    folder.delete("a.bin")


def test_names_and_folders_are_sorted(folder: Folder) -> None:
    for name in ("part-00010.parquet", "part-00002.parquet", "manifest.json"):
        folder.write_bytes(name, b"1")
    for name in ("runs", "annotate"):
        folder.child(name).write_bytes("x", b"1")
    assert folder.names() == ["manifest.json", "part-00002.parquet", "part-00010.parquet"]
    assert folder.names(".parquet") == ["part-00002.parquet", "part-00010.parquet"]
    assert folder.folders() == ["annotate", "runs"]
    assert folder.exists("runs")
    assert folder.child("runs", "deep").uri == folder.uri + "/runs/deep"


TEMPORARY_ERRORS = (
    "When listing objects: AWS Error UNKNOWN (HTTP status 429) during ListObjectsV2 operation: TooManyRequests",
    "When reading information: AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.",
    "AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 56, Failure when receiving data from the peer",
    "AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.",
)
LASTING_ERRORS = (
    "AWS Error ACCESS_DENIED during HeadObject operation: No response body.",
    "AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 60, SSL peer certificate was not OK",
)


class FailingStore(ObjectStore):
    """An object store whose next requests fail."""

    errors: list[str]

    def _open(self) -> tuple[pafs.FileSystem, str]:
        failing, (_, path) = self, super()._open()

        class Failing:
            def __getattr__(self, name: str) -> object:
                if failing.errors:
                    raise OSError(failing.errors.pop(0))
                return getattr(failing.store, name)

        return Failing(), path


@pytest.fixture
def failing_store(monkeypatch: pytest.MonkeyPatch) -> FailingStore:
    ObjectStore.store = pafs._MockFileSystem()
    store = FailingStore("memory://bucket/study")
    store.errors = []
    store.write_bytes("a", b"content")
    monkeypatch.setattr("slick.storage.time.sleep", lambda seconds: None)
    return store


@pytest.mark.parametrize("text", TEMPORARY_ERRORS)
def test_temporary_errors_of_an_object_store_are_retried(
    failing_store: FailingStore, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> FailingStore:
        failing_store.errors = [text] * 3
        return failing_store

    assert failing().read_bytes("a") == b"content"
    failing().write_bytes("a", b"new")
    assert failing().exists("a")
    assert failing().names() == ["a"]
    assert failing().sizes() == {"a": 3}
    assert failing().version("a")[0] == 3
    assert failing().open_input("a").read() == b"new"
    failing().delete("a")
    assert failing().names() == []
    assert f"memory://bucket/study: the object store fails ({text}); retrying for up to 120 s" in caplog.messages


def test_lasting_outage_of_an_object_store_is_one_message(failing_store: FailingStore) -> None:
    failing_store.errors = [TEMPORARY_ERRORS[1]] * 1000
    failing_store.retry_s = 0.5  # less than the first wait
    with pytest.raises(StudyError, match=r"a cannot be read: .*HTTP status 503.* run the same command again, which"):
        failing_store.read_bytes("a")
    assert len(failing_store.errors) == 999


@pytest.fixture
def busy_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A folder of an S3 server that answers every request with 429."""

    class Busy(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(429)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        variables = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-west-2"}
        variables |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield Folder("s3://bucket/study")
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("size", [1, 11 << 20], ids=["one request", "several parts"])
def test_failed_upload_is_an_error(
    busy_store: Folder, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow's `copy_files` ignores it."""
    monkeypatch.setattr(Folder, "retry_s", 0.0)
    (tmp_path / "weights").write_bytes(bytes(size))

    def write_output() -> None:
        with busy_store.open_output("a") as file:
            file.write(bytes(size))

    for write in (
        lambda: busy_store.add(str(tmp_path)),
        lambda: busy_store.write_bytes("a", bytes(size)),
        lambda: busy_store.upload(str(tmp_path)),
        write_output,
    ):
        with pytest.raises(StudyError, match=r"s3://bucket/study.*HTTP status 429.* run the same command again"):
            write()


@pytest.mark.parametrize("text", LASTING_ERRORS)
def test_other_errors_of_an_object_store_are_not_retried(failing_store: FailingStore, text: str) -> None:
    failing_store.errors = [text]
    with pytest.raises(
        StudyError, match=r"a cannot be read: .*; check the path, and that you may read and write there"
    ):
        failing_store.read_bytes("a")


def test_parts_are_read_in_the_order_of_their_names(folder: Folder) -> None:
    for name, start in (("part-00001", 500), ("part-00000", 0), ("other", 7)):
        folder.write_table(f"{name}.parquet", TABLE.slice(start, 500))
    assert folder.read_tables().combine_chunks().equals(TABLE)
    assert folder.read_tables(columns=["number"]).column_names == ["number"]
    with pytest.raises(StudyError, match=r"has no missing-\*.parquet"):
        folder.read_tables("missing-")


def test_delete_removes_a_file_or_a_folder(folder: Folder) -> None:
    folder.write_bytes("a", b"1")
    folder.child("deep", "er").write_bytes("b", b"2")
    folder.delete("a")
    assert folder.names() == []
    assert folder.child("deep", "er").exists("b")
    folder.delete()
    assert not folder.exists()


def test_write_replaces_the_file_without_leftovers(folder: Folder) -> None:
    for content in (b"long content", b"short"):
        folder.write_bytes("a", content)
    assert folder.read_bytes("a") == b"short"
    assert folder.names() == ["a"]


@pytest.mark.parametrize("read", ["read_bytes", "read_json", "read_table"])
def test_missing_file_is_a_study_error(folder: Folder, read: str) -> None:
    with pytest.raises(StudyError, match=r"study/a does not exist; run the step that writes it first"):
        getattr(folder, read)("a")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_parquet_file_is_a_study_error(folder: Folder, share: float) -> None:
    folder.write_table("a.parquet", TABLE)
    content = folder.read_bytes("a.parquet")
    folder.write_bytes("a.parquet", content[: int(share * len(content))])
    with pytest.raises(StudyError, match=r"a\.parquet is not a complete Parquet file .* delete it and run the step"):
        folder.read_table("a.parquet")


def test_damaged_parquet_page_is_a_study_error(folder: Folder) -> None:
    folder.write_table("a.parquet", TABLE)
    damaged = bytearray(folder.read_bytes("a.parquet"))
    damaged[40:60] = bytes(20)
    folder.write_bytes("a.parquet", bytes(damaged))
    with pytest.raises(StudyError, match="is not a complete Parquet file"):
        folder.read_table("a.parquet")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"nonsense"])
def test_invalid_json_is_a_study_error(folder: Folder, content: bytes) -> None:
    folder.write_bytes("a.json", content)
    with pytest.raises(StudyError, match=r"a\.json is not JSON"):
        folder.read_json("a.json")


def test_json_has_no_nan(folder: Folder) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("a.json", {"accuracy": float("nan")})
    assert not folder.exists("a.json")


def test_invalid_uri_is_a_study_error() -> None:
    with pytest.raises(StudyError, match="nope://bucket/study cannot be opened"):
        Folder("nope://bucket/study/").exists()


def test_uris_of_folders() -> None:
    assert Folder("s3://bucket/study/").child("runs", "a").uri == "s3://bucket/study/runs/a"
    assert not Folder("s3://bucket/study").is_local
    with pytest.raises(StudyError, match="needs a local folder"):
        _ = Folder("gs://bucket/study").local_path
    assert Folder("relative/x/../y").uri == str(Path("relative/y").absolute())
    assert Folder("~/study").uri == str(Path.home() / "study")
    assert Folder("file:///tmp/with%20space").local_path == "/tmp/with space"
    assert str(Folder("/a/b/")) == "/a/b"


def test_concurrent_reader_sees_complete_files(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))  # unlike real object stores, pyarrow's in-memory store shows partial files
    contents = {b"a" * 2_000_000, b"b" * 3_000_000}
    folder.write_bytes("x", b"a" * 2_000_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                folder.write_bytes("x", content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(folder.read_bytes("x") in contents for _ in range(200))
    finally:
        stop.set()
        writer.join()


def test_killed_writer_leaves_a_complete_file(tmp_path: Path) -> None:
    code = (
        "import itertools, sys; from slick.storage import Folder; folder = Folder(sys.argv[1])\n"
        "for i in itertools.count(): folder.write_json('x.json', [i] * 200_000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        wait_for((tmp_path / "x.json").exists)
        time.sleep(0.05)  # during a later write; the file must be complete
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    numbers = json.loads((tmp_path / "x.json").read_text())
    assert len(numbers) == 200_000
    assert len(set(numbers)) == 1
    assert Folder(str(tmp_path)).names(".json") == ["x.json"]


def test_add_sizes_and_download(folder: Folder, tmp_path: Path) -> None:
    assert folder.sizes() == {}
    for name, content in (("one", b"abc"), ("two", b"defgh")):
        part = tmp_path / name
        (part / "state").mkdir(parents=True)
        (part / "state" / f"{name}.bin").write_bytes(content)
        folder.add(str(part))
    assert folder.sizes() == {"state/one.bin": 3, "state/two.bin": 5}
    with folder.as_local_path() as path:
        assert (Path(path) / "state" / "one.bin").read_bytes() == b"abc"
        assert (Path(path) / "state" / "two.bin").read_bytes() == b"defgh"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hidden@bucket/study",
        "s3://bucket/study?access_key=AKIA&secret_key=hidden",
        "s3://b/s?session_token=hidden",
    ],
)
def test_uri_with_a_secret_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SettingsError, match="AWS_SECRET_ACCESS_KEY") as caught:
        Folder(uri)
    assert "hidden" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_parent_and_name_of_paths_and_of_uris_with_options() -> None:
    location = Folder("s3://bucket/study?region=eu-west-1").child("questions", "a.zip")
    assert (location.uri, location.name) == ("s3://bucket/study/questions/a.zip?region=eu-west-1", "a.zip")
    assert location.parent.uri == "s3://bucket/study/questions?region=eu-west-1"
    assert str(location.parent) == "s3://bucket/study/questions"
    local = Folder("/data/what?/file.zip")  # a question mark is part of a local name
    assert (local.parent.uri, local.name, local.child("x").uri) == ("/data/what?", "file.zip", "/data/what?/file.zip/x")
    assert Folder("/top").parent.uri == "/"


LARGE = b"x" * 2**19


def test_full_disk_is_one_message_without_leftovers(small_disk: SmallDisk, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inside").mkdir(parents=True)
    (source / "inside" / "weights").write_bytes(LARGE)
    folder = Folder(str(small_disk.path / "study"))
    folder.write_bytes("small", b"1")
    before = small_disk.files()
    for name, write in (
        ("study/large", lambda: folder.write_bytes("large", LARGE)),
        ("study/model", lambda: folder.child("model").upload(str(source))),
    ):
        with pytest.raises(StudyError, match="No space left on device; free space") as caught:
            write()
        assert f"{small_disk.path}/{name} cannot be written" in str(caught.value)
        assert len(str(caught.value)) < 400
        assert small_disk.files() == before
    with pytest.raises(StudyError, match="No space left on device"):
        folder.child("state").add(str(source))


def test_local_copy_that_does_not_fit_is_removed(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk.path))
    ObjectStore.store = pafs._MockFileSystem()
    bucket = ObjectStore("memory://bucket/model")
    bucket.write_bytes("weights", LARGE)
    with (
        pytest.raises(StudyError, match=r"memory://bucket/model cannot be copied.*No space left"),
        bucket.as_local_path(),
    ):
        pass
    assert small_disk.files() == []


def test_local_copy_is_removed_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ObjectStore.store = pafs._MockFileSystem()
    bucket = ObjectStore("memory://bucket/model")
    bucket.write_bytes("weights", b"1")
    with pytest.raises(KeyError), bucket.as_local_path() as copy:
        raise KeyError(Path(copy, "weights").read_bytes())
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_the_same_message_from_torch_and_safetensors(
    small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    monkeypatch.setattr(tempfile, "tempdir", str(small_disk.path))
    weights = {"weight": torch.zeros(2**19)}
    with pytest.raises(StudyError, match="cannot be written"), temporary_folder("slick-state-") as folder:
        torch.save(weights, f"{folder}/state.pt")
    with pytest.raises(StudyError, match="cannot be written"), temporary_folder("slick-checkpoint-") as folder:
        save_file(weights, f"{folder}/model.safetensors")
    assert small_disk.files() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_disk_errors_are_recognized(code: int) -> None:
    error = OSError(code, os.strerror(code), "/data/file")
    assert is_disk_error(error)
    assert is_disk_error(shutil.Error([("a", "b", str(error))])), "as raised by copytree"
    wrapped = RuntimeError("training failed")
    wrapped.__cause__ = error
    message = format_file_error(wrapped)
    assert message is not None
    assert message.startswith("/data/file cannot be written: ")


def test_other_errors_are_not_disk_errors() -> None:
    assert not is_disk_error(PermissionError(errno.EACCES, "no"))
    assert format_file_error(ValueError("a defect")) is None
    with pytest.raises(ValueError, match="a defect"), file_errors("/data", "written"):
        raise ValueError("a defect")


def test_failed_delete_or_count_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_bytes(b"no Parquet")
    with pytest.raises(StudyError, match="a file cannot be read"):
        Folder(str(tmp_path)).num_rows("a file")
    with pytest.raises(StudyError, match="cannot be deleted"):
        Folder("/proc/self").delete("status")


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "SLICK_CACHE"])
def test_unwritable_cache_is_one_message(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("XDG_CACHE_HOME", "SLICK_CACHE"):
        monkeypatch.delenv(other, raising=False)
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv(name, str(file))
    with pytest.raises(StudyError, match="set SLICK_CACHE to a folder that you can write to"):
        ensure_cache_folder("worlds")


def test_atomic_replace_of_a_local_folder(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "variants"))
    folder.child("old").write_bytes("a.txt", b"old")

    def fail() -> None:
        with folder.atomic_replace() as new:
            new.write_bytes("b.txt", b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (folder.folders(), folder.names()) == (["old"], [])
    (tmp_path / ".variants.0.part").mkdir()  # left by a killed writer
    with folder.atomic_replace() as new:
        new.child("inner").write_bytes("b.txt", b"new")
        assert folder.folders() == ["old"], "the folder must not change before the end"
    assert folder.child("inner").read_bytes("b.txt") == b"new"
    assert folder.folders() == ["inner"]
    assert [path.name for path in tmp_path.iterdir()] == ["variants"]


def test_atomic_replace_in_an_object_store_writes_the_manifest_last() -> None:
    ObjectStore.store = pafs._MockFileSystem()
    folder = ObjectStore("memory://bucket/study/variants")
    folder.child("old").write_bytes("a.txt", b"old")
    folder.write_bytes("manifest.json", b"old")
    with folder.atomic_replace() as new:
        for name in ("a.txt", "manifest.json", "z.txt"):
            new.write_bytes(name, b"new")
        assert folder.read_bytes("manifest.json") == b"old", "the folder must not change before the end"
    assert {name: folder.read_bytes(name) for name in folder.sizes()} == dict.fromkeys(
        ("a.txt", "manifest.json", "z.txt"), b"new"
    )

    def fail() -> None:
        with folder.atomic_replace() as new:
            new.write_bytes("b.txt", b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert set(folder.sizes()) == {"a.txt", "manifest.json", "z.txt"}


def test_failed_atomic_replace_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path / "variants"))
    folder.write_bytes("a.txt", b"old")
    rename = os.replace

    def refuse(source: str, target: str) -> None:
        if source.endswith(".part") and target == folder.uri:
            raise PermissionError(13, "not allowed")
        rename(source, target)

    def swap() -> None:
        with folder.atomic_replace() as new:
            monkeypatch.setattr(os, "replace", refuse)
            new.mkdir()

    with pytest.raises(StudyError, match="cannot be replaced"):
        swap()
    assert folder.read_bytes("a.txt") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["variants"]


def test_mode_of_an_uploaded_folder_follows_the_umask(tmp_path: Path) -> None:
    source = tmp_path / "private"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "a.txt").write_text("a")
    for path, mode in ((source / "inner" / "a.txt", 0o600), (source / "inner", 0o700), (source, 0o700)):
        path.chmod(mode)
    before = os.umask(0o022)
    try:
        Folder(str(tmp_path / "uploaded")).upload(str(source))
        with Folder(str(tmp_path / "staged")).atomic_replace() as new:
            new.child("inner").write_bytes("a.txt", b"a")
    finally:
        os.umask(before)
    for name in ("uploaded", "staged"):
        top = tmp_path / name
        modes = [path.stat().st_mode & 0o777 for path in (top, top / "inner", top / "inner" / "a.txt")]
        assert modes == [0o755, 0o755, 0o644], name


def test_column_with_pickles_is_rejected_before_reading(tmp_path: Path) -> None:
    """Ray Data registers an Arrow type with which any Parquet file can load pickles."""
    import ray.data.extensions  # noqa: F401 - registers it
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    planted = tmp_path / "planted"
    folder = Folder(str(tmp_path))
    column = ArrowPythonObjectArray.from_objects([MaliciousPickle(planted)])
    nested = pa.StructArray.from_arrays([column], ["inner"])
    for name, table in (("plain", pa.table({"text": column})), ("nested", pa.table({"text": nested}))):
        folder.write_table(f"part-{name}.parquet", table)
        with pytest.raises(StudyError, match=rf"part-{name}.parquet has columns .* pickles.*'text'"):
            folder.read_table(f"part-{name}.parquet").to_pylist()
        assert not planted.exists()
    column.to_pylist()
    assert planted.exists(), "otherwise the test would prove nothing"


@pytest.mark.parametrize("is_local", [True, False])
def test_file_exists_after_the_block_but_not_after_an_error(is_local: bool, tmp_path: Path) -> None:
    ObjectStore.store = pafs._MockFileSystem()
    folder = Folder(str(tmp_path)) if is_local else ObjectStore("memory://bucket/study")
    folder.write_bytes("other", b"")
    with folder.open_output("rows.jsonl") as file:
        file.write(b"old")
        assert folder.names() == ["other"]
    with pytest.raises(KeyError), folder.open_output("rows.jsonl") as file:
        raise KeyError(file.write(b"new"))
    assert folder.read_bytes("rows.jsonl") == b"old"
    assert folder.sizes() == {"other": 0, "rows.jsonl": 3}
