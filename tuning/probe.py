"""What a sweep will cost, from a few measured steps of its own model on its own cluster.

Where an axis changes what a row takes, a few steps are measured for each of its values.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slick.errors import StudyError
from slick.progress import format_duration
from slick.settings import fields_affecting
from slick.storage import Folder
from slick.stored_files import read_record
from tuning.config import TrainConfig
from tuning.finetune import check_plans, connect_and_check_resources, run_worker_group, scratch_folder
from tuning.grid import grid_summary
from tuning.runs import RunPlan, plan_runs
from tuning.sweep import SweepConfig, resolve_sweep_precision

_MEASURED_STEPS = 3
_MEASURED_QUESTIONS = 256
_TIMINGS_FILE = "pace.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTiming:
    """What a row takes a whole worker group."""

    trained_s: float
    asked_s: float


_COST_SETTINGS = fields_affecting(TrainConfig, "result", "cost")
"""Settings that may be axes of a grid and change what a row takes."""
_ON_OFF_SETTINGS = ("dropout", "distill_weight")
"""Those that cost the same whatever they are, but when they are 0."""

CostClass = tuple[tuple[str, object], ...]
"""Settings that decide what a row takes; how many rows and epochs there are is counted, not measured."""


def cost_class(config: TrainConfig) -> CostClass:
    """The class of a training; those of one class take the same time a row."""
    values = ((name, getattr(config, name)) for name in _COST_SETTINGS)
    return tuple((name, bool(value) if name in _ON_OFF_SETTINGS else value) for name, value in values)


def cost_class_labels(classes: Sequence[CostClass]) -> dict[CostClass, str]:
    """What tells the classes apart, such as `batch_size=32, lora_rank=8`; empty for one that is alone."""
    differ = [i for i in range(len(_COST_SETTINGS)) if len({each[i] for each in classes}) > 1]
    return {each: ", ".join(_setting_label(*each[i]) for i in differ) for each in classes}


def _setting_label(name: str, value: object) -> str:
    return f"{name}={value}" if name not in _ON_OFF_SETTINGS else f"{name} above 0" if value else f"{name}=0"


def plan_sweep(study: Folder, config: SweepConfig) -> None:
    """Print the trainings of a sweep, how many epochs each still needs, and what they will take; train nothing.

    Raises:
        StudyError, VariantError, SettingsError: as `sweep`.
    """
    config = resolve_sweep_precision(study, config)
    runs = config.trajectories
    wanted = {run.run_id: run.config(config.train) for run in runs}
    plans = plan_runs(study, wanted, config.stop_policies, accept_early_stopped=config.scheduler != "none")
    if config.search == "grid":
        told = grid_summary(config.grid, config.train, shared=not config.independent_reason)
    else:
        told = f"a search of {config.samples} samples, priced by the ends of its axes, {len(runs)} trainings"
    print(f"sweep: {told}; {len(wanted) - len(plans)} are finished")
    if not plans:
        return
    paces = measure_timings(study, plans)
    group_s = 0.0
    for plan in plans:
        seconds = estimate_run_seconds(plan, paces[cost_class(plan.config)])
        group_s += seconds
        print(f"  {plan.run_id:<40} {plan.remaining_epochs:>4} epochs  {format_duration(seconds)}")
    if config.search != "grid":
        group_s *= config.samples * len(config.trajectories_for([()])) / len(plans)
    workers, kind = config.train.num_workers, "core" if plans[0].config.gpus_per_worker == 0 else "worker"
    print(
        f"sweep: {format_duration(group_s)} of one worker group, {group_s * workers / 3600:.2f} {kind}-hours, "
        f"measured on "
        f"{_MEASURED_STEPS} steps and {_MEASURED_QUESTIONS} questions; with --stop live and schedulers it may be less"
    )
    for found, name in cost_class_labels(list(paces)).items():
        pace = paces[found]
        print(
            f"  measured{f' with {name}' if name else ''}: {1000 * pace.trained_s:.1f} ms a row trained on, "
            f"{1000 * pace.asked_s:.1f} ms a row asked"
        )


def estimate_run_seconds(plan: RunPlan, pace: RowTiming) -> float:
    """What a training will take a worker group, its start aside."""
    return plan.remaining_epochs * (plan.num_train_rows * pace.trained_s + plan.num_eval_rows * pace.asked_s)


def measure_timings(study: Folder, plans: Sequence[RunPlan]) -> dict[CostClass, RowTiming]:
    """Train a few steps and ask some rows for each class of cost, one after another in a worker group of the sweep.

    Raises:
        SlickError: what only a person can mend.
    """
    chosen: dict[CostClass, RunPlan] = {}
    for plan in plans:
        chosen.setdefault(cost_class(plan.config), plan)
    check_plans(study, list(chosen.values()))
    config = plans[0].config
    gpus_per_worker = connect_and_check_resources(config)
    with scratch_folder(study, "probe") as storage:
        found = Folder(storage)
        found.delete(_TIMINGS_FILE)
        settings = {"study": study, "plans": list(chosen.values()), "found": found}
        run_worker_group(_measure_plans, settings, config, gpus_per_worker, storage, "probe")
        paces = read_record(found, _TIMINGS_FILE, list[RowTiming], "give the same command again")
        if len(paces) != len(chosen):
            raise StudyError(
                f"{found}/{_TIMINGS_FILE} has {len(paces)} entries, wanted {len(chosen)}; give the command again"
            )
        return dict(zip(chosen, paces, strict=True))


def _measure_plans(settings: dict[str, Any], place: Any) -> None:
    paces = [_measure_timing(settings["study"], plan, place) for plan in settings["plans"]]
    if place.rank == 0:
        settings["found"].write_json(_TIMINGS_FILE, [asdict(pace) for pace in paces])


def _measure_timing(study: Folder, plan: RunPlan, place: Any) -> RowTiming:
    import time

    from slick.models import context_length, load_tokenizer
    from tuning.data import read_rows
    from tuning.evaluate import encode_rows, pad_token_id
    from tuning.fitting import filter_long_rows
    from tuning.trainer import Trainer, init_deepspeed
    from tuning.worker import evaluate_distributed

    init_deepspeed()
    config: TrainConfig = plan.config
    tokenizer = load_tokenizer(plan.model, trust_remote_code=config.trust_remote_code)
    rows = [row for split in read_rows(study, config.variant).values() for row in split]
    context = context_length(plan.model, trust_remote_code=config.trust_remote_code)
    fitting = filter_long_rows(rows, tokenizer, context, config)
    learner = Trainer(plan.model, config, place, pad_token_id(tokenizer))
    some = _cycle_to_length(fitting.train_examples, _MEASURED_STEPS * config.batch_size)
    learner.epoch(some[: config.batch_size], 1)  # kernels are compiled and memory is taken at the first step
    trained = learner.epoch(some, 1)
    asked = _cycle_to_length([row for row in fitting.rows if row.split != "train"], _MEASURED_QUESTIONS)
    encoded = encode_rows(asked, tokenizer)
    evaluate_distributed(learner, tokenizer, asked, encoded, config, place)
    started_at = time.monotonic()
    evaluate_distributed(learner, tokenizer, asked, encoded, config, place)
    pace = RowTiming(trained_s=trained.seconds / len(some), asked_s=(time.monotonic() - started_at) / len(asked))
    learner.engine.destroy()
    return pace


def _cycle_to_length(values: Sequence[Any], num: int) -> list[Any]:
    return [values[i % len(values)] for i in range(num)]
