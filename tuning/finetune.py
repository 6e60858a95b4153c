"""Fine-tune a model on one variant, or on a list of them in one worker group: the one import of ray.train."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from slick.cluster import detect_device
from slick.errors import EngineError, SlickError, StudyError, error_from_name
from slick.file_errors import file_errors
from slick.locks import exclusive_lock
from slick.models import log_ignored_settings
from slick.precision import AUTO, NO_STORED_DTYPE, Device, read_stored_dtype, resolve_step_dtype
from slick.storage import Folder, FolderLike, as_folder
from slick.stored_files import read_record
from slick.study import Manifest, fingerprint, require_manifest
from tuning.config import TrainConfig
from tuning.fitting import SET_ASIDE_FILE, check_row_lengths
from tuning.progress_table import watch_progress
from tuning.ray_trainer import LostWorkerError, configure_ray_train, find_user_error, make_trainer_class
from tuning.runs import RunPlan, check_resources, plan_runs, progress_token, run_folder, run_id
from tuning.trackers import check_trackers
from tuning.trainable import check_trainable

__all__ = ["TrainConfig", "finetune"]

_FATAL_ERROR_FILE = "refusal.json"
"""What a worker said that only a person can mend, beside the files of its Ray Train run."""
_CHECKPOINT_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints in the folder of a run, which it reads when the run is started again."""


def finetune(study: FolderLike, config: TrainConfig) -> Manifest:
    """Fine-tune on one variant into runs/VARIANT-seedSEED, evaluated by generation after every epoch.

    An interrupted training goes on from its last state, on any number of workers; a finished one is left as it is.

    Returns:
        The manifest of the run. Its counts tell the best dev epoch and whether the training set was fitted whole, as in
        the paper's CONVERGENCE (arXiv:2405.05904, section 4).

    Raises:
        StudyError: an earlier step is not finished, or the run's folder was written with other inputs or settings.
        VariantError: there is no such variant, or it was drawn for another model.
        SettingsError: settings that contradict each other or the cluster.

    Example:
        slick.finetune("studies/mine", slick.TrainConfig(variant="unknown-050", model="ID_OR_PATH"))
    """
    study = as_folder(study)
    name = run_id(config)
    with exclusive_lock(study, "finetune", [f"runs/{name}"]):
        return _finetune(study, name, config)


def _finetune(study: Folder, name: str, config: TrainConfig) -> Manifest:
    config = resolve_precision(study, config, [name])
    plans = plan_runs(study, {name: config})
    if plans:
        check_plans(study, plans)
        gpus_per_worker = connect_and_check_resources(config)
        with scratch_folder(study, f"finetune-{name}") as storage, watch_progress(study, plans):
            train_in_worker_group(study, plans, gpus_per_worker, storage, group_name(plans))
        print_training_summary(study, plans)
    return require_manifest(run_folder(study, name), "finetune")


def check_plans(study: Folder, plans: Sequence[RunPlan]) -> None:
    """Check, before any worker starts, that models, trackers and rows can do what is asked; print what models ignore.

    Raises:
        SettingsError: a package is missing, or a tracker refuses the user's settings.
        ModelError: a model has no layers of the kind to be trained.
        DataError: too many rows are too long for a model's context.
    """
    check_trackers(plans[0].config.track)
    kinds = {(plan.model, plan.config.trainable, bool(plan.config.lora_rank)): plan for plan in plans}
    for plan in kinds.values():
        check_trainable(plan.model, plan.config)
    check_row_lengths(study, plans)
    for model in dict.fromkeys(plan.model for plan in plans):
        log_ignored_settings(model)


def connect_and_check_resources(config: TrainConfig, num_groups: int = 1) -> float:
    """Connect to Ray and see that the workers fit; returns the GPUs of each, 0, 1 or a part of one."""
    import ray

    from slick.cluster import connect

    connect()
    have = ray.cluster_resources()
    return check_resources(config, have.get("CPU", 0.0), have.get("GPU", 0.0), num_groups)


def resolve_precision(study: Folder, config: TrainConfig, run_ids: Sequence[str]) -> TrainConfig:
    """The settings with the dtype that `auto` stands for; to be called before fingerprints and run ids are made.

    Args:
        run_ids: of all trainings that take this dtype; the one in which some of them began is kept.

    Raises:
        StudyError: they began in several.
        SettingsError: the cluster has too few GPUs.
    """
    stored = (
        read_stored_dtype([run_folder(study, name) for name in run_ids]) if config.dtype == AUTO else NO_STORED_DTYPE
    )
    dtype: Any = resolve_step_dtype("finetune", config.dtype, stored, lambda: _worker_device(config))
    return replace(config, dtype=dtype)


