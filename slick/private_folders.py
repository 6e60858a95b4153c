"""Temporary folders of a process, which the next process deletes if their owner was killed."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slick.process_identity import machine_identity, process_identity

_OWNER_FILE = "owner"
"""The file inside a folder that identifies the process that made it."""


def new_private_folder(prefix: str, parent: str) -> str:
    """A new folder that only this user may read; folders of killed processes beside it are deleted.

    Args:
        prefix: the beginning of its name.
        parent: the folder that contains it.

    Raises:
        OSError: it cannot be written.
    """
    delete_abandoned_folders(prefix, parent)
    folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
    Path(folder, _OWNER_FILE).write_text(process_identity(os.getpid()) or "")
    return folder


@contextmanager
def private_folder(prefix: str) -> Iterator[str]:
    """A folder in TMPDIR that is deleted when the block ends; if the process is killed, the next one deletes it.

    Raises:
        OSError: it cannot be written.
    """
    folder = new_private_folder(prefix, tempfile.gettempdir())
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def delete_abandoned_folders(prefix: str, parent: str) -> None:
    """Delete the folders of processes of this machine that have ended. Those of other machines and users stay."""
    for folder in glob.glob(os.path.join(glob.escape(parent), f"{glob.escape(prefix)}*")):
        with suppress(OSError):
            owner = Path(folder, _OWNER_FILE).read_text()
            if owner.split()[:2] == machine_identity() and process_identity(int(owner.split()[2])) != owner:
                shutil.rmtree(folder, ignore_errors=True)
