"""The state from which an interrupted training resumes: its tensors, and how far it came.

Each worker writes its share of the tensors (see `tuning.state_tensors`) on its own disk and hands it to Ray Train,
which brings the shares together in its storage while training goes on. All files are safetensors or JSON, so
that whoever resumes a training runs no code of whoever wrote the folder. States of earlier versions hold pickles, which
do: they are recognised by their names and never opened.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slick.errors import StudyError
from slick.file_errors import temporary_folder
from slick.storage import Folder

_PROGRESS_FILE = "progress.json"
_FORMAT_VERSION = 2
"""Of a state's files; 1, which had no number, was DeepSpeed's own."""
_INCOMPLETE_FILE_ERRORS = (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError)
"""Why a small file tells that its state is none: it was removed meanwhile, or its writing was broken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """How far a training came."""

    identity: str
    """Of the training, as its `RunPlan` has it."""
    epoch: int
    """The last one that was trained and evaluated."""
    best_dev_accuracy: float
    best_dev_epoch: int
    num_workers: int
    """Of the group that saved the state; each wrote a share of it."""


_FIELD_TYPES = {
    "identity": str,
    "epoch": int,
    "best_dev_accuracy": int | float,
    "best_dev_epoch": int,
    "num_workers": int,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A whole state, and how far it is."""

    uri: str
    progress: TrainingProgress


def save_state(learner: Any, progress: TrainingProgress, rank: int) -> str:
    """Write this worker's share into a new folder on its own disk, and return the folder; called by all workers.

    Args:
        learner: the worker's `Trainer`.

    Raises:
        StudyError: that disk is full or cannot be written; the folder is removed.
    """
    with temporary_folder("slick-state-") as folder:
        learner.save(folder)
        Path(folder, _PROGRESS_FILE).write_text(json.dumps({"format": _FORMAT_VERSION} | asdict(progress)))
        Path(folder, f"files-{rank}.json").write_text(json.dumps(Folder(folder).sizes()))
    return folder


def read_state(folder: Folder) -> SavedState | None:
    """The state in a folder; None if any worker's share has not arrived whole, or it is of another version.

    Raises:
        StudyError: the folder cannot be read, so that nobody knows what it holds.
    """
    sizes = folder.sizes()
    if _PROGRESS_FILE not in sizes:
        return None
    try:
        content = folder.read_json(_PROGRESS_FILE)
        if content.pop("format", 1) != _FORMAT_VERSION:
            return None
        progress = TrainingProgress(**content)
        if not all(isinstance(getattr(progress, name), kind) for name, kind in _FIELD_TYPES.items()):
            return None
        for rank in range(progress.num_workers):
            name = f"files-{rank}.json"
            if name not in sizes or any(sizes.get(file) != size for file, size in folder.read_json(name).items()):
                return None
    except (TypeError, AttributeError):
        return None  # of another version: an older state is as good, but for time
    except StudyError as error:
        if not isinstance(error.__cause__, _INCOMPLETE_FILE_ERRORS):
            raise
        return None
    return SavedState(uri=folder.uri, progress=progress)


def find_states(study: Folder, run_ids: Sequence[str]) -> dict[str, SavedState]:
    """The furthest state of each training by its identity: what Ray Train stored, and what finished runs kept."""
    return _latest_states([*_kept_state_folders(study, run_ids), *_interrupted_state_folders(study)])


def check_legacy_states(study: Folder, run_ids: Sequence[str]) -> None:
    """See that no training that begins anew has a state of an earlier version, whose pickles are not opened.

    Of an interrupted training it saved time alone, and a line is printed. One that was kept was asked for.

    Args:
        run_ids: trainings that begin at epoch 1.

    Raises:
        StudyError: a state of an earlier version was kept.
    """
    for folder in filter(_has_pickles, _kept_state_folders(study, run_ids)):
        raise StudyError(
            f"{folder} was written by an earlier version as pickles, which can run code and are not opened; delete "
            "that folder to begin this training anew; nothing else is lost"
        )
    for folder in filter(_has_pickles, _interrupted_state_folders(study)) if run_ids else ():
        print(
            f"finetune: {folder} was written by an earlier version as pickles, which can run code and are not opened; "
            "its trainings begin again at epoch 1"
        )


def _kept_state_folders(study: Folder, run_ids: Sequence[str]) -> list[Folder]:
    return [study.child("runs", run_id, "state") for run_id in run_ids]


def _interrupted_state_folders(study: Folder) -> list[Folder]:
    """What Ray Train stored of trainings that did not end."""
    stored = study.child(".ray")
    groups = [stored.child(step, name) for step in stored.folders() for name in stored.child(step).folders()]
    return [place for group in groups for place in _checkpoint_folders(group)]


def _has_pickles(folder: Folder) -> bool:
    """True of what DeepSpeed wrote: its files are `state/*.pt`."""
    return any(name.startswith("state/") and name.endswith(".pt") for name in folder.sizes())


def latest_states(group: Folder) -> dict[str, SavedState]:
    """The furthest state of each training in the folder of one Ray Train run, by the training's identity.

    Ray Train itself learns of a state some time after it is whole, and of no more than one at a time.
    """
    return _latest_states(_checkpoint_folders(group))


def _checkpoint_folders(group: Folder) -> list[Folder]:
    return [group.child(name) for name in group.folders() if name.startswith("checkpoint_")]


def _latest_states(places: Iterable[Folder]) -> dict[str, SavedState]:
    found: dict[str, SavedState] = {}
    for state in filter(None, map(read_state, places)):
        known = found.get(state.progress.identity)
        if known is None or known.progress.epoch < state.progress.epoch:
            found[state.progress.identity] = state
    return found
