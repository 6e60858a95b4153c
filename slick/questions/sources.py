"""Where a question set lies: an EntityQuestions folder or zip, or tables (Parquet, JSONL, CSV), local or by URI.

A source is read into memory whole, so that damage is found before anything is written. Members of a zip are read by
their expected names and never extracted.
"""

import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from slick.errors import DataError, StudyError
from slick.matching import nfc
from slick.questions.splits import SPLITS, splits_in_name
from slick.storage import Folder

TEMPLATES = "relation_query_templates.json"
TABLE_SUFFIXES = (".parquet", ".jsonl", ".csv")

MAX_MEMBER_BYTES = 1 << 29
"""The largest member of a zip that is unpacked; the largest of EntityQuestions has 1.2 MB."""
MAX_ZIP_BYTES = 1 << 32
"""The most that is unpacked of one zip; EntityQuestions has 28 MB."""

_MEMBER = re.compile(r"(?P<top>.*?)(?P<name>(?P<split>train|dev|test)/(?P<relation>[^/]+)\.(?P=split)\.json)")
_WANTED = (
    "wanted EntityQuestions (its zip, or a folder with {train,dev,test}/P*.{train,dev,test}.json), or a question set "
    "as .parquet, .jsonl or .csv with columns relation, question and answers"
)


