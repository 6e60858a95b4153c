"""Fine-tune a model on one variant, or on a list of them in one worker group: the one import of ray.train."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from slick.errors import SlickError
from slick.progress import Progress
from slick.storage import Folder
from slick.study import Manifest, require
from tuning.config import TrainConfig
from tuning.records import accuracy_of
from tuning.runs import RunPlan, check_resources, plan_runs, run_folder, run_id
from tuning.worker import Place, train_runs

__all__ = ["TrainConfig", "finetune"]


def finetune(study: Folder, config: TrainConfig) -> Manifest:
    """Fine-tune on one variant into runs/VARIANT-seedSEED, evaluated by generation after every epoch.

    An interrupted training starts again from its beginning; a finished one is left as it is.

    Returns:
        The manifest of the run. Its counts tell the best dev epoch and whether the training set was fitted whole, as in
        the paper's CONVERGENCE (arXiv:2405.05904, section 4).

    Raises:
        StudyError: an earlier step is not finished, or the run's folder was written with other inputs or settings.
        VariantError: there is no such variant, or it was drawn for another model.
        SettingsError: settings that contradict each other or the cluster.
    """
    name = run_id(config)
    plans = plan_runs(study, [config])
    if plans:
        gpus_per_worker = ask_cluster(config)
        with scratch(study) as storage, watch(study, plans):
            train_group(study, plans, gpus_per_worker, storage, name)
        print_outcome(study, plans)
    return require(run_folder(study, name), "finetune")


def ask_cluster(config: TrainConfig, num_groups: int = 1) -> int:
    """Connect to Ray and see that the workers fit; returns the GPUs of each, 0 or 1."""
    import ray

    from slick.cluster import connect

    connect()
    have = ray.cluster_resources()
    return check_resources(config, have.get("CPU", 0.0), have.get("GPU", 0.0), num_groups)


def train_group(
    study: Folder,
    plans: Sequence[RunPlan],
    gpus_per_worker: int,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Do a list of trainings in one worker group, and wait for it.

    Args:
        plans: all with the same number of workers.
        storage: where Ray keeps its own small files of the run; every node must reach it.
        callbacks: of Ray Train, told of every epoch.

    Returns:
        The metrics of the last epoch of the last training.

    Raises:
        SlickError: the message of the worker that failed.
    """
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    _trim_start(plans[0].config)
    num_workers = plans[0].config.num_workers
    trainer = TorchTrainer(
        _work,
        train_loop_config={"study": study, "plans": list(plans)},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, "GPU": 1} if gpus_per_worker else {"CPU": 1},
        ),
        torch_config=TorchConfig(backend="nccl" if gpus_per_worker else "gloo"),
        run_config=RunConfig(name=name, storage_path=storage, callbacks=list(callbacks)),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise failure(error) from error
    return dict(result.metrics or {})


def _trim_start(config: TrainConfig) -> None:
    """Make Ray Train lighter on one machine.

    No machine can be taken away from the run there, so the process that watches for that (1.3 CPU seconds) is left out.
    And a worker waits at each report until the last one was fetched, every 2 s by default: too long for small epochs.
    """
    import os

    import ray

    if len(ray.nodes()) == 1 and not config.wait_for_nodes:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")


def _work(settings: dict[str, Any]) -> None:
    """One worker of the group."""
    import ray.train
    from ray.train.torch import get_device

    context = ray.train.get_context()
    place = Place(rank=context.get_world_rank(), num_workers=context.get_world_size(), device=str(get_device()))
    train_runs(settings["study"], settings["plans"], place, ray.train.report)


def failure(error: BaseException) -> Exception:
    """What made a worker group fail: the worker's own SlickError where it raised one, else the error as it is."""
    causes = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    for cause in causes:
        while cause is not None:
            if isinstance(cause, SlickError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error if isinstance(error, Exception) else RuntimeError(str(error))


@contextmanager
def scratch(study: Folder, keep: bool = False) -> Iterator[str]:
    """A folder in the study for Ray's own files, which every node must reach; removed afterwards unless asked."""
    folder = study.child(".ray")
    folder.delete()
    folder.make()
    try:
        yield folder.uri
    finally:
        if not keep:
            folder.delete()


@contextmanager
def watch(study: Folder, plans: Sequence[RunPlan], interval_s: float = 1.0) -> Iterator[None]:
    """Clear the runs' folders, and show their epochs as any worker finishes them until the block ends."""
    for plan in plans:
        run_folder(study, plan.run_id).delete()  # what an interrupted training left would be taken for this one's
    done = threading.Event()
    progress = Progress("finetune", sum(plan.config.epochs for plan in plans), "epochs")
    thread = threading.Thread(target=_watch, args=(study, plans, progress, done, interval_s), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(
    study: Folder, plans: Sequence[RunPlan], progress: Progress, done: threading.Event, interval_s: float
) -> None:
    seen = {plan.run_id: 0 for plan in plans}
    last = False
    while not last:
        last = done.wait(interval_s)
        for plan in plans:
            folder = run_folder(study, plan.run_id)
            if seen[plan.run_id] == plan.config.epochs or not folder.exists("epochs.parquet"):
                continue
            epoch, dev = accuracy_of(folder.read_table("epochs.parquet"), "dev")
            if epoch > seen[plan.run_id]:
                note = f"{plan.run_id} epoch {epoch} of {plan.config.epochs}, dev accuracy {dev:.3f}"
                progress.add(epoch - seen[plan.run_id], note)
                seen[plan.run_id] = epoch


def print_outcome(study: Folder, plans: Sequence[RunPlan]) -> None:
    """What a reader of the results must know: training sets that were not fitted whole, and dropout without effect."""
    counts = {plan.run_id: require(run_folder(study, plan.run_id), "finetune").counts for plan in plans}
    short = {name: count["final_train_accuracy"] for name, count in counts.items() if not count["converged"]}
    if short:
        worst = min(short, key=lambda name: short[name])
        print(
            f"finetune: {len(short)} of {len(plans)} trainings ended with less than 100 % of their training rows right "
            f"(least: {worst}, {100 * short[worst]:.1f} %), so their last epoch is not the paper's CONVERGENCE; more "
            "--epochs would bring them nearer"
        )
    silent = [plan.run_id for plan in plans if plan.config.dropout and not counts[plan.run_id]["dropouts"]]
    if silent:
        print(f"finetune: the model has no dropout anywhere, so --dropout had no effect on {', '.join(silent)}")
