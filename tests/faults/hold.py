"""Work that stops at a point and waits there, so that what a test kills in the middle cannot have ended before.

A test writes a `Hold` into the study, and starts the work within `holdable`; the processes that do the work then look
for the hold after each epoch, or before each file of answers.
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
    """Where the work of a study is to stop."""

    at: int
    """Files of answers that are written, or epochs of a run that are done."""
    run: str = ""
    """The run that stops; empty: any."""
    saved: bool = False
    """Only after an epoch whose state was saved."""
    until_notice: bool = False
    """Until the worker has heard that its node will be taken back, and then after the next epoch that was saved."""


def hold(study: Folder, at: int, **more: Any) -> None:
    """Have the work stop there until `release`, or another hold."""
    study.write_json(_HOLD_FILE, asdict(Hold(at=at, **more)))


def release(study: Folder) -> None:
    """Let the work go on."""
    study.delete(_HOLD_FILE)


def saw_preemption_notice(study: Folder) -> bool:
    """Whether a held worker has heard that its node will be taken back."""
    return study.exists(_NOTICE_SEEN_FILE)


def _hold_of(study: Folder) -> Hold | None:
    try:
        return Hold(**study.read_json(_HOLD_FILE)) if study.exists(_HOLD_FILE) else None
    except StudyError:
        return None  # it was released at this moment


def _wait_while(is_held: Callable[[Hold], bool], study: Folder) -> None:
    while (found := _hold_of(study)) and is_held(found):
        time.sleep(0.02)


class HoldableAnnotationWorker(AnnotationWorker):
    """The actor of the annotation; it holds before it answers more."""

    def __call__(self, unit: Any) -> Any:
        annotation = self._config.folder
        files = annotation.child("generations")
        _wait_while(lambda found: len(files.names(".parquet")) >= found.at, annotation.parent)
        return super().__call__(unit)


def holdable_train(arguments: dict[str, Any], context: Any) -> None:
    """Train in one worker; it holds after an epoch is reported."""
    study, report = arguments["study"], finetune.report_epoch

    def report_and_hold(metrics: dict[str, object], state: str | None) -> None:
        report(metrics, state)

        def is_held(found: Hold) -> bool:
            if found.run not in ("", metrics["run_id"]) or int(str(metrics["epoch"])) < found.at:
                return False
            if not found.until_notice:
                return state is not None or not found.saved
            if is_preemption_pending := finetune.is_preemption_pending():
                study.write_json(_NOTICE_SEEN_FILE, {})
            return state is not None or not is_preemption_pending

        _wait_while(is_held, study)

    with patch.object(finetune, "report_epoch", report_and_hold):
        _train_plans(arguments, context)


def holdable_train_group(*arguments: Any) -> dict[str, Any]:
    """Start a worker group from a trial, whose workers hold."""
    with patch.object(finetune, "_train_plans", holdable_train):
        return _train_group(*arguments)


_train_plans, _train_group = finetune._train_plans, finetune.train_in_worker_group


@contextmanager
def holdable() -> Iterator[None]:
    """Within, what this process starts heeds holds."""
    with (
        patch("slick.annotation.dispatch.AnnotationWorker", HoldableAnnotationWorker),
        patch("tuning.finetune._train_plans", holdable_train),
        patch("tuning.trials.train_in_worker_group", holdable_train_group),
    ):
        yield
