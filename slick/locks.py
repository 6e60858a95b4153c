"""One writer per part of a study: locks with an owner, a heartbeat, and takeover from an owner that has died.

A lock is a small JSON file in `STUDY/.locks`. Whoever finds it held asks whether the owner is alive: on the owner's own
machine by its process, elsewhere by its heartbeat, watched with the local clock, so that clocks which differ do not
matter. On a file system with advisory locks, claiming is atomic. Object stores that pyarrow reads offer no conditional
write: there a claim is written, and holds only if it is still there after a moment, so of two claims at the same time
at most one holds. An owner whose lock was taken over, because it was suspended for long, must not finish its step:
`verify_locks` says so.
"""

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from slick.errors import StudyError
from slick.storage import Folder
from slick.stored_files import MismatchError, convert

_LOG = logging.getLogger(__name__)

LOCKS = ".locks"
"""The folder of locks inside a study."""

HEARTBEAT_S = 10.0
"""Between two signs of life of an owner."""
STALE_AFTER_S = 60.0
"""An owner on another machine without a sign of life for that long counts as dead."""
CLAIM_DELAY_S = 1.0
"""After that long, a claim that was not overwritten holds, where claiming is not atomic."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """The run that holds a lock."""

    step: str
    host: str
    pid: int
    since: str
    """When it took the lock, as ISO 8601 in UTC by its own clock."""
    token: str
    """Random, so that no two claims are equal."""
    process: str | None = None
    """Identifies the process on its machine, by boot, process namespace and start time; None where it cannot be."""
    beats: int = 0
    """Heartbeats so far."""

    @property
    def is_alive(self) -> bool | None:
        """Whether its process runs; None where only its heartbeat can tell, since it is on another machine."""
        if self.process is None or self.process.split()[:2] != _machine_identity():
            return None
        return _process_identity(self.pid) == self.process

    def __str__(self) -> str:
        return f"{self.step}, process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def exclusive_lock(study: Folder, step: str, names: Sequence[str] = ()) -> Iterator[None]:
    """Hold the locks of some parts of a study while the block runs.

    Args:
        study: its folder.
        step: the step that writes, for messages.
        names: the parts, as their folders are named inside the study (`runs/unknown-050-seed0`); empty for `[step]`.

    Raises:
        StudyError: another run holds one of them, or took one over while the block ran.
    """
    held: list[_Lock] = []
    try:
        for name in sorted(set(names or [step])):
            lock = _Lock(study, name, step)
            if lock.acquire():
                held.append(lock)
        _held_locks.extend(held)
        with _heartbeats(held):
            yield
            for lock in held:
                lock.verify()
    finally:
        for lock in held:
            if lock in _held_locks:
                _held_locks.remove(lock)
            lock.release()


def verify_locks() -> None:
    """See that this process still holds every lock that it took; called before a step is declared finished.

    Raises:
        StudyError: another run took one over.
    """
    for lock in list(_held_locks):
        lock.verify()


def lock_owners(study: Folder) -> dict[str, LockOwner]:
    """Who holds each part of a study that is locked now, by name of the part."""
    place = study.child(LOCKS)
    found = {name.removesuffix(".json").replace("--", "/"): _read_owner(place, name) for name in place.names(".json")}
    return {name: owner for name, owner in found.items() if owner is not None}


_held_locks: list["_Lock"] = []
"""Locks of this process."""


class _Lock:
    """The lock of one part of a study."""

    def __init__(self, study: Folder, name: str, step: str) -> None:
        self._part = study.child(*name.split("/"))
        self._place = study.child(LOCKS)
        self._study_is_new = study.is_local and not os.path.exists(study.local_path)
        self._file = f"{name.replace('/', '--')}.json"
        self._own = LockOwner(
            step=step,
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            token=uuid.uuid4().hex,
            process=_process_identity(os.getpid()),
        )

    def acquire(self) -> bool:
        """Take the lock; False where nothing can be written, so that there is nothing to lock.

        Raises:
            StudyError: another run holds it and is alive.
        """
        while True:
            other = _read_owner(self._place, self._file)
            if other is not None and not self._is_abandoned(other):
                raise StudyError(
                    f"{self._part} is being written by another run: {other}; wait for it to end, or stop it. The lock "
                    f"of a run that has died is taken over by itself; {self._place}/{self._file} is that lock"
                )
            try:
                if self._claim(other):
                    return True
            except StudyError as error:
                if isinstance(error.__cause__, PermissionError) or _is_read_only(error.__cause__):
                    return False
                raise

    def verify(self) -> None:
        """Raise a StudyError if the lock is no longer ours."""
        other = _read_owner(self._place, self._file)
        if other is None or other.token != self._own.token:
            raise StudyError(
                f"the lock of {self._part} was taken over by {other or 'nobody: it was deleted'}, since this run gave "
                f"no sign of life for {STALE_AFTER_S:g} s; nothing was declared finished: let one run do the step again"
            )

    def heartbeat(self) -> None:
        """Give a sign of life, unless the lock was taken over."""
        with (
            contextlib.suppress(StudyError),
            _folder_mutex(self._place),
        ):  # storage that fails once may work at the next beat
            other = _read_owner(self._place, self._file)
            if other is not None and other.token == self._own.token:
                self._own = dataclasses.replace(self._own, beats=self._own.beats + 1)
                self._place.write_json(self._file, dataclasses.asdict(self._own))

    def release(self) -> None:
        """Let go of the lock, if it is still ours."""
        with contextlib.suppress(StudyError), _folder_mutex(self._place):
            other = _read_owner(self._place, self._file)
            if other is not None and other.token == self._own.token:
                self._place.delete(self._file)
                if self._place.is_local:
                    with contextlib.suppress(OSError):  # not empty: other locks, or what the step has written
                        os.rmdir(self._place.local_path)
                        if self._study_is_new:
                            os.rmdir(os.path.dirname(self._place.local_path))

    def _claim(self, before: LockOwner | None) -> bool:
        """Write our name where `before` stood; False if somebody else did so first."""
        with _folder_mutex(self._place, mkdir=True) as is_atomic:
            if _read_owner(self._place, self._file) != before:
                return False
            self._place.write_json(self._file, dataclasses.asdict(self._own))
        if is_atomic:
            return True
        time.sleep(CLAIM_DELAY_S)
        now = _read_owner(self._place, self._file)
        return now is not None and now.token == self._own.token

    def _is_abandoned(self, other: LockOwner) -> bool:
        alive = other.is_alive
        if alive is not None:
            return not alive
        _LOG.info(
            "%s is locked by another run: %s; looking for a sign of life for %g s", self._part, other, STALE_AFTER_S
        )
        end = time.monotonic() + STALE_AFTER_S
        while time.monotonic() < end:
            time.sleep(min(1.0, STALE_AFTER_S / 10))
            now = _read_owner(self._place, self._file)
            if now is None or now.token != other.token:
                return True  # released; claiming finds out by whom it is held now
            if now.beats != other.beats:
                return False
        return True


@contextlib.contextmanager
def _heartbeats(locks: Sequence[_Lock]) -> Iterator[None]:
    ended = threading.Event()

    def heartbeat() -> None:
        while not ended.wait(HEARTBEAT_S):
            for lock in locks:
                lock.heartbeat()

    thread = threading.Thread(target=heartbeat, name="slick-locks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _folder_mutex(place: Folder, *, mkdir: bool = False) -> Iterator[bool]:
    """Keep other processes out of the folder of locks for a moment; False where the storage has no such means.

    Args:
        place: the folder of locks.
        make: create it first; others remove it when they release the last lock.
    """
    descriptor = _flock_folder(place, mkdir=mkdir) if place.is_local else None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _flock_folder(place: Folder, *, mkdir: bool) -> int | None:
    """An open descriptor with an advisory lock on a folder; None where there is no folder, or no such locks."""
    path = place.local_path
    while True:
        if mkdir:
            place.mkdir()
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            if mkdir:
                continue
            return None
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # removed by whoever had the lock before
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)


def _read_owner(place: Folder, file: str) -> LockOwner | None:
    """Who holds the lock; None if nobody does. What is no record of ours counts as an owner without a heartbeat."""
    try:
        value: Any = place.read_json(file)
    except StudyError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        if not isinstance(error.__cause__, ValueError):
            raise
        value = None
    try:
        owner: LockOwner = convert(value, LockOwner, exact=True)
        return owner
    except MismatchError:
        return LockOwner(
            step="unknown step", host="unknown host", pid=0, since="unknown time", token=f"unreadable {file}"
        )


def _is_read_only(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EROFS


def _machine_identity() -> list[str]:
    """This boot of this machine, and this namespace of processes; empty where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return [file.read().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        return []


def _process_identity(pid: int) -> str | None:
    """A text that no other process of any machine has; None if there is no such process, or only its remains."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else " ".join([*_machine_identity(), str(pid), fields[18]])
