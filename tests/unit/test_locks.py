"""Locks of a study: one writer, also if owners die, wait or are suspended."""

import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.fs as pafs
import pytest

import slick
from jobs.presets import STEP_PRESETS
from slick import locks
from slick.errors import StudyError
from slick.locks import LOCKS, LockOwner, exclusive_lock, lock_owners
from slick.process_identity import process_identity
from slick.storage import Folder
from slick.study import complete_step

HOLDER = """
import sys, time
from slick.locks import exclusive_lock
from slick.storage import Folder
with exclusive_lock(Folder(sys.argv[1]), "holder", sys.argv[2:]):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(study: Path, *names: str) -> subprocess.Popen:
    """A process that holds locks, by default `annotate`, until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(study), *(names or ("annotate",))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


MISSING = "/missing/file.jsonl"
STEP_CALLS: dict[str, tuple[str, Callable[[Folder], object]]] = {
    "world": ("world", lambda study: slick.build_world(study, slick.WorldConfig(questions=MISSING))),
    "questions": (
        "questions",
        lambda study: slick.prepare_questions(study, slick.QuestionsConfig(questions=MISSING)),
    ),
    "annotate": ("annotate", lambda study: slick.annotate(study, slick.AnnotateConfig(model=MISSING))),
    "rescore": ("annotate", lambda study: slick.rescore(study, slick.RescoreConfig(matcher="contains"))),
    "variants": ("variants", lambda study: slick.draw_variants(study, slick.VariantsConfig())),
    "wording": ("wording", lambda study: slick.reword(study, slick.WordingConfig())),
    "finetune": (
        "runs/half-seed0",
        lambda study: slick.finetune(study, slick.TrainConfig(variant="half", model=MISSING)),
    ),
    "sweep": ("sweep", lambda study: slick.sweep(study, slick.SweepConfig(train=slick.TrainConfig(model=MISSING)))),
    "report": ("report", lambda study: slick.make_report(study, slick.ReportConfig())),
    "curate": (
        "curate",
        lambda study: slick.curate_file(study, slick.CurateConfig(data=MISSING, model=MISSING)),
    ),
}
"""Step -> the folder that it locks, and a call that fails soon after it has the lock."""


def test_calls_cover_all_steps() -> None:
    assert STEP_CALLS.keys() >= STEP_PRESETS.keys() - {"study"}


@pytest.fixture(scope="module")
def locked_study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Folder, int]]:
    """A study whose parts are locked by another process, and its process id."""
    path = tmp_path_factory.mktemp("locked")
    process = start_holder(path, *{name for name, _ in STEP_CALLS.values()})
    yield Folder(str(path)), process.pid
    process.communicate("")


@pytest.mark.parametrize("step", STEP_CALLS)
def test_every_step_is_refused_while_another_process_has_its_lock(step: str, locked_study: tuple[Folder, int]) -> None:
    study, pid = locked_study
    name, call = STEP_CALLS[step]
    with pytest.raises(StudyError) as caught:
        call(study)
    place, host = re.escape(f"{study}/{name}"), re.escape(socket.gethostname())
    assert re.match(f"{place} is being written by another run: holder, process {pid} on {host}, ", str(caught.value))


