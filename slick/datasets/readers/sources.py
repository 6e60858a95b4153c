"""Where a question set lies: an EntityQuestions folder or zip, or tables (Parquet, JSONL, CSV), local or by URI.

Files are opened one at a time and never held together. Members of a zip are read by their expected names, never
extracted, and only as far as `slick.limits` allows.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

import pyarrow as pa

from slick import limits
from slick.datasets.columns import SPLITS, splits_in_name
from slick.datasets.readers.archives import Archive
from slick.errors import DataError, StudyError
from slick.matching import nfc
from slick.storage import Folder
from slick.user_files import parse_user_json, too_large_error

TEMPLATES = "relation_query_templates.json"
TABLE_SUFFIXES = (".parquet", ".jsonl", ".csv")

_BLOCK = 1 << 20
_MEMBER = re.compile(r"(?P<top>.*?)(?P<name>(?P<split>train|dev|test)/(?P<relation>[^/]+)\.(?P=split)\.json)")
_EXPECTED_LAYOUT = (
    "wanted EntityQuestions (its zip, or a folder with {train,dev,test}/P*.{train,dev,test}.json), or a question set "
    "as .parquet, .jsonl or .csv with columns relation, question and answers"
)

Layout = Literal["entity_questions", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a question set, or one member of a zip."""

    name: str
    """Below the question set."""
    where: str
    """For messages."""
    size: int
    """Bytes, unpacked."""
    open: Callable[[], BinaryIO]
    """From its beginning, for reading; errors name the file."""
    random_access: Callable[[], pa.NativeFile]
    """For formats that are not read in order; a member of a zip is then held in memory whole."""

    def is_blank(self) -> bool:
        """True if there is nothing but white space and a byte order mark."""
        with self.open() as stream:
            return not any(block.strip(b"\xef\xbb\xbf \t\r\n\v\f") for block in iter(lambda: stream.read(_BLOCK), b""))

    def read(self, limit: int, mend: str) -> bytes:
        """The content.

        Raises:
            DataError: it has more bytes than `limit`; `mend` is what to do then.
        """
        if self.size > limit:
            raise too_large_error(self.where, self.size, limit, mend)
        with self.open() as stream:
            return stream.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSource:
    """A question set, not yet read."""

    name: str
    """As the user named it."""
    layout: Layout
    files: tuple[str, ...]
    """Names, sorted; `train/P17.train.json`, ... in the layout of EntityQuestions."""
    templates: dict[str, str]
    """Of the source's own relation_query_templates.json; empty without one."""
    open_files: Callable[[], Iterator[SourceFile]]
    """The files in the order of `files`, each to be read before the next is taken."""
    versions: Callable[[], object]
    """Changes when a file does."""
    version: object
    """What `versions` gave when the source was opened."""

    def read_files(self) -> Iterator[SourceFile]:
        """The files in order, each to be read before the next is taken.

        Raises:
            DataError: a file changed since the source was opened.
        """
        yield from self.open_files()
        if self.versions() != self.version:
            raise DataError(
                f"question source {self.name} changed while it was read; give the command again when nothing writes "
                "to it"
            )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of names and content: a folder and a zip with the same files have the same."""
        digest = hashlib.sha256(json.dumps(self.templates, sort_keys=True).encode())
        for file in self.read_files():
            digest.update(f"\0{file.name}\0{file.size}\0".encode())
            with file.open() as stream:
                for block in iter(lambda: stream.read(_BLOCK), b""):
                    digest.update(block)
        return digest.hexdigest()[:16]


def open_source(location: str) -> QuestionSource:
    """Find the files of a question set; their content is read later, one at a time.

    Args:
        location: path or URI of a folder, or of a .zip, .parquet, .jsonl or .csv file.

    Raises:
        DataError: nothing is there, or it is no question set, or more than is read.
    """
    if not location.strip():
        raise DataError(f"the question source has no name; {_EXPECTED_LAYOUT}")
    folder = Folder(location)
    try:
        if folder.name in folder.parent.names():
            return _open_file(folder.parent, folder.name, location)
        if not folder.exists():
            raise DataError(f"question source {location} is not there; {_EXPECTED_LAYOUT}")
        return _open_folder(folder, location)
    except (OSError, pa.ArrowInvalid, StudyError) as error:
        raise _unreadable_error(location, error) from error


def _unreadable_error(location: str, error: Exception) -> DataError:
    return DataError(f"question source {location} cannot be read: {error}; {_EXPECTED_LAYOUT}")


def _open_file(parent: Folder, name: str, location: str) -> QuestionSource:
    if name.lower().endswith(".zip"):
        return _open_zip(parent, name, location)
    if not name.lower().endswith(TABLE_SUFFIXES):
        raise DataError(
            f"{location} is not a known kind of file{_describe_unsupported(parent, name)}; {_EXPECTED_LAYOUT}"
        )
    return _plain_source(location, "table", {name: (parent, name)}, {})


def _describe_unsupported(parent: Folder, name: str) -> str:
    """What a file of another kind holds and how to make a question set of it, where that can be told."""
    if name.lower().endswith((".gz", ".zst", ".bz2", ".xz")):
        return " (it is compressed: unpack it first)"
    if not name.lower().endswith(".json") or parent.version(name)[0] > limits.MAX_SETTINGS_BYTES:
        return ""
    try:
        rows = parse_user_json(parent.read_bytes(name), name, "")
    except DataError:
        return ""
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return ""
    columns = ", ".join(list(rows[0])[:20])
    return f" (a JSON list of objects with {columns}: write one object a line, as .jsonl, with other columns)"


def _open_folder(folder: Folder, location: str) -> QuestionSource:
    top, beside = (folder.child("dataset"), folder) if folder.exists("dataset") else (folder, folder)
    files = {
        f"{split}/{name}": (top.child(split), name)
        for split in sorted(SPLITS)
        for name in top.child(split).names(f".{split}.json")
        if not name.startswith(".")
    }
    if files:
        holder = next((place for place in (beside, top.parent) if place.exists(TEMPLATES)), None)
        templates = _folder_templates(holder) if holder else {}
        return _plain_source(location, "entity_questions", files, templates)
    tables = {
        f"{prefix}{n}": (place, n)
        for prefix, place in _table_folders(folder)
        for n in place.names()
        if n.lower().endswith(TABLE_SUFFIXES) and n[0] not in "._"
    }
    if not tables:
        found = [*(f"{n}/" for n in folder.folders()), *folder.names()][:8]
        raise DataError(
            f"folder {location} holds no question file, found {', '.join(found) or 'nothing'}; {_EXPECTED_LAYOUT}"
        )
    return _plain_source(location, "table", dict(sorted(tables.items())), {})


def _table_folders(folder: Folder) -> list[tuple[str, Folder]]:
    """The folder itself and those folders in it that are named after a split, each with the prefix of its files."""
    return [("", folder), *((f"{name}/", folder.child(name)) for name in folder.folders() if splits_in_name(name))]


def _plain_source(
    location: str, layout: Layout, files: dict[str, tuple[Folder, str]], templates: dict[str, str]
) -> QuestionSource:
    """A source whose files lie in folders."""
    if len(files) > limits.MAX_FILES:
        raise DataError(
            f"{location} holds {len(files):,} question files, at most {limits.MAX_FILES:,} are read; join them into "
            "fewer files"
        )
    folders = {folder.uri: folder for folder, _ in files.values()}

    def versions() -> dict[str, tuple[int, int]]:
        listed = {uri: folder.versions() for uri, folder in folders.items()}
        return {name: listed[folder.uri].get(file, (0, 0)) for name, (folder, file) in files.items()}

    version = versions()

    def open_files() -> Iterator[SourceFile]:
        for name, (folder, file) in files.items():
            where = location if location.endswith(name) else f"{location}: {name}"

            def random_access(folder: Folder = folder, file: str = file) -> pa.NativeFile:
                try:
                    return folder.open_input(file)
                except StudyError as error:
                    raise _unreadable_error(location, error) from error

            def open_file(random_access: Callable[[], pa.NativeFile] = random_access) -> BinaryIO:
                return cast(BinaryIO, io.BufferedReader(random_access(), _BLOCK))

            yield SourceFile(name=name, where=where, size=version[name][0], open=open_file, random_access=random_access)

    return QuestionSource(
        name=location,
        layout=layout,
        files=tuple(files),
        templates=templates,
        open_files=open_files,
        versions=versions,
        version=version,
    )


def _open_zip(parent: Folder, name: str, location: str) -> QuestionSource:
    def open_archive(stack: ExitStack) -> Archive:
        stream = stack.enter_context(parent.open_input(name))
        return stack.enter_context(Archive(cast(BinaryIO, io.BufferedReader(stream, _BLOCK)), location))

    version = parent.version(name)
    with ExitStack() as stack:
        archive = open_archive(stack)
        members = _members(archive.names(), location)
        archive.check(list(members.values()))
        templates = [n for n in archive.names() if re.fullmatch(rf"([^_./][^/]*/)*{re.escape(TEMPLATES)}", n)]
        parsed = {}
        if templates:
            where = f"{location}: {templates[0]}"
            with archive.open(templates[0], limits.MAX_SETTINGS_BYTES) as stream:
                parsed = _templates(stream.read(), where)

    def open_files() -> Iterator[SourceFile]:
        with ExitStack() as stack:
            archive = open_archive(stack)
            for member, path in members.items():

                def open_member(path: str = path) -> BinaryIO:
                    return archive.open(path, limits.MAX_MEMBER_BYTES)

                def random_access(open_member: Callable[[], BinaryIO] = open_member) -> pa.NativeFile:
                    with open_member() as stream:
                        return pa.BufferReader(stream.read())

                yield SourceFile(
                    name=member,
                    where=f"{location}: {member}",
                    size=archive.size(path),
                    open=open_member,
                    random_access=random_access,
                )

    return QuestionSource(
        name=location,
        layout="table" if next(iter(members)).lower().endswith(TABLE_SUFFIXES) else "entity_questions",
        files=tuple(members),
        templates=parsed,
        open_files=open_files,
        versions=lambda: parent.version(name),
        version=version,
    )


def _members(paths: list[str], location: str) -> dict[str, str]:
    """The paths of the question files in a zip by their names below the dataset folder, sorted by name."""
    found: dict[str, str] = {}
    tops = set()
    for path in paths:
        match = _MEMBER.fullmatch(path)
        if not match or (match["top"] and not match["top"].endswith("/")):
            continue
        if "__MACOSX/" in match["top"] or match["relation"].startswith("."):
            continue  # what macOS adds to a zip beside the files themselves
        if match["name"] in found:
            raise DataError(
                f"{location} holds {match['name']} twice, as {found[match['name']]} and {path}; wanted one dataset in "
                "a zip: remove the other"
            )
        found[match["name"]] = path
        tops.add(match["top"])
    found = found or _table_members(paths, location)
    if not found:
        names = ", ".join(paths[:5]) or "nothing"
        raise DataError(
            f"{location} holds no member {{train,dev,test}}/P*.{{train,dev,test}}.json, found {names}; "
            f"{_EXPECTED_LAYOUT}"
        )
    if len(tops) > 1:
        raise DataError(
            f"{location} holds question files below {', '.join(sorted(tops)[:5])}; wanted one dataset in a zip"
        )
    return dict(sorted(found.items()))


def _table_members(paths: list[str], location: str) -> dict[str, str]:
    """The tables of a zip that is no EntityQuestions."""
    tables = [
        path
        for path in paths
        if path.lower().endswith(TABLE_SUFFIXES) and not re.search(r"(^|/)(__MACOSX/|[._])", path)
    ]
    repeated = next((path for path, num in Counter(tables).items() if num > 1), None)
    if repeated:
        raise DataError(f"{location} holds {repeated} twice; wanted each file once: remove one of the two")
    return {path: path for path in tables}


def _folder_templates(holder: Folder) -> dict[str, str]:
    where, size = f"{holder}/{TEMPLATES}", holder.version(TEMPLATES)[0]
    if size > limits.MAX_SETTINGS_BYTES:
        raise too_large_error(where, size, limits.MAX_SETTINGS_BYTES, "remove it: the shipped templates then serve")
    return _templates(holder.read_bytes(TEMPLATES), where)


def _templates(data: bytes, where: str) -> dict[str, str]:
    value = parse_user_json(data, where, "mend it, or remove it: the shipped templates then serve")
    if not isinstance(value, dict) or not all(isinstance(template, str) for template in value.values()):
        raise DataError(
            f'{where} is not of the form {{"P17": "Which country is [X] located in?", ...}}; mend or remove it'
        )
    return {nfc(relation): template for relation, template in value.items() if template.count("[X]") == 1}


def world_questions_uri(study: Folder) -> str:
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
