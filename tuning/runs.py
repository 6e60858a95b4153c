"""Folders of training runs: which runs are finished, plans for the others, their resources, and their curves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from tuning.deepspeed_config import deepspeed_config, read_deepspeed_file
from tuning.evaluation_epochs import TEST_SPLITS, PolicyBudget, expected_test_evaluations
from tuning.grid import Trajectory
from tuning.policies import AccuracyCurve, parse_policy
from tuning.state import SavedState, check_other_formats, find_states, latest_states

EpochAccuracies = dict[str, float]
"""Accuracies after one epoch: `SPLIT_CATEGORY` to a share in [0, 1], for splits and categories that have rows."""


def read_accuracies(run: Folder) -> list[EpochAccuracies]:
    """The accuracies of every epoch in the `epochs.parquet` of a run.

    Raises:
        StudyError: the file is missing or malformed, or lacks an epoch or the dev questions of an epoch.
    """
    try:
        return accuracies_from_rows(read_epochs(run).to_pylist())
    except _InvalidEpochsError as error:
        raise StudyError(f"{run}/epochs.parquet {error}; restore it, or delete {run} and train it again") from error


def read_curve(run: Folder) -> AccuracyCurve:
    """The accuracy curve in a run's `epochs.parquet`; see `read_accuracies`."""
    return curve_from_accuracies(read_accuracies(run))


class _InvalidEpochsError(StudyError):
    """The problem of the epochs, as text that follows the file name."""


def accuracies_from_rows(rows: Iterable[Mapping[str, Any]]) -> list[EpochAccuracies]:
    """The accuracies of every epoch in the rows of an `epochs.parquet`.

    Raises:
        StudyError: an epoch, or the dev questions of an epoch, are missing.
    """
    by_epoch: dict[int, EpochAccuracies] = {}
    for row in rows:
        by_epoch.setdefault(row["epoch"], {})[f"{row['split']}_{row['category']}"] = row["num_correct"] / row["num"]
    if sorted(by_epoch) != list(range(1, len(by_epoch) + 1)):
        raise _InvalidEpochsError(f"has epochs {sorted(by_epoch)[:20]}, expected all from 1")
    if incomplete := [epoch for epoch, values in by_epoch.items() if f"dev_{ALL_CATEGORIES}" not in values]:
        raise _InvalidEpochsError(f"has no row of all dev questions in epoch {incomplete[0]}")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def curve_from_accuracies(epochs: Sequence[EpochAccuracies]) -> AccuracyCurve:
    """The accuracy curve of consecutive epochs."""

    def values(name: str) -> tuple[float, ...] | None:
        return tuple(epoch[name] for epoch in epochs) if name in epochs[0] else None

    return AccuracyCurve(
        dev_accuracy=tuple(epoch[f"dev_{ALL_CATEGORIES}"] for epoch in epochs),
        unknown_train_accuracy=values(f"train_{Category.UNKNOWN}"),
        highlyknown_dev_accuracy=values(f"dev_{Category.HIGHLY_KNOWN}"),
    )


def all_policies_decided(curve: AccuracyCurve, stop_policies: Sequence[tuple[str, int]]) -> bool:
    """Whether no later epoch can change the decision of any policy within its budget."""
    return all(parse_policy(policy).decided_epoch(curve, budget) is not None for policy, budget in stop_policies)


_RUNTIMES_FILE = "runtime.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A planned training, sent to the workers."""

    run_id: str
    config: TrainConfig
    stop_policies: tuple[tuple[str, int], ...] = ()
    """Policies and budgets of a live training, which ends once all are decided; empty: it trains all epochs."""
    point_policies: tuple[PolicyBudget, ...] = ()
    """Policies and budgets of the points that are computed from this training; see `tuning.evaluation_epochs`."""
    state: SavedState | None = None
    """The state to resume from, if the training was interrupted or is extended."""
    identity: str
    """Fingerprint of inputs and settings."""
    inputs: dict[str, str]
    """Fingerprints of the inputs."""
    model: str
    """Folder, hub id or GGUF file; never empty."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """The content of the user's DeepSpeed file, which workers may not reach."""
    num_train_rows: int
    """Rows trained on per epoch."""
    num_eval_rows: int
    """Rows of all splits."""
    num_test_rows: int = 0
    """Test and out-of-distribution rows among them."""

    @property
    def remaining_epochs(self) -> int:
        """Epochs to train after the state."""
        return self.config.epochs - (self.state.progress.epoch if self.state else 0)

    @property
    def cost(self) -> float:
        """Expected time in rows of a forward pass, to distribute trainings over trials."""
        return 3.0 * self.remaining_epochs * self.num_train_rows + self.remaining_eval_rows

    @property
    def remaining_eval_rows(self) -> int:
        """Rows that are expected to be evaluated after the remaining epochs, all together."""
        first_epoch = self.config.epochs - self.remaining_epochs + 1
        num_evaluations = expected_test_evaluations(self.config, self.point_policies, first_epoch)
        num_other_rows = self.num_eval_rows - self.num_test_rows
        return self.remaining_epochs * num_other_rows + num_evaluations * self.num_test_rows