@pytest.fixture(scope="module")
def killed_study(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A study whose parts were locked by a process that was killed."""
    path = tmp_path_factory.mktemp("killed")
    process = start_holder(path, *{name for name, _ in STEP_CALLS.values()})
    process.kill()
    process.communicate()
    return Folder(str(path))


@pytest.mark.parametrize("step", STEP_CALLS)
def test_every_step_takes_the_lock_of_a_killed_process(
    step: str, killed_study: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "STALE_AFTER_S", 1e9)  # without waiting
    name, call = STEP_CALLS[step]
    with pytest.raises(slick.SlickError) as caught:
        call(killed_study)
    assert "is being written" not in str(caught.value)
    assert name not in lock_owners(killed_study), "it had the lock, and released it"


@pytest.fixture
def remote_owner() -> LockOwner:
    """A run on another machine, of which only the heartbeat is known."""
    return LockOwner(
        step="annotate", host="node-7", pid=1, since="2030-01-01T00:00:00+00:00", token="a", process="b c 1 2"
    )


def test_locked_study_names_the_owner(tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    try:
        with pytest.raises(StudyError, match=rf"{tmp_path}/annotate is being written .*process {process.pid} on "):
            exclusive_lock(Folder(str(tmp_path)), "annotate").__enter__()
        (owner,) = lock_owners(Folder(str(tmp_path))).values()
        assert (owner.pid, owner.is_alive) == (process.pid, True)
        with exclusive_lock(Folder(str(tmp_path)), "report"):
            pass  # the lock of another step is free
    finally:
        process.communicate("")
    with exclusive_lock(Folder(str(tmp_path)), "annotate"):
        pass


def test_lock_of_a_killed_process_is_taken_over_immediately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STALE_AFTER_S", 1e9)  # the process is checked, without waiting
    process = start_holder(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie process
    (owner,) = lock_owners(Folder(str(tmp_path))).values()
    assert owner.is_alive is False
    process.wait()
    assert owner.is_alive is False
    with exclusive_lock(Folder(str(tmp_path)), "annotate"):
        assert lock_owners(Folder(str(tmp_path)))["annotate"].pid == os.getpid()


def test_process_with_the_same_pid_is_not_the_owner() -> None:
    own = process_identity(os.getpid())
    assert own
    owner = LockOwner(step="x", host="h", pid=os.getpid(), since="", token="t", process=own)
    assert owner.is_alive is True
    assert replace(owner, process=own[:-1]).is_alive is False
    boot, namespace, pid, start_time = own.split()
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (namespace, pid) == (os.readlink("/proc/self/ns/pid"), str(os.getpid()))
    assert start_time == Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert replace(owner, process="other-boot " + own.partition(" ")[2]).is_alive is None


@pytest.mark.parametrize("beating", [True, False])
@pytest.mark.parametrize("skew_s", [-3600, 3600])
def test_owner_on_another_machine_is_alive_while_its_heartbeat_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote_owner: LockOwner, beating: bool, skew_s: int
) -> None:
    """Neither the owner's clock nor that of the file server matters."""
    monkeypatch.setattr(locks, "STALE_AFTER_S", 1e9 if beating else 0.5)
    lock_folder = Folder(str(tmp_path)).child(LOCKS)
    by_its_clock = datetime.fromtimestamp(time.time() + skew_s, UTC).isoformat(timespec="seconds")
    remote_owner = replace(remote_owner, since=by_its_clock)

    def write(beats: int) -> None:
        lock_folder.write_json("annotate.json", asdict(replace(remote_owner, beats=beats)))
        os.utime(tmp_path / LOCKS / "annotate.json", (time.time() + skew_s,) * 2)

    write(0)
    stop_event = threading.Event()

    def heartbeat() -> None:
        beats = 0
        while beating and not stop_event.wait(0.2):
            beats += 1
            write(beats)

    thread = threading.Thread(target=heartbeat)
    thread.start()
    try:
        lock = exclusive_lock(Folder(str(tmp_path)), "annotate")
        if beating:
            with pytest.raises(StudyError, match=f"annotate, process 1 on node-7, since {re.escape(by_its_clock)}"):
                lock.__enter__()
        else:
            with lock:
                assert lock_owners(Folder(str(tmp_path)))["annotate"].pid == os.getpid()
    finally:
        stop_event.set()
        thread.join()


def test_heartbeats_are_written_while_the_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    study = Folder(str(tmp_path))
    with exclusive_lock(study, "sweep", ["runs/a", "runs/b"]):
        assert set(lock_owners(study)) == {"runs/a", "runs/b"}
        while min(owner.beats for owner in lock_owners(study).values()) < 3:
            time.sleep(0.01)
    assert lock_owners(study) == {}
    assert not (tmp_path / LOCKS).exists()


def test_step_without_its_lock_is_not_finished(tmp_path: Path, remote_owner: LockOwner) -> None:
    study = Folder(str(tmp_path))

    def lose_and_finish() -> None:
        with exclusive_lock(study, "annotate"):
            study.child(LOCKS).write_json("annotate.json", asdict(remote_owner))
            complete_step(study.child("annotate"), "annotate", "x", settings={}, inputs={}, counts={}, started_at=0.0)

    with pytest.raises(StudyError, match="taken over by annotate, process 1 on node-7"):
        lose_and_finish()
    assert not study.child("annotate").exists("manifest.json")
    assert lock_owners(study) == {"annotate": remote_owner}, "the lock of the other run must be kept"


def test_lost_lock_is_an_error_even_if_no_step_finishes(tmp_path: Path, remote_owner: LockOwner) -> None:
    study = Folder(str(tmp_path))
    with (
        pytest.raises(StudyError, match="taken over by annotate, process 1 on node-7"),
        exclusive_lock(study, "annotate"),
    ):
        study.child(LOCKS).write_json("annotate.json", asdict(remote_owner))
    assert lock_owners(study) == {"annotate": remote_owner}


def test_heartbeat_does_not_reclaim_a_lost_lock(tmp_path: Path, remote_owner: LockOwner) -> None:
    study = Folder(str(tmp_path))
    lock = locks._Lock(study, "annotate", "annotate")
    assert lock.acquire()
    study.child(LOCKS).write_json("annotate.json", asdict(remote_owner))
    lock.heartbeat()
    assert lock_owners(study) == {"annotate": remote_owner}


def test_unwritable_lock_is_an_error(tmp_path: Path) -> None:
    (tmp_path / LOCKS / "annotate.json").mkdir(parents=True)
    with (
        pytest.raises(StudyError, match=r"annotate\.json cannot be read"),
        exclusive_lock(Folder(str(tmp_path)), "annotate"),
    ):
        pass


def test_unreadable_lock_file_counts_as_owner_without_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "STALE_AFTER_S", 0.1)
    study = Folder(str(tmp_path))
    for content in (b"", b"[1]", b"{", b'{"step": 1}'):
        study.child(LOCKS).write_bytes("annotate.json", content)
        with exclusive_lock(study, "annotate"):
            assert lock_owners(study)["annotate"].pid == os.getpid()
        assert "unknown step, process 0 on unknown host" in capsys.readouterr().out


