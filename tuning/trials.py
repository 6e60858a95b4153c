"""Trials of a sweep: the one import of ray.tune, and of Optuna's search through it.

A trial is one Ray Train run that trains several trajectories one after another in the same workers. Tune schedules the
trials, retries failed ones and shows them.

The search is asked for a few samples at a time and given results in sample order, so its choices depend on its seed and
the results alone, not on how many trials run at once or which one ends first. An interrupted or extended search chooses
the same samples again, finds their trainings finished, and continues.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from slick.errors import SettingsError, SlickError
from slick.storage import Folder
from tuning.axes import Axis, SettingOverrides, changed_settings, parse_axis
from tuning.config import TrainConfig
from tuning.finetune import group_name, train_in_worker_group
from tuning.grid import Scheduler
from tuning.progress_table import TrialTracker
from tuning.ray_trainer import LostWorkerError, find_user_error
from tuning.runs import RunPlan, progress_token

_SCORE = "score"
_SIGNIFICANT_DIGITS = 4
"""Of a number on a span; names of runs hold it."""


def check_search() -> None:
    """See that Optuna is there.

    Raises:
        SettingsError: it is not.
    """
    if find_spec("optuna") is None:
        raise SettingsError("--search optuna needs optuna: pip install 'slick-knowledge[optuna]', or search the grid")


class SettingsSearch:
    """Samples of the axes' values, better ones more often as scores become known."""

    def __init__(self, axes: Sequence[str], base: TrainConfig, seed: int) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._axes, self._base = [parse_axis(text) for text in axes], base
        space = OptunaSearch.convert_search_space({axis.name: _domain(axis) for axis in self._axes})
        self._searcher: Any = OptunaSearch(space, metric=_SCORE, mode="max", seed=seed)
        self._suggestions: list[SettingOverrides] = []
        self._num_reported = 0

    @property
    def suggestions(self) -> list[SettingOverrides]:
        """All samples so far, in their order; one may come more than once."""
        return list(self._suggestions)

    def ask(self, num: int) -> list[SettingOverrides]:
        """The next samples."""
        begin = len(self._suggestions)
        for i in range(begin, begin + num):
            values = self._searcher.suggest(str(i))
            settings = {axis.name: _rounded(axis, values[axis.name]) for axis in self._axes}
            self._suggestions.append(changed_settings(settings, self._base))
        return self._suggestions[begin:]

    def tell(self, scores: Sequence[float]) -> None:
        """Scores of the samples that were asked for last, in their order; higher is better."""
        for score in scores:
            self._searcher.on_trial_complete(str(self._num_reported), {_SCORE: score})
            self._num_reported += 1


def _domain(axis: Axis) -> Any:
    from ray import tune

    if axis.range == "no":
        return tune.choice(list(axis.values))
    low, high = axis.values
    if isinstance(low, int):  # the end is left out there
        return tune.lograndint(low, high + 1) if axis.range == "log" else tune.randint(low, high + 1)
    return tune.loguniform(low, high) if axis.range == "log" else tune.uniform(low, high)


def _rounded(axis: Axis, value: Any) -> Any:
    if axis.range == "no" or isinstance(axis.values[0], int):
        return value
    low, high = axis.values
    return min(high, max(low, float(f"{value:.{_SIGNIFICANT_DIGITS}g}")))


_TUNE_FOLDER = "tune"
"""Name of Tune's folder."""
_FATAL_ERROR_METRIC = "refusal"
"""Metric of a trial that stopped for what only a person can mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """How trials are run."""

    gpus_per_worker: float
    concurrent: int
    scheduler: Scheduler
    max_epochs: int
    """Epochs of the longest training."""
    retries: int
    keep_files: bool
    """Leave Tune's own files beside those of Ray Train."""


def run_trials(study: Folder, course: TrialTracker, settings: TrialSettings, storage: str) -> dict[int, str]:
    """Run every pack of a course as a trial, and wait for all; the course is told of them on the way.

    Returns:
        What made a trial fail, after its retries, by the trial's place.

    Raises:
        SlickError: a trial failed before it could be told which.
    """
    import os

    # The old output can be silenced; the new one prints its settings in a box whatever it is told.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Tune's own answer to Ctrl-C is to wait until the trials that run have come to their end.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    _hide_aws_keys_from_logs()
    # Tune writes pickles and reads some of them back, so its folder is this process' own, and not in the study.
    with tempfile.TemporaryDirectory(prefix="slick-tune-") as private:
        try:
            results = _tuner(study, course, settings, storage, private).fit()
        except Exception as error:
            mendable = find_user_error(error)
            if mendable is None:
                raise
            raise mendable from error
        if settings.keep_files:
            Folder(storage).child(_TUNE_FOLDER).add(f"{private}/{_TUNE_FOLDER}")
    errors: dict[int, str] = {}
    for result in results:
        refusal = (result.metrics or {}).get(_FATAL_ERROR_METRIC)
        if result.error is not None or refusal:
            place = (result.config or {}).get("pack")
            text = refusal or _error_message(result.error)
            if place is None:
                raise SlickError(f"a trial failed before it began: {text}")
            errors[place] = text
    return errors


