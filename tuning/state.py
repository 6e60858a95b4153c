"""The state from which an interrupted training goes on: weights, optimizer and how far it came.

It is DeepSpeed's own checkpoint, each worker's part in a file of its own, handed to Ray Train, which brings the parts
together in its storage while training goes on. A group of another size, or under another ZeRO stage, reads it through
DeepSpeed's universal format.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slick.errors import SettingsError, StudyError
from slick.storage import Folder, temporary_folder
from tuning.config import TrainConfig

_TAG = "state"
_PROGRESS = "progress.json"
_NOT_WHOLE = (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError)
"""Why a small file tells that its state is none: it was removed meanwhile, or its writing was broken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a training came."""

    identity: str
    """Of the training, as its `RunPlan` has it."""
    epoch: int
    """The last one that was trained and evaluated."""
    best_dev_accuracy: float
    best_dev_epoch: int
    num_workers: int
    zero_stage: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A whole state, and how far it is."""

    uri: str
    progress: Progress


def save_state(engine: Any, progress: Progress, rank: int) -> str:
    """Write this worker's part into a new folder on its own disk, and return the folder; called by all workers.

    Raises:
        StudyError: that disk is full or cannot be written; the folder is removed.
    """
    with temporary_folder("slick-state-") as folder:
        engine.save_checkpoint(folder, tag=_TAG)
        Path(folder, _PROGRESS).write_text(json.dumps(asdict(progress)))
        Path(folder, f"files-{rank}.json").write_text(json.dumps(Folder(folder).sizes()))
    return folder


def read_state(folder: Folder) -> SavedState | None:
    """The state in a folder; None if any worker's part has not arrived whole.

    Raises:
        StudyError: the folder cannot be read, so that nobody knows what it holds.
    """
    sizes = folder.sizes()
    if _PROGRESS not in sizes:
        return None
    try:
        progress = Progress(**folder.read_json(_PROGRESS))
        for rank in range(progress.num_workers):
            name = f"files-{rank}.json"
            if name not in sizes or any(sizes.get(file) != size for file, size in folder.read_json(name).items()):
                return None
    except TypeError:
        return None  # of another version: an older state is as good, but for time
    except StudyError as error:
        if not isinstance(error.__cause__, _NOT_WHOLE):
            raise
        return None
    return SavedState(uri=folder.uri, progress=progress)


def find_states(study: Folder, run_ids: Sequence[str]) -> dict[str, SavedState]:
    """The furthest state of each training by its identity: what Ray Train stored, and what finished runs kept."""
    stored = study.child(".ray")
    groups = [stored.child(step, name) for step in stored.folders() for name in stored.child(step).folders()]
    kept = [study.child("runs", run_id, "state") for run_id in run_ids]
    return _furthest([*kept, *(place for group in groups for place in _stored_in(group))])


def states_of(group: Folder) -> dict[str, SavedState]:
    """The furthest state of each training in the folder of one Ray Train run, by the training's identity.

    Ray Train itself learns of a state some time after it is whole, and of no more than one at a time.
    """
    return _furthest(_stored_in(group))


def _stored_in(group: Folder) -> list[Folder]:
    return [group.child(name) for name in group.folders() if name.startswith("checkpoint_")]


def _furthest(places: Iterable[Folder]) -> dict[str, SavedState]:
    found: dict[str, SavedState] = {}
    for state in filter(None, map(read_state, places)):
        known = found.get(state.progress.identity)
        if known is None or known.progress.epoch < state.progress.epoch:
            found[state.progress.identity] = state
    return found


def needs_universal(progress: Progress, config: TrainConfig, num_workers: int) -> bool:
    """True if the state was saved by a group that sharded otherwise.

    Raises:
        SettingsError: it was saved with sharding and is wanted without, or the other way round.
    """
    if (progress.zero_stage == 0) != (config.zero_stage == 0):
        raise SettingsError(
            f"this training was interrupted after epoch {progress.epoch} under ZeRO stage {progress.zero_stage} and "
            f"cannot go on under stage {config.zero_stage}; give --zero-stage {progress.zero_stage}, or delete the "
            ".ray folder of the study to start it again"
        )
    same = (progress.num_workers, progress.zero_stage) == (num_workers, config.zero_stage)
    return config.zero_stage > 0 and not same


def load_state(engine: Any, folder: str) -> None:
    """Bring a DeepSpeed engine to the state in a folder; called by all workers.

    Raises:
        StudyError: DeepSpeed found no state there.
    """
    path, _ = engine.load_checkpoint(folder, tag=_TAG)
    if path is None:
        raise StudyError(f"DeepSpeed found no training state in {folder}; start the training again")


@contextlib.contextmanager
def universal_state(folder: str, progress: Progress, local_rank: int) -> Iterator[str]:
    """A folder with the same state in DeepSpeed's universal format, on this machine's disk while the block lasts.

    One worker of each machine converts it; all workers call this.

    Args:
        local_rank: this worker's number among those on its machine.

    Raises:
        StudyError: DeepSpeed could not convert it.
    """
    import torch.distributed as dist

    name = f"slick-universal-{os.getuid()}-{progress.identity}-{progress.epoch}"
    target = os.path.join(tempfile.gettempdir(), name)
    try:
        if local_rank == 0:
            _convert(os.path.join(folder, _TAG), os.path.join(target, _TAG))
        dist.barrier()
        yield target
        dist.barrier()
    finally:
        if local_rank == 0:
            shutil.rmtree(target, ignore_errors=True)


def _convert(source: str, target: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    done = subprocess.run(
        [*command, "--input_folder", source, "--output_folder", target], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StudyError(
            f"DeepSpeed could not convert the training state in {source} for another number of workers: "
            f"{done.stderr.strip()[-500:]}; go on with the number it was saved with"
        )
