"""Trials of a sweep with Ray Tune, and Optuna's search through it.

A trial is one Ray Train run that trains one or more trajectories one after another in the same workers. Tune schedules
the trials and retries failed ones.

A search draws a few samples at a time and gets their scores in sample order. Its choices therefore depend only on its
seed and the scores, not on the number of concurrent trials or their order of completion. An interrupted or extended
search draws the same samples again, finds their trainings finished, and continues.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from slick import compat
from slick.errors import ClusterError, SettingsError, SlickError, wrap_library_errors
from slick.private_folders import private_folder
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
"""Of a sampled number, which becomes part of the name of a run."""


def check_search() -> None:
    """Check that Optuna is installed.

    Raises:
        SettingsError: it is not.
    """
    if find_spec("optuna") is None:
        raise SettingsError("--search optuna needs optuna: pip install 'slick-knowledge[optuna]', or search the grid")


class SettingsSearch:
    """Draws combinations of the axes' values, guided by the scores of earlier samples."""

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
        """All samples so far, in order; a combination may occur more than once."""
        return list(self._suggestions)

    def ask(self, num: int) -> list[SettingOverrides]:
        """Draw the next `num` samples."""
        start = len(self._suggestions)
        for i in range(start, start + num):
            values = self._searcher.suggest(str(i))
            settings = {axis.name: _rounded(axis, values[axis.name]) for axis in self._axes}
            self._suggestions.append(changed_settings(settings, self._base))
        return self._suggestions[start:]

    def tell(self, scores: Sequence[float]) -> None:
        """Report the scores of the last samples, in order; higher is better."""
        for score in scores:
            self._searcher.on_trial_complete(str(self._num_reported), {_SCORE: score})
            self._num_reported += 1


def _domain(axis: Axis) -> Any:
    from ray import tune

    if axis.range == "no":
        return tune.choice(list(axis.values))
    low, high = axis.values
    if isinstance(low, int):  # Tune excludes the upper end
        return tune.lograndint(low, high + 1) if axis.range == "log" else tune.randint(low, high + 1)
    return tune.loguniform(low, high) if axis.range == "log" else tune.uniform(low, high)


def _rounded(axis: Axis, value: Any) -> Any:
    if axis.range == "no" or isinstance(axis.values[0], int):
        return value
    low, high = axis.values
    return min(high, max(low, float(f"{value:.{_SIGNIFICANT_DIGITS}g}")))


_TUNE_FOLDER = "tune"
"""Name of Tune's folder."""
_FATAL_ERROR_METRIC = "fatal_error"
"""Metric of a trial: the message of an error that the user has to fix."""
_RESUME = "finished epochs are kept, and the same command resumes"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """Resources, retries and files of the trials of a sweep."""

    gpus_per_worker: float
    concurrent: int
    scheduler: Scheduler
    max_epochs: int
    """Epochs of the longest training."""
    retries: int
    keep_files: bool
    """Keep Tune's own files next to those of Ray Train."""


def run_trials(study: Folder, tracker: TrialTracker, settings: TrialSettings, storage: str) -> dict[int, str]:
    """Run every pack of the tracker as a trial, update the tracker, and wait for all trials.

    Args:
        study: the study.
        tracker: the packs of trainings, one pack per trial, and the state of their trials.
        settings: see `TrialSettings`.
        storage: URI of Ray Train's folder in the study.

    Returns:
        Messages of the trials that failed after their retries, by the trial's index.

    Raises:
        SlickError: a trial failed before it had an index.
        ClusterError: Tune itself failed, for example because Ray killed one of its processes for lack of memory.
    """
    import os

    # The old output can be silenced; the new one always prints its settings.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # On Ctrl-C, Tune's own handler would wait until the running trials end.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # A failed trial is retried, which progress lines count, or its error is returned. Tune would print tracebacks.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    compat.hide_aws_keys_from_trials()
    # Tune writes pickles and reads some of them back, so its folder is private to this process and not in the study.
    with private_folder("slick-tune-") as private:
        with wrap_library_errors("Ray Tune ended the sweep", ClusterError, lambda _: _RESUME):
            try:
                results = _tuner(study, tracker, settings, storage, private).fit()
            except Exception as error:
                user_error = find_user_error(error)
                if user_error is None:
                    raise
                raise user_error from error
        if settings.keep_files:
            Folder(storage).child(_TUNE_FOLDER).add(f"{private}/{_TUNE_FOLDER}")
    errors: dict[int, str] = {}
    for result in results:
        fatal_error = (result.metrics or {}).get(_FATAL_ERROR_METRIC)
        if result.error is not None or fatal_error:
            index = (result.config or {}).get("pack")
            message = fatal_error or _error_message(result.error)
            if index is None:
                raise SlickError(f"a trial failed before it began: {message}")
            errors[index] = message
    return errors


def _tuner(study: Folder, tracker: TrialTracker, settings: TrialSettings, storage: str, private: str) -> Any:
    """Tune's `Tuner` of the trials; its own files are in `private`, a folder on this machine, where trials run too."""
    from ray import tune

    packs = tracker.packs
    names = [_trial_name(pack) for pack in packs]
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
                    tracker, lambda index: progress_token(study, packs[index], _group_folder(packs[index], storage))
                )
            ],
            failure_config=tune.FailureConfig(max_failures=settings.retries),
        ),
    )


