"""What a sweep will cost, from a few measured steps of its own model on its own cluster."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slick.progress import duration
from slick.storage import Folder
from tuning.config import TrainConfig
from tuning.finetune import ask_cluster, check_plans, run_group, scratch
from tuning.grid import summary
from tuning.runs import RunPlan, plan_runs
from tuning.sweep import SweepConfig

_STEPS = 3
_ASKED = 256
_FOUND = "pace.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a row takes a whole worker group."""

    trained_s: float
    asked_s: float


def plan_sweep(study: Folder, config: SweepConfig) -> None:
    """Print the trainings of a sweep, how many epochs each still needs, and what they will take; train nothing.

    Raises:
        StudyError, VariantError, SettingsError: as `sweep`.
    """
    shared = not config.why_independent
    wanted = {run.run_id: run.config(config.train) for run in config.trajectories}
    plans = plan_runs(study, wanted, config.stops, may_be_ended=config.scheduler != "none")
    print(f"sweep: {summary(config.grid, config.train, shared=shared)}; {len(wanted) - len(plans)} are finished")
    if not plans:
        return
    pace = probe(study, plans[0])
    group_s = 0.0
    for plan in plans:
        seconds = run_seconds(plan, pace)
        group_s += seconds
        print(f"  {plan.run_id:<40} {plan.epochs_left:>4} epochs  {duration(seconds)}")
    workers, kind = config.train.num_workers, "core" if plans[0].config.gpus_per_worker == 0 else "worker"
    print(
        f"sweep: {duration(group_s)} of one worker group, {group_s * workers / 3600:.2f} {kind}-hours, measured on "
        f"{_STEPS} steps and {_ASKED} questions; with --stop live and schedulers it may be less"
    )


def run_seconds(plan: RunPlan, pace: Pace) -> float:
    """What a training will take a worker group, its start aside."""
    return plan.epochs_left * (plan.num_train * pace.trained_s + plan.num_asked * pace.asked_s)


def probe(study: Folder, plan: RunPlan) -> Pace:
    """Train a few steps and ask some rows, in a worker group like those of the sweep.

    Raises:
        SlickError: what only a person can mend.
    """
    check_plans([plan])
    gpus_per_worker = ask_cluster(plan.config)
    with scratch(study, "probe") as storage:
        found = Folder(storage)
        found.delete(_FOUND)
        settings = {"study": study, "plan": plan, "found": found}
        run_group(_work, settings, plan.config, gpus_per_worker, storage, "probe")
        return Pace(**found.read_json(_FOUND))


def _work(settings: dict[str, Any], place: Any, saved: str | None) -> None:
    pace = _measure(settings["study"], settings["plan"], place)
    if place.rank == 0:
        settings["found"].write_json(_FOUND, asdict(pace))


def _measure(study: Folder, plan: RunPlan, place: Any) -> Pace:
    import time

    from slick.models import load_tokenizer
    from tuning.evaluate import encode_rows, pad_token
    from tuning.learning import Learner, prepare_deepspeed
    from tuning.rows import read_rows
    from tuning.worker import evaluate_in_group

    prepare_deepspeed()
    config: TrainConfig = plan.config
    tokenizer = load_tokenizer(plan.model, trust_remote_code=config.trust_remote_code)
    rows = read_rows(study, config.variant)
    examples = encode_rows(rows["train"], tokenizer)
    learner = Learner(plan.model, config, place, pad_token(tokenizer))
    some = _repeated(examples, _STEPS * config.batch_size)
    learner.epoch(some[: config.batch_size], 1)  # kernels are compiled and memory is taken at the first step
    trained = learner.epoch(some, 1)
    asked = _repeated([row for split in ("dev", "test", "ood") for row in rows[split]], _ASKED)
    encoded = encode_rows(asked, tokenizer)
    evaluate_in_group(learner, tokenizer, asked, encoded, config, place)
    started_at = time.monotonic()
    evaluate_in_group(learner, tokenizer, asked, encoded, config, place)
    pace = Pace(trained_s=trained.seconds / len(some), asked_s=(time.monotonic() - started_at) / len(asked))
    learner.engine.destroy()
    return pace


def _repeated(values: Sequence[Any], num: int) -> list[Any]:
    return [values[i % len(values)] for i in range(num)]
