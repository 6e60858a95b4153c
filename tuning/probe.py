"""What a sweep will cost, from a few measured steps of its own model on its own cluster.

Where an axis changes what a row takes, a few steps are measured for each of its values.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slick.errors import StudyError
from slick.progress import duration
from slick.settings import names_of
from slick.storage import Folder
from slick.stored_files import read_record
from tuning.config import TrainConfig
from tuning.finetune import ask_cluster, check_plans, run_group, scratch
from tuning.grid import summary
from tuning.runs import RunPlan, plan_runs
from tuning.sweep import SweepConfig, resolve_sweep

_STEPS = 3
_ASKED = 256
_FOUND = "pace.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a row takes a whole worker group."""

    trained_s: float
    asked_s: float


_PRICED = names_of(TrainConfig, "result", "cost")
"""Settings that may be axes of a grid and change what a row takes."""
_SWITCHES = ("dropout", "distill_weight")
"""Those that cost the same whatever they are, but when they are 0."""

CostClass = tuple[tuple[str, object], ...]
"""Settings that decide what a row takes; how many rows and epochs there are is counted, not measured."""


def cost_class(config: TrainConfig) -> CostClass:
    """The class of a training; those of one class take the same time a row."""
    values = ((name, getattr(config, name)) for name in _PRICED)
    return tuple((name, bool(value) if name in _SWITCHES else value) for name, value in values)


def class_names(classes: Sequence[CostClass]) -> dict[CostClass, str]:
    """What tells the classes apart, such as `batch_size=32, lora_rank=8`; empty for one that is alone."""
    differ = [i for i in range(len(_PRICED)) if len({each[i] for each in classes}) > 1]
    return {each: ", ".join(_named(*each[i]) for i in differ) for each in classes}


def _named(name: str, value: object) -> str:
    return f"{name}={value}" if name not in _SWITCHES else f"{name} above 0" if value else f"{name}=0"


def plan_sweep(study: Folder, config: SweepConfig) -> None:
    """Print the trainings of a sweep, how many epochs each still needs, and what they will take; train nothing.

    Raises:
        StudyError, VariantError, SettingsError: as `sweep`.
    """
    config = resolve_sweep(study, config)
    runs = config.trajectories
    wanted = {run.run_id: run.config(config.train) for run in runs}
    plans = plan_runs(study, wanted, config.stops, may_be_ended=config.scheduler != "none")
    if config.search == "grid":
        told = summary(config.grid, config.train, shared=not config.why_independent)
    else:
        told = f"a search of {config.samples} samples, priced by the ends of its axes, {len(runs)} trainings"
    print(f"sweep: {told}; {len(wanted) - len(plans)} are finished")
    if not plans:
        return
    paces = probe(study, plans)
    group_s = 0.0
    for plan in plans:
        seconds = run_seconds(plan, paces[cost_class(plan.config)])
        group_s += seconds
        print(f"  {plan.run_id:<40} {plan.epochs_left:>4} epochs  {duration(seconds)}")
    if config.search != "grid":
        group_s *= config.samples * len(config.covering([()])) / len(plans)
    workers, kind = config.train.num_workers, "core" if plans[0].config.gpus_per_worker == 0 else "worker"
    print(
        f"sweep: {duration(group_s)} of one worker group, {group_s * workers / 3600:.2f} {kind}-hours, measured on "
        f"{_STEPS} steps and {_ASKED} questions; with --stop live and schedulers it may be less"
    )
    for found, name in class_names(list(paces)).items():
        pace = paces[found]
        print(
            f"  measured{f' with {name}' if name else ''}: {1000 * pace.trained_s:.1f} ms a row trained on, "
            f"{1000 * pace.asked_s:.1f} ms a row asked"
        )


def run_seconds(plan: RunPlan, pace: Pace) -> float:
    """What a training will take a worker group, its start aside."""
    return plan.epochs_left * (plan.num_train * pace.trained_s + plan.num_asked * pace.asked_s)


def probe(study: Folder, plans: Sequence[RunPlan]) -> dict[CostClass, Pace]:
    """Train a few steps and ask some rows for each class of cost, one after another in a worker group of the sweep.

    Raises:
        SlickError: what only a person can mend.
    """
    chosen: dict[CostClass, RunPlan] = {}
    for plan in plans:
        chosen.setdefault(cost_class(plan.config), plan)
    check_plans(study, list(chosen.values()))
    config = plans[0].config
    gpus_per_worker = ask_cluster(config)
    with scratch(study, "probe") as storage:
        found = Folder(storage)
        found.delete(_FOUND)
        settings = {"study": study, "plans": list(chosen.values()), "found": found}
        run_group(_work, settings, config, gpus_per_worker, storage, "probe")
        paces = read_record(found, _FOUND, list[Pace], "give the same command again")
        if len(paces) != len(chosen):
            raise StudyError(f"{found}/{_FOUND} has {len(paces)} entries, wanted {len(chosen)}; give the command again")
        return dict(zip(chosen, paces, strict=True))


def _work(settings: dict[str, Any], place: Any) -> None:
    paces = [_measure(settings["study"], plan, place) for plan in settings["plans"]]
    if place.rank == 0:
        settings["found"].write_json(_FOUND, [asdict(pace) for pace in paces])


def _measure(study: Folder, plan: RunPlan, place: Any) -> Pace:
    import time

    from slick.models import context_length, load_tokenizer
    from tuning.evaluate import encode_rows, pad_token
    from tuning.fitting import fitting_rows
    from tuning.learning import Learner, prepare_deepspeed
    from tuning.rows import read_rows
    from tuning.worker import evaluate_in_group

    prepare_deepspeed()
    config: TrainConfig = plan.config
    tokenizer = load_tokenizer(plan.model, trust_remote_code=config.trust_remote_code)
    rows = [row for split in read_rows(study, config.variant).values() for row in split]
    context = context_length(plan.model, trust_remote_code=config.trust_remote_code)
    fitting = fitting_rows(rows, tokenizer, context, config)
    learner = Learner(plan.model, config, place, pad_token(tokenizer))
    some = _repeated(fitting.train_examples, _STEPS * config.batch_size)
    learner.epoch(some[: config.batch_size], 1)  # kernels are compiled and memory is taken at the first step
    trained = learner.epoch(some, 1)
    asked = _repeated([row for row in fitting.rows if row.split != "train"], _ASKED)
    encoded = encode_rows(asked, tokenizer)
    evaluate_in_group(learner, tokenizer, asked, encoded, config, place)
    started_at = time.monotonic()
    evaluate_in_group(learner, tokenizer, asked, encoded, config, place)
    pace = Pace(trained_s=trained.seconds / len(some), asked_s=(time.monotonic() - started_at) / len(asked))
    learner.engine.destroy()
    return pace


def _repeated(values: Sequence[Any], num: int) -> list[Any]:
    return [values[i % len(values)] for i in range(num)]
