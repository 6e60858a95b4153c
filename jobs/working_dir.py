"""What travels to the cluster with a job: the code, its pins, and small files that the flags name.

The package is built from a list of what belongs in it, not from a list of what does not: a study, a model or a key
that lies in the project folder cannot travel by mistake.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slick.errors import SettingsError

ROOT = Path(__file__).parents[1]
"""The folder that holds the packages: the project's, or site-packages where it is installed."""

PACKAGES = ("slick", "tuning", "jobs")
EXTRA_FILES = ("pyproject.toml", "constraints.txt")
IGNORED_PATTERNS = ("__pycache__", "*.pyc", ".*", "studies", "*.parquet", "*.safetensors", "*.gguf", "*.bin", "*.pt")
"""Even inside the packages."""

UPLOADED_FLAGS = {"questions", "audit", "relations", "graded"}
"""Flags (the last part of `--prepare.questions`) that name a file which the driver reads: such a file travels."""
REMOTE_PATH_FLAGS = {"model", "rejects"}
"""Flags that name what stays where it is: too large to travel, or written by the job."""
FILES_FOLDER = "files"
"""Folder of the package for files that the flags name."""
MAX_FILE_BYTES = 200_000_000
"""Of one file that travels; Ray keeps packages in the head's memory and takes 512 MB at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFiles:
    """Flags as the cluster is to see them, and the files that go along."""

    flags: tuple[str, ...]
    files: Mapping[str, Path]
    """Path inside the package -> file on this machine."""


def plan_job_files(flags: Sequence[str], *, via_loopback: bool) -> JobFiles:
    """Turn paths of this machine into paths that hold on the cluster.

    Args:
        flags: of a step, as typed.
        near: the head is reached over loopback: it may be this machine, or the far end of a tunnel.

    Raises:
        SettingsError: a flag names something of this machine that the cluster cannot see.
    """
    words, files = list(flags), dict[str, Path]()
    flag = ""
    for place, word in enumerate(words):
        if word.startswith("--"):
            flag, mark, value = word.partition("=")
            if not mark:
                continue
            words[place] = f"{flag}={_remote_value(flag, value, files, via_loopback=via_loopback)}"
        else:
            words[place] = _remote_value(flag, word, files, via_loopback=via_loopback)
    return JobFiles(flags=tuple(words), files=files)


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
        raise SettingsError(f"{flag} {value} is not here; give a file of this machine, which then travels, or a URI")
    if path.is_absolute() or (kind == "model" and not path.exists()):
        return value  # of a disk that the nodes share, or no path at all: a model of the Hugging Face hub
    if via_loopback:
        return os.path.abspath(path)
    raise SettingsError(
        f"{flag} {value} is a path of this machine, which the cluster does not see; put it where every node reads it "
        f"(s3://bucket/..., or a shared disk by its absolute path)"
    )


def build_working_dir(target: Path, files: Mapping[str, Path], root: Path = ROOT) -> None:
    """Copy what travels into the empty folder `target`."""
    for package in PACKAGES:
        shutil.copytree(root / package, target / package, ignore=shutil.ignore_patterns(*IGNORED_PATTERNS))
    for name in EXTRA_FILES:
        if (root / name).exists():
            shutil.copyfile(root / name, target / name)
    for inside, path in files.items():
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / inside)
