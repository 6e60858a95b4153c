"""Ends a command if a process that its local Ray cluster needs has died.

Ray waits for a lost node without limit, since another may join. A cluster on this machine gets no other one.
"""

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from slick.process_identity import process_identity

_LOG = logging.getLogger(__name__)

POLL_S = 0.5
"""Seconds between two checks."""
_SETTLE_S = 0.1
"""Seconds until a process whose connections have broken counts as dead."""
_LOST_STATUS = 2
"""As for other errors that the user can fix."""


class ClusterWatch:
    """Watches processes of the cluster that this process starts."""

    def __init__(
        self, find_processes: Callable[[], Mapping[str, int]], is_in_use: Callable[[], bool], end: Callable[[], None]
    ) -> None:
        """Start to watch in a thread, until the cluster is not in use.

        Args:
            find_processes: returns name -> process id of those that have been started.
            is_in_use: whether this process starts or uses the cluster; false once Ray shuts down.
            end: kills what is left of the cluster.
        """
        self._find_processes, self._is_in_use, self._end = find_processes, is_in_use, end
        self._identities: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()
        self._stderr = os.dup(2)  # stderr is redirected while Ray starts
        threading.Thread(target=self._watch, name="slick-cluster-watch", daemon=True).start()

    def find_lost(self) -> str:
        """The name of a process that has died although the cluster is in use; otherwise empty."""
        for name, pid in self._find_processes().items():
            if name not in self._identities and (identity := process_identity(pid)):
                self._identities[name] = pid, identity
        for name, (pid, identity) in self._identities.items():
            if process_identity(pid) != identity and self._is_in_use():
                return name
        return ""

    def end_if_lost(self) -> None:
        """Print one message and end this process if the cluster is lost."""
        with self._lock:  # held until the end, so that other threads print no message of their own
            if name := self.find_lost():
                sys.stdout.flush()
                os.write(self._stderr, f"\nslick: {_message(name)}\n".encode())
                self._end()
                os._exit(_LOST_STATUS)  # other threads wait in Ray's code, which exceptions do not reach

    def _watch(self) -> None:
        while self._is_in_use():
            if name := self.find_lost():
                if _ends_process:
                    self.end_if_lost()
                _LOG.error(_message(name))
                return
            time.sleep(POLL_S)


_ends_process = False
_watch: ClusterWatch | None = None


@contextmanager
def end_process_on_loss() -> Iterator[None]:
    """While active, the loss of the cluster ends this process; not for users of the Python API."""
    global _ends_process
    _ends_process = True
    try:
        yield
    except Exception:
        if _watch is not None:
            time.sleep(_SETTLE_S)
            _watch.end_if_lost()  # with one message, about the cause
        raise
    finally:
        _ends_process = False


@contextmanager
def watch_cluster(
    find_processes: Callable[[], Mapping[str, int]],
    is_connected: Callable[[], bool],
    kill: Callable[[], None],
    folder: str,
) -> Iterator[None]:
    """Watch the cluster that this process starts in the block, until this process disconnects from it.

    Args:
        find_processes: returns name -> process id of the processes that the cluster needs.
        is_connected: whether this process uses the cluster.
        kill: kills the cluster's processes.
        folder: the private folder of the cluster, which is deleted if the cluster is lost.
    """
    global _watch
    is_starting = True

    def end() -> None:
        kill()
        shutil.rmtree(folder, ignore_errors=True)

    _watch = ClusterWatch(find_processes, lambda: is_starting or is_connected(), end)
    try:
        yield
    finally:
        is_starting = False


def _message(name: str) -> str:
    return (
        f"Ray's process {name} on this machine has died (killed, perhaps for lack of memory). Finished work is kept; "
        "the same command resumes it."
    )
