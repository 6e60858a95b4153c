"""The sweep step: the trainings that cover a grid, and its points read off them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from slick.errors import SettingsError, SlickError
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
from slick.types import Category
from tuning.axes import SettingOverrides, combinations
from tuning.data import QuestionRow, read_rows
from tuning.finalize import finalize_run
from tuning.finetune import (
    check_plans,
    connect_and_check_resources,
    print_training_summary,
    resolve_precision,
    scratch_folder,
)
from tuning.grid import SweepConfig, grid_summary, pack_by_cost, settings_text
from tuning.points import points_table
from tuning.policies import AccuracyCurve, parse_policy
from tuning.progress_table import ProgressTable, TrialTracker, watch_progress
from tuning.run_status import write_planned
from tuning.runs import RunPlan, is_finished, plan_runs, run_folder
from tuning.trials import SettingsSearch, TrialSettings, check_search, num_concurrent_trials, run_trials


def sweep(study: FolderLike, config: SweepConfig) -> Manifest:
    """Train every trajectory of the grid that is not finished, then read all points off them into sweep/points.parquet.

    The grid may be extended later: only what is new is trained, and what is too short goes on from its state if that
    was kept. Points are read off again whenever the grid changes.

    Raises:
        StudyError: an earlier step is not finished, or a run was made with other inputs or settings.
        VariantError: a variant does not exist, or was drawn for another model.
        SettingsError: settings that contradict each other or the cluster.
        SlickError: trainings failed; the others were finished first.

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
        print(f"sweep: every epoch budget is trained on its own: {config.independent_reason}")
    if config.search == "grid":
        print(f"sweep: {grid_summary(config.grid, config.train, shared=shared)}")
        chosen = combinations(config.grid.axes, config.train)
        trained = train_combinations(study, config, chosen)
    else:
        chosen, trained = run_search(study, config)
    wanted = config.trajectories_for(chosen)
    folder = study.child("sweep")
    manifests = {run.run_id: require_manifest(run_folder(study, run.run_id), "sweep") for run in wanted}
    inputs = {run_id: f"{m.fingerprint} {m.count('epochs')}" for run_id, m in manifests.items()}
    identity = fingerprint(inputs, config.identity())
    _discard_other_grid(folder, identity)
    if not begin_step(folder, "sweep", identity, config):
        return require_manifest(folder, "sweep")
    write_planned(folder, wanted)
    table = points_table(study, config.grid, config.train, shared=shared, chosen=list(dict.fromkeys(chosen)))
    folder.write_table("points.parquet", table)
    counts = _manifest_counts(manifests, trained, table.num_rows)
    print(f"sweep: {table.num_rows:,} points in {folder}/points.parquet")
    return complete_step(
        folder, "sweep", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
    )


def resolve_sweep_precision(study: Folder, config: SweepConfig, other_run_ids: Sequence[str] = ()) -> SweepConfig:
    """The sweep with the dtype that `auto` stands for in all of its trainings that state none.

    Args:
        also: run ids of other trainings of the study; their dtype is kept where none of the sweep has begun.

    Raises:
        As `resolve_precision`.
    """
    if config.train.dtype != AUTO:
        return config
    own: list[str] = []
    stated: tuple[TrainDtype, ...] = ("float32", "bfloat16")
    for dtype in stated:  # the dtype decides which runs of an axis of dtypes bear its name
        runs = replace(config, train=replace(config.train, dtype=dtype)).trajectories
        own += [run.run_id for run in runs if "dtype" not in dict(run.settings)]
    own, others = (
        list(dict.fromkeys(own)),
        {read_stored_dtype([run_folder(study, name)]).dtype for name in other_run_ids} - {None},
    )
    if len(others) == 1 and not any(read_stored_dtype([run_folder(study, name)]).dtype for name in own):
        own += other_run_ids
    return replace(config, train=resolve_precision(study, config.train, own))


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What was done now."""

    num: int = 0
    """Trainings that were not finished."""
    num_retries: int = 0
    """Trials that were tried again."""


def _manifest_counts(manifests: Mapping[str, Manifest], trained: SweepResult, num_points: int) -> dict[str, object]:
    """What the sweep's manifest tells of its trainings."""
    return {
        "trainings": len(manifests),
        "trained_now": trained.num,
        "retried": trained.num_retries,
        "points": num_points,
        "epochs_trained": sum(manifest.count("epochs") for manifest in manifests.values()),
        "not_converged": [name for name, manifest in manifests.items() if not manifest.count("converged")],
        "ended_early": [name for name, manifest in manifests.items() if manifest.counts.get("ended_by")],
    }


