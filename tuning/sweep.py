"""The sweep step: the trainings that cover a grid, and its points read off them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from slick.errors import SettingsError, SlickError
from slick.storage import Folder
from slick.study import MANIFEST, STARTED, Manifest, begin, fingerprint, finish, require
from slick.types import Category
from tuning.axes import combinations
from tuning.config import TrainConfig
from tuning.ending import end_run
from tuning.finetune import ask_cluster, check_plans, print_outcome, scratch
from tuning.grid import GridConfig, Trajectory, pack, summary, trajectories
from tuning.points import points_table
from tuning.policies import parse_policy
from tuning.rows import read_rows
from tuning.runs import RunPlan, is_finished, plan_runs, run_folder
from tuning.trials import Scheduler, TrialSettings, concurrent_trials, run_trials
from tuning.watching import PLANNED, watch


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Which trainings, and how they are shared out."""

    grid: GridConfig = field(default_factory=GridConfig)
    """Variants, settings, seeds, epoch budgets, policies."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Of every training; its variant, seed and epochs are the grid's."""
    independent: bool = False
    """Train every budget on its own, though a short training is the beginning of a longer one; that is done without
    asking where it is not (a schedule that depends on the total)."""
    stop: Literal["full", "live"] = "full"
    """`live`: a training ends as soon as every policy has its epoch; the points are the same, later ones cost more."""
    scheduler: Scheduler = "none"
    """Tune's scheduler, for wide searches: trainings that fall behind in dev accuracy are ended early, and have no
    points beyond their last epoch."""
    retries: int = 1
    """Times that a trial which failed is tried again, from its last state."""
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
        if self.retries < 0:
            raise SettingsError(f"retries must be 0 or more, got {self.retries}")
        for name, allowed in (("stop", ("full", "live")), ("scheduler", ("none", "asha", "median"))):
            if getattr(self, name) not in allowed:
                raise SettingsError(f"{name} is one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.scheduler != "none" and (self.trajectories_per_trial != 1 or self.stop == "live"):
            raise SettingsError(
                f"scheduler {self.scheduler} judges single trainings and ends them itself: it goes with "
                "--trajectories-per-trial 1 and --stop full"
            )
        for trajectory in self.trajectories:
            trajectory.config(self.train)  # settings that do not go together are refused here

    @property
    def why_independent(self) -> str:
        """Why every budget is trained on its own; empty if one trajectory serves all."""
        if self.independent:
            return "asked for"
        reasons = (
            replace(self.train, **dict(settings)).depends_on_epochs
            for settings in combinations(self.grid.axes, self.train)
        )
        return next((reason for reason in reasons if reason), "")

    @property
    def trajectories(self) -> list[Trajectory]:
        """The trainings that cover the grid."""
        return trajectories(self.grid, self.train, shared=not self.why_independent)

    @property
    def stops(self) -> tuple[tuple[str, int], ...]:
        """What a live training has to decide; empty if all are trained to the end."""
        if self.stop == "full":
            return ()
        policies = [parse_policy(text) for text in self.grid.policies]
        cells = [
            (policy.at(budget), budget) for policy in policies for budget in self.grid.epochs if policy.applies(budget)
        ]
        return tuple((str(policy), budget) for policy, budget in cells)

    def identity(self) -> dict[str, object]:
        """The settings that change results."""
        return {
            "grid": self.grid.identity(),
            "train": self.train.identity(),
            "independent": bool(self.why_independent),
            "scheduler": self.scheduler,
        }


def sweep(study: Folder, config: SweepConfig) -> Manifest:
    """Train every trajectory of the grid that is not finished, then read all points off them into sweep/points.parquet.

    The grid may be extended later: only what is new is trained, and what is too short goes on from its state if that
    was kept. Points are read off again whenever the grid changes.

    Raises:
        StudyError: an earlier step is not finished, or a run was made with other inputs or settings.
        VariantError: a variant does not exist, or was drawn for another model.
        SettingsError: settings that contradict each other or the cluster.
        SlickError: trainings failed; the others were finished first.
    """
    started_at = time.monotonic()
    shared = not config.why_independent
    wanted = {trajectory.run_id: trajectory.config(config.train) for trajectory in config.trajectories}
    _check_policies(study, config)
    plans = plan_runs(study, wanted, config.stops, may_be_ended=config.scheduler != "none")
    print(
        f"sweep: {summary(config.grid, config.train, shared=shared)}; {len(wanted) - len(plans)} trainings are finished"
    )
    if not shared and len(config.grid.epochs) > 1:
        print(f"sweep: every epoch budget is trained on its own: {config.why_independent}")
    folder = study.child("sweep")
    if plans:
        folder.delete()
        folder.write_json(PLANNED, {run_id: settings.epochs for run_id, settings in wanted.items()})
        retried = train_plans(study, config, plans)
        print_outcome(study, plans)
    else:
        retried = 0
    manifests = {run_id: require(run_folder(study, run_id), "sweep") for run_id in wanted}
    inputs = {run_id: f"{m.fingerprint} {m.counts['epochs']}" for run_id, m in manifests.items()}
    identity = fingerprint(inputs, config.identity())
    _forget_other_grid(folder, identity)
    if not begin(folder, "sweep", identity, config):
        return require(folder, "sweep")
    table = points_table(study, config.grid, config.train, shared=shared)
    folder.write_table("points.parquet", table)
    counts = {
        "trainings": len(wanted),
        "trained_now": len(plans),
        "retried": retried,
        "points": table.num_rows,
        "epochs_trained": sum(manifest.counts["epochs"] for manifest in manifests.values()),
        "not_converged": [name for name, manifest in manifests.items() if not manifest.counts["converged"]],
        "ended_early": [name for name, manifest in manifests.items() if manifest.counts.get("ended_by")],
    }
    print(f"sweep: {table.num_rows:,} points in {folder}/points.parquet")
    return finish(folder, "sweep", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at)


def _check_policies(study: Folder, config: SweepConfig) -> None:
    """Policies that look at rows which the study does not have are refused before anything is trained."""
    if not any(parse_policy(text).rule == "dev_highlyknown" for text in config.grid.policies):
        return
    if not any(row.category == Category.HIGHLY_KNOWN for row in read_rows(study, config.grid.variants[0])["dev"]):
        raise SettingsError(
            f"policy dev_highlyknown needs HighlyKnown dev questions, and {study}/annotate/knowledge.parquet labels "
            "none: annotate dev questions as well (`slick annotate --annotate-dev`), or choose by best_dev"
        )


def _forget_other_grid(folder: Folder, identity: str) -> None:
    """Points of another grid hold nothing that the runs do not: they are read off again instead of being refused."""
    for name in (MANIFEST, STARTED):
        if folder.exists(name) and folder.read_json(name)["fingerprint"] != identity:
            folder.delete()
            return


def train_plans(study: Folder, config: SweepConfig, plans: Sequence[RunPlan]) -> int:
    """Do the trainings as trials of Ray Tune; returns how many trials were tried again.

    Raises:
        SlickError: some failed; the others were finished first.
    """
    import ray

    check_plans(plans)
    gpus_per_worker = ask_cluster(config.train)
    have = ray.cluster_resources()
    started_at = time.monotonic()
    concurrent = concurrent_trials(config.train, have, gpus_per_worker, len(plans), config.max_concurrent)
    packs = share_out(plans, config.trajectories_per_trial, concurrent)
    study.child(".ray", "sweep", "tune").delete()  # of an interrupted sweep; Train's own files are gone on with
    settings = TrialSettings(
        gpus_per_worker=gpus_per_worker,
        concurrent=concurrent,
        scheduler=config.scheduler,
        longest=max(config.grid.epochs),
        retries=config.retries,
    )
    with scratch(study, "sweep", keep=config.keep_ray_files) as storage, watch(study, plans, study.child("sweep")):
        outcome = run_trials(study, packs, settings, storage)
    if config.scheduler != "none":
        for plan in (plan for place in outcome.completed for plan in packs[place] if not is_finished(study, plan)):
            end_run(study, plan, started_at=started_at, ended_by=config.scheduler)
    may_be_ended = config.scheduler != "none"
    if not outcome.errors and not all(is_finished(study, plan, may_be_ended=may_be_ended) for plan in plans):
        raise KeyboardInterrupt  # Tune takes Ctrl-C for itself, and returns as if it had ended
    failed = [
        f"  {', '.join(plan.run_id for plan in part if not is_finished(study, plan))}: {error}"
        for part, error in ((packs[place], error) for place, error in sorted(outcome.errors.items()))
    ]
    if failed:
        raise SlickError(
            f"{len(failed)} of {len(packs)} trials failed; all others are finished, and the same command does only "
            "what is left\n" + "\n".join(failed)
        )
    return outcome.num_retries


def share_out(plans: Sequence[RunPlan], per_trial: int | None, concurrent: int) -> list[list[RunPlan]]:
    """Packs of trainings of about equal cost, the longest first."""
    num_packs = concurrent if per_trial is None else -(-len(plans) // per_trial)
    by_id = {plan.run_id: plan for plan in plans}
    packs = pack({plan.run_id: plan.cost for plan in plans}, num_packs)
    return [[by_id[run_id] for run_id in part] for part in packs]


__all__ = ["SweepConfig", "sweep"]
