"""The cache of this machine: built worlds, and copies of models from object stores."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from slick.errors import StudyError
from slick.storage import Folder


def cache_folder(kind: str) -> Path:
    """The path `$SLICK_CACHE/kind`, or `slick/kind` in the user's cache folder."""
    named = os.environ.get("SLICK_CACHE")
    if named:
        return Path(named).expanduser() / kind
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "slick" / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slick" / kind


def ensure_cache_folder(kind: str) -> Path:
    """The path of `cache_folder`, as an existing folder.

    Raises:
        StudyError: it cannot be created, for example because there is no home directory.
    """
    try:
        folder = cache_folder(kind)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: unknown home directory
        raise StudyError(
            f"this machine's cache cannot be written ({error}); set SLICK_CACHE to a folder that you can write to"
        ) from error
    return folder


def download_to_cache(folder: Folder) -> str:
    """A local path with the files of a folder: the folder itself, or a cached copy of its present files.

    Concurrent processes of one machine make one copy. Copies are never deleted.

    Raises:
        StudyError: the folder is empty or cannot be read.
    """
    if folder.is_local:
        return folder.uri
    etag = folder.etag()
    if etag is None:
        raise StudyError(f"{folder} has no files; check the address, and that this machine may read it")
    target = ensure_cache_folder("models") / etag
    if target.is_dir():
        return str(target)
    from filelock import FileLock  # comes with huggingface_hub

    with FileLock(f"{target}.lock"):
        if not target.is_dir():  # otherwise another process has made it
            part = tempfile.mkdtemp(prefix=f".{etag}-", dir=target.parent)
            try:
                folder.download(part)
                os.rename(part, target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return str(target)
