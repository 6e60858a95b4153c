"""The finetune step: one fine-tuning, or the trainings of one trial of a sweep, in a worker group."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from slick.cluster import detect_device
from slick.locks import exclusive_lock
from slick.models import log_ignored_settings
from slick.precision import AUTO, NO_STORED_DTYPE, Device, read_stored_dtype, resolve_step_dtype
from slick.storage import Folder, FolderLike, as_folder
from slick.study import Manifest, fingerprint, require_manifest
from tuning.config import TrainConfig
from tuning.evaluate import check_row_lengths
from tuning.progress_table import watch_progress
from tuning.ray_trainer import is_preemption_pending, report_epoch, run_worker_group
from tuning.records import SET_ASIDE_FILE
from tuning.runs import RunPlan, check_resources, plan_runs, progress_token, run_folder, run_id
from tuning.trackers import check_trackers
from tuning.trainable import check_trainable

__all__ = ["TrainConfig", "finetune"]

_LOG = logging.getLogger(__name__)


def finetune(study: FolderLike, config: TrainConfig) -> Manifest:
    """Fine-tune on one variant into runs/VARIANT-seedSEED, with an evaluation by generation after every epoch.

    An interrupted training resumes from its last state, on any number of workers; a finished training is not repeated.

    Returns:
        The manifest of the run. Its counts include the best dev epoch and whether all training rows were fitted, as in
        the paper's CONVERGENCE (arXiv:2405.05904, section 4).

    Raises:
        StudyError: an earlier step is not finished, or the run's folder was written with other inputs or settings.
        VariantError: the variant does not exist, or was drawn for another model.
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
    if not plans:
        log_missing_test_rows(study, {name: config})
    else:
        check_plans(study, plans)
        gpus_per_worker = connect_and_check_resources(config)
        with scratch_folder(study, f"finetune-{name}") as storage, watch_progress(study, plans):
            train_in_worker_group(study, plans, gpus_per_worker, storage, group_name(plans))
        log_training_summary(study, plans)
    return require_manifest(run_folder(study, name), "finetune")


def check_plans(study: Folder, plans: Sequence[RunPlan]) -> None:
    """Check models, trackers and row lengths before any worker starts; log the model settings that are ignored.

    Raises:
        SettingsError: a package is missing, or a tracker refuses the user's settings.
        ModelError: a model has no layers of the kind to be trained.
        DataError: too many rows exceed a model's context.
    """
    check_trackers(plans[0].config.track)
    kinds = {(plan.model, plan.config.trainable, bool(plan.config.lora_rank)): plan for plan in plans}
    for plan in kinds.values():
        check_trainable(plan.model, plan.config)
    check_row_lengths(study, plans)
    for model in dict.fromkeys(plan.model for plan in plans):
        log_ignored_settings(model)


def connect_and_check_resources(config: TrainConfig, num_groups: int = 1) -> float:
    """Connect to Ray and check that the workers fit; returns the GPUs per worker: 0, 1 or a fraction of 1."""
    import ray

    from slick.cluster import connect

    connect()
    resources = ray.cluster_resources()
    return check_resources(config, resources.get("CPU", 0.0), resources.get("GPU", 0.0), num_groups)


def resolve_precision(study: Folder, config: TrainConfig, run_ids: Sequence[str]) -> TrainConfig:
    """The settings with `auto` replaced by a dtype; to be called before fingerprints and run ids are computed.

    Args:
        study: the study.
        config: settings of the trainings.
        run_ids: all trainings that use this dtype; if some of them began in a dtype, it is kept.

    Raises:
        StudyError: they began in several dtypes.
        SettingsError: the cluster has too few GPUs.
    """
    stored = (
        read_stored_dtype([run_folder(study, name) for name in run_ids]) if config.dtype == AUTO else NO_STORED_DTYPE
    )
    dtype: Any = resolve_step_dtype("finetune", config.dtype, stored, lambda: _worker_device(config))
    return replace(config, dtype=dtype)


def _worker_device(config: TrainConfig) -> Device:
    """The device that workers run on."""
    if config.gpus_per_worker:
        connect_and_check_resources(config)  # without such GPUs, the detection task would wait forever
    return detect_device(config.gpus_per_worker)


