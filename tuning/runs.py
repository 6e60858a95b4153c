"""Folders of training runs: their states, what remains to be done, the resources they need, and their curves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict

from slick.errors import SettingsError, StudyError, VariantError
from slick.models import model_fingerprint, resolve_model, resolve_study_model
from slick.precision import AUTO, Runtime
from slick.storage import Folder
from slick.stored_files import read_record
from slick.study import MANIFEST, Manifest, begin_step, fingerprint, read_manifest, read_start_record, require_manifest
from slick.study_files import read_epochs
from slick.types import ALL_CATEGORIES, Category
from slick.uris import public_name
from slick.variants import read_variant
from tuning.config import TrainConfig
from tuning.data import read_rows
from tuning.grid import Trajectory
from tuning.policies import AccuracyCurve, parse_policy
from tuning.state import SavedState, check_legacy_states, find_states, latest_states

EpochAccuracies = dict[str, float]
"""Of one epoch: `split_category` to a share in [0, 1]; only where there are rows."""


def read_accuracies(run: Folder) -> list[EpochAccuracies]:
    """One mapping an epoch, from the `epochs.parquet` of a run.

    Raises:
        StudyError: it is not there, is not as a training writes it, or lacks an epoch or the dev questions of one.
    """
    try:
        return accuracies_from_rows(read_epochs(run).to_pylist())
    except _InvalidEpochsError as error:
        raise StudyError(f"{run}/epochs.parquet {error}; restore it, or delete {run} and train it again") from error


def read_curve(run: Folder) -> AccuracyCurve:
    """The curve of a run's `epochs.parquet`; see `read_accuracies`."""
    return curve_from_accuracies(read_accuracies(run))


class _InvalidEpochsError(StudyError):
    """What is wrong with the epochs, without the file."""


def accuracies_from_rows(rows: Iterable[Mapping[str, Any]]) -> list[EpochAccuracies]:
    """One mapping an epoch, from the rows of an `epochs.parquet`.

    Raises:
        StudyError: an epoch, or the dev questions of one, are missing.
    """
    by_epoch: dict[int, EpochAccuracies] = {}
    for row in rows:
        by_epoch.setdefault(row["epoch"], {})[f"{row['split']}_{row['category']}"] = row["num_correct"] / row["num"]
    if sorted(by_epoch) != list(range(1, len(by_epoch) + 1)):
        raise _InvalidEpochsError(f"has epochs {sorted(by_epoch)[:20]}, wanted all from 1")
    if lacking := [epoch for epoch, found in by_epoch.items() if f"dev_{ALL_CATEGORIES}" not in found]:
        raise _InvalidEpochsError(f"has no row of all dev questions in epoch {lacking[0]}")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def curve_from_rows(rows: Iterable[Mapping[str, Any]]) -> AccuracyCurve:
    """The curve of the rows of an `epochs.parquet`."""
    return curve_from_accuracies(accuracies_from_rows(rows))


def curve_from_accuracies(epochs: Sequence[EpochAccuracies]) -> AccuracyCurve:
    """The curve of epochs in order."""

    def measured(name: str) -> tuple[float, ...] | None:
        return tuple(epoch[name] for epoch in epochs) if name in epochs[0] else None

    return AccuracyCurve(
        dev_accuracy=tuple(epoch[f"dev_{ALL_CATEGORIES}"] for epoch in epochs),
        unknown_train_accuracy=measured(f"train_{Category.UNKNOWN}"),
        highlyknown_dev_accuracy=measured(f"dev_{Category.HIGHLY_KNOWN}"),
    )


def all_policies_decided(curve: AccuracyCurve, stop_policies: Sequence[tuple[str, int]]) -> bool:
    """True if no later epoch can change what any of the policies picks within its budget."""
    return all(parse_policy(policy).decided_epoch(curve, budget) is not None for policy, budget in stop_policies)


