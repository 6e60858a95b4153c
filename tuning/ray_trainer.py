"""Functions in a Ray Train worker group: its start, reports and checkpoints, retries, and the errors it raises.

Each process of Ray takes 1 to 3 CPU seconds to start, most of them for imports. For a small model that is as long as
its epochs, so processes that training does not need are left out.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from slick import compat
from slick.errors import (
    EngineError,
    SlickError,
    StudyError,
    error_from_name,
    file_errors,
    format_file_error,
    is_disk_error,
)
from slick.storage import Folder
from slick.stored_files import read_record
from tuning.config import TrainConfig

_FATAL_ERROR_FILE = "refusal.json"
"""An error of a worker that the user has to fix, next to the files of its Ray Train run."""


class LostWorkerError(EngineError):
    """A collective operation failed, perhaps because another worker died: a new group resumes from the last state."""


def run_worker_group(
    work: Callable[[dict[str, Any], Any], None],
    arguments: dict[str, Any],
    config: TrainConfig,
    gpus_per_worker: float,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
    get_progress_token: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Call a function in every worker of a new group, and wait for it.

    Args:
        work: called with the arguments and the worker's `WorkerContext`.
        arguments: passed to `work`.
        config: number of workers and of failures.
        gpus_per_worker: 0, 1 or a fraction of 1.
        storage: URI of the folder for states and Ray's own files; every node must reach it.
        name: name of the Ray Train run; an interrupted run of that name resumes from its state.
        callbacks: Ray Train callbacks.
        get_progress_token: see `progress_failure_policy`.

    Returns:
        The metrics that the workers reported last.

    Raises:
        SlickError: the error of the worker that failed.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    from tuning.distributed import ProcessGroupSettings

    configure_ray_train(config)
    is_elastic = config.min_workers is not None and config.min_workers < config.num_workers
    folder = Folder(storage).child(name)
    folder.delete(_FATAL_ERROR_FILE)
    _check_snapshot(folder)
    trainer = make_trainer_class(get_progress_token)(
        _train_loop_per_worker,
        train_loop_config={"work": work, "arguments": arguments, "folder": folder},
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.num_workers) if is_elastic else config.num_workers,
            use_gpu=gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, "GPU": gpus_per_worker} if gpus_per_worker else {"CPU": 1},
        ),
        torch_config=ProcessGroupSettings(backend="nccl" if gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            callbacks=list(callbacks),
            failure_config=FailureConfig(max_failures=config.max_failures, max_preemption_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    result = _fit(trainer)
    if folder.exists(_FATAL_ERROR_FILE):
        stored = read_record(folder, _FATAL_ERROR_FILE, dict[str, str], "give the same command again")
        raise error_from_name(stored.get("error", ""), stored.get("message", ""))
    return dict(result.metrics or {})


def _fit(trainer: Any) -> Any:
    """Ray Train's result; an error that the user has to fix is raised as the worker raised it."""
    try:
        return trainer.fit()
    except Exception as error:
        user_error = find_user_error(error)
        if user_error is None:
            raise
        raise user_error from None  # with itself as its cause, Ray would follow the causes forever


def _check_snapshot(run: Folder) -> None:
    """Delete Ray Train's list of checkpoints if it names anything but checkpoints in the run's folder.

    Ray Train deletes what the list names as soon as there are newer checkpoints, at any path, and does not start if
    one is missing. States are found without the list.
    """
    if not run.exists(compat.CHECKPOINT_SNAPSHOT_FILE):
        return
    try:
        names = compat.snapshot_checkpoint_names(run.read_json(compat.CHECKPOINT_SNAPSHOT_FILE))
    except (StudyError, KeyError, TypeError):
        names = {""}
    if not names <= {name for name in run.folders() if name.startswith("checkpoint_")}:
        run.delete(compat.CHECKPOINT_SNAPSHOT_FILE)


def _train_loop_per_worker(settings: dict[str, Any]) -> None:
    """One worker of the group."""
    import ray.train
    from ray.train.torch import get_device

    from tuning.trainer import WorkerContext

    train_context = ray.train.get_context()
    context = WorkerContext(
        rank=train_context.get_world_rank(),
        local_rank=train_context.get_local_rank(),
        num_workers=train_context.get_world_size(),
        device=str(get_device()),
    )
    folder: Folder = settings["folder"]
    if folder.exists(_FATAL_ERROR_FILE):
        return
    try:
        settings["work"](settings["arguments"], context)
    except SlickError as error:
        if context.num_workers > 1 and isinstance(error, EngineError) and _may_be_lost_worker(error.__cause__):
            raise LostWorkerError(str(error)) from error.__cause__
        # Errors that the user has to fix are not retried. Other workers may wait for this one, so the group has to
        # fail; when it is restarted, all workers return at once.
        with suppress(SlickError):  # the storage itself may have failed: then the error ends the run
            folder.write_json(_FATAL_ERROR_FILE, {"error": type(error).__name__, "message": str(error)})
        if context.num_workers > 1 or not folder.exists(_FATAL_ERROR_FILE):
            raise


