"""The cost of a sweep, estimated from a few measured steps of its own model on its own cluster.

If an axis changes the cost of a row, a few steps are measured for each of its values.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slick.errors import StudyError
from slick.formatting import format_duration
from slick.settings import ABOVE_ZERO, cost_settings
from slick.storage import Folder
from slick.stored_files import read_record
from tuning.config import TrainConfig
from tuning.finetune import check_plans, connect_and_check_resources, scratch_folder
from tuning.grid import grid_summary
from tuning.ray_trainer import run_worker_group
from tuning.runs import RunPlan, plan_runs
from tuning.sweep import SweepConfig, resolve_sweep_precision

_LOG = logging.getLogger(__name__)

_MEASURED_STEPS = 3
_MEASURED_QUESTIONS = 256
_TIMINGS_FILE = "timings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTiming:
    """Seconds per row of a worker group."""

    train_s: float
    eval_s: float


CostClass = tuple[tuple[str, object], ...]
"""Settings that determine the seconds per row, with their values; see `slick.settings.cost_settings`."""


def cost_class(config: TrainConfig) -> CostClass:
    """The cost class of a training; trainings of one class take the same time per row."""
    return tuple(cost_settings(config).items())


def cost_class_labels(classes: Sequence[CostClass]) -> dict[CostClass, str]:
    """The settings in which classes differ, such as `batch_size=32, lora_rank=8`; empty for a single class."""
    differing = {settings[0][0] for settings in zip(*classes, strict=True) if len(set(settings)) > 1}
    return {
        settings: ", ".join(
            f"{name} {value}" if value == ABOVE_ZERO else f"{name}={value}"
            for name, value in settings
            if name in differing
        )
        for settings in classes
    }


def plan_sweep(study: Folder, config: SweepConfig) -> None:
    """Log the trainings of a sweep, the epochs that each still needs, and the estimated cost; nothing is trained.

    Raises:
        StudyError, VariantError, SettingsError: see `sweep`.
    """
    config = resolve_sweep_precision(study, config)
    runs = config.trajectories
    configs = {run.run_id: run.config(config.train) for run in runs}
    plans = plan_runs(
        study,
        configs,
        config.stop_policies,
        point_policies=config.point_policies,
        accept_early_stopped=config.scheduler != "none",
    )
    if config.search == "grid":
        summary = grid_summary(config.grid, config.train, shared=not config.independent_reason)
    else:
        summary = f"a search of {config.samples} samples, estimated from the ends of its axes, {len(runs)} trainings"
    _LOG.info("sweep: %s; %d are finished", summary, len(configs) - len(plans))
    if not plans:
        return
    timings = measure_timings(study, plans)
    total_s = 0.0
    for plan in plans:
        seconds = estimate_run_seconds(plan, timings[cost_class(plan.config)])
        total_s += seconds
        _LOG.info("  %-40s %4d epochs  %s", plan.run_id, plan.remaining_epochs, format_duration(seconds))
    if config.search != "grid":
        total_s *= config.samples * len(config.trajectories_for([()])) / len(plans)
    num_workers, unit = config.train.num_workers, "core" if plans[0].config.gpus_per_worker == 0 else "worker"
    _LOG.info(
        "sweep: %s of one worker group, %.2f %s-hours, measured on %d steps and %d questions; with --stop live and "
        "schedulers it may be less",
        format_duration(total_s),
        total_s * num_workers / 3600,
        unit,
        _MEASURED_STEPS,
        _MEASURED_QUESTIONS,
    )
    for settings, label in cost_class_labels(list(timings)).items():
        timing = timings[settings]
        _LOG.info(
            "  measured%s: %.1f ms per row trained, %.1f ms per row evaluated",
            f" with {label}" if label else "",
            1000 * timing.train_s,
            1000 * timing.eval_s,
        )


def estimate_run_seconds(plan: RunPlan, timing: RowTiming) -> float:
    """Seconds that a training takes a worker group, without the start of the group."""
    train_s = plan.remaining_epochs * plan.num_train_rows * timing.train_s
    return train_s + plan.remaining_eval_rows * timing.eval_s


def measure_timings(study: Folder, plans: Sequence[RunPlan]) -> dict[CostClass, RowTiming]:
    """Train a few steps and evaluate some rows for each cost class, one class after another in one worker group.

    Raises:
        SlickError: an error that the user has to fix.
    """
    plan_by_class: dict[CostClass, RunPlan] = {}
    for plan in plans:
        plan_by_class.setdefault(cost_class(plan.config), plan)
    check_plans(study, list(plan_by_class.values()))
    config = plans[0].config
    gpus_per_worker = connect_and_check_resources(config)
    with scratch_folder(study, "probe") as storage:
        folder = Folder(storage)
        folder.delete(_TIMINGS_FILE)
        arguments = {"study": study, "plans": list(plan_by_class.values()), "folder": folder}
        run_worker_group(_measure_plans, arguments, config, gpus_per_worker, storage, "probe")
        timings = read_record(folder, _TIMINGS_FILE, list[RowTiming], "give the same command again")
        if len(timings) != len(plan_by_class):
            raise StudyError(
                f"{folder}/{_TIMINGS_FILE} has {len(timings)} entries, expected {len(plan_by_class)}; give the same "
                "command again"
            )
        return dict(zip(plan_by_class, timings, strict=True))


def _measure_plans(arguments: dict[str, Any], context: Any) -> None:
    """Measure each plan in one worker; the first worker writes the timings."""
    timings = [_measure_timing(arguments["study"], plan, context) for plan in arguments["plans"]]
    if context.rank == 0:
        arguments["folder"].write_json(_TIMINGS_FILE, [asdict(timing) for timing in timings])


def _measure_timing(study: Folder, plan: RunPlan, context: Any) -> RowTiming:
    import time

    from slick.models import context_length, load_tokenizer
    from tuning.data import read_rows
    from tuning.evaluate import encode_rows, filter_long_rows, pad_token_id
    from tuning.trainer import Trainer, init_deepspeed
    from tuning.worker import evaluate_distributed

    init_deepspeed()
    config: TrainConfig = plan.config
    tokenizer = load_tokenizer(plan.model, trust_remote_code=config.trust_remote_code)
    rows = [row for split in read_rows(study, config.variant).values() for row in split]
    max_tokens = context_length(plan.model, trust_remote_code=config.trust_remote_code)
    filtered = filter_long_rows(rows, tokenizer, max_tokens, config)
    trainer = Trainer(plan.model, config, context, pad_token_id(tokenizer), plan.deepspeed)
    train_examples = _cycle_to_length(filtered.train_examples, _MEASURED_STEPS * config.batch_size)
    trainer.epoch(train_examples[: config.batch_size], 1)  # warm-up: kernels are compiled and memory is allocated
    stats = trainer.epoch(train_examples, 1)
    eval_rows = _cycle_to_length([row for row in filtered.rows if row.split != "train"], _MEASURED_QUESTIONS)
    eval_examples = encode_rows(eval_rows, tokenizer)
    evaluate_distributed(trainer, tokenizer, eval_rows, eval_examples, config, context)
    started_at = time.monotonic()
    evaluate_distributed(trainer, tokenizer, eval_rows, eval_examples, config, context)
    eval_seconds = time.monotonic() - started_at
    trainer.engine.destroy()
    return RowTiming(train_s=stats.seconds / len(train_examples), eval_s=eval_seconds / len(eval_rows))


def _cycle_to_length(values: Sequence[Any], num: int) -> list[Any]:
    return [values[i % len(values)] for i in range(num)]
