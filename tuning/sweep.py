"""The table points.parquet: every point of the grid, computed from the stored epochs of its trajectory."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import mean
from typing import Any

import pyarrow as pa

from slick.errors import SettingsError, SlickError, StudyError
from slick.locks import exclusive_lock
from slick.precision import AUTO, TrainDtype, read_stored_dtype
from slick.storage import Folder, FolderLike, as_folder
from slick.study import (
    Manifest,
    begin_step,
    complete_step,
    fingerprint,
    read_manifest,
    read_start_record,
    require_manifest,
)
from slick.study_files import POINTS_SCHEMA
from slick.types import Category
from tuning.axes import SettingOverrides, combinations
from tuning.config import TrainConfig
from tuning.data import QuestionRow, read_rows
from tuning.evaluation_epochs import epochs_without_test_rows
from tuning.finetune import (
    check_plans,
    connect_and_check_resources,
    log_missing_test_rows,
    log_training_summary,
    resolve_precision,
    scratch_folder,
)
from tuning.grid import GridConfig, SweepConfig, grid_summary, pack_by_cost, points, settings_text
from tuning.policies import AccuracyCurve, Policy, apply_policy, parse_policy
from tuning.progress_table import ProgressTable, TrialTracker, watch_progress
from tuning.records import finalize_run
from tuning.run_status import write_planned
from tuning.runs import (
    EpochAccuracies,
    RunPlan,
    curve_from_accuracies,
    is_finished,
    plan_runs,
    read_accuracies,
    run_folder,
)
from tuning.trials import SettingsSearch, TrialSettings, check_search, num_concurrent_trials, run_trials

__all__ = ["SweepConfig", "sweep"]


_LOG = logging.getLogger(__name__)


def sweep(study: FolderLike, config: SweepConfig) -> Manifest:
    """Train all unfinished trajectories of the grid, then compute its points into sweep/points.parquet.

    The grid may be extended later: only new trajectories are trained, and trajectories that are too short resume from
    their state if it was kept. Points are computed again whenever the grid changes.

    Raises:
        StudyError: an earlier step is not finished, or a run was made with other inputs or settings.
        VariantError: a variant does not exist, or was drawn for another model.
        SettingsError: settings that contradict each other or the cluster.
        SlickError: some trainings failed after all others were finished.

    Example:
        grid = slick.GridConfig(variants=("unknown-000", "unknown-100"), epochs=(10, 50))
        slick.sweep("studies/mine", slick.SweepConfig(grid=grid, train=slick.TrainConfig(model="ID_OR_PATH")))
    """
    study = as_folder(study)
    with exclusive_lock(study, "sweep"):
        return _sweep(study, config)


def _sweep(study: Folder, config: SweepConfig) -> Manifest:
    started_at = time.monotonic()
    config = resolve_sweep_precision(study, config)
    _check_policies(study, config)
    shared = not config.independent_reason
    if not shared and len(config.grid.epochs) > 1:
        _LOG.info("sweep: every epoch budget is trained separately: %s", config.independent_reason)
    if config.search == "grid":
        _LOG.info("sweep: %s", grid_summary(config.grid, config.train, shared=shared))
        chosen = combinations(config.grid.axes, config.train)
        result = train_combinations(study, config, chosen)
    else:
        chosen, result = run_search(study, config)
    trajectories = config.trajectories_for(chosen)
    folder = study.child("sweep")
    manifests = {run.run_id: require_manifest(run_folder(study, run.run_id), "sweep") for run in trajectories}
    inputs = {run_id: _run_content(manifest) for run_id, manifest in manifests.items()}
    identity = fingerprint(inputs, config.identity())
    _discard_other_grid(folder, identity)
    if not begin_step(folder, "sweep", identity, config):
        return require_manifest(folder, "sweep")
    write_planned(folder, trajectories)
    table = points_table(study, config.grid, config.train, shared=shared, chosen=list(dict.fromkeys(chosen)))
    folder.write_table("points.parquet", table)
    counts = _manifest_counts(manifests, result, table.num_rows)
    _LOG.info("sweep: %s points in %s/points.parquet", f"{table.num_rows:,}", folder)
    return complete_step(
        folder, "sweep", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
    )


def _run_content(manifest: Manifest) -> str:
    """What the points and the report read of a run: its fingerprint, and the epochs that it has."""
    missing = manifest.counts.get("epochs_without_test_rows")
    evaluated = f" without test rows {','.join(map(str, missing))}" if missing else ""
    return f"{manifest.fingerprint} {manifest.count('epochs')}{evaluated}"


def resolve_sweep_precision(study: Folder, config: SweepConfig, other_run_ids: Sequence[str] = ()) -> SweepConfig:
    """The sweep with `auto` replaced by one dtype for all trainings whose axes state none.

    Args:
        study: the study.
        config: settings of the sweep.
        other_run_ids: other trainings of the study; their dtype is used if no training of the sweep has begun.

    Raises:
        StudyError, SettingsError: see `resolve_precision`.
    """
    if config.train.dtype != AUTO:
        return config
    run_ids: dict[str, None] = {}
    dtypes: tuple[TrainDtype, ...] = ("float32", "bfloat16")
    for dtype in dtypes:  # the base dtype decides which runs of a dtype axis have the dtype in their name
        runs = replace(config, train=replace(config.train, dtype=dtype)).trajectories
        run_ids |= {run.run_id: None for run in runs if "dtype" not in dict(run.settings)}
    own, other = ({_stored_dtype(study, name) for name in names} - {None} for names in (run_ids, other_run_ids))
    if len(other) == 1 and not own:
        run_ids |= dict.fromkeys(other_run_ids)
    return replace(config, train=resolve_precision(study, config.train, list(run_ids)))


def _stored_dtype(study: Folder, run_id: str) -> str | None:
    """The dtype in which a training began, or None."""
    return read_stored_dtype([run_folder(study, run_id)]).dtype


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The outcome of one run of the sweep."""

    num_trained: int = 0
    num_retries: int = 0
    """Retries of failed trials."""


