"""The working directory of a submitted job: the code, its constraints, and small files that the flags name.

It is built from an allow list, so that a study, a model or a key in the project folder is never uploaded by mistake.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slick.errors import SettingsError

ROOT = Path(__file__).parents[1]
"""The folder of the packages: the project's folder, or site-packages if the project is installed."""

PACKAGES = ("slick", "tuning", "jobs")
EXTRA_FILES = ("pyproject.toml", "constraints.txt")
IGNORED_PATTERNS = ("__pycache__", "*.pyc", ".*", "studies", "*.parquet", "*.safetensors", "*.gguf", "*.bin", "*.pt")
"""Files that are not uploaded even if they lie inside a package."""

UPLOADED_FLAGS = {"questions", "audit", "relations", "graded"}
"""Last parts of flags whose file the driver reads, such as `questions` of `--prepare.questions`; it is uploaded."""
REMOTE_PATH_FLAGS = {"model", "rejects"}
"""Flags whose path is not uploaded: it is too large, or written by the job."""
FILES_FOLDER = "files"
"""Folder of the uploaded files inside the working directory."""
MAX_FILE_BYTES = 200_000_000
"""Limit of one uploaded file. Ray keeps uploads in the head's memory and accepts 512 MB at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFiles:
    """Flags with paths of the cluster, and the files to upload."""

    flags: tuple[str, ...]
    files: Mapping[str, Path]
    """Path inside the working directory -> file on this machine."""


def plan_job_files(flags: Sequence[str], *, via_loopback: bool) -> JobFiles:
    """Replace paths of this machine by paths of the cluster.

    Args:
        flags: of a step, and their values.
        via_loopback: the head is reached over loopback; it may be on this machine or behind a tunnel.

    Raises:
        SettingsError: a flag names a path of this machine that the cluster cannot reach.
    """
    remote, files = list(flags), dict[str, Path]()
    flag = ""
    for index, argument in enumerate(flags):
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            if equals:
                remote[index] = f"{flag}={_remote_value(flag, value, files, via_loopback=via_loopback)}"
        else:
            remote[index] = _remote_value(flag, argument, files, via_loopback=via_loopback)
    return JobFiles(flags=tuple(remote), files=files)


def _remote_value(flag: str, value: str, files: dict[str, Path], *, via_loopback: bool) -> str:
    kind = flag.removeprefix("--").rpartition(".")[2].replace("-", "_")
    path = Path(os.path.expanduser(value))
    if kind not in UPLOADED_FLAGS | REMOTE_PATH_FLAGS or "://" in value or not value:
        return value
    if kind in UPLOADED_FLAGS and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
        inside = f"{FILES_FOLDER}/{path.name}"
        if files.setdefault(inside, path) != path:
            raise SettingsError(f"{flag} {value}: {files[inside]} has the same name; rename one of them")
        return inside
    if kind in UPLOADED_FLAGS and not path.exists() and not path.is_absolute():
        raise SettingsError(f"{flag} {value} does not exist; give a file of this machine, which is uploaded, or a URI")
    if path.is_absolute() or (kind == "model" and not path.exists()):
        return value  # on a disk that the nodes share, or a model id of the Hugging Face hub
    if via_loopback:
        return os.path.abspath(path)
    raise SettingsError(
        f"{flag} {value} is a path of this machine, which the cluster cannot reach; put it where every node can read "
        "it (s3://bucket/..., or the absolute path of a shared disk)"
    )


def build_working_dir(target: Path, files: Mapping[str, Path], root: Path = ROOT) -> None:
    """Copy the code and the files to the empty folder `target`."""
    for package in PACKAGES:
        shutil.copytree(root / package, target / package, ignore=shutil.ignore_patterns(*IGNORED_PATTERNS))
    for name in EXTRA_FILES:
        if (root / name).exists():
            shutil.copyfile(root / name, target / name)
    for inside, path in files.items():
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / inside)