Layout = Literal["entity_questions", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A question set, not yet parsed."""

    name: str
    """As the user named it."""
    layout: Layout
    files: dict[str, bytes]
    """Content by name, sorted by name; `train/P17.train.json`, ... in the layout of EntityQuestions."""
    templates: dict[str, str]
    """Of the source's own relation_query_templates.json; empty without one."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of names and content: a folder and a zip with the same files have the same."""
        digest = hashlib.sha256(json.dumps(self.templates, sort_keys=True).encode())
        for name, data in self.files.items():
            digest.update(f"\0{name}\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()[:16]


def open_source(location: str) -> Source:
    """Read a question set from a file or a folder.

    Args:
        location: path or URI of a folder, or of a .zip, .parquet, .jsonl or .csv file.

    Raises:
        DataError: nothing is there, or it is no question set, or damaged.
    """
    if not location.strip():
        raise DataError(f"the question source has no name; {_WANTED}")
    folder = Folder(location)
    try:
        if folder.name in folder.parent.names():
            return _open_file(folder.parent, folder.name, location)
        if not folder.exists():
            raise DataError(f"question source {location} is not there; {_WANTED}")
        return _open_folder(folder, location)
    except (OSError, pa.ArrowInvalid, StudyError) as error:
        raise DataError(f"question source {location} cannot be read: {error}; {_WANTED}") from error


def _open_file(parent: Folder, name: str, location: str) -> Source:
    if name.lower().endswith(".zip"):
        return _open_zip(parent.read_bytes(name), location)
    if not name.lower().endswith(TABLE_SUFFIXES):
        raise DataError(f"{location} is not a known kind of file{_described(parent, name)}; {_WANTED}")
    return Source(name=location, layout="table", files={name: parent.read_bytes(name)}, templates={})


def _described(parent: Folder, name: str) -> str:
    """What a file of another kind holds and how to make a question set of it, where that can be told."""
    if name.lower().endswith((".gz", ".zst", ".bz2", ".xz")):
        return " (it is compressed: unpack it first)"
    if not name.lower().endswith(".json"):
        return ""
    try:
        rows = json.loads(parent.read_bytes(name).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return ""
    return (
        f" (a JSON list of objects with {', '.join(rows[0])}: write one object a line, as .jsonl, with other columns)"
    )


def _open_folder(folder: Folder, location: str) -> Source:
    top, beside = (folder.child("dataset"), folder) if folder.exists("dataset") else (folder, folder)
    files = {
        f"{split}/{name}": top.child(split).read_bytes(name)
        for split in sorted(SPLITS)
        for name in top.child(split).names(f".{split}.json")
        if not name.startswith(".")
    }
    if files:
        holder = next((place for place in (beside, top.parent) if place.exists(TEMPLATES)), None)
        templates = _templates(holder.read_bytes(TEMPLATES), f"{holder}/{TEMPLATES}") if holder else {}
        return Source(name=location, layout="entity_questions", files=files, templates=templates)
    tables = {
        f"{prefix}{n}": place.read_bytes(n)
        for prefix, place in _table_folders(folder)
        for n in place.names()
        if n.lower().endswith(TABLE_SUFFIXES) and n[0] not in "._"
    }
    if not tables:
        found = [*(f"{n}/" for n in folder.folders()), *folder.names()][:8]
        raise DataError(f"folder {location} holds no question file, found {', '.join(found) or 'nothing'}; {_WANTED}")
    return Source(name=location, layout="table", files=dict(sorted(tables.items())), templates={})


def _table_folders(folder: Folder) -> list[tuple[str, Folder]]:
    """The folder itself and those folders in it that are named after a split, each with the prefix of its files."""
    return [("", folder), *((f"{name}/", folder.child(name)) for name in folder.folders() if splits_in_name(name))]


def _open_zip(data: bytes, location: str) -> Source:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _members(archive, location)
            files = {name: _read_member(archive, members[name], location) for name in sorted(members)}
            templates = [n for n in archive.namelist() if re.fullmatch(rf"([^_./][^/]*/)*{re.escape(TEMPLATES)}", n)]
            parsed = (
                _templates(
                    _read_member(archive, archive.getinfo(templates[0]), location), f"{location}: {templates[0]}"
                )
                if templates
                else {}
            )
    except (zipfile.BadZipFile, struct.error, ValueError) as error:
        raise DataError(
            f"{location} is not a whole zip file: {error} ({len(data):,} bytes found); fetch it again, or unpack it "
            "with a repair tool and name the folder"
        ) from error
    layout: Layout = "table" if next(iter(files)).lower().endswith(TABLE_SUFFIXES) else "entity_questions"
    return Source(name=location, layout=layout, files=files, templates=parsed)


def _members(archive: zipfile.ZipFile, location: str) -> dict[str, zipfile.ZipInfo]:
    """The question files of a zip by their name below the dataset folder."""
    found: dict[str, zipfile.ZipInfo] = {}
    tops = set()
    for info in archive.infolist():
        match = _MEMBER.fullmatch(info.filename)
        if not match or (match["top"] and not match["top"].endswith("/")):
            continue
        if "__MACOSX/" in match["top"] or match["relation"].startswith("."):
            continue  # what macOS adds to a zip beside the files themselves
        if match["name"] in found:
            raise DataError(
                f"{location} holds {match['name']} twice, as {found[match['name']].filename} and {info.filename}; "
                "wanted one dataset in a zip: remove the other"
            )
        found[match["name"]] = info
        tops.add(match["top"])
    found = found or _table_members(archive)
    if not found:
        names = ", ".join(archive.namelist()[:5]) or "nothing"
        raise DataError(
            f"{location} holds no member {{train,dev,test}}/P*.{{train,dev,test}}.json, found {names}; {_WANTED}"
        )
    if len(tops) > 1:
        raise DataError(f"{location} holds question files below {', '.join(sorted(tops))}; wanted one dataset in a zip")
    size = sum(info.file_size for info in found.values())
    if size > MAX_ZIP_BYTES or any(info.file_size > MAX_MEMBER_BYTES for info in found.values()):
        raise DataError(
            f"{location} would unpack to {size:,} bytes; at most {MAX_MEMBER_BYTES:,} bytes a member and "
            f"{MAX_ZIP_BYTES:,} in all are read from a zip; unpack it yourself and name the folder"
        )
    return found


def _table_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The tables of a zip that is no EntityQuestions."""
    return {
        info.filename: info
        for info in archive.infolist()
        if info.filename.lower().endswith(TABLE_SUFFIXES) and not re.search(r"(^|/)(__MACOSX/|[._])", info.filename)
    }


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, location: str) -> bytes:
    mend = "fetch the zip again, or unpack it and name the folder"
    if info.flag_bits & 1:
        raise DataError(
            f"{location}, member {info.filename}: it is encrypted, wanted plain; unpack it and name the folder"
        )
    if info.file_size > MAX_MEMBER_BYTES:
        raise DataError(
            f"{location}, member {info.filename}: {info.file_size:,} bytes; at most {MAX_MEMBER_BYTES:,} are read"
        )
    try:
        return archive.read(info)
    except NotImplementedError as error:
        raise DataError(
            f"{location}, member {info.filename}: {error}; pack it with ordinary deflate, or {mend}"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, OSError, ValueError) as error:
        raise DataError(
            f"{location}, member {info.filename}: it is damaged ({error or 'it ends too early'}); {mend}"
        ) from error


def _templates(data: bytes, where: str) -> dict[str, str]:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not UTF-8 JSON: {error}; mend it, or remove it: the shipped templates then serve"
        ) from error
    if not isinstance(value, dict) or not all(isinstance(template, str) for template in value.values()):
        raise DataError(
            f'{where} is not of the form {{"P17": "Which country is [X] located in?", ...}}; mend or remove it'
        )
    return {nfc(relation): template for relation, template in value.items() if template.count("[X]") == 1}


def study_world(study: Folder) -> str:
    """Where a study keeps the questions of the world it built.

    Raises:
        StudyError: it has built none.
    """
    world = study.child("world")
    if not world.exists("manifest.json"):
        raise StudyError(
            f"{study} has no finished world and no question source was named; run `slick world` with this --out first, "
            "or name a question set with --questions"
        )
    return world.uri