def _manifest_counts(manifests: Mapping[str, Manifest], result: SweepResult, num_points: int) -> dict[str, object]:
    """The counts in the sweep's manifest."""
    return {
        "trainings": len(manifests),
        "trained_now": result.num_trained,
        "retried": result.num_retries,
        "points": num_points,
        "epochs_trained": sum(manifest.count("epochs") for manifest in manifests.values()),
        "not_converged": [name for name, manifest in manifests.items() if not manifest.count("converged")],
        "ended_early": [name for name, manifest in manifests.items() if manifest.counts.get("ended_by")],
    }


def train_combinations(study: Folder, config: SweepConfig, chosen: Sequence[SettingOverrides]) -> SweepResult:
    """Train all unfinished trajectories of the grid with the chosen combinations of settings.

    Raises:
        StudyError, VariantError, SettingsError, SlickError: see `sweep`.
    """
    trajectories = config.trajectories_for(chosen)
    configs = {run.run_id: run.config(config.train) for run in trajectories}
    has_scheduler = config.scheduler != "none"
    plans = plan_runs(
        study,
        configs,
        config.stop_policies,
        point_policies=config.point_policies,
        accept_early_stopped=has_scheduler,
    )
    check_stored_evaluations(study, config, list(dict.fromkeys(chosen)), plans)
    log_missing_test_rows(study, {name: configs[name] for name in configs.keys() - {plan.run_id for plan in plans}})
    _LOG.info("sweep: %d of %d trainings are finished", len(configs) - len(plans), len(configs))
    if not plans:
        return SweepResult()
    with exclusive_lock(study, "sweep", [f"runs/{plan.run_id}" for plan in plans]):
        # Another process may have finished some before the lock was taken.
        plans = [plan for plan in plans if not is_finished(study, plan, accept_early_stopped=has_scheduler)]
        folder = study.child("sweep")
        folder.delete()
        write_planned(folder, trajectories)
        num_retries = train_as_trials(study, config, plans) if plans else 0
    log_training_summary(study, plans)
    return SweepResult(len(plans), num_retries)


def run_search(study: Folder, config: SweepConfig) -> tuple[list[SettingOverrides], SweepResult]:
    """Train sampled combinations of settings, a few at a time; returns all combinations that were sampled.

    Raises:
        StudyError, VariantError, SettingsError, SlickError: see `sweep`.
    """
    check_search()
    search = SettingsSearch(config.grid.axes, config.train, config.search_seed)
    total = SweepResult()
    while len(search.suggestions) < config.samples:
        batch = search.ask(min(config.samples_at_once, config.samples - len(search.suggestions)))
        last = len(search.suggestions)
        _LOG.info("sweep: samples %d to %d of %d", last - len(batch) + 1, last, config.samples)
        result = train_combinations(study, config, search.suggestions)
        total = SweepResult(total.num_trained + result.num_trained, total.num_retries + result.num_retries)
        scores = [
            mean(read_best_dev_accuracy(study, run.run_id) for run in config.trajectories_for([settings]))
            for settings in batch
        ]
        search.tell(scores)
        for settings, score in zip(batch, scores, strict=True):
            _LOG.info("sweep: %s: best dev accuracy %.3f", settings_text(settings) or "base settings", score)
    return search.suggestions, total


