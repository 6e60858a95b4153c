"""Ray Train without the processes that a training here has no use for, and patient with machines that are lost.

Each process takes 1 to 3 CPU seconds to start, most of them in imports, which for a small model is as long as its
epochs.
"""

from collections.abc import Callable
from typing import Any

from slick.errors import EngineError, SlickError, StudyError
from slick.file_errors import format_file_error, is_disk_error
from tuning.config import TrainConfig


class LostWorkerError(EngineError):
    """A collective operation failed, perhaps since another worker is gone: a new group resumes from the last state."""


def configure_ray_train(config: TrainConfig) -> None:
    """Make Ray Train lighter.

    A worker waits at each report until the last one was fetched, every 2 s by default: too long for small epochs, and
    for a state that a lost machine must not take with it. On one machine, none can be taken away from the run, so the
    process that watches for that is left out.
    """
    import os

    import ray

    alone = len(ray.nodes()) == 1 and not config.wait_for_nodes
    if alone:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25" if alone else "0.5")


def make_trainer_class(get_progress_token: Callable[[], object] | None = None) -> Any:
    """Ray's TorchTrainer without the actor that splits datasets of Ray Data: rows are read by each worker itself.

    Args:
        reached: as for `progress_failure_policy`; None for Ray's own policy.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

    class LightweightTorchTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            if get_progress_token is not None:
                settings["failure_policy"] = progress_failure_policy(self.run_config.failure_config, get_progress_token)
            return super()._initialize_and_run_controller(**settings)

    return LightweightTorchTrainer


def progress_failure_policy(config: Any, get_progress_token: Callable[[], object]) -> Any:
    """Ray's policy of trying again, but failures are counted from where the run last came further, not from its start.

    An error that the user has to fix, a full disk among them, ends the run at once.

    A run of a day on spot machines may lose more of them than any fixed number, most without notice. What should end
    it is a state from which it does not get on.

    Args:
        config: Ray Train's FailureConfig.
        reached: how far the run has come, by what it could go on from; another value each time it comes further.
    """
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
    from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision

    class ProgressFailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(config)
            self._progress_token = get_progress_token()

        def make_decision(self, training_failed_error: Exception) -> Any:
            final = find_user_error(training_failed_error)
            if final is not None and not isinstance(final, LostWorkerError):
                return FailureDecision.RAISE  # the next try would fail for the same reason
            now = get_progress_token()
            if now != self._progress_token:
                self._progress_token, self._worker_group_failures = now, 0
            return super().make_decision(training_failed_error)

    return ProgressFailurePolicy()


def find_user_error(error: BaseException) -> SlickError | None:
    """The error that a user has to fix among the causes of a failed run: a SlickError, or what a full disk refuses.

    Args:
        error: as Ray Train or Ray Tune raised it, around the errors of its workers and controller.
    """
    causes: list[BaseException] = [error]
    for cause in causes:
        inner = [getattr(cause, name, None) for name in ("_base_exc", "cause", "controller_failure", "__cause__")]
        inner += getattr(cause, "worker_failures", {}).values()
        causes += [one for one in inner if isinstance(one, BaseException) and all(one is not known for known in causes)]
    found = [cause for cause in causes if isinstance(cause, SlickError)]
    found.sort(key=lambda cause: isinstance(cause, LostWorkerError))  # it follows from another error
    if found and not isinstance(found[0], LostWorkerError):
        return found[0]
    for cause in reversed(causes):  # the innermost is the error itself, those around it quote it
        if is_disk_error(cause):
            return StudyError(format_file_error(cause))
    return found[0] if found else None