def run_id(config: TrainConfig) -> str:
    """Name of the run's folder in runs/, for a training outside a sweep."""
    return Trajectory(variant=config.variant, seed=config.seed, epochs=config.epochs).run_id


def run_folder(study: Folder, name: str) -> Folder:
    """The folder of a run."""
    return study.child("runs", name)


def _require_resolved_dtype(configs: Iterable[TrainConfig]) -> None:
    if any(config.dtype == AUTO for config in configs):
        raise SettingsError(
            "a plan needs a resolved dtype, got auto; call resolve_precision, or give float32 or bfloat16"
        )


def plan_runs(
    study: Folder,
    configs: Mapping[str, TrainConfig],
    stop_policies: Sequence[PolicyBudget] = (),
    *,
    point_policies: Sequence[PolicyBudget] = (),
    accept_early_stopped: bool = False,
) -> list[RunPlan]:
    """Plan the trainings that are not finished. Nothing is started or deleted.

    Args:
        study: the study.
        configs: settings of the trainings by run_id.
        stop_policies: policies and budgets; a training is finished once all of them are decided.
        point_policies: policies and budgets of the points that are computed from each training.
        accept_early_stopped: a training that a scheduler stopped early is finished.

    Raises:
        StudyError: an earlier step is not finished, a run's folder was written with other inputs or settings, or the
            state from which it would resume has another version's format.
        VariantError: a variant does not exist, or was drawn for another model.
        SettingsError: there are no dev questions, the dtype `auto` is not resolved, or the DeepSpeed file contradicts
            the settings.
        DataError: the DeepSpeed file does not exist or is invalid.
    """
    _require_resolved_dtype(configs.values())
    variants = require_manifest(study.child("variants"), "variants")
    questions = require_manifest(study.child("questions"), "questions")
    models = {config.model: resolve_study_model(study, config.model) for config in configs.values()}
    fingerprints = {name: model_fingerprint(resolve_model(path)) for name, path in models.items()}
    states = find_states(study, list(configs))
    rows: dict[str, tuple[str, int, int, int]] = {}
    file_settings = {config.deepspeed: _read_deepspeed(config.deepspeed) for config in configs.values()}
    plans = []
    for name, config in configs.items():
        _check_model(study, config, models[config.model], fingerprints[config.model], variants)
        if config.variant not in rows:
            rows[config.variant] = _variant_summary(study, config.variant)
        content, num_train_rows, num_eval_rows, num_test_rows = rows[config.variant]
        inputs = {
            "variant": content,
            "questions": questions.fingerprint,
            "knowledge": variants.input("knowledge"),
            "model": fingerprints[config.model],
            **_deepspeed_input(config, file_settings[config.deepspeed]),
        }
        identity = fingerprint(inputs, config.identity())
        state = states.get(identity)
        state_epoch = state.progress.epoch if state else 0
        plan = RunPlan(
            run_id=name,
            config=config,
            stop_policies=tuple(stop_policies),
            point_policies=tuple(point_policies),
            state=state if state_epoch < config.epochs else None,
            identity=identity,
            inputs=inputs,
            model=models[config.model],
            deepspeed=file_settings[config.deepspeed],
            num_train_rows=num_train_rows,
            num_eval_rows=num_eval_rows,
            num_test_rows=num_test_rows,
        )
        _check_folder(study, plan)
        if not is_finished(study, plan, accept_early_stopped=accept_early_stopped):
            plans.append(plan)
    check_other_formats(study, [plan.run_id for plan in plans if plan.state is None])
    return plans


def _deepspeed_input(config: TrainConfig, file_settings: dict[str, Any]) -> dict[str, str]:
    """The fingerprint of the user's DeepSpeed file, which must not contradict the settings; empty without a file."""
    if not config.deepspeed:
        return {}
    deepspeed_config(config, config.num_workers, file_settings=file_settings)  # refuses contradictions
    return {"deepspeed": fingerprint(file_settings)}


def _read_deepspeed(location: str) -> dict[str, Any]:
    """The content of a DeepSpeed file; empty without one."""
    return read_deepspeed_file(location) if location else {}