def _tuner(study: Folder, course: TrialTracker, settings: TrialSettings, storage: str, private: str) -> Any:
    """The trials, ready to run.

    Args:
        storage: of Ray Train, in the study.
        private: folder of this machine for Tune's own files; trials run on this machine too.
    """
    from ray import tune

    packs = course.packs
    names = [_trial_name(part) for part in packs]
    return tune.Tuner(
        tune.with_resources(_trial(study, packs, settings, storage), _trial_placement()),
        param_space={"pack": tune.grid_search(list(range(len(packs))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=settings.concurrent,
            scheduler=_scheduler(settings),
            trial_name_creator=lambda trial: names[trial.config["pack"]],
            trial_dirname_creator=lambda trial: names[trial.config["pack"]],
        ),
        run_config=tune.RunConfig(
            name=_TUNE_FOLDER,
            storage_path=private,
            verbose=0,
            callbacks=[
                _tracker_callback(
                    course, lambda place: progress_token(study, packs[place], _group_folder(packs[place], storage))
                )
            ],
            failure_config=tune.FailureConfig(max_failures=settings.retries),
        ),
    )


def _trial_placement() -> Any:
    """A byte of memory on the driver's node.

    A trial only waits for its workers, beside Ray Train's controller. To ask for nothing is refused; of a core it would
    take so much that a node holds one worker fewer. On the driver's node, since Ray would put the trials on one node
    for workers, maybe a spot machine, with which all trainings would be interrupted, those on other machines too.
    """
    import ray
    from ray import tune

    node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=[node])


def _hide_aws_keys_from_logs() -> None:
    """Tune hands the driver's AWS keys on to trials in a runtime environment, which Ray writes into its logs.

    Trials need none: a process has the environment of its node or of its job.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not name.startswith("AWS_")}


def _group_folder(part: Sequence[RunPlan], storage: str) -> Folder:
    """The folder of a trial's worker group, which holds its state."""
    return Folder(storage).child(group_name(part))


def _tracker_callback(course: TrialTracker, get_progress_token: Callable[[int], object]) -> Any:
    """Tells a course what Tune does, and has Tune forget the failures of a trial that came further before the last.

    Args:
        how_far: another value each time the trial at a place comes further.
    """
    from ray import tune

    at: dict[int, object] = {}

    class TrackerCallback(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            place = trial.config["pack"]
            course.mark_started(place)
            at.setdefault(place, get_progress_token(place))

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            place = trial.config["pack"]
            course.mark_retried(place)
            if (now := get_progress_token(place)) != at[place]:
                at[place], trial.run_metadata.num_failures = now, 0  # Tune has no setting for it

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            course.mark_ended(
                trial.config["pack"], " ".join((trial.last_result or {}).get(_FATAL_ERROR_METRIC, "").split())
            )

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            course.mark_ended(trial.config["pack"], _failure_reason(trial.get_pickled_error() or trial.get_error()))

    return TrackerCallback()


def _scheduler(settings: TrialSettings) -> Any:
    """Tune's own; it looks at the dev accuracy of every epoch."""
    if settings.scheduler == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    common = {"time_attr": "epoch", "metric": "dev_accuracy", "mode": "max"}
    first = max(1, settings.max_epochs // 10)
    if settings.scheduler == "median":
        return MedianStoppingRule(grace_period=first, min_samples_required=3, **common)
    return ASHAScheduler(max_t=settings.max_epochs, grace_period=first, reduction_factor=3, **common)


def _trial(
    study: Folder, packs: Sequence[Sequence[RunPlan]], settings: TrialSettings, storage: str
) -> Callable[[dict[str, Any]], None]:
    def trial(asked: dict[str, Any]) -> None:
        from ray import tune
        from ray.tune.integration.ray_train import TuneReportCallback

        part = packs[asked["pack"]]
        # Only a scheduler wants to know of every epoch; telling Tune takes a process of its own.
        callbacks = [TuneReportCallback()] if settings.scheduler != "none" else []
        try:
            last = train_in_worker_group(study, part, settings.gpus_per_worker, storage, group_name(part), callbacks)
        except LostWorkerError:
            raise  # Tune tries the trial again
        except SlickError as error:
            last = {
                _FATAL_ERROR_METRIC: str(error)
            }  # not a failure that Tune would try again: only a person can mend it
        if last:
            tune.report(last)  # a trial that reports nothing itself is left out of Tune's table

    return trial


def _trial_name(part: Sequence[RunPlan]) -> str:
    return part[0].run_id if len(part) == 1 else f"{part[0].run_id}-and-{len(part) - 1}-more"


def _error_message(error: BaseException) -> str:
    """The message of what a trial raised, without the stack of processes it came through."""
    cause: Any = getattr(error, "cause", None) or error
    return str(cause).strip() or type(cause).__name__


def _failure_reason(error: BaseException) -> str:
    """In one line, what a worker of the trial died of or raised."""
    cause: Any = getattr(error, "cause", None) or error
    first = next(iter(getattr(cause, "worker_failures", {}).values()), cause)
    first = getattr(first, "_base_exc", first)  # as the worker raised it, without its stack
    first = getattr(first, "health_check_failure", first)  # what was found when it was asked how it is
    text = next((line.strip() for line in str(first).splitlines() if line.strip()), "")
    return text if isinstance(first, SlickError) else f"{type(first).__name__}: {text}".removesuffix(": ")


def num_concurrent_trials(
    config: TrainConfig, have: Mapping[str, float], gpus_per_worker: float, num_runs: int, most: int | None
) -> int:
    """Trials that run at the same time: at most what the cluster holds, what is asked for, and one a training.

    Args:
        have: resources of the cluster.
        most: what is asked for.
    """
    import os

    if gpus_per_worker:
        units = have.get("GPU", 0.0) / gpus_per_worker
    else:
        import ray

        # One machine's Ray has more logical CPUs than cores, for its own small tasks; training wants a core.
        units = have.get("CPU", 0.0) if len(ray.nodes()) > 1 else min(have.get("CPU", 0.0), float(os.cpu_count() or 1))
    fit = max(1, int(units) // config.num_workers)
    if config.wait_for_nodes and most:
        fit = max(fit, most)  # the nodes come when they are asked for
    return min(fit, most or fit, num_runs)
