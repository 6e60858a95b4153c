"""Kinds of faults. A kind is a function that injects the fault into a running study; `KINDS` lists them."""

import ctypes
import errno
import os
import platform
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.faults.leftovers import Process, session_processes
from tests.faults.store_proxy import CUT, ERRORS, LATENCY, StoreProxy

STEPS = ("questions", "annotate", "variants", "sweep", "report")
_OUTAGE_S = 15.0
"""Seconds for which a disk stays full or read-only, unless the run ends before."""
_STORE_OUTAGES_S = (3.0, 20.0)
"""Range of the seconds for which an object store fails, unless the run ends before."""
_LONG_STORE_OUTAGE_S = 150.0
"""The same for one of eight outages; longer than `slick.storage.RETRY_S`."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A running study."""

    session: int
    """Process id of the driver, which is the id of its session."""
    disk: Path
    """Mount point of the file system in memory that contains the study, if it is on a disk."""
    store: StoreProxy | None
    """The proxy of the object store that contains the study, if it is in one."""
    hooks: Path
    """Folder of the files that trigger the faults of `hooks/sitecustomize.py`."""
    has_ended: Callable[[], bool]
    is_in_step: Callable[[], bool]
    """Whether the step that shall be disturbed is still running."""
    rng: random.Random


CLOCK = "clock"
"""The kind that needs a C compiler, and a library preloaded into the processes of the study."""

