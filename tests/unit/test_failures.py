"""Failures that only the user can fix end a training immediately; others are retried."""

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from jobs.common import run_main
from slick.errors import ClusterError, StudyError, format_file_error
from slick.storage import Folder
from tests.conftest import SmallDisk
from tuning import trials
from tuning.progress_table import TrialTracker
from tuning.ray_trainer import find_user_error, progress_failure_policy
from tuning.trainable import _upload

FULL_DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/study")


def worker_group_error(error: BaseException) -> WorkerGroupError:
    """The error of a worker as reported by Ray Train, with a traceback, and a connection error of another worker."""
    wrapped = UserExceptionWithTraceback(error, f"Traceback:\n  ...\n{error}")
    return WorkerGroupError(f"worker 1: {error}", {0: RuntimeError("Connection reset by peer"), 1: wrapped})


@pytest.mark.parametrize("error", [worker_group_error(FULL_DISK), ControllerError(FULL_DISK), FULL_DISK])
def test_full_disk_is_one_message_wherever_it_is_raised(error: Exception) -> None:
    user_error = find_user_error(error)
    assert isinstance(user_error, StudyError)
    assert str(user_error).startswith("/data/study cannot be written: No space left on device; free space")


def test_message_of_the_worker_precedes_errors_that_quote_it() -> None:
    own = StudyError("runs/x cannot be written: No space left on device")
    own.__cause__ = FULL_DISK
    assert find_user_error(worker_group_error(own)) is own
    assert find_user_error(worker_group_error(RuntimeError("a defect"))) is None


def test_user_errors_are_not_retried() -> None:
    policy = progress_failure_policy(FailureConfig(max_failures=3), get_progress_token=lambda: 0)
    assert policy.make_decision(worker_group_error(FULL_DISK)) == FailureDecision.RAISE
    assert policy.make_decision(worker_group_error(StudyError("to be fixed"))) == FailureDecision.RAISE
    assert policy.make_decision(worker_group_error(RuntimeError("of a lost machine"))) == FailureDecision.RETRY


def test_checkpoint_that_does_not_fit_is_removed_locally_and_remotely(small_disk: SmallDisk, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"x" * 2**19)
    with pytest.raises(StudyError, match="checkpoint-best cannot be written: No space left on device"):
        _upload(str(part), [Folder(str(small_disk.path)).child("checkpoint-best")])
    assert not part.exists()
    assert small_disk.files() == []


def test_full_disk_in_a_step_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> None:
        raise FULL_DISK

    with pytest.raises(SystemExit) as stopped:
        run_main(main, [])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().startswith("slick: /data/study cannot be written: No space left")


def test_error_of_ray_tune_itself_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailingTuner:
        def fit(self) -> None:
            pa.schema("no fields")  # a library raises, as Tune does when Ray kills its processes for lack of memory

    monkeypatch.setattr(trials, "_tuner", lambda *_: FailingTuner())
    settings = trials.TrialSettings(
        gpus_per_worker=0, concurrent=1, scheduler="none", max_epochs=1, retries=0, keep_files=False
    )
    message = r"Ray Tune ended the sweep: TypeError: .*; finished epochs are kept, and the same command resumes"
    with pytest.raises(ClusterError, match=message):
        trials.run_trials(Folder(str(tmp_path)), TrialTracker([]), settings, str(tmp_path))


def test_read_only_file_system_is_not_reported_as_full() -> None:
    message = format_file_error(OSError(errno.EROFS, "Read-only file system"), "/data/study")
    assert message == (
        "/data/study cannot be written: Read-only file system; make it writable and run the same command again, which "
        "resumes the step"
    )
