"""The state from which an interrupted training resumes: tensors and progress.

Each worker writes its share of the tensors (see `tuning.state_tensors`) to its local disk, and Ray Train uploads the
shares to its storage while training continues. All files are safetensors or JSON, so resuming runs no code of whoever
wrote the folder. States of earlier versions contain pickles, which can run code: they are detected by their file names
and never opened. States of another format are named, with what to do.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slick.errors import StudyError, temporary_folder
from slick.storage import Folder
from slick.stored_files import MismatchError, convert

_LOG = logging.getLogger(__name__)

_PROGRESS_FILE = "progress.json"
_FORMAT_VERSION = 2
"""Format of a state's files. Version 1, without a number, was DeepSpeed's own format."""
_INCOMPLETE_FILE_ERRORS = (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError)
"""Errors of a JSON file that was deleted meanwhile or written partially: the state is incomplete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """The progress of a training."""

    identity: str
    """`RunPlan.identity` of the training."""
    epoch: int
    """The last epoch that was trained and evaluated."""
    best_dev_accuracy: float
    best_dev_epoch: int
    num_workers: int
    """Workers of the group that saved the state; each wrote a share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A complete state, and its progress."""

    uri: str
    progress: TrainingProgress


def save_state(trainer: Any, progress: TrainingProgress, rank: int) -> str:
    """Write this worker's share into a new folder on its local disk, and return the folder; called by all workers.

    Args:
        trainer: the worker's `Trainer`.
        progress: the progress of the training.
        rank: the rank of this worker.

    Raises:
        StudyError: the disk is full or cannot be written; the folder is removed.
    """
    with temporary_folder("slick-state-") as folder:
        trainer.save(folder)
        Path(folder, _PROGRESS_FILE).write_text(json.dumps({"format": _FORMAT_VERSION} | asdict(progress)))
        Path(folder, f"files-{rank}.json").write_text(json.dumps(Folder(folder).sizes()))
    return folder


def read_state(folder: Folder) -> SavedState | None:
    """The state in a folder; None if the share of a worker is incomplete, or the state is of another version.

    Raises:
        StudyError: the folder cannot be read.
    """
    sizes = folder.sizes()
    if _PROGRESS_FILE not in sizes:
        return None
    try:
        content = folder.read_json(_PROGRESS_FILE)
        if content.pop("format", 1) != _FORMAT_VERSION:
            return None
        progress: TrainingProgress = convert(content, TrainingProgress, exact=True)
        for rank in range(progress.num_workers):
            name = f"files-{rank}.json"
            if name not in sizes or any(sizes.get(file) != size for file, size in folder.read_json(name).items()):
                return None
    except (MismatchError, TypeError, AttributeError):
        return None  # of another version; training resumes from an older state
    except StudyError as error:
        if not isinstance(error.__cause__, _INCOMPLETE_FILE_ERRORS):
            raise
        return None
    return SavedState(uri=folder.uri, progress=progress)


def find_states(study: Folder, run_ids: Sequence[str]) -> dict[str, SavedState]:
    """The latest state of each training by its identity, from Ray Train's storage and the folders of finished runs."""
    return _latest_states([*_kept_state_folders(study, run_ids), *_interrupted_state_folders(study)])


def check_other_formats(study: Folder, run_ids: Sequence[str]) -> None:
    """Check that no training that starts at epoch 1 has a state of another version's format, which is never opened.

    The state of an interrupted training only saves time, so it is logged and ignored. A state that the user chose to
    keep is an error.

    Args:
        study: the study.
        run_ids: trainings that start at epoch 1.

    Raises:
        StudyError: the folder of a run has such a state.
    """
    for folder in _kept_state_folders(study, run_ids):
        if reason := _other_format(folder):
            raise StudyError(
                f"{folder} has {reason}; continue with the version of slick that wrote it, or delete that folder to "
                "restart this training; no other results are affected"
            )
    for folder in _interrupted_state_folders(study) if run_ids else ():
        if reason := _other_format(folder):
            _LOG.info("finetune: %s has %s; its trainings restart at epoch 1", folder, reason)


def _kept_state_folders(study: Folder, run_ids: Sequence[str]) -> list[Folder]:
    return [study.child("runs", run_id, "state") for run_id in run_ids]


def _interrupted_state_folders(study: Folder) -> list[Folder]:
    """Checkpoint folders that Ray Train stored for unfinished trainings."""
    root = study.child(".ray")
    groups = [root.child(step, name) for step in root.folders() for name in root.child(step).folders()]
    return [folder for group in groups for folder in _checkpoint_folders(group)]


def _other_format(folder: Folder) -> str:
    """What another version wrote into a folder; empty for a state of this version, and for an incomplete one."""
    names = folder.sizes()
    if any(name.startswith("state/") and name.endswith(".pt") for name in names):  # DeepSpeed wrote it
        return "pickle files of an earlier version, which are not loaded because unpickling can run code"
    if _PROGRESS_FILE not in names:
        return ""
    try:
        content = folder.read_json(_PROGRESS_FILE)
    except StudyError as error:
        if not isinstance(error.__cause__, _INCOMPLETE_FILE_ERRORS):
            raise
        return ""
    number = content.pop("format", None) if isinstance(content, dict) else None
    if number != _FORMAT_VERSION:
        return f"a training state of format {number!r:.20}, and this version of slick reads format {_FORMAT_VERSION}"
    try:
        convert(content, TrainingProgress, exact=True)
    except MismatchError as error:
        return f"a training state of another version ({_PROGRESS_FILE}: {error})"
    return ""


def latest_states(group: Folder) -> dict[str, SavedState]:
    """The latest state of each training in the folder of one Ray Train run, by the training's identity.

    Ray Train registers a state only some time after its upload, and one state at a time.
    """
    return _latest_states(_checkpoint_folders(group))


def _checkpoint_folders(group: Folder) -> list[Folder]:
    return [group.child(name) for name in group.folders() if name.startswith("checkpoint_")]


def _latest_states(folders: Iterable[Folder]) -> dict[str, SavedState]:
    latest: dict[str, SavedState] = {}
    for state in filter(None, map(read_state, folders)):
        known = latest.get(state.progress.identity)
        if known is None or known.progress.epoch < state.progress.epoch:
            latest[state.progress.identity] = state
    return latest