Needs = Literal["", "disk", "store"]
Inject = Callable[[Target], str | None]
"""Injects a fault, and returns what was done; None if the study gave no occasion."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    name: str
    steps: tuple[str, ...]
    """The steps that it can disturb."""
    inject: Inject
    needs: Needs = ""
    """What must contain the study: a `disk` of its own, which only root may mount, or an object `store`."""


KINDS: dict[str, Kind] = {}


def kind(name: str, *steps: str, needs: Needs = "") -> Callable[[Inject], Inject]:
    """Register a kind of fault."""

    def register(inject: Inject) -> Inject:
        KINDS[name] = Kind(name, steps, inject, needs)
        return inject

    return register


def _kind_of_kill(name: str, pattern: str, *steps: str) -> None:
    """Register the kill of a process whose title contains a pattern."""

    @kind(name, *steps)
    def inject(target: Target) -> str | None:
        process = _wait_for_process(target, pattern)
        return _send(process, signal.SIGKILL) if process else None


def _wait_for_process(target: Target, pattern: str) -> Process | None:
    """One of the processes whose title contains a pattern, as soon as there is one; None if the step ends before."""
    while not target.has_ended() and target.is_in_step():
        if found := [process for process in session_processes(target.session) if pattern in process.title]:
            return target.rng.choice(sorted(found, key=lambda process: process.pid))
        time.sleep(0.05)
    return None


def _send(process: Process, number: signal.Signals) -> str | None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return None
    return f"{number.name} to {process.title[:60]}"


_kind_of_kill("actor", "ray::MapWorker", "annotate")
_kind_of_kill("train worker", "ray::RayTrainWorker", "sweep")
_kind_of_kill("controller", "ray::TrainController", "sweep")
_kind_of_kill("trial", "ray::ImplicitFunc", "sweep")
_kind_of_kill("raylet", "/raylet/raylet ", "annotate", "sweep")
_kind_of_kill("gcs server", "/gcs_server ", "annotate", "sweep")


@kind("driver", *STEPS)
def kill_driver(target: Target) -> str | None:
    """Kill the command itself."""
    if target.has_ended():
        return None
    os.kill(target.session, signal.SIGKILL)
    return "SIGKILL to the driver"


@kind("hung actor", "annotate")
def hang_actor(target: Target) -> str | None:
    """Stop an actor for some seconds."""
    return _hang(target, "ray::MapWorker")


@kind("hung train worker", "sweep")
def hang_train_worker(target: Target) -> str | None:
    """Stop a train worker for some seconds."""
    return _hang(target, "ray::RayTrainWorker")


def _hang(target: Target, pattern: str) -> str | None:
    process = _wait_for_process(target, pattern)
    if process is None or not _send(process, signal.SIGSTOP):
        return None
    seconds = target.rng.uniform(3, 12)
    time.sleep(seconds)
    _send(process, signal.SIGCONT)
    return f"{process.title[:60]} stopped for {seconds:.0f} s"


@kind("out of memory", "annotate")
def run_out_of_memory(target: Target) -> str | None:
    """Make one batch of questions raise the out-of-memory error of torch."""
    trigger = target.hooks / "out-of-memory"
    trigger.touch()
    while not target.has_ended() and target.is_in_step():
        if not trigger.exists():
            return "one batch raised torch.OutOfMemoryError"
        time.sleep(0.05)
    trigger.unlink(missing_ok=True)
    return None


@kind(CLOCK, "annotate", "sweep")
def move_clock(target: Target) -> str | None:
    """Move the clock of all processes of the study; see `hooks/clock.c`."""
    seconds = target.rng.choice([-86400, -3600, 3600, 86400])
    part = target.hooks / "clock.part"
    part.write_text(str(seconds))
    part.replace(target.hooks / "clock")
    return f"the time of day moved by {seconds:+} s until the end of the study"


@kind("full disk", *STEPS, needs="disk")
def fill_disk(target: Target) -> str | None:
    """Leave a few KiB on the file system of the study for some seconds."""
    free_kib = target.rng.choice([0, 4, 16, 64])
    used_kib = shutil.disk_usage(target.disk).used // 1024
    _remount(target.disk, f"size={max(4, used_kib + free_kib)}k")
    _wait_for_end(target)
    _remount(target.disk, f"size={DISK_MIB}m")
    return f"{free_kib} KiB free for up to {_OUTAGE_S:.0f} s"


@kind("read-only folder", *STEPS, needs="disk")
def make_read_only(target: Target) -> str | None:
    """Make the file system of the study read-only for some seconds."""
    while not target.has_ended() and target.is_in_step():
        try:
            _remount(target.disk, "ro")
        except OSError as error:
            if error.errno != errno.EBUSY:  # a file is open for writing
                raise
            time.sleep(0.01)
            continue
        _wait_for_end(target)
        _remount(target.disk, "rw")
        return f"read-only for up to {_OUTAGE_S:.0f} s"
    return None


def _kind_of_store_outage(name: str, fault: str) -> None:
    """Register an outage of the object store."""

    @kind(name, *STEPS, needs="store")
    def inject(target: Target) -> str | None:
        proxy = target.store
        if proxy is None or target.has_ended():
            return None
        seconds = _LONG_STORE_OUTAGE_S if target.rng.random() < 1 / 8 else target.rng.uniform(*_STORE_OUTAGES_S)
        share, before = target.rng.choice([0.3, 1.0]), proxy.num_disturbed
        proxy.disturb(fault, share)
        _wait_for_end(target, seconds)
        proxy.recover()
        num = proxy.num_disturbed - before
        return f"{num} requests disturbed, {share:.0%} of those within {seconds:.0f} s" if num else None


_kind_of_store_outage("object store errors", ERRORS)
_kind_of_store_outage("object store latency", LATENCY)
_kind_of_store_outage("object store cut", CUT)


def compile_clock(folder: Path) -> Path | None:
    """The library that moves the clock; None where it cannot be compiled."""
    library, source = folder / "clock.so", Path(__file__).parent / "hooks" / "clock.c"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    if platform.machine() != "x86_64" or shutil.which("cc") is None:
        return None
    return None if subprocess.run(command, capture_output=True, check=False).returncode else library


def _wait_for_end(target: Target, seconds: float = _OUTAGE_S) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not target.has_ended():
        time.sleep(0.05)


DISK_MIB = 256
"""Size of the file system of a study, in MiB."""
_MS_RDONLY, _MS_REMOUNT = 1, 32


def _remount(disk: Path, option: str) -> None:
    """Change an option of a mounted file system.

    Raises:
        OSError: the system refuses.
    """
    flags = _MS_REMOUNT | (_MS_RDONLY if option == "ro" else 0)
    data = option if "=" in option else ""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", flags, data.encode()):
        raise OSError(ctypes.get_errno(), f"{disk} cannot be remounted with {option}")


@contextmanager
def mounted_disk(path: Path) -> Iterator[bool]:
    """Mount a file system in memory for a study; yields False, and changes nothing, if the user may not."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(path)]
    is_mounted = not subprocess.run(command, capture_output=True, check=False).returncode
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)
        shutil.rmtree(path, ignore_errors=True)
