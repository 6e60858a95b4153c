"""The grid as trials of Ray Tune, and its points read off the trajectories: the one import of ray.tune.

A trial is one Ray Train run that does a pack of trajectories, one after another in the same workers. Tune carries the
packs and shows them; which trajectories there are, and what is read off them, is `tuning.grid`'s.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from slick.errors import SettingsError, SlickError
from slick.storage import Folder
from slick.study import MANIFEST, STARTED, Manifest, begin, fingerprint, finish, require
from tuning.config import TrainConfig
from tuning.finetune import ask_cluster, check_plans, group_name, print_outcome, scratch, train_group
from tuning.grid import GridConfig, Trajectory, pack, summary, trajectories
from tuning.points import points_table
from tuning.runs import RunPlan, plan_runs, run_folder
from tuning.watching import watch


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Which trainings, and how they are shared out."""

    grid: GridConfig = field(default_factory=GridConfig)
    """Variants, seeds, epoch budgets, policies."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Of every training; its variant, seed and epochs are the grid's."""
    trajectories_per_trial: int | None = 1
    """Trainings that one trial does in the same workers, which saves their start (about 15 s); None: as many as keep
    all trials running at the same time."""
    max_concurrent: int | None = None
    """Trials at the same time; None: as many as the cluster holds now. With `wait_for_nodes` a number may be more."""
    keep_ray_files: bool = False
    """Leave Tune's and Train's own result files in the study's .ray folder."""

    def __post_init__(self) -> None:
        for name in ("trajectories_per_trial", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be 1 or more, or None, got {value}")
        if self.train.schedule != "constant" and len(self.grid.epochs) > 1:
            raise SettingsError(
                f"with schedule {self.train.schedule} a short training is not the beginning of a long one, so the "
                f"budgets {self.grid.epochs} cannot share a trajectory; use schedule constant, or one budget a study"
            )

    def identity(self) -> dict[str, object]:
        """The settings that change results."""
        return {"grid": self.grid.identity(), "train": self.train.identity()}

    def config_of(self, trajectory: Trajectory) -> TrainConfig:
        """The settings of one training."""
        return dataclasses.replace(
            self.train, variant=trajectory.variant, seed=trajectory.seed, epochs=trajectory.epochs
        )


def sweep(study: Folder, config: SweepConfig) -> Manifest:
    """Train every trajectory of the grid that is not finished, then read all points off them into sweep/points.parquet.

    The grid may be extended later: only what is new is trained. Points are read off again whenever the grid changes.

    Raises:
        StudyError: an earlier step is not finished, or a run was made with other inputs or settings.
        VariantError: a variant does not exist, or was drawn for another model.
        SettingsError: settings that contradict each other or the cluster.
        SlickError: trainings failed; the others were finished first.
    """
    started_at = time.monotonic()
    wanted = trajectories(config.grid)
    plans = plan_runs(study, [config.config_of(trajectory) for trajectory in wanted])
    print(f"sweep: {summary(config.grid)}; {len(wanted) - len(plans)} trainings are finished")
    if plans:
        train_plans(study, config, plans)
        print_outcome(study, plans)
    manifests = {t.run_id: require(run_folder(study, t.run_id), "sweep") for t in wanted}
    inputs = {run_id: manifest.fingerprint for run_id, manifest in manifests.items()}
    identity = fingerprint(inputs, config.identity())
    folder = study.child("sweep")
    _forget_other_grid(folder, identity)
    if not begin(folder, "sweep", identity, config):
        return require(folder, "sweep")
    table = points_table(study, config.grid)
    folder.write_table("points.parquet", table)
    counts = {
        "trainings": len(wanted),
        "trained_now": len(plans),
        "points": table.num_rows,
        "epochs_trained": sum(manifest.counts["epochs"] for manifest in manifests.values()),
        "not_converged": [name for name, manifest in manifests.items() if not manifest.counts["converged"]],
    }
    print(f"sweep: {table.num_rows:,} points in {folder}/points.parquet")
    return finish(folder, "sweep", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at)


def _forget_other_grid(folder: Folder, identity: str) -> None:
    """Points of another grid hold nothing that the runs do not: they are read off again instead of being refused."""
    for name in (MANIFEST, STARTED):
        if folder.exists(name) and folder.read_json(name)["fingerprint"] != identity:
            folder.delete()
            return


def train_plans(study: Folder, config: SweepConfig, plans: Sequence[RunPlan]) -> None:
    """Do the trainings as trials of Ray Tune.

    Raises:
        SlickError: some failed; the others were finished first.
    """
    import ray

    check_plans(plans)
    gpus_per_worker = ask_cluster(config.train)
    have = ray.cluster_resources()
    concurrent = concurrent_trials(config, have, gpus_per_worker, len(plans))
    packs = share_out(plans, config.trajectories_per_trial, concurrent)
    study.child(
        ".ray", "sweep", "tune"
    ).delete()  # Tune's files of an interrupted sweep; those of Train are gone on with
    with scratch(study, "sweep", keep=config.keep_ray_files) as storage, watch(study, plans):
        errors = _run_trials(study, packs, gpus_per_worker, storage, concurrent)
    if not any(errors) and not all(_finished(study, plan) for plan in plans):
        raise KeyboardInterrupt  # Tune takes Ctrl-C for itself, and returns as if it had ended
    failed = [
        f"  {', '.join(plan.run_id for plan in part if not _finished(study, plan))}: {error}"
        for part, error in zip(packs, errors, strict=True)
        if error
    ]
    if failed:
        raise SlickError(
            f"{len(failed)} of {len(packs)} trials failed; all others are finished, and the same command does only "
            "what is left\n" + "\n".join(failed)
        )


def _finished(study: Folder, plan: RunPlan) -> bool:
    return run_folder(study, plan.run_id).exists(MANIFEST)


def concurrent_trials(config: SweepConfig, have: dict[str, float], gpus_per_worker: int, num_runs: int) -> int:
    """Trials that run at the same time: at most what the cluster holds, what is asked for, and one a training."""
    import os

    if gpus_per_worker:
        units = have.get("GPU", 0.0)
    else:
        import ray

        # One machine's Ray has more logical CPUs than cores, for its own small tasks; training wants a core.
        units = have.get("CPU", 0.0) if len(ray.nodes()) > 1 else min(have.get("CPU", 0.0), float(os.cpu_count() or 1))
    fit = max(1, int(units) // config.train.num_workers)
    if config.train.wait_for_nodes and config.max_concurrent:
        fit = max(fit, config.max_concurrent)  # the nodes come when they are asked for
    return min(fit, config.max_concurrent or fit, num_runs)


def share_out(plans: Sequence[RunPlan], per_trial: int | None, concurrent: int) -> list[list[RunPlan]]:
    """Packs of trainings of about equal cost, the longest first."""
    runs = {
        plan.run_id: Trajectory(variant=plan.config.variant, seed=plan.config.seed, epochs=plan.config.epochs)
        for plan in plans
    }
    num_packs = concurrent if per_trial is None else -(-len(plans) // per_trial)
    by_id = {plan.run_id: plan for plan in plans}
    packs = pack(list(runs.values()), {plan.run_id: plan.cost for plan in plans}, num_packs)
    return [[by_id[run.run_id] for run in part] for part in packs]


def _run_trials(
    study: Folder, packs: Sequence[Sequence[RunPlan]], gpus_per_worker: int, storage: str, concurrent: int
) -> list[str]:
    """Run every pack as a trial; the error message of each, empty where it ended well."""
    import os

    # The old output can be silenced; the new one prints its settings in a box whatever it is told.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    names = [_trial_name(part) for part in packs]
    tuner = tune.Tuner(
        # The trial itself only waits for its workers, so it asks for next to nothing; 0 is refused.
        tune.with_resources(_trial(study, packs, gpus_per_worker, storage), {"CPU": 0.01}),
        param_space={"pack": tune.grid_search(list(range(len(packs))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrent,
            trial_name_creator=lambda trial: names[trial.config["pack"]],
            trial_dirname_creator=lambda trial: names[trial.config["pack"]],
        ),
        run_config=tune.RunConfig(name="tune", storage_path=storage, verbose=0),
    )
    errors = [""] * len(packs)
    grid = tuner.fit()
    for result in grid:
        if result.error is not None:
            place = (result.config or {}).get("pack")
            text = _message(result.error)
            if place is None:
                raise SlickError(f"a trial failed before it began: {text}")
            errors[place] = text
    return errors


def _trial(
    study: Folder, packs: Sequence[Sequence[RunPlan]], gpus_per_worker: int, storage: str
) -> Callable[[dict[str, Any]], None]:
    def trial(settings: dict[str, Any]) -> None:
        from ray import tune
        from ray.tune.integration.ray_train import TuneReportCallback

        part = packs[settings["pack"]]
        last = train_group(
            study,
            part,
            gpus_per_worker,
            storage,
            group_name(part),
            callbacks=[TuneReportCallback()],
        )
        if last:
            tune.report(last)  # a trial that reports nothing itself is left out of Tune's table

    return trial


def _trial_name(part: Sequence[RunPlan]) -> str:
    return part[0].run_id if len(part) == 1 else f"{part[0].run_id}-and-{len(part) - 1}-more"


def _message(error: BaseException) -> str:
    """The message of what a trial raised, without the stack of processes it came through."""
    cause: Any = getattr(error, "cause", None) or error
    return str(cause).strip() or type(cause).__name__


__all__ = ["SweepConfig", "sweep"]