def _trial_placement() -> Any:
    """One byte of memory on the driver's node.

    A trial only waits for its workers, next to Ray Train's controller. Tune refuses trials without resources, and with
    a CPU each, trials would take CPUs from workers. Without the node, Ray would put all trials on one worker node: if
    that is a spot instance and lost, all trainings are interrupted.
    """
    import ray
    from ray import tune

    node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=[node])


def _group_folder(pack: Sequence[RunPlan], storage: str) -> Folder:
    """The folder of a trial's worker group, with its states."""
    return Folder(storage).child(group_name(pack))


def _tracker_callback(tracker: TrialTracker, get_progress_token: Callable[[int], object]) -> Any:
    """A Tune callback that updates the tracker, and resets the failure count of a trial that made progress.

    Args:
        tracker: updated on every event.
        get_progress_token: a token for the index of a trial; when it changes, the failure counter resets.
    """
    from ray import tune

    tokens: dict[int, object] = {}

    class TrackerCallback(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            index = trial.config["pack"]
            tracker.mark_started(index)
            tokens.setdefault(index, get_progress_token(index))

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            index = trial.config["pack"]
            tracker.mark_retried(index)
            if (token := get_progress_token(index)) != tokens[index]:
                tokens[index] = token
                compat.reset_trial_failures(trial)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            message = (trial.last_result or {}).get(_FATAL_ERROR_METRIC, "")
            tracker.mark_ended(trial.config["pack"], " ".join(message.split()))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            tracker.mark_ended(trial.config["pack"], _failure_reason(compat.trial_error(trial)))

    return TrackerCallback()


def _scheduler(settings: TrialSettings) -> Any:
    """Tune's scheduler, which compares the dev accuracy after every epoch."""
    if settings.scheduler == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    common = {"time_attr": "epoch", "metric": "dev_accuracy", "mode": "max"}
    grace_period = max(1, settings.max_epochs // 10)
    if settings.scheduler == "median":
        return MedianStoppingRule(grace_period=grace_period, min_samples_required=3, **common)
    return ASHAScheduler(max_t=settings.max_epochs, grace_period=grace_period, reduction_factor=3, **common)


def _trial(
    study: Folder, packs: Sequence[Sequence[RunPlan]], settings: TrialSettings, storage: str
) -> Callable[[dict[str, Any]], None]:
    """Tune's trainable."""

    def trial(config: dict[str, Any]) -> None:
        from ray import tune
        from ray.tune.integration.ray_train import TuneReportCallback

        pack = packs[config["pack"]]
        # Only a scheduler needs every epoch; reporting them to Tune takes another process.
        callbacks = [TuneReportCallback()] if settings.scheduler != "none" else []
        try:
            metrics = train_in_worker_group(study, pack, settings.gpus_per_worker, storage, group_name(pack), callbacks)
        except LostWorkerError:
            raise  # Tune retries the trial
        except SlickError as error:  # reported instead of raised, so that Tune does not retry the trial
            metrics = {_FATAL_ERROR_METRIC: str(error)}
        if metrics:
            tune.report(metrics)  # Tune's results omit a trial that reports nothing

    return trial


def _trial_name(pack: Sequence[RunPlan]) -> str:
    return pack[0].run_id if len(pack) == 1 else f"{pack[0].run_id}-and-{len(pack) - 1}-more"


def _error_message(error: BaseException) -> str:
    """The message of an error that a trial raised, without the stack traces of Ray's wrappers."""
    cause: Any = getattr(error, "cause", None) or error
    return str(cause).strip() or type(cause).__name__


def _failure_reason(error: BaseException) -> str:
    """One line: the error that a worker of the trial raised, or why it died."""
    worker_error = compat.first_worker_error(error)
    text = next((line.strip() for line in str(worker_error).splitlines() if line.strip()), "")
    if isinstance(worker_error, SlickError):
        return text
    return f"{type(worker_error).__name__}: {text}".removesuffix(": ")


def num_concurrent_trials(
    config: TrainConfig,
    resources: Mapping[str, float],
    gpus_per_worker: float,
    num_runs: int,
    max_concurrent: int | None,
) -> int:
    """Trials to run at the same time: as many as the cluster holds, at most `max_concurrent`, at most one per training.

    Args:
        config: workers of a training, and whether to wait for nodes.
        resources: the resources of the cluster.
        gpus_per_worker: 0, 1 or a fraction of 1.
        num_runs: number of trainings.
        max_concurrent: the user's limit; None: no limit.
    """
    import os

    if gpus_per_worker:
        num_workers = resources.get("GPU", 0.0) / gpus_per_worker
    else:
        import ray

        # Ray on one machine has more logical CPUs than cores, for its small tasks; a training needs a core.
        cpus = resources.get("CPU", 0.0)
        num_workers = cpus if len(ray.nodes()) > 1 else min(cpus, float(os.cpu_count() or 1))
    fitting = max(1, int(num_workers) // config.num_workers)
    if config.wait_for_nodes and max_concurrent:
        fitting = max(fitting, max_concurrent)  # the autoscaler adds nodes for pending trials
    return min(fitting, max_concurrent or fitting, num_runs)
