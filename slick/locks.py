"""Locks for parts of a study, with an owner and a heartbeat; the lock of a dead owner can be taken over.

A lock is a JSON file in `STUDY/.locks`. On the owner's machine a waiting process checks whether the owner's process
runs; elsewhere it watches the heartbeat with its local clock, so clock differences do not matter. On a file system with
advisory locks, claiming is atomic. pyarrow has no conditional writes for object stores: there a claim is written, and
is valid if it was not overwritten after `CLAIM_DELAY_S`, so at most one of two simultaneous claims is valid. If the
storage is so slow that a claim may have overwritten a valid one, the owner of that one writes it again with its next
heartbeat, and the claim is checked after that. A process that was suspended for long may lose its lock and must not
finish its step; `verify_locks` checks this.
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
from slick.process_identity import machine_identity, process_identity
from slick.storage import Folder
from slick.stored_files import MismatchError, convert

_LOG = logging.getLogger(__name__)

LOCKS = ".locks"
"""The folder of locks inside a study."""

HEARTBEAT_S = 10.0
"""Seconds between two heartbeats."""
STALE_AFTER_S = 60.0
"""Seconds without a heartbeat after which an owner on another machine counts as dead."""
CLAIM_DELAY_S = 1.0
"""Seconds after which a claim that was not overwritten is valid, where claiming is not atomic."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """The process that holds a lock."""

    step: str
    host: str
    pid: int
    since: str
    """Time of the claim by the owner's clock: ISO 8601, UTC."""
    token: str
    """Random; unique for each claim."""
    process: str | None = None
    """Boot id, process namespace, pid and start time, which identify the process; None if they are not known."""
    beats: int = 0
    """Heartbeats so far."""

    @property
    def is_alive(self) -> bool | None:
        """Whether the process runs; None if it is on another machine."""
        if self.process is None or self.process.split()[:2] != machine_identity():
            return None
        return process_identity(self.pid) == self.process

    def __str__(self) -> str:
        return f"{self.step}, process {self.pid} on {self.host}, since {self.since}"


