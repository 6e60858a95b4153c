"""Pause work at a given point, so that a test can kill it there.

A test writes a `Hold` into the study and starts the work within `holdable`. Its processes then check for the hold after
each epoch, or before each file of answers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import tuning.finetune as finetune  # the module
from slick.annotation.worker import AnnotationWorker
from slick.errors import StudyError
from slick.storage import Folder

_HOLD_FILE = "hold.json"
_NOTICE_SEEN_FILE = "noticed.json"


@dataclass(frozen=True, kw_only=True)
class Hold:
    """The point at which the work of a study pauses."""

    at: int
    """Number of written answer files, or of finished epochs of a run."""
    run: str = ""
    """The run that pauses; empty: any run."""
    saved: bool = False
    """Pause only after an epoch whose state was saved."""
    until_notice: bool = False
    """Pause until the worker has received a preemption notice, then after the next saved epoch."""


def hold(study: Folder, at: int, **options: Any) -> None:
    """Pause the work at a point until `release`, or until another hold replaces this one."""
    study.write_json(_HOLD_FILE, asdict(Hold(at=at, **options)))


def release(study: Folder) -> None:
    """Let the work continue."""
    study.delete(_HOLD_FILE)


def saw_preemption_notice(study: Folder) -> bool:
    """Whether a paused worker has received a preemption notice."""
    return study.exists(_NOTICE_SEEN_FILE)


def _read_hold(study: Folder) -> Hold | None:
    try:
        return Hold(**study.read_json(_HOLD_FILE)) if study.exists(_HOLD_FILE) else None
    except StudyError:
        return None  # it was released during the read


def _wait_while(is_held: Callable[[Hold], bool], study: Folder) -> None:
    while (hold := _read_hold(study)) and is_held(hold):
        time.sleep(0.02)


class HoldableAnnotationWorker(AnnotationWorker):
    """The annotation actor; it pauses before the next batch."""

    def __call__(self, unit: Any) -> Any:
        annotation = self._config.folder
        files = annotation.child("generations")
        _wait_while(lambda hold: len(files.names(".parquet")) >= hold.at, annotation.parent)
        return super().__call__(unit)


def holdable_train(arguments: dict[str, Any], context: Any) -> None:
    """Train in one worker, with pauses after reported epochs."""
    study, report = arguments["study"], finetune.report_epoch

    def report_and_hold(metrics: dict[str, object], state: str | None) -> None:
        report(metrics, state)

        def is_held(hold: Hold) -> bool:
            if hold.run not in ("", metrics["run_id"]) or int(str(metrics["epoch"])) < hold.at:
                return False
            if not hold.until_notice:
                return state is not None or not hold.saved
            if is_preemption_pending := finetune.is_preemption_pending():
                study.write_json(_NOTICE_SEEN_FILE, {})
            return state is not None or not is_preemption_pending

        _wait_while(is_held, study)

    with patch.object(finetune, "report_epoch", report_and_hold):
        _train_plans(arguments, context)


def holdable_train_group(*arguments: Any) -> dict[str, Any]:
    """Start a worker group whose workers can pause, from a trial."""
    with patch.object(finetune, "_train_plans", holdable_train):
        return _train_group(*arguments)


_train_plans, _train_group = finetune._train_plans, finetune.train_in_worker_group


@contextmanager
def holdable() -> Iterator[None]:
    """Make work that this process starts inside the block pause at holds."""
    with (
        patch("slick.annotation.worker.AnnotationWorker", HoldableAnnotationWorker),
        patch("tuning.finetune._train_plans", holdable_train),
        patch("tuning.trials.train_in_worker_group", holdable_train_group),
    ):
        yield