def train_in_worker_group(
    study: Folder,
    plans: Sequence[RunPlan],
    gpus_per_worker: float,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Run several trainings one after another in one worker group, and wait for them.

    Args:
        study: the study.
        plans: trainings with the same number of workers.
        gpus_per_worker, storage, name, callbacks: see `run_worker_group`, also for the result and errors.
    """
    group = Folder(storage).child(name)
    return run_worker_group(
        _train_plans,
        {"study": study, "plans": list(plans), "group": group},
        plans[0].config,
        gpus_per_worker,
        storage,
        name,
        callbacks,
        partial(progress_token, study, plans, group),
    )


def _train_plans(arguments: dict[str, Any], context: Any) -> None:
    from tuning.worker import train_runs

    train_runs(arguments["study"], arguments["plans"], context, report_epoch, arguments["group"], is_preemption_pending)


def group_name(plans: Sequence[RunPlan]) -> str:
    """Name of a worker group's Ray Train run: equal for the same trainings, so that an interrupted one resumes."""
    return f"{plans[0].run_id}-{fingerprint([plan.identity for plan in plans])}"


@contextmanager
def scratch_folder(study: Folder, name: str, keep: bool = False) -> Iterator[str]:
    """URI of a folder in the study for Ray's own files, which every node must reach.

    It is deleted when the context ends without an error, unless `keep` is set.
    """
    folder = study.child(".ray", name)
    folder.mkdir()
    yield folder.uri
    if not keep:
        folder.delete()


def log_missing_test_rows(study: Folder, configs: Mapping[str, TrainConfig]) -> None:
    """Log which finished trainings, of those that should evaluate all rows after every epoch, did not always do so.

    They were trained, or began, with `evaluate: needed`.
    """
    missing = {}
    for name, config in configs.items():
        epochs = require_manifest(run_folder(study, name), "finetune").counts.get("epochs_without_test_rows")
        if epochs and config.evaluate == "all":
            missing[name] = epochs
    if missing:
        most = max(missing, key=lambda name: len(missing[name]))
        _LOG.warning(
            "finetune: %d of %d trainings have no test rows after some epochs, which were trained with evaluate needed "
            "(most: %s, %d epochs); to evaluate all of them, delete the folder of the run and train it again",
            len(missing),
            len(configs),
            most,
            len(missing[most]),
        )


def log_training_summary(study: Folder, plans: Sequence[RunPlan]) -> None:
    """Log caveats for the results: training sets not fully fitted, rows left out, dropout without effect."""
    counts = {plan.run_id: require_manifest(run_folder(study, plan.run_id), "finetune").counts for plan in plans}
    unfitted = {name: count["final_train_accuracy"] for name, count in counts.items() if not count["converged"]}
    if unfitted:
        worst = min(unfitted, key=lambda name: unfitted[name])
        _LOG.info(
            "finetune: %d of %d trainings ended with less than 100 %% train accuracy (lowest: %s, %.1f %%), so their "
            "last epoch is not the paper's CONVERGENCE; train for more --epochs",
            len(unfitted),
            len(plans),
            worst,
            100 * unfitted[worst],
        )
    set_aside = {
        name: sum(num for splits in count["set_aside"].values() for num in splits.values())
        for name, count in counts.items()
        if count.get("set_aside")
    }
    if set_aside:
        most = max(set_aside, key=lambda name: set_aside[name])
        _LOG.info(
            "finetune: %d of %d trainings left out rows that exceed the model's context or --max-length (most: %s, %s "
            "rows); they are neither trained on nor evaluated, and listed in %s/%s",
            len(set_aside),
            len(plans),
            most,
            f"{set_aside[most]:,}",
            run_folder(study, most),
            SET_ASIDE_FILE,
        )
    truncated = {name: count["truncated_rows"] for name, count in counts.items() if count.get("truncated_rows")}
    if truncated:
        most = max(truncated, key=lambda name: truncated[name])
        _LOG.info(
            "finetune: %d of %d trainings cut the targets of too long training rows (most: %s, %s rows)",
            len(truncated),
            len(plans),
            most,
            f"{truncated[most]:,}",
        )
    log_missing_test_rows(study, {plan.run_id: plan.config for plan in plans})
    no_dropout = [plan.run_id for plan in plans if plan.config.dropout and counts[plan.run_id].get("dropouts") == []]
    if no_dropout:
        _LOG.info("finetune: the model has no dropout layers, so --dropout had no effect on %s", ", ".join(no_dropout))