def _worker_device(config: TrainConfig) -> Device:
    """What the workers will run on."""
    if config.gpus_per_worker:
        connect_and_check_resources(config)  # refuses GPUs that the cluster does not have, for which a task would wait
    return detect_device(config.gpus_per_worker)


def train_in_worker_group(
    study: Folder,
    plans: Sequence[RunPlan],
    gpus_per_worker: float,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Do a list of trainings in one worker group, and wait for it.

    Args:
        plans: all with the same number of workers.

    The rest, and what is returned and raised, as `run_worker_group`.
    """
    group = Folder(storage).child(name)
    settings = {"study": study, "plans": list(plans), "group": group}
    far = partial(progress_token, study, plans, group)
    return run_worker_group(_train_plans, settings, plans[0].config, gpus_per_worker, storage, name, callbacks, far)


def _train_plans(settings: dict[str, Any], place: Any) -> None:
    from tuning.worker import train_runs

    train_runs(settings["study"], settings["plans"], place, _report_epoch, settings["group"], _is_preemption_pending)


def run_worker_group(
    work: Callable[[dict[str, Any], Any], None],
    settings: dict[str, Any],
    config: TrainConfig,
    gpus_per_worker: float,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
    get_progress_token: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Let every worker of a new group do some work, and wait for it.

    Args:
        work: called with the settings and the worker's `WorkerContext`.
        storage: where Ray keeps the saved state and its own small files; every node must reach it.
        name: of the Ray Train run; one that was interrupted goes on from its state.
        callbacks: of Ray Train, told of every report.
        how_far: another value each time the work comes further, which makes the count of its failures begin anew.

    Returns:
        What the workers reported last.

    Raises:
        SlickError: the message of the worker that failed.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    from tuning.distributed import LoopbackTorchConfig

    configure_ray_train(config)
    elastic = config.min_workers is not None and config.min_workers < config.num_workers
    said = Folder(storage).child(name)
    said.delete(_FATAL_ERROR_FILE)
    _check_snapshot(said)
    trainer = make_trainer_class(get_progress_token)(
        _train_loop_per_worker,
        train_loop_config={"work": work, "settings": settings, "said": said},
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.num_workers) if elastic else config.num_workers,
            use_gpu=gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, "GPU": gpus_per_worker} if gpus_per_worker else {"CPU": 1},
        ),
        torch_config=LoopbackTorchConfig(backend="nccl" if gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            callbacks=list(callbacks),
            failure_config=FailureConfig(max_failures=config.max_failures, max_preemption_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    result = _fit(trainer)
    if said.exists(_FATAL_ERROR_FILE):
        refusal = read_record(said, _FATAL_ERROR_FILE, dict[str, str], "give the same command again")
        raise error_from_name(refusal.get("error", ""), refusal.get("message", ""))
    return dict(result.metrics or {})


def _fit(trainer: Any) -> Any:
    """Ray Train's result; an error that the user can fix is raised as the worker raised it."""
    try:
        return trainer.fit()
    except Exception as error:
        mendable = find_user_error(error)
        if mendable is None:
            raise
        raise mendable from None  # as its own cause it would have Ray walk round in it


def _check_snapshot(run: Folder) -> None:
    """Remove Ray Train's list of checkpoints if it names other things than checkpoints in the run's folder.

    Ray Train deletes what the list names as soon as there are newer ones, wherever it lies, and refuses to start where
    one is missing. States are found without the list.
    """
    if not run.exists(_CHECKPOINT_SNAPSHOT_FILE):
        return
    try:
        content = run.read_json(_CHECKPOINT_SNAPSHOT_FILE)
        results = [*content["checkpoint_results"], *content["pending_training_results"]]
        results += [content["latest_checkpoint_result"]] if content["latest_checkpoint_result"] else []
        names = {result["checkpoint_dir_name"] for result in results}
    except (StudyError, KeyError, TypeError):
        names = {""}
    if not names <= {name for name in run.folders() if name.startswith("checkpoint_")}:
        run.delete(_CHECKPOINT_SNAPSHOT_FILE)


def group_name(plans: Sequence[RunPlan]) -> str:
    """Name of a worker group's Ray Train run: the same for the same trainings, so that an interrupted one goes on."""
    return f"{plans[0].run_id}-{fingerprint([plan.identity for plan in plans])}"


def _train_loop_per_worker(settings: dict[str, Any]) -> None:
    """One worker of the group."""
    import ray.train
    from ray.train.torch import get_device

    from tuning.trainer import WorkerContext

    context = ray.train.get_context()
    place = WorkerContext(
        rank=context.get_world_rank(),
        local_rank=context.get_local_rank(),
        num_workers=context.get_world_size(),
        device=str(get_device()),
    )
    said: Folder = settings["said"]
    if said.exists(_FATAL_ERROR_FILE):
        return
    try:
        settings["work"](settings["settings"], place)
    except SlickError as error:
        if place.num_workers > 1 and isinstance(error, EngineError) and _is_possible_worker_failure(error.__cause__):
            raise LostWorkerError(str(error)) from error.__cause__
        # What a person must mend is not tried again. Other workers may wait for this one, so the group has to fail;
        # when it is started anew, all leave at once.
        with suppress(SlickError):  # the storage may be what fails: then the error itself ends the run
            said.write_json(_FATAL_ERROR_FILE, {"error": type(error).__name__, "message": str(error)})
        if place.num_workers > 1 or not said.exists(_FATAL_ERROR_FILE):
            raise


def _is_possible_worker_failure(cause: BaseException | None) -> bool:
    """Whether an error may be that of a collective operation whose other end is gone: a new group goes on from there.

    gloo raises bare RuntimeErrors, torch.distributed its own DistErrors; errors of memory and of CUDA have classes of
    their own.
    """
    return type(cause) is RuntimeError or type(cause).__name__.startswith("Dist")


def _report_epoch(metrics: dict[str, object], state: str | None) -> None:
    """Tell Ray Train of an epoch. A state is uploaded while training goes on, unless it must be there very soon."""
    import ray.train

    if state is None:
        ray.train.report(metrics)
        return
    mode = ray.train.CheckpointUploadMode
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint.from_directory(state),
        checkpoint_upload_mode=mode.SYNC if _is_preemption_pending() else mode.ASYNC,
        checkpoint_upload_fn=_upload_checkpoint,
        delete_local_checkpoint_after_upload=True,
    )