def _variant_summary(study: Folder, variant: str) -> tuple[str, int, int, int]:
    """Fingerprint of a variant's rows, and the numbers of rows: trained on, of all splits, and to test on."""
    content = fingerprint(read_variant(study, variant).to_pydict())
    rows = read_rows(study, variant)
    num_trained = sum(row.weight > 0 for row in rows["train"])
    return content, num_trained, sum(map(len, rows.values())), sum(len(rows[split]) for split in TEST_SPLITS)


def _check_model(study: Folder, config: TrainConfig, model: str, model_fingerprint: str, variants: Manifest) -> None:
    annotated = variants.input("model")
    if model_fingerprint != annotated and not config.allow_other_model:
        raise VariantError(
            f"{study}/variants was drawn for the model with fingerprint {annotated}, but {model} has fingerprint "
            f"{model_fingerprint}, and knows other facts; annotate that model in a study of its own, or train it "
            "nevertheless with --allow-other-model"
        )


def _check_folder(study: Folder, plan: RunPlan) -> None:
    folder = run_folder(study, plan.run_id)
    manifest = read_manifest(folder)
    record = manifest or read_start_record(folder)
    stored = record.fingerprint if record else plan.identity
    if stored != plan.identity:
        raise StudyError(
            f"{folder} was written with other inputs or settings: its fingerprint is {stored}, this training's is "
            f"{plan.identity}; choose another --out, or delete that folder to train it again"
        )


def is_finished(study: Folder, plan: RunPlan, *, accept_early_stopped: bool = False) -> bool:
    """Whether the run has all its epochs, or all its stop policies are decided.

    Args:
        study: the study.
        plan: the training.
        accept_early_stopped: a training that a scheduler stopped early is finished too.
    """
    folder = run_folder(study, plan.run_id)
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    if manifest.count("epochs") >= plan.config.epochs or (accept_early_stopped and manifest.counts.get("ended_by")):
        return True
    return bool(plan.stop_policies) and all_policies_decided(read_curve(folder), plan.stop_policies)


def progress_token(study: Folder, plans: Sequence[RunPlan], group: Folder) -> tuple[int, dict[str, int]]:
    """The progress that survives a restart: the number of finished trainings, and the epoch of each saved state.

    Args:
        study: the study.
        plans: the trainings.
        group: folder in which Ray Train stores the states.
    """
    num_finished = sum(is_finished(study, plan) for plan in plans)
    return num_finished, {identity: state.progress.epoch for identity, state in latest_states(group).items()}


def prepare_run_folder(study: Folder, plan: RunPlan, *, keep: bool) -> None:
    """Prepare the run's folder.

    Args:
        study: the study.
        plan: the training.
        keep: the training resumes from a state; otherwise the files of an interrupted training are deleted.
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
    """Append to the list of devices and dtypes that a training ran on, at each start."""
    now = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(runtime)}
    run.write_json(_RUNTIMES_FILE, [*read_runtimes(run), now])


class RuntimeRecord(TypedDict):
    """The start time of a training and the `slick.precision.Runtime` it has used since."""

    at: str
    """UTC, ISO 8601."""
    device: str
    dtype: str
    attention: str


def read_runtimes(run: Folder) -> list[RuntimeRecord]:
    """The runtimes of a training, one per start, in order.

    Raises:
        StudyError: the file is malformed.
    """
    if not run.exists(_RUNTIMES_FILE):
        return []
    return read_record(run, _RUNTIMES_FILE, list[RuntimeRecord], "delete that file and give the same command again")


def check_resources(config: TrainConfig, cpus: float, gpus: float, num_groups: int = 1) -> float:
    """GPUs per worker: 0, 1 or a fraction of 1.

    Args:
        config: the settings of the trainings.
        cpus: CPUs in the cluster now.
        gpus: GPUs in the cluster now.
        num_groups: concurrent worker groups.

    Raises:
        SettingsError: the cluster has too few of them.
    """
    gpus_per_worker = config.gpus_per_worker if config.gpus_per_worker is not None else float(gpus > 0)
    num_workers = config.num_workers if config.min_workers is None else config.min_workers
    available, unit = (gpus, "GPUs") if gpus_per_worker else (cpus, "CPUs")
    required = num_workers * num_groups * (gpus_per_worker or 1)
    if required > available and not config.wait_for_nodes:
        raise SettingsError(
            f"{num_groups} x {num_workers} workers need {required:g} {unit}, the cluster has {available:g}; lower "
            "--num-workers or --min-workers, or give --wait-for-nodes if the cluster will grow"
        )
    return gpus_per_worker
