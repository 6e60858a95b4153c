"""The study folder: which steps are finished, with what inputs and settings.

A step begins with `begin`, which writes `started.json`, and ends with `finish`, which writes `manifest.json` last.
Nothing else is trusted: a folder without a manifest is half a step, and goes on or is done again. Results of other
settings are never mixed or overwritten: `begin` refuses, and says which folder to delete.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Mapping
from typing import Any, Literal

from slick.errors import StudyError
from slick.locks import verify_locks
from slick.manifest_fields import StoredSettings, StudyRecord, StudySettings, counts_type
from slick.settings import COMPARISON, filter_settings, identity_settings
from slick.storage import Folder
from slick.stored_files import MismatchError, convert, format_value, read_record

MANIFEST = "manifest.json"
STARTED = "started.json"
STUDY = "study.json"

STEP_FOLDERS = ("world", "questions", "annotate", "variants", "sweep", "report")
"""Of the steps that have one folder in a study, named like the step."""

Step = Literal["world", "questions", "annotate", "variants", "finetune", "sweep", "report"]


def fingerprint(*parts: object) -> str:
    """16 hex digits that change whenever any of the parts changes; parts are dataclasses or JSON values.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps([_to_json(part) for part in parts], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_to_json(settings: object) -> dict[str, Any]:
    """The settings dataclass as JSON values, for manifests."""
    value = _to_json(settings)
    if not isinstance(value, dict):
        raise TypeError(f"settings are a dataclass or a dictionary, got {type(settings).__name__}")
    return value


def _to_json(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1 and 1.0 are the same setting
    return value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a finished step leaves behind, as `manifest.json`."""

    step: str
    fingerprint: str
    """Of inputs and of those settings that change results."""
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprint of each input, by name: `questions`, `model`, ..."""
    counts: dict[str, Any]
    """Rows written, rows dropped at each step, generations and tokens spent: whatever the step counts."""
    seconds: float
    versions: dict[str, str]
    identity: dict[str, Any] | None = None
    """The settings, and whatever else the step has stated, by which two studies may differ in their results; None in
    manifests of versions that did not write it."""

    def count(self, name: str) -> Any:
        """One of the counts that the step must have written.

        Raises:
            StudyError: it has not.
        """
        return self._entry("counts", self.counts, name)

    def input(self, name: str) -> str:
        """The fingerprint of an input that the step must have had.

        Raises:
            StudyError: the manifest does not state it.
        """
        return str(self._entry("inputs", self.inputs, name))

    def _entry(self, kind: str, values: Mapping[str, Any], name: str) -> Any:
        if name not in values:
            raise StudyError(
                f"the {MANIFEST} of step {self.step} with fingerprint {self.fingerprint} has no {name} among its "
                f"{kind}; {_CHANGED_MANIFEST}"
            )
        return values[name]


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a finished step; None when the step is not finished."""
    if not folder.exists(MANIFEST):
        return None
    manifest = read_record(folder, MANIFEST, Manifest, _CHANGED_MANIFEST, exact=True)
    try:
        if folder.name in STEP_FOLDERS and manifest.step != folder.name:
            raise MismatchError(f"step is {format_value(manifest.step)}, wanted {folder.name}")
        convert(manifest.settings, StoredSettings, "settings")
        convert(manifest.counts, counts_type(folder), "counts")
    except MismatchError as error:
        raise StudyError(f"{folder}/{MANIFEST}: {error}; {_CHANGED_MANIFEST}") from error
    return manifest


_CHANGED_MANIFEST = (
    "it was changed, or was written by another version of this program: restore it, or delete that folder and run the "
    "step again"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """What a step leaves behind when it begins, as `started.json`."""

    fingerprint: str = "not stated"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_start_record(folder: Folder) -> StartRecord | None:
    """With what a step began; None if it has not.

    Raises:
        StudyError: the file is not as `begin` writes it.
    """
    if not folder.exists(STARTED):
        return None
    remedy = "it was changed: restore it, or delete that folder and run the step again"
    started = read_record(folder, STARTED, StartRecord, remedy)
    try:
        convert(started.settings, StoredSettings, "settings")
    except MismatchError as error:
        raise StudyError(f"{folder}/{STARTED}: {error}; {remedy}") from error
    return started


def read_study_settings(study: Folder) -> StudySettings | None:
    """The settings that `slick study` was given in this folder; None where the steps were run one by one.

    Raises:
        StudyError: study.json is not as `slick study` writes it.
    """
    if not study.exists(STUDY):
        return None
    remedy = "it was changed: restore it, or delete it and run `slick study` again, which writes it anew"
    return read_record(study, STUDY, StudyRecord, remedy).settings


def require_manifest(folder: Folder, step: str) -> Manifest:
    """The manifest of a step that must be finished.

    Raises:
        StudyError: it is not.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise StudyError(
            f"{folder.uri} is not finished: it holds no {MANIFEST}; run `slick {step}` with this --out first"
        )
    return manifest


def needs_work(folder: Folder, step: str, identity: str, settings: object) -> bool:
    """True if a step is still to be done; False if its folder is finished with these inputs and settings.

    Args:
        folder: the step's folder.
        step: for messages.
        identity: `fingerprint` of inputs and settings.
        settings: for messages.

    Raises:
        StudyError: the folder was written with other inputs or settings.
    """
    manifest = read_manifest(folder)
    record = manifest or read_start_record(folder)
    previous, before = (record.fingerprint, record.settings) if record else (None, {})
    if previous is not None and previous != identity:
        raise StudyError(
            f"{folder.uri} was written with other inputs or settings: its fingerprint is {previous}, this {step} "
            f"step's is {identity}{_describe_changes(before, settings)}; choose another --out, or delete that "
            f"folder to do the "
            "step again"
        )
    return manifest is None


def begin_step(folder: Folder, step: str, identity: str, settings: object) -> bool:
    """Open a step's folder for writing; True if there is work to do, False if it is finished with these settings.

    A half-written folder with the same identity is kept, so that the step resumes. The arguments and errors are those
    of `needs_work`; `settings` are also written into `started.json` for people to read.
    """
    if not needs_work(folder, step, identity, settings):
        return False
    folder.write_json(STARTED, {"fingerprint": identity, "settings": _to_json(settings)})
    return True


_MAX_CHANGES_LISTED = 4
"""Settings that a refusal names."""


def _describe_changes(before: dict[str, Any], settings: object) -> str:
    """The settings that count and are others than before, for people; empty if none is, so that inputs are."""
    counting: Any = settings.identity() if hasattr(settings, "identity") else settings
    old, new = flatten_settings(before), flatten_settings(_to_json(counting))
    names = [name for name in new if name in old and old[name] != new[name]]
    if not names:
        return ""
    more = f" and {len(names) - _MAX_CHANGES_LISTED} more" if len(names) > _MAX_CHANGES_LISTED else ""
    return f" ({', '.join(f'{name} was {old[name]}, is {new[name]}' for name in names[:_MAX_CHANGES_LISTED])}{more})"


def flatten_settings(value: object, name: str = "") -> dict[str, Any]:
    """Values of nested settings by dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: one
        for part, inner in value.items()
        for key, one in flatten_settings(inner, f"{name}.{part}".strip(".")).items()
    }


def complete_step(
    folder: Folder,
    step: str,
    identity: str,
    *,
    settings: object,
    inputs: dict[str, str],
    counts: dict[str, Any],
    started_at: float,
    contents: Mapping[str, object] | None = None,
) -> Manifest:
    """Write the manifest, the last file of a step, and return it.

    Args:
        started_at: `time.monotonic()` when the step began.
        contents: what results depend on beside settings and inputs, by name, such as fingerprints of files that
            settings name.

    Raises:
        StudyError: another run took over a lock of this one, so that the folder may hold files of both.
    """
    verify_locks()
    counting = (
        filter_settings(None, settings) if isinstance(settings, dict) else identity_settings(settings, COMPARISON)
    )
    manifest = Manifest(
        step=step,
        fingerprint=identity,
        settings=settings_to_json(settings),
        inputs=inputs,
        counts=counts,
        seconds=round(time.monotonic() - started_at, 3),
        versions=versions(),
        identity=settings_to_json({**counting, **(contents or {})}),
    )
    folder.write_json(MANIFEST, dataclasses.asdict(manifest))
    return manifest


def versions() -> dict[str, str]:
    """Versions of this program and of the libraries that decide its results; only those installed."""
    found = {}
    for name in ("slick-knowledge", "torch", "transformers", "ray", "deepspeed", "pyarrow", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