_RUNTIMES_FILE = "runtime.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One fine-tuning that is to be done; travels to the workers."""

    run_id: str
    config: TrainConfig
    stop_policies: tuple[tuple[str, int], ...] = ()
    """Policies and budgets; the training ends before its last epoch as soon as all are decided. None: it never does."""
    state: SavedState | None = None
    """From where it goes on, if it was interrupted or is to be longer than it was."""
    identity: str
    inputs: dict[str, str]
    model: str
    """Folder, hub id or GGUF file; never empty."""
    num_train_rows: int
    """Rows trained on in an epoch."""
    num_eval_rows: int
    """Rows asked after it."""

    @property
    def remaining_epochs(self) -> int:
        """Behind the state from which it goes on."""
        return self.config.epochs - (self.state.progress.epoch if self.state else 0)

    @property
    def cost(self) -> float:
        """Expected time, in rows taken through the model; to share work out."""
        return self.remaining_epochs * (3.0 * self.num_train_rows + self.num_eval_rows)


def run_id(config: TrainConfig) -> str:
    """Name of the run's folder in runs/."""
    return Trajectory(variant=config.variant, seed=config.seed, epochs=config.epochs).run_id


def run_folder(study: Folder, name: str) -> Folder:
    """The folder of one run."""
    return study.child("runs", name)


def plan_runs(
    study: Folder,
    wanted: Mapping[str, TrainConfig],
    stop_policies: Sequence[tuple[str, int]] = (),
    *,
    accept_early_stopped: bool = False,
) -> list[RunPlan]:
    """The fine-tunings among those wanted that are not finished; nothing is started or deleted.

    Args:
        wanted: settings by run_id.
        stops: policies and budgets; a training is finished as soon as all of them are decided.
        may_be_ended: a training that a scheduler ended early is finished.

    Raises:
        StudyError: an earlier step is not finished, a run's folder was written with other inputs or settings, or the
            state from which it would resume was written as pickles.
        VariantError: a variant does not exist, or was drawn for another model.
        SettingsError: there are no dev questions, or `auto` is not resolved.
    """
    if any(config.dtype == AUTO for config in wanted.values()):
        raise SettingsError("a training is planned in a stated dtype: resolve auto, or give float32 or bfloat16")
    variants = require_manifest(study.child("variants"), "variants")
    questions = require_manifest(study.child("questions"), "questions")
    models = {config.model: resolve_study_model(study, config.model) for config in wanted.values()}
    prints = {name: model_fingerprint(resolve_model(path)) for name, path in models.items()}
    states = find_states(study, list(wanted))
    rows: dict[str, tuple[str, int, int]] = {}
    plans = []
    for name, config in wanted.items():
        _check_model(study, config, models[config.model], prints[config.model], variants)
        if config.variant not in rows:
            rows[config.variant] = _variant_summary(study, config.variant)
        content, num_train_rows, num_eval_rows = rows[config.variant]
        inputs = {
            "variant": content,
            "questions": questions.fingerprint,
            "knowledge": variants.input("knowledge"),
            "model": prints[config.model],
        }
        identity = fingerprint(inputs, config.identity())
        state = states.get(identity)
        done = state.progress.epoch if state else 0
        plan = RunPlan(
            run_id=name,
            config=config,
            stop_policies=tuple(stop_policies),
            state=state if done < config.epochs else None,
            identity=identity,
            inputs=inputs,
            model=models[config.model],
            num_train_rows=num_train_rows,
            num_eval_rows=num_eval_rows,
        )
        _check_folder(study, plan)
        if not is_finished(study, plan, accept_early_stopped=accept_early_stopped):
            plans.append(plan)
    check_legacy_states(study, [plan.run_id for plan in plans if plan.state is None])
    return plans


def _variant_summary(study: Folder, variant: str) -> tuple[str, int, int]:
    """Fingerprint of a variant's rows, their number, and the number of rows evaluated an epoch."""
    content = fingerprint(read_variant(study, variant).to_pydict())
    rows = read_rows(study, variant)
    return content, len(rows["train"]), sum(map(len, rows.values()))


def _check_model(study: Folder, config: TrainConfig, model: str, found: str, variants: Manifest) -> None:
    wanted = variants.input("model")
    if found != wanted and not config.allow_other_model:
        raise VariantError(
            f"{study}/variants holds what the model with fingerprint {wanted} knows and does not know; {model} has "
            f"fingerprint {found}, so its Known and Unknown rows are others: annotate that model in a study of its "
            "own, or train it all the same with --allow-other-model"
        )