def read_best_dev_accuracy(study: Folder, run_id: str) -> float:
    """The best dev accuracy of a finished training."""
    return float(require_manifest(run_folder(study, run_id), "sweep").count("best_dev_accuracy"))


def _check_policies(study: Folder, config: SweepConfig) -> None:
    """Before anything is trained, refuse policies that need accuracies which the study's questions cannot give.

    Each policy is applied to a curve of one epoch that has the same accuracies as the curves of the trainings.
    """
    policies = [parse_policy(text) for text in config.grid.policies]
    minimal = AccuracyCurve(dev_accuracy=(0.0,))
    try:
        for policy in policies:
            policy.decided_epoch(minimal, max(config.grid.epochs))
    except SettingsError:
        for variant in config.grid.variants:
            rows = read_rows(study, variant)
            curve = replace(
                minimal,
                unknown_train_accuracy=_zero_if_any(rows["train"], Category.UNKNOWN),
                highlyknown_dev_accuracy=_zero_if_any(rows["dev"], Category.HIGHLY_KNOWN),
            )
            try:
                for policy in policies:
                    policy.decided_epoch(curve, max(config.grid.epochs))
            except SettingsError as error:
                raise SettingsError(f"{study}, variant {variant}: {error}") from error


def _zero_if_any(rows: Sequence[QuestionRow], category: Category) -> tuple[float] | None:
    """An accuracy of 0 after one epoch if any row has the category, else None."""
    return (0.0,) if any(row.category == category for row in rows) else None


def _discard_other_grid(folder: Folder, identity: str) -> None:
    """Delete the points of another grid instead of refusing to overwrite them: the runs hold the same information."""
    for record in (read_manifest(folder), read_start_record(folder)):
        if record is not None and record.fingerprint != identity:
            folder.delete()
            return


def train_as_trials(study: Folder, config: SweepConfig, plans: Sequence[RunPlan]) -> int:
    """Run the trainings as trials of Ray Tune; returns the number of retries.

    Raises:
        SlickError: some trainings failed after all others were finished.
    """
    import ray

    check_plans(study, plans)
    gpus_per_worker = connect_and_check_resources(config.train)
    started_at = time.monotonic()
    concurrent = num_concurrent_trials(
        config.train, ray.cluster_resources(), gpus_per_worker, len(plans), config.max_concurrent
    )
    packs = pack_plans(plans, config.trajectories_per_trial, concurrent)
    tracker = TrialTracker(packs)
    study.child(".ray", "sweep", "tune").delete()  # of an earlier sweep; only Ray Train's files are resumed from
    settings = TrialSettings(
        gpus_per_worker=gpus_per_worker,
        concurrent=concurrent,
        scheduler=config.scheduler,
        max_epochs=max(config.grid.epochs),
        retries=config.retries,
        keep_files=config.keep_ray_files,
    )
    table = ProgressTable(study, study.child("sweep"), tracker)
    with scratch_folder(study, "sweep", keep=config.keep_ray_files) as storage, watch_progress(study, plans, table):
        errors = run_trials(study, tracker, settings, storage)
    has_scheduler = config.scheduler != "none"
    if has_scheduler:
        completed = tracker.completed_runs()
        for plan in (plan for plan in plans if plan.run_id in completed and not is_finished(study, plan)):
            finalize_run(study, plan, started_at=started_at, ended_by=config.scheduler)
    if not errors and not all(is_finished(study, plan, accept_early_stopped=has_scheduler) for plan in plans):
        raise KeyboardInterrupt  # if Tune handles Ctrl-C itself, it returns normally
    _raise_trial_errors(study, packs, errors)
    return tracker.num_retries


def _raise_trial_errors(study: Folder, packs: Sequence[Sequence[RunPlan]], errors: Mapping[int, str]) -> None:
    """Raise one error for all failed trials, if any."""
    run_ids: dict[str, list[str]] = {}
    for index, error in sorted(errors.items()):
        run_ids.setdefault(error, []).extend(plan.run_id for plan in packs[index] if not is_finished(study, plan))
    failed = [f"  {', '.join(names)}: {error}" for error, names in run_ids.items()]
    if failed:
        raise SlickError(
            f"{len(errors)} of {len(packs)} trials failed, all others are finished; the same command does only the "
            "rest\n" + "\n".join(failed)
        )


