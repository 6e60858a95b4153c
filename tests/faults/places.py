"""Where the study of a round is: in a file system in memory, or in a local object store behind a proxy."""

import random
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.fs as pafs

from tests.faults.kinds import KINDS, mounted_disk
from tests.faults.store_proxy import StoreProxy, running_proxy
from tests.local.aws import make_bucket, running_aws

DISK_FOLDER = "disk"
_BUCKET = "studies"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a study."""

    uri: str
    kinds: tuple[str, ...]
    """The kinds of faults that can disturb a study there."""
    fetch: Callable[[], Path]
    """Returns a local folder with the files of the study."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the command."""
    proxy: StoreProxy | None = None
    num_unfinished_uploads: Callable[[], int] = lambda: 0


@contextmanager
def choose_place(folder: Path, reference: Path, kinds: Sequence[str], number: int) -> Iterator[Place]:
    """Prepare the place of a round's study, with a copy of the world.

    Every second round is in an object store if some kinds of faults need one and others need none.

    Args:
        folder: the folder of the round.
        reference: the undisturbed study.
        kinds: the kinds of faults to choose from.
        number: the number of the round.
    """
    needs = {KINDS[name].needs for name in kinds}
    if "store" in needs and (needs == {"store"} or number % 2):
        with _store(folder, reference, kinds, number) as place:
            yield place
    else:
        with _disk(folder, reference, kinds) as place:
            yield place


@contextmanager
def _disk(folder: Path, reference: Path, kinds: Sequence[str]) -> Iterator[Place]:
    disk = folder / DISK_FOLDER
    with mounted_disk(disk) as is_mounted:
        study = disk / "study"
        shutil.copytree(reference / "world", study / "world")
        possible = ("", "disk") if is_mounted else ("",)
        names = tuple(name for name in kinds if KINDS[name].needs in possible)
        yield Place(uri=str(study), kinds=names, fetch=lambda: study)


@contextmanager
def _store(folder: Path, reference: Path, kinds: Sequence[str], number: int) -> Iterator[Place]:
    with running_aws(folder / "store.log") as variables:
        address = variables["AWS_ENDPOINT_URL"]
        make_bucket(address, _BUCKET)
        store = pafs.S3FileSystem(
            access_key=variables["AWS_ACCESS_KEY_ID"],
            secret_key=variables["AWS_SECRET_ACCESS_KEY"],
            region=variables["AWS_DEFAULT_REGION"],
            endpoint_override=address,
        )
        path = f"{_BUCKET}/study"
        pafs.copy_files(str(reference / "world"), f"{path}/world", destination_filesystem=store)
        with running_proxy(address, random.Random(number)) as proxy:
            yield Place(
                uri=f"s3://{path}",
                kinds=tuple(name for name in kinds if KINDS[name].needs in ("", "store")),
                fetch=lambda: _fetch(store, path, folder / "fetched"),
                variables={**variables, "AWS_ENDPOINT_URL": proxy.address},
                proxy=proxy,
                num_unfinished_uploads=lambda: _num_uploads(address),
            )


def _fetch(store: pafs.FileSystem, path: str, target: Path) -> Path:
    """Copy the study, without empty folders: pyarrow keeps those of deleted files in object stores."""
    target.mkdir()
    pafs.copy_files(path, str(target), source_filesystem=store)
    for folder in sorted((path for path in target.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    return target


def _num_uploads(address: str) -> int:
    with urllib.request.urlopen(f"{address}/{_BUCKET}?uploads") as answer:
        return int(answer.read().count(b"<Upload>"))
