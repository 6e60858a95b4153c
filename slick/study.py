"""The study folder: which steps are finished, and with which inputs and settings.

A step calls `begin_step`, which writes `started.json`, and `complete_step`, which writes `manifest.json` last. A folder
without a manifest is unfinished: its step resumes or starts again. Results of other settings are never mixed or
overwritten: `begin_step` raises an error that names the folder to delete.
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

STEP_FOLDERS = ("world", "questions", "annotate", "variants", "sweep", "wording", "report")
"""Steps with one folder in a study, which has the name of the step."""

Step = Literal["world", "questions", "annotate", "variants", "finetune", "sweep", "wording", "report"]


def fingerprint(*parts: object) -> str:
    """A hash of dataclasses or JSON values, as 16 hex digits.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps([_to_json(part) for part in parts], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_to_json(settings: object) -> dict[str, Any]:
    """A settings dataclass as JSON values, for manifests."""
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
    """The content of `manifest.json`, which every finished step has."""

    step: str
    fingerprint: str
    """Fingerprint of the inputs and of the settings that change results."""
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprint of each input, by name: `questions`, `model`, ..."""
    counts: dict[str, Any]
    """Rows written and dropped, generations, tokens, and other counts of the step."""
    seconds: float
    versions: dict[str, str]
    identity: dict[str, Any] | None = None
    """Settings and contents of inputs that change results, for `slick compare`; None in manifests of earlier
    versions."""

    def count(self, name: str) -> Any:
        """One of the counts.

        Raises:
            StudyError: the manifest does not have it.
        """
        return self._entry("counts", self.counts, name)

    def input(self, name: str) -> str:
        """The fingerprint of an input.

        Raises:
            StudyError: the manifest does not have it.
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
    """The manifest of a finished step; None if the step is not finished.

    Raises:
        StudyError: the file is not as `complete_step` writes it.
    """
    if not folder.exists(MANIFEST):
        return None
    manifest = read_record(folder, MANIFEST, Manifest, _CHANGED_MANIFEST, exact=True)
    try:
        if folder.name in STEP_FOLDERS and manifest.step != folder.name:
            raise MismatchError(f"step is {format_value(manifest.step)}, expected {folder.name}")
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
    """The content of `started.json`, which a step writes when it begins."""

    fingerprint: str = "not stated"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_start_record(folder: Folder) -> StartRecord | None:
    """The fingerprint and settings with which a step began; None if it has not begun.

    Raises:
        StudyError: the file is not as `begin_step` writes it.
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
    """The settings of `slick study` in this folder; None if the steps were run one by one.

    Raises:
        StudyError: study.json is not as `slick study` writes it.
    """
    if not study.exists(STUDY):
        return None
    remedy = "it was changed: restore it, or delete it and run `slick study` again"
    return read_record(study, STUDY, StudyRecord, remedy).settings


def require_manifest(folder: Folder, step: str) -> Manifest:
    """The manifest of a finished step.

    Raises:
        StudyError: the step is not finished.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise StudyError(
            f"{folder.uri} is not finished: it has no {MANIFEST}; run `slick {step}` with this --out first"
        )
    return manifest


def needs_work(folder: Folder, step: str, identity: str, settings: object) -> bool:
    """Whether a step is not yet finished with these inputs and settings.

    Args:
        folder: the step's folder.
        step: the step's name, for messages.
        identity: `fingerprint` of inputs and settings.
        settings: the settings, for messages.

    Raises:
        StudyError: the folder was written with other inputs or settings.
    """
    manifest = read_manifest(folder)
    record = manifest or read_start_record(folder)
    previous, before = (record.fingerprint, record.settings) if record else (None, {})
    if previous is not None and previous != identity:
        raise StudyError(
            f"{folder.uri} was written with other inputs or settings: its fingerprint is {previous}, this {step} "
            f"step's is {identity}{_describe_changes(before, settings)}; choose another --out, or delete that folder "
            "to run the step again"
        )
    return manifest is None


def begin_step(folder: Folder, step: str, identity: str, settings: object) -> bool:
    """Like `needs_work`; also writes `started.json` if the step is not finished.

    An unfinished folder with the same identity is kept, so that the step resumes.
    """
    if not needs_work(folder, step, identity, settings):
        return False
    folder.write_json(STARTED, {"fingerprint": identity, "settings": _to_json(settings)})
    return True


_MAX_CHANGES_LISTED = 4
"""Changed settings that an error message names."""


def _describe_changes(before: dict[str, Any], settings: object) -> str:
    """The changed settings, for a message; empty if only inputs have changed."""
    relevant: Any = settings.identity() if hasattr(settings, "identity") else settings
    old, new = flatten_settings(before), flatten_settings(_to_json(relevant))
    names = [name for name in new if name in old and old[name] != new[name]]
    if not names:
        return ""
    more = f" and {len(names) - _MAX_CHANGES_LISTED} more" if len(names) > _MAX_CHANGES_LISTED else ""
    return f" ({', '.join(f'{name} was {old[name]}, is {new[name]}' for name in names[:_MAX_CHANGES_LISTED])}{more})"


def flatten_settings(value: object, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, Any] = {}
    for part, inner in value.items():
        flat |= flatten_settings(inner, f"{name}.{part}".strip("."))
    return flat


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
        folder: the step's folder.
        step: the step's name.
        identity: `fingerprint` of inputs and settings.
        settings: a dataclass, or a dictionary of JSON values.
        inputs: fingerprint of each input by name.
        counts: counts of the step, as `slick.manifest_fields` declares them.
        started_at: `time.monotonic()` when the step began.
        contents: by name, other things that change results, such as fingerprints of files that settings name.

    Raises:
        StudyError: another run took over a lock of this one, so that the folder may hold files of both.
    """
    verify_locks()
    if isinstance(settings, dict):
        compared = filter_settings(None, settings)
    else:
        compared = identity_settings(settings, COMPARISON)
    manifest = Manifest(
        step=step,
        fingerprint=identity,
        settings=settings_to_json(settings),
        inputs=inputs,
        counts=counts,
        seconds=round(time.monotonic() - started_at, 3),
        versions=versions(),
        identity=settings_to_json({**compared, **(contents or {})}),
    )
    folder.write_json(MANIFEST, dataclasses.asdict(manifest))
    return manifest


def versions() -> dict[str, str]:
    """Versions of this program and of the installed libraries that influence results."""
    installed = {}
    for name in ("slick-knowledge", "torch", "transformers", "ray", "deepspeed", "pyarrow", "numpy"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