def _may_be_lost_worker(cause: BaseException | None) -> bool:
    """Whether an error may come from a collective operation whose peer died, so that a new group can resume.

    gloo raises plain RuntimeErrors, torch.distributed its own DistErrors; memory and CUDA errors have their own types.
    """
    return type(cause) is RuntimeError or type(cause).__name__.startswith("Dist")


def report_epoch(metrics: dict[str, object], state: str | None) -> None:
    """Report an epoch to Ray Train; called by all workers.

    Args:
        metrics: the metrics of the epoch.
        state: local folder with this worker's part of the training state, or None. It is uploaded while training
            continues, or at once if a preemption is pending.
    """
    import ray.train

    if state is None:
        ray.train.report(metrics)
        return
    mode = ray.train.CheckpointUploadMode
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint.from_directory(state),
        checkpoint_upload_mode=mode.SYNC if is_preemption_pending() else mode.ASYNC,
        checkpoint_upload_fn=_upload_checkpoint,
        delete_local_checkpoint_after_upload=True,
    )


def _upload_checkpoint(checkpoint: Any, name: str) -> Any:
    """Upload this worker's part of a state to the storage of the run; after a failure both copies are removed."""
    storage = compat.ray_train_storage()
    target = storage.build_checkpoint_path_from_name(name)
    try:
        with file_errors(target, "written"):
            return storage.persist_current_checkpoint(checkpoint, name)
    except StudyError:
        shutil.rmtree(checkpoint.path, ignore_errors=True)
        with suppress(OSError):
            storage.storage_filesystem.delete_dir(target)
        raise


def is_preemption_pending() -> bool:
    """Whether a node of the group will soon be preempted; called by all workers together."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def configure_ray_train(config: TrainConfig) -> None:
    """Shorten Ray Train's polling interval, and on a single node leave out its preemption watcher.

    A worker waits at each report until the previous one was fetched, by default every 2 s: too long for small epochs,
    and for a state that must be stored before a preemption. A single node cannot be preempted separately from the run.
    """
    import os

    import ray

    is_single_node = len(ray.nodes()) == 1 and not config.wait_for_nodes
    if is_single_node:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25" if is_single_node else "0.5")


def make_trainer_class(get_progress_token: Callable[[], object] | None = None) -> Any:
    """Ray's `TorchTrainer` without the dataset actor: each worker reads its rows itself.

    Args:
        get_progress_token: see `progress_failure_policy`; None: Ray's own failure policy.
    """
    if get_progress_token is None:
        return compat.torch_trainer()
    return compat.torch_trainer(partial(progress_failure_policy, get_progress_token=get_progress_token))


def progress_failure_policy(config: Any, get_progress_token: Callable[[], object]) -> Any:
    """Ray's retry policy, with failures counted since the last progress instead of since the start of the run.

    A run of a day on spot instances may lose more of them than any fixed number, most without notice. The run fails
    only after repeated failures without a new state, or at once on an error that the user has to fix, such as a full
    disk.

    Args:
        config: Ray Train's `FailureConfig`.
        get_progress_token: when the token changes, the failure counter resets.
    """
    token = get_progress_token()

    def is_fatal(error: Exception) -> bool:
        user_error = find_user_error(error)
        return user_error is not None and not isinstance(user_error, LostWorkerError)

    def has_progressed() -> bool:
        nonlocal token
        previous, token = token, get_progress_token()
        return token != previous

    return compat.failure_policy(config, is_fatal, has_progressed)


def find_user_error(error: BaseException) -> SlickError | None:
    """The error that the user has to fix among the causes of a failed run: a `SlickError`, or a full disk.

    Args:
        error: raised by Ray Train or Ray Tune, around the errors of workers and controller.
    """
    causes: list[BaseException] = [error]
    for cause in causes:
        causes += [inner for inner in compat.nested_errors(cause) if all(inner is not known for known in causes)]
    user_errors = [cause for cause in causes if isinstance(cause, SlickError)]
    user_errors.sort(key=lambda cause: isinstance(cause, LostWorkerError))  # it is the consequence of another error
    if user_errors and not isinstance(user_errors[0], LostWorkerError):
        return user_errors[0]
    for cause in reversed(causes):  # the innermost is the error itself; those around it quote it
        if is_disk_error(cause):
            return StudyError(format_file_error(cause))
    return user_errors[0] if user_errors else None