@contextlib.contextmanager
def exclusive_lock(study: Folder, step: str, names: Sequence[str] = ()) -> Iterator[None]:
    """Hold the locks of parts of a study while the block runs.

    Args:
        study: the study folder.
        step: the step that writes, for messages.
        names: folders inside the study, such as `runs/unknown-050-seed0`; empty: the folder of the step.

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
    """Check that this process still holds all of its locks; called before a manifest is written.

    Raises:
        StudyError: another run took a lock over.
    """
    for lock in list(_held_locks):
        lock.verify()


def lock_owners(study: Folder) -> dict[str, LockOwner]:
    """Locked folder of a study -> owner of the lock."""
    locks = study.child(LOCKS)
    owners = {name.removesuffix(".json").replace("--", "/"): _read_owner(locks, name) for name in locks.names(".json")}
    return {name: owner for name, owner in owners.items() if owner is not None}


_held_locks: list["_Lock"] = []
"""Locks of this process."""


class _Lock:
    """The lock of one part of a study."""

    def __init__(self, study: Folder, name: str, step: str) -> None:
        self._part = study.child(*name.split("/"))
        self._folder, self._impatient = study.child(LOCKS), study.child(LOCKS)
        self._impatient.retry_s = HEARTBEAT_S
        self._claimed_at: float | None = None
        self._study_is_new = study.is_local and not os.path.exists(study.local_path)
        self._file = f"{name.replace('/', '--')}.json"
        self._own = LockOwner(
            step=step,
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            token=uuid.uuid4().hex,
            process=process_identity(os.getpid()),
        )

    def acquire(self) -> bool:
        """Take the lock; False if the study is read-only, where no lock is needed.

        Raises:
            StudyError: another run holds it and is alive.
        """
        while True:
            other = _read_owner(self._folder, self._file)
            if other is not None and not self._is_abandoned(other):
                raise StudyError(
                    f"{self._part} is being written by another run: {other}; wait for it to end, or stop it. The lock "
                    f"of a dead run is taken over automatically; the lock is {self._folder}/{self._file}"
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
        other = _read_owner(self._folder, self._file)
        if other is None or other.token != self._own.token:
            raise StudyError(
                f"this run lost the lock of {self._part} after {STALE_AFTER_S:g} s without a heartbeat: the lock "
                f"{f'was taken over by {other}' if other else 'was deleted'}. The step is not finished: run it again"
            )

    def heartbeat(self) -> None:
        """Write a heartbeat, unless the lock was taken over."""
        folder = self._impatient
        with (
            contextlib.suppress(StudyError),
            _folder_mutex(folder),
        ):  # storage that fails once may work at the next beat
            other = _read_owner(folder, self._file)
            if other is not None and (other.token == self._own.token or self._is_too_new_to_be_lost()):
                self._own = dataclasses.replace(self._own, beats=self._own.beats + 1)
                folder.write_json(self._file, dataclasses.asdict(self._own))

    def _is_too_new_to_be_lost(self) -> bool:
        """Whether nobody can have waited for a heartbeat long enough, so that another claim was an overdue write."""
        return self._claimed_at is not None and _uptime() - self._claimed_at < STALE_AFTER_S / 2

    def release(self) -> None:
        """Delete the lock, if it is still ours."""
        folder = self._impatient
        with contextlib.suppress(StudyError), _folder_mutex(folder):
            other = _read_owner(folder, self._file)
            if other is not None and other.token == self._own.token:
                folder.delete(self._file)
                if self._folder.is_local:
                    with contextlib.suppress(OSError):  # not empty: other locks, or what the step has written
                        os.rmdir(self._folder.local_path)
                        if self._study_is_new:
                            os.rmdir(os.path.dirname(self._folder.local_path))

    def _claim(self, before: LockOwner | None) -> bool:
        """Replace the owner `before` by this process; False if another process did so first."""
        began = _uptime()
        with _folder_mutex(self._folder, mkdir=True) as is_atomic:
            if _read_owner(self._folder, self._file) != before:
                return False
            self._folder.write_json(self._file, dataclasses.asdict(self._own))
        if is_atomic:
            return True
        is_slow = _uptime() - began > CLAIM_DELAY_S / 2
        time.sleep(2 * HEARTBEAT_S if is_slow else CLAIM_DELAY_S)
        now = _read_owner(self._folder, self._file)
        if now is None or now.token != self._own.token:
            return False
        self._claimed_at = _uptime()
        return True

    def _is_abandoned(self, other: LockOwner) -> bool:
        alive = other.is_alive
        if alive is not None:
            return not alive
        _LOG.info("%s is locked by another run: %s; waiting %g s for a heartbeat", self._part, other, STALE_AFTER_S)
        end = time.monotonic() + STALE_AFTER_S
        while time.monotonic() < end:
            time.sleep(min(1.0, STALE_AFTER_S / 10))
            began = time.monotonic()
            now = _read_owner(self._folder, self._file)
            if now is None or now.token != other.token:
                return True  # released; `_claim` checks the new owner
            if now.beats != other.beats:
                return False
            if time.monotonic() - began > STALE_AFTER_S / 2:
                end = time.monotonic() + STALE_AFTER_S  # the owner, too, could not reach the storage
        return True


def _uptime() -> float:
    """Seconds since the start of this machine, with the time for which it was suspended where the system tells it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


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
def _folder_mutex(folder: Folder, *, mkdir: bool = False) -> Iterator[bool]:
    """Exclude other processes from the folder of locks; yields False if the storage has no advisory locks.

    Args:
        folder: the folder of locks.
        mkdir: create it first; other processes remove it when they release the last lock.
    """
    descriptor = _flock_folder(folder, mkdir=mkdir) if folder.is_local else None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _flock_folder(folder: Folder, *, mkdir: bool) -> int | None:
    """An open descriptor with an advisory lock on a folder; None if there is no folder or no support for locks."""
    path = folder.local_path
    while True:
        if mkdir:
            folder.mkdir()
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
            pass  # another process has removed the folder
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)


def _read_owner(folder: Folder, file: str) -> LockOwner | None:
    """The owner of the lock; None if there is none. An unreadable file counts as an owner without a heartbeat."""
    try:
        value: Any = folder.read_json(file)
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