def train_combinations(study: Folder, config: SweepConfig, chosen: Sequence[SettingOverrides]) -> SweepResult:
    """Train all that the grid holds of some combinations of settings, where it is not finished.

    Raises:
        As `sweep`.
    """
    runs = config.trajectories_for(chosen)
    wanted = {run.run_id: run.config(config.train) for run in runs}
    plans = plan_runs(study, wanted, config.stop_policies, accept_early_stopped=config.scheduler != "none")
    print(f"sweep: {len(wanted) - len(plans)} of {len(wanted)} trainings are finished", flush=True)
    if not plans:
        return SweepResult()
    with exclusive_lock(study, "sweep", [f"runs/{plan.run_id}" for plan in plans]):
        ended = config.scheduler != "none"
        plans = [
            plan for plan in plans if not is_finished(study, plan, accept_early_stopped=ended)
        ]  # by another run meanwhile
        folder = study.child("sweep")
        folder.delete()
        write_planned(folder, runs)
        retried = train_as_trials(study, config, plans) if plans else 0
    print_training_summary(study, plans)
    return SweepResult(len(plans), retried)


def run_search(study: Folder, config: SweepConfig) -> tuple[list[SettingOverrides], SweepResult]:
    """Search: train samples of settings, a few at a time; returns all that were chosen.

    Raises:
        As `sweep`.
    """
    check_search()
    search = SettingsSearch(config.grid.axes, config.train, config.search_seed)
    trained = SweepResult()
    while len(search.suggestions) < config.samples:
        batch = search.ask(min(config.samples_at_once, config.samples - len(search.suggestions)))
        print(
            f"sweep: samples {len(search.suggestions) - len(batch) + 1} to {len(search.suggestions)} of "
            f"{config.samples}"
        )
        now = train_combinations(study, config, search.suggestions)
        trained = SweepResult(trained.num + now.num, trained.num_retries + now.num_retries)
        scores = [
            mean(read_best_dev_accuracy(study, run.run_id) for run in config.trajectories_for([settings]))
            for settings in batch
        ]
        search.tell(scores)
        for settings, score in zip(batch, scores, strict=True):
            print(f"sweep: {settings_text(settings) or 'the settings as they are'}: best dev accuracy {score:.3f}")
    return search.suggestions, trained


def read_best_dev_accuracy(study: Folder, run_id: str) -> float:
    """Best dev accuracy of a finished training."""
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
    """Points of another grid hold nothing that the runs do not: they are read off again instead of being refused."""
    for record in (read_manifest(folder), read_start_record(folder)):
        if record is not None and record.fingerprint != identity:
            folder.delete()
            return


def train_as_trials(study: Folder, config: SweepConfig, plans: Sequence[RunPlan]) -> int:
    """Do the trainings as trials of Ray Tune; returns how many trials were tried again.

    Raises:
        SlickError: some failed; the others were finished first.
    """
    import ray

    check_plans(study, plans)
    gpus_per_worker = connect_and_check_resources(config.train)
    have = ray.cluster_resources()
    started_at = time.monotonic()
    concurrent = num_concurrent_trials(config.train, have, gpus_per_worker, len(plans), config.max_concurrent)
    packs = pack_plans(plans, config.trajectories_per_trial, concurrent)
    course = TrialTracker(packs)
    study.child(".ray", "sweep", "tune").delete()  # of an earlier sweep; Ray Train's own files are resumed from
    settings = TrialSettings(
        gpus_per_worker=gpus_per_worker,
        concurrent=concurrent,
        scheduler=config.scheduler,
        max_epochs=max(config.grid.epochs),
        retries=config.retries,
        keep_files=config.keep_ray_files,
    )
    board = ProgressTable(study, study.child("sweep"), course)
    with scratch_folder(study, "sweep", keep=config.keep_ray_files) as storage, watch_progress(study, plans, board):
        errors = run_trials(study, course, settings, storage)
    if config.scheduler != "none":
        completed = course.completed_runs()
        for plan in (plan for plan in plans if plan.run_id in completed and not is_finished(study, plan)):
            finalize_run(study, plan, started_at=started_at, ended_by=config.scheduler)
    accept_early_stopped = config.scheduler != "none"
    if not errors and not all(is_finished(study, plan, accept_early_stopped=accept_early_stopped) for plan in plans):
        raise KeyboardInterrupt  # where Tune takes Ctrl-C for itself, it returns as if it had ended
    _raise_trial_errors(study, packs, errors)
    return course.num_retries


def _raise_trial_errors(study: Folder, packs: Sequence[Sequence[RunPlan]], errors: Mapping[int, str]) -> None:
    """Tell of the trials that failed, if any did."""
    names: dict[str, list[str]] = {}
    for place, error in sorted(errors.items()):
        names.setdefault(error, []).extend(plan.run_id for plan in packs[place] if not is_finished(study, plan))
    failed = [f"  {', '.join(run_ids)}: {error}" for error, run_ids in names.items()]
    if failed:
        raise SlickError(
            f"{len(errors)} of {len(packs)} trials failed; all others are finished, and the same command does only "
            "what is left\n" + "\n".join(failed)
        )


def pack_plans(plans: Sequence[RunPlan], per_trial: int | None, concurrent: int) -> list[list[RunPlan]]:
    """Packs of trainings of about equal cost, the longest first."""
    num_packs = concurrent if per_trial is None else -(-len(plans) // per_trial)
    by_id = {plan.run_id: plan for plan in plans}
    packs = pack_by_cost({plan.run_id: plan.cost for plan in plans}, num_packs)
    return [[by_id[run_id] for run_id in part] for part in packs]


__all__ = ["SweepConfig", "sweep"]