def _check_folder(study: Folder, plan: RunPlan) -> None:
    folder = run_folder(study, plan.run_id)
    manifest = read_manifest(folder)
    record = manifest or read_start_record(folder)
    found = record.fingerprint if record else plan.identity
    if found != plan.identity:
        raise StudyError(
            f"{folder} was written with other inputs or settings: its fingerprint is {found}, this training's is "
            f"{plan.identity}; choose another --out, or delete that folder to train it again"
        )


def is_finished(study: Folder, plan: RunPlan, *, accept_early_stopped: bool = False) -> bool:
    """True if the run has all epochs that are asked for, or has decided all that is to be decided.

    Args:
        may_be_ended: one that a scheduler ended early is finished as well.
    """
    folder = run_folder(study, plan.run_id)
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    if manifest.count("epochs") >= plan.config.epochs or (accept_early_stopped and manifest.counts.get("ended_by")):
        return True
    return bool(plan.stop_policies) and all_policies_decided(read_curve(folder), plan.stop_policies)


def progress_token(study: Folder, plans: Sequence[RunPlan], group: Folder) -> tuple[int, dict[str, int]]:
    """How far a list of trainings has come, by what can be gone on from: how many are finished, and the epoch of each
    saved state by the identity of its training.

    Args:
        group: where Ray Train keeps the states.
    """
    num_finished = sum(is_finished(study, plan) for plan in plans)
    return num_finished, {identity: state.progress.epoch for identity, state in latest_states(group).items()}


def prepare_run_folder(study: Folder, plan: RunPlan, *, keep: bool) -> None:
    """Make the run's folder ready.

    Args:
        keep: the training goes on from a state; otherwise what an interrupted one left is removed.
    """
    folder = run_folder(study, plan.run_id)
    if keep:
        folder.delete(MANIFEST)
    else:
        folder.delete()
    begin_step(folder, "finetune", plan.identity, plan.config)
    folder.write_json(
        "config.json",
        {"run_id": plan.run_id, "model": public_name(plan.model), "inputs": plan.inputs}
        | {
            "settings": plan.config.identity() | {"epochs": plan.config.epochs},
            "num_workers": plan.config.num_workers,
            "zero_stage": plan.config.zero_stage,
        },
    )


def record_runtime(run: Folder, runtime: Runtime) -> None:
    """Note what a training runs on, each time that it starts or goes on."""
    now = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(runtime)}
    run.write_json(_RUNTIMES_FILE, [*read_runtimes(run), now])


class RuntimeRecord(TypedDict):
    """What a training ran on from one start on: the fields of `slick.precision.Runtime`, and when."""

    at: str
    """Time in UTC."""
    device: str
    dtype: str
    attention: str


def read_runtimes(run: Folder) -> list[RuntimeRecord]:
    """What a training has run on, in order.

    Raises:
        StudyError: the file is not as `record_runtime` writes it.
    """
    if not run.exists(_RUNTIMES_FILE):
        return []
    return read_record(run, _RUNTIMES_FILE, list[RuntimeRecord], "delete that file and give the same command again")


def check_resources(config: TrainConfig, cpus: float, gpus: float, num_groups: int = 1) -> float:
    """GPUs of a worker: 0, 1 or a part of one.

    Args:
        cpus: of the cluster now.
        gpus: of the cluster now.
        num_groups: worker groups that run at the same time.

    Raises:
        SettingsError: the cluster has too few.
    """
    gpus_per_worker = config.gpus_per_worker if config.gpus_per_worker is not None else float(gpus > 0)
    num_workers = config.num_workers if config.min_workers is None else config.min_workers
    have, what = (gpus, "GPUs") if gpus_per_worker else (cpus, "CPUs")
    wanted = num_workers * num_groups * (gpus_per_worker or 1)
    if wanted > have and not config.wait_for_nodes:
        raise SettingsError(
            f"{num_groups} x {num_workers} workers need {wanted:g} {what}, the cluster has {have:g}; lower "
            "--num-workers or --min-workers, or give --wait-for-nodes if the cluster will grow"
        )
    return gpus_per_worker