def _upload_checkpoint(checkpoint: Any, name: str) -> Any:
    """Bring this worker's part of a state into the storage of the run; after a failure nothing of it stays anywhere."""
    import ray.train

    storage = ray.train.get_context().get_storage()
    target = storage.build_checkpoint_path_from_name(name)
    try:
        with file_errors(target, "written"):
            return storage.persist_current_checkpoint(checkpoint, name)
    except StudyError:
        shutil.rmtree(checkpoint.path, ignore_errors=True)
        with suppress(OSError):
            storage.storage_filesystem.delete_dir(target)
        raise


def _is_preemption_pending() -> bool:
    """Whether a machine of the group is about to be taken back; all workers ask together."""
    import ray.train

    return ray.train.get_preemption_info() is not None


@contextmanager
def scratch_folder(study: Folder, name: str, keep: bool = False) -> Iterator[str]:
    """A folder in the study for Ray's own files, which every node must reach; removed when the block ends well."""
    folder = study.child(".ray", name)
    folder.mkdir()
    yield folder.uri
    if not keep:
        folder.delete()


def print_training_summary(study: Folder, plans: Sequence[RunPlan]) -> None:
    """What a reader of the results must know: training sets not fitted whole, rows left out, dropout without effect."""
    counts = {plan.run_id: require_manifest(run_folder(study, plan.run_id), "finetune").counts for plan in plans}
    short = {name: count["final_train_accuracy"] for name, count in counts.items() if not count["converged"]}
    if short:
        worst = min(short, key=lambda name: short[name])
        print(
            f"finetune: {len(short)} of {len(plans)} trainings ended with less than 100 % of their training rows right "
            f"(least: {worst}, {100 * short[worst]:.1f} %), so their last epoch is not the paper's CONVERGENCE; more "
            "--epochs would bring them nearer"
        )
    cut = {
        name: sum(num for splits in count["set_aside"].values() for num in splits.values())
        for name, count in counts.items()
        if count.get("set_aside")
    }
    if cut:
        most = max(cut, key=lambda name: cut[name])
        print(
            f"finetune: {len(cut)} of {len(plans)} trainings left out rows that are too long for the model's context "
            f"(most: {most}, {cut[most]:,} rows), which are neither trained on nor evaluated; they are listed in "
            f"{run_folder(study, most)}/{SET_ASIDE_FILE}"
        )
    silent = [plan.run_id for plan in plans if plan.config.dropout and counts[plan.run_id].get("dropouts") == []]
    if silent:
        print(f"finetune: the model has no dropout anywhere, so --dropout had no effect on {', '.join(silent)}")