def test_several_locks_are_taken_together(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    with (
        exclusive_lock(study, "finetune", ["runs/b"]),
        pytest.raises(StudyError, match="runs/b is being written"),
        exclusive_lock(study, "sweep", ["runs/a", "runs/b", "runs/c"]),
    ):
        pass
    assert lock_owners(study) == {}


def _count(study: str, start: Callable[[], object]) -> None:
    """Increment a number in a file under the lock, retrying while it is held."""
    start()
    file = Path(study) / "number"
    for _ in range(5):
        while True:
            try:
                with exclusive_lock(Folder(study), "count"):
                    number = int(file.read_text())
                    time.sleep(0.001)
                    file.write_text(str(number + 1))
                break
            except StudyError:
                time.sleep(0.001)


def test_lock_is_mutually_exclusive_between_processes(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_count, args=(str(tmp_path), barrier.wait)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "number").read_text() == "20"


def test_last_of_two_non_atomic_claims_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote_owner: LockOwner
) -> None:
    """As in an object store: both processes saw a free lock and wrote their claim."""
    study = Folder(str(tmp_path))
    sleeps: list[float] = []

    def claim_during_sleep(seconds: float) -> None:
        if not sleeps:
            study.child(LOCKS).write_json("annotate.json", asdict(remote_owner))
        sleeps.append(seconds)

    monkeypatch.setattr(locks, "_flock_folder", lambda place, mkdir: None)
    monkeypatch.setattr(locks, "STALE_AFTER_S", 0.0)
    monkeypatch.setattr(locks.time, "sleep", claim_during_sleep)
    with exclusive_lock(study, "annotate"):  # after the other claim, without a heartbeat, is stale
        assert len(sleeps) == 2
        assert lock_owners(study)["annotate"].pid == os.getpid()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A study in an object store in memory."""
    filesystem = pafs._MockFileSystem()
    filesystem.create_dir(f"study/{LOCKS}")
    monkeypatch.setattr(Folder, "_open_store", lambda _, uri: (filesystem, uri.removeprefix("s3://").partition("?")[0]))
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(locks, "CLAIM_DELAY_S", 0.05)
    return Folder("s3://study")


def test_overdue_claim_in_slow_storage_is_not_valid(
    store: Folder, monkeypatch: pytest.MonkeyPatch, remote_owner: LockOwner
) -> None:
    """The write of a claim takes so long that another process gets the lock before it lands."""
    write_json = Folder.write_json
    other = locks._Lock(store, "annotate", "other")

    def write_slowly(folder: Folder, name: str, value: object) -> None:
        if value["token"] != other._own.token and not other._claimed_at:
            assert other.acquire()
            time.sleep(0.1)
            threading.Thread(target=beat).start()
        write_json(folder, name, value)

    def beat() -> None:
        time.sleep(0.05)
        other.heartbeat()

    monkeypatch.setattr(Folder, "write_json", write_slowly)
    monkeypatch.setattr(locks, "STALE_AFTER_S", 5.0)
    with pytest.raises(StudyError, match="is being written by another run: other"):
        locks._Lock(store, "annotate", "slow").acquire()
    other.verify()


def test_new_claim_after_a_long_time_is_not_overwritten(
    store: Folder, monkeypatch: pytest.MonkeyPatch, remote_owner: LockOwner
) -> None:
    lock = locks._Lock(store, "annotate", "suspended")
    assert lock.acquire()
    monkeypatch.setattr(locks, "STALE_AFTER_S", 0.0)
    store.child(LOCKS).write_json("annotate.json", asdict(remote_owner))
    lock.heartbeat()
    assert lock_owners(store) == {"annotate": remote_owner}


def test_time_without_storage_does_not_count_as_time_without_heartbeat(
    store: Folder, monkeypatch: pytest.MonkeyPatch, remote_owner: LockOwner
) -> None:
    """The storage fails for longer than a lock may lack heartbeats, for the owner too; then the owner goes on."""
    store.child(LOCKS).write_json("annotate.json", asdict(remote_owner))
    monkeypatch.setattr(locks, "STALE_AFTER_S", 0.4)
    read_json, reads = Folder.read_json, []

    def read(folder: Folder, name: str) -> object:
        reads.append(name)
        if len(reads) == 2:
            time.sleep(0.5)
        if len(reads) == 4:
            folder.write_json(name, asdict(replace(remote_owner, beats=1)))
        return read_json(folder, name)

    monkeypatch.setattr(Folder, "read_json", read)
    with pytest.raises(StudyError, match="is being written by another run: annotate, process 1 on node-7"):
        locks._Lock(store, "annotate", "annotate").acquire()


def test_read_only_folder_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise StudyError("no") from PermissionError(13, "no")

    monkeypatch.setattr(Folder, "write_json", refused)
    with exclusive_lock(Folder(str(tmp_path)), "annotate"):
        assert lock_owners(Folder(str(tmp_path))) == {}


def test_rejected_step_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(KeyError), exclusive_lock(Folder(str(tmp_path / "study")), "questions"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_lock_owners_by_folder(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    with exclusive_lock(study, "finetune", ["runs/unknown-050-seed0"]):
        assert list(lock_owners(study)) == ["runs/unknown-050-seed0"]
        record = json.loads((tmp_path / LOCKS / "runs--unknown-050-seed0.json").read_text())
        assert record["step"] == "finetune"