def pack_plans(plans: Sequence[RunPlan], per_trial: int | None, concurrent: int) -> list[list[RunPlan]]:
    """Distribute the trainings over packs of about equal cost, the most expensive pack first."""
    num_packs = concurrent if per_trial is None else -(-len(plans) // per_trial)
    by_id = {plan.run_id: plan for plan in plans}
    packs = pack_by_cost({plan.run_id: plan.cost for plan in plans}, num_packs)
    return [[by_id[run_id] for run_id in pack] for pack in packs]


def check_stored_evaluations(
    study: Folder, config: SweepConfig, chosen: Sequence[SettingOverrides], plans: Sequence[RunPlan]
) -> None:
    """Before anything is trained, refuse points at stored epochs whose test rows were not evaluated.

    Args:
        study: the study.
        config: the sweep.
        chosen: the combinations of settings that are trained.
        plans: the trainings that are not finished.

    Raises:
        StudyError: see `_check_test_rows`.
    """
    num_kept = {plan.run_id: plan.state.progress.epoch if plan.state else 0 for plan in plans}
    grid_points = points(config.grid, config.train, shared=not config.independent_reason, chosen=chosen)
    for run_id, run_points in groupby(grid_points, key=lambda point: point.run_id):
        folder = run_folder(study, run_id)
        manifest = read_manifest(folder)
        is_complete = manifest is not None and not manifest.counts.get("epochs_without_test_rows")
        if is_complete or num_kept.get(run_id) == 0 or not folder.exists("epochs.parquet"):
            continue
        accuracies = read_accuracies(folder)[: num_kept.get(run_id)]
        missing = epochs_without_test_rows(accuracies)
        for point in run_points if missing else ():
            stop_epoch = point.policy.decided_epoch(curve_from_accuracies(accuracies), point.epochs)
            _check_test_rows(folder, missing, point.policy, stop_epoch)


def _check_test_rows(run: Folder, missing: Sequence[int], policy: Policy, stop_epoch: int | None) -> None:
    if stop_epoch in missing:
        raise StudyError(
            f"{run} has no test rows at epoch {stop_epoch}, which policy {policy} selects: it was trained with "
            "evaluate needed, before that budget or policy was in the grid, or the policy selects epochs only after "
            "their end; leave the budget or policy out, or delete that folder to train again with --train.evaluate all"
        )


def points_table(
    study: Folder,
    grid: GridConfig,
    base: TrainConfig,
    *,
    shared: bool,
    chosen: Sequence[SettingOverrides] | None = None,
) -> pa.Table:
    """All points of a grid whose trajectories are finished.

    A trajectory that a scheduler stopped early has no points beyond its last epoch.

    Args:
        study: the study.
        grid, base, shared, chosen: see `tuning.grid.trajectories`.

    Raises:
        StudyError: a trajectory lacks epochs, or the test rows of a stopping epoch were not evaluated.
    """
    variants = require_manifest(study.child("variants"), "variants").counts
    accuracies_by_run: dict[str, list[EpochAccuracies]] = {}
    missing_by_run: dict[str, list[int]] = {}
    rows = []
    for point in points(grid, base, shared=shared, chosen=chosen):
        if point.run_id not in accuracies_by_run:
            accuracies_by_run[point.run_id] = read_accuracies(run_folder(study, point.run_id))
            missing_by_run[point.run_id] = epochs_without_test_rows(accuracies_by_run[point.run_id])
        accuracies = accuracies_by_run[point.run_id]
        curve = curve_from_accuracies(accuracies)
        if point.policy.decided_epoch(curve, point.epochs) is None:
            continue
        decision = apply_policy(point.policy, curve, point.epochs)
        folder = run_folder(study, point.run_id)
        _check_test_rows(folder, missing_by_run[point.run_id], point.policy, decision.stop_epoch)
        rows.append(
            {
                "variant": point.variant,
                "unknown_share": _unknown_share(study, variants, point.variant),
                "seed": point.seed,
                "epochs": point.epochs,
                "policy": str(point.policy),
                "stop_epoch": decision.stop_epoch,
                "cost_epochs": decision.cost_epochs,
                "run_id": point.run_id,
                "settings": point.settings_text,
                **accuracies[decision.stop_epoch - 1],
            }
        )
    return pa.Table.from_pylist(rows, schema=POINTS_SCHEMA)


def _unknown_share(study: Folder, variants: Mapping[str, Any], name: str) -> float:
    share = variants.get(name, {}).get("unknown_share")
    if share is None:
        raise StudyError(
            f"{study}/variants/manifest.json does not state the share of Unknown rows of {name}; "
            f"restore it, or delete {study}/variants and run `slick variants` again"
        )
    return float(share)
