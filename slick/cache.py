"""What this machine keeps for itself: worlds that were built, and copies of models from object stores."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from slick.errors import StudyError
from slick.storage import Folder


def cache_folder(kind: str) -> Path:
    """`$SLICK_CACHE/kind`, or the same in the user's cache folder."""
    named = os.environ.get("SLICK_CACHE")
    if named:
        return Path(named).expanduser() / kind
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "slick" / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slick" / kind


def ensure_cache_folder(kind: str) -> Path:
    """The same folder, made if it is not there.

    Raises:
        StudyError: it cannot be made, as where there is no home directory.
    """
    try:
        folder = cache_folder(kind)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows the user's home directory
        raise StudyError(
            f"this machine's cache cannot be written ({error}); set SLICK_CACHE to a folder that you may write to"
        ) from error
    return folder


def download_to_cache(folder: Folder) -> str:
    """A path on this machine with the files of a folder: the folder itself, or a copy made once for each state of it.

    Processes of one machine that ask at the same time make one copy. Copies stay until somebody deletes them.

    Raises:
        StudyError: the folder is empty or cannot be read.
    """
    if folder.is_local:
        return folder.uri
    etag = folder.etag()
    if etag is None:
        raise StudyError(f"{folder} holds no files; check the address, and that this machine may read there")
    target = ensure_cache_folder("models") / etag
    if target.is_dir():
        return str(target)
    from filelock import FileLock  # comes with huggingface_hub

    with FileLock(f"{target}.lock"):
        if not target.is_dir():  # else another process made it meanwhile
            part = tempfile.mkdtemp(prefix=f".{etag}-", dir=target.parent)
            try:
                folder.download(part)
                os.rename(part, target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return str(target)
