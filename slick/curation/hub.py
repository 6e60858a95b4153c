"""Data sets on the Hugging Face Hub: `hf://datasets/NAME[@REVISION][/FILE]`."""

import os
import re
from typing import NamedTuple
from urllib.parse import unquote

from slick.curation.containers import container_suffixes
from slick.errors import DataError, wrap_library_errors
from slick.models import hub_advice

SCHEME = "hf://"
_EXPECTED = "expected hf://datasets/NAME[@REVISION][/FILE], such as hf://datasets/org/name/data/train.parquet"
_PART = r"[\w][\w.-]*"
_URI = re.compile(
    rf"hf://datasets/(?P<name>{_PART}(/{_PART})?)(@(?P<revision>refs/(convert|pr)/[^/@]+|[^/@]+))?(/(?P<file>[^@]+))?/?"
)


class HubPath(NamedTuple):
    """A data set of the hub, or a file in it."""

    name: str
    revision: str | None
    file: str
    """Empty for the whole set."""


def parse_hub_uri(uri: str) -> HubPath:
    """The parts of a URI. A name without organization has no `/`; its file then follows a revision or has a suffix.

    Raises:
        DataError: it is of another form.

    >>> parse_hub_uri("hf://datasets/org/name@refs%2Fpr%2F1/data/a.jsonl")
    HubPath(name='org/name', revision='refs/pr/1', file='data/a.jsonl')
    """
    match = _URI.fullmatch(uri)
    if match is None or ".." in uri.split("/"):
        raise DataError(f"found the data {uri!r:.200}; {_EXPECTED}")
    name, revision, file = match["name"], match["revision"], match["file"] or ""
    organization, _, second = name.partition("/")
    if not revision and second.lower().endswith(_suffixes()):
        name, file = organization, "/".join(filter(None, [second, file]))
    return HubPath(name, unquote(revision) if revision else None, file.rstrip("/"))


def download_data(uri: str) -> str:
    """A local path of a data set, folder or file of the hub, downloaded unless the cache of Hugging Face has it.

    Without a network only single files are read, because the cache may hold a part of a set.

    Raises:
        DataError: there is no such set, revision or file, no network, or HF_HUB_OFFLINE forbids its use.
    """
    name, revision, file = parse_hub_uri(uri)
    from huggingface_hub import hf_hub_download

    advice = f"{hub_advice('data set')}, or give a local file"
    with wrap_library_errors(f"{uri} cannot be downloaded from the Hugging Face Hub", DataError, lambda _: advice):
        if file.lower().endswith(_suffixes()):
            return str(hf_hub_download(name, file, repo_type="dataset", revision=revision))
        return _download_folder(uri, name, revision, file)


def _download_folder(uri: str, name: str, revision: str | None, folder: str) -> str:
    """All data files of a set or of a folder in it."""
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi().dataset_info(name, revision=revision)
    paths = [sibling.rfilename for sibling in info.siblings or []]
    start = f"{folder}/" if folder else ""
    kept = [path for path in paths if path.startswith(start) and path.lower().endswith((*_suffixes(), ".arrow"))]
    if not kept:
        found = ", ".join(paths[:8]) or "nothing"
        raise DataError(f"{uri} holds no data file, found {found}; name a file or folder that has one")
    # Not snapshot_download, which returns a part of the set without an error if the network fails.
    local = [hf_hub_download(name, path, repo_type="dataset", revision=info.sha) for path in kept]
    return os.path.join(str(local[0]).removesuffix(kept[0]), folder)


def _suffixes() -> tuple[str, ...]:
    return tuple(ending for suffix in container_suffixes() for ending in (suffix, f"{suffix}.gz"))
