"""Question sets: EntityQuestions or tables, in a file, folder or zip, at a path or URI.

Files are opened one at a time. Members of a zip are read by name and never extracted. `slick.limits` bounds what is
read.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Literal, cast

import pyarrow as pa

from slick import limits
from slick.datasets.columns import SPLITS, splits_in_name
from slick.datasets.readers import MEMBER_PATTERN, TEMPLATES_FILE, parse_templates
from slick.datasets.rows import (
    BLOCK_BYTES,
    Archive,
    RawRow,
    SourceFile,
    is_table,
    question_readers,
    reader_for,
    table_suffixes,
)
from slick.errors import DataError, StudyError
from slick.storage import Folder
from slick.strict_json import parse_user_json
from slick.user_files import encoding_error, too_large_error

Layout = Literal["entity_questions", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSource:
    """A question set that is not read yet."""

    name: str
    """The path or URI that the user gave."""
    layout: Layout
    files: tuple[str, ...]
    """Names, sorted; `train/P17.train.json`, ... in the layout of EntityQuestions."""
    templates: dict[str, str]
    """Of the source's own relation_query_templates.json; empty without one."""
    open_files: Callable[[], Iterator[SourceFile]]
    """The files in the order of `files`. Each must be read before the next is taken."""
    versions: Callable[[], object]
    """Differs if a file has changed."""
    version: object
    """The result of `versions` when the source was opened."""

    def read_files(self) -> Iterator[SourceFile]:
        """The files in order. Each must be read before the next is taken.

        Raises:
            DataError: a file changed since the source was opened.
        """
        yield from self.open_files()
        if self.versions() != self.version:
            raise DataError(
                f"question source {self.name} changed while it was read; run the command again when no other program "
                "writes to it"
            )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of names and content: a folder and a zip with the same files have the same."""
        digest = hashlib.sha256(json.dumps(self.templates, sort_keys=True).encode())
        for file in self.read_files():
            digest.update(f"\0{file.name}\0{file.size}\0".encode())
            with file.open() as stream:
                for block in iter(lambda: stream.read(BLOCK_BYTES), b""):
                    digest.update(block)
        return digest.hexdigest()[:16]


def read_rows(source: QuestionSource) -> Iterator[RawRow]:
    """All rows of a source, file by file. Two files are never held in memory together.

    Raises:
        DataError: a file is damaged, empty, lacks a column, has more rows than the limit, or changed meanwhile.
    """
    for file in source.read_files():
        if file.is_blank():
            raise DataError(f"{file.where} is empty ({file.size} bytes); download it again or leave it out")
        rows = question_readers.get(source.layout)(file) if source.layout != "table" else _table_rows(file)
        for number, row in enumerate(rows, 1):
            if number > limits.MAX_ROWS_PER_FILE:
                raise DataError(
                    f"{file.where} has more than {limits.MAX_ROWS_PER_FILE:,} rows, which is the limit; leave some "
                    "out, or divide them among several files"
                )
            yield row


def _table_rows(file: SourceFile) -> Iterator[RawRow]:
    named_splits = splits_in_name(file.name)
    try:
        for row in reader_for(file.name)(file):
            # The name of a part of a study contains its relation, which may be a word for a split.
            is_part = file.name.startswith("part-") and isinstance(row.content, dict) and "question_id" in row.content
            yield row if is_part or not named_splits else replace(row, named_splits=named_splits)
    except UnicodeDecodeError as error:
        with file.open() as stream:
            raise encoding_error(stream, file.where) from error


def open_source(location: str) -> QuestionSource:
    """Find the files of a question set. Their content is read later, one file at a time.

    Args:
        location: path or URI of a folder, a .zip file, or a file with the suffix of a registered reader.

    Raises:
        DataError: there is no such file or folder, it is not a question set, or it exceeds a limit.
    """
    if not location.strip():
        raise DataError(f"the question source has no name; {_expected_layout()}")
    folder = Folder(location)
    try:
        if folder.name in folder.parent.names():
            return _open_file(folder.parent, folder.name, location)
        if not folder.exists():
            raise DataError(f"question source {location} does not exist; {_expected_layout()}")
        return _open_folder(folder, location)
    except (OSError, pa.ArrowInvalid, StudyError) as error:
        raise _unreadable_error(location, error) from error


def _expected_layout() -> str:
    *others, last = table_suffixes()
    return (
        "expected EntityQuestions (its zip, or a folder with {train,dev,test}/P*.{train,dev,test}.json), or a question "
        f"set as {', '.join(others)} or {last} with columns relation, question and answers"
    )


def _unreadable_error(location: str, error: Exception) -> DataError:
    return DataError(f"question source {location} cannot be read: {error}; {_expected_layout()}")


def _open_file(parent: Folder, name: str, location: str) -> QuestionSource:
    if name.lower().endswith(".zip"):
        return _open_zip(parent, name, location)
    if not is_table(name):
        hint = _unsupported_file_hint(parent, name)
        raise DataError(f"{location} has an unsupported file format{hint}; {_expected_layout()}")
    return _source_in_folders(location, "table", {name: (parent, name)}, {})


def _unsupported_file_hint(parent: Folder, name: str) -> str:
    """A hint for files of other formats: their content and conversion, in parentheses; empty if unknown."""
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
    return f" (a JSON list of objects with {columns}: write one object per line, as .jsonl, with other columns)"


def _open_folder(folder: Folder, location: str) -> QuestionSource:
    """EntityQuestions if the folder has its layout, else the tables in it."""
    top, beside = (folder.child("dataset"), folder) if folder.exists("dataset") else (folder, folder)
    files = {
        f"{split}/{name}": (top.child(split), name)
        for split in sorted(SPLITS)
        for name in top.child(split).names(f".{split}.json")
        if not name.startswith(".")
    }
    if files:
        holder = next((candidate for candidate in (beside, top.parent) if candidate.exists(TEMPLATES_FILE)), None)
        return _source_in_folders(location, "entity_questions", files, _read_templates(holder) if holder else {})
    split_folders = {f"{name}/": folder.child(name) for name in folder.folders() if splits_in_name(name)}
    tables = {
        f"{prefix}{name}": (parent, name)
        for prefix, parent in ({"": folder} | split_folders).items()
        for name in parent.names()
        if is_table(name) and name[0] not in "._"
    }
    if not tables:
        names = [*(f"{name}/" for name in folder.folders()), *folder.names()][:8]
        raise DataError(
            f"folder {location} holds no question file, found {', '.join(names) or 'nothing'}; {_expected_layout()}"
        )
    return _source_in_folders(location, "table", dict(sorted(tables.items())), {})


def _read_templates(folder: Folder) -> dict[str, str]:
    where, size = f"{folder}/{TEMPLATES_FILE}", folder.version(TEMPLATES_FILE)[0]
    if size > limits.MAX_SETTINGS_BYTES:
        raise too_large_error(where, size, limits.MAX_SETTINGS_BYTES, "remove it to use the shipped templates")
    return parse_templates(folder.read_bytes(TEMPLATES_FILE), where)


def _source_in_folders(
    location: str, layout: Layout, files: dict[str, tuple[Folder, str]], templates: dict[str, str]
) -> QuestionSource:
    """A source of files, given by name as folder and name in it."""
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
            yield source_file(folder, file, name, location, version[name][0])

    return QuestionSource(
        name=location,
        layout=layout,
        files=tuple(files),
        templates=templates,
        open_files=open_files,
        versions=versions,
        version=version,
    )


def source_file(folder: Folder, file: str, name: str, location: str, size: int) -> SourceFile:
    """A file in a folder.

    Args:
        folder: where it is.
        file: its name there.
        name: its path below the set that the user named.
        location: the path or URI of that set, for messages.
        size: bytes.
    """
    where = location if location.endswith(name) else f"{location}: {name}"
    random_access = partial(_open_plain, folder, file, location)
    open_file = partial(_open_buffered, random_access)
    return SourceFile(name=name, where=where, size=size, open=open_file, random_access=random_access)


def _open_plain(folder: Folder, name: str, location: str) -> pa.NativeFile:
    try:
        return folder.open_input(name)
    except StudyError as error:
        raise _unreadable_error(location, error) from error


def _open_buffered(open_input: Callable[[], pa.NativeFile]) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(open_input(), BLOCK_BYTES))


def _read_into_memory(open_member: Callable[[], BinaryIO]) -> pa.NativeFile:
    with open_member() as stream:
        return pa.BufferReader(stream.read())


def _open_zip(parent: Folder, name: str, location: str) -> QuestionSource:
    def open_archive(stack: ExitStack) -> Archive:
        stream = stack.enter_context(_open_buffered(partial(parent.open_input, name)))
        return stack.enter_context(Archive(stream, location))

    version = parent.version(name)
    with ExitStack() as stack:
        archive = open_archive(stack)
        layout, members = _find_members(archive.names(), location)
        archive.check(list(members.values()))
        pattern = rf"([^_./][^/]*/)*{re.escape(TEMPLATES_FILE)}"
        path = next((path for path in archive.names() if re.fullmatch(pattern, path)), None)
        templates = {}
        if path is not None:
            with archive.open(path, limits.MAX_SETTINGS_BYTES) as stream:
                templates = parse_templates(stream.read(), f"{location}: {path}")

    def open_files() -> Iterator[SourceFile]:
        with ExitStack() as stack:
            archive = open_archive(stack)
            for member, path in members.items():
                open_member = partial(archive.open, path, limits.MAX_MEMBER_BYTES)
                yield SourceFile(
                    name=member,
                    where=f"{location}: {member}",
                    size=archive.size(path),
                    open=open_member,
                    random_access=partial(_read_into_memory, open_member),
                )

    return QuestionSource(
        name=location,
        layout=layout,
        files=tuple(members),
        templates=templates,
        open_files=open_files,
        versions=lambda: parent.version(name),
        version=version,
    )


def _find_members(paths: list[str], location: str) -> tuple[Layout, dict[str, str]]:
    """The layout of a zip, and the paths of its question files by name, sorted by name."""
    members: dict[str, str] = {}
    tops = set()
    for path in paths:
        match = MEMBER_PATTERN.fullmatch(path)
        if not match or (match["top"] and not match["top"].endswith("/")):
            continue
        if "__MACOSX/" in match["top"] or match["relation"].startswith("."):
            continue  # macOS adds such members to a zip
        if match["name"] in members:
            raise DataError(
                f"{location} holds {match['name']} twice, as {members[match['name']]} and {path}; expected one dataset "
                "in a zip: remove the other"
            )
        members[match["name"]] = path
        tops.add(match["top"])
    if len(tops) > 1:
        raise DataError(
            f"{location} holds question files below {', '.join(sorted(tops)[:5])}; expected one dataset in a zip"
        )
    if members:
        return "entity_questions", dict(sorted(members.items()))
    tables = [path for path in paths if is_table(path) and not re.search(r"(^|/)(__MACOSX/|[._])", path)]
    repeated = next((path for path, num in Counter(tables).items() if num > 1), None)
    if repeated:
        raise DataError(f"{location} holds {repeated} twice; expected each file once: remove one of the two")
    if not tables:
        names = ", ".join(paths[:5]) or "nothing"
        raise DataError(
            f"{location} holds no member {{train,dev,test}}/P*.{{train,dev,test}}.json, found {names}; "
            f"{_expected_layout()}"
        )
    return "table", {path: path for path in sorted(tables)}


def world_questions_uri(study: Folder) -> str:
    """Where a study keeps the questions of the world that it built.

    Raises:
        StudyError: the study has no finished world.
    """
    world = study.child("world")
    if not world.exists("manifest.json"):
        raise StudyError(
            f"{study} has no finished world and no question source was named; run `slick world` with this --out first, "
            "or name a question set with --questions"
        )
    return world.uri
