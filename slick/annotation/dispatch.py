"""Sends unanswered batches to a pool of Ray Data actors and reports progress.

The only import of ray.data in this package. Actors write the answers; only counts return to the driver.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from slick import errors
from slick.annotation.config import AnnotateConfig
from slick.annotation.store import QuestionBatch, cut_batches, exclude_questions, make_units, missing_batches
from slick.annotation.worker import AnnotationWorker, WorkerConfig, with_engine
from slick.cluster import set_job_message
from slick.precision import Runtime
from slick.progress import ProgressReporter

_LOG = logging.getLogger(__name__)

GPU_BATCH_FACTOR = 8
"""A unit has this many times as many batches on a GPU as on the CPU."""

ProgressNote = Callable[[Mapping[str, int], Mapping[str, float], float], str]
"""Text to append to the progress line, from questions by category in the first store, cost and seconds so far."""


def run_worker_pool(
    units_for: Callable[[bool, int, int], Sequence[pa.Table]],
    config: WorkerConfig,
    *,
    min_actors: int,
    max_actors: int | None,
    gpus_per_actor: float | None,
    cpus_per_actor: float,
) -> Iterator[dict[str, Any]]:
    """Stream units through a pool of actors and yield a row of `SUMMARY_SCHEMA` for each, in order of completion.

    Ray Data restarts actors that die without limit and reruns their units. An error in an actor ends the stream. Actors
    on a node that is being drained get no new units.

    Args:
        units_for: returns the units, given whether actors have GPUs, the maximum number of actors and the present one.
        config: the worker's configuration, without `num_gpus`.
        min_actors: minimum size of the pool.
        max_actors: maximum size of the pool; None for what the cluster can hold.
        gpus_per_actor: None for 1 if the cluster has GPUs, otherwise 0.
        cpus_per_actor: logical CPUs per actor.

    Raises:
        SlickError: an actor failed.
    """
    import ray.data

    from slick.cluster import connect

    connect()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that progress bars are disabled
    cluster = ray.cluster_resources()
    num_gpus = gpus_per_actor if gpus_per_actor is not None else float(cluster.get("GPU", 0) > 0)
    # On CPUs, two slots stay free for Ray Data's own tasks: a pool that holds all slots would deadlock.
    capacity = cluster.get("GPU", 0) / num_gpus if num_gpus else (cluster.get("CPU", 1) - 2) / cpus_per_actor
    limit = max(min_actors, max_actors or max(1, int(capacity)))
    units = units_for(num_gpus > 0, limit, max(1, min(limit, int(capacity))))
    max_size = max(min_actors, min(limit, len(units)))
    min_size = min(min_actors, max_size)
    pool = ray.data.ActorPoolStrategy(
        min_size=min_size,
        max_size=max_size,
        initial_size=max(min_size, min(max_size, int(capacity))),
        max_tasks_in_flight_per_actor=2,  # few, so that the last units spread over all actors
    )
    # Not from_arrow, which starts processes that read every unit and then idle beside the actors.
    results = ray.data.from_blocks(list(units)).map_batches(
        AnnotationWorker,
        fn_constructor_kwargs={"config": with_engine(config, num_gpus=num_gpus)},
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        num_gpus=num_gpus,
        num_cpus=cpus_per_actor,
    )
    _quiet(results.context)
    # With the default prefetch of one batch, a result would arrive only after the next one.
    tables = results.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    yield from _raise_first_error((row for table in tables for row in table.to_pylist()), config)


def _quiet(context: Any) -> None:
    """Set a Ray Data context for units that take long, whose progress this module shows itself."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a unit of a large model may take hours


def _raise_first_error(rows: Iterable[dict[str, Any]], config: WorkerConfig) -> Iterator[dict[str, Any]]:
    """Yield the successful rows, then raise the first error once all actors have stopped."""
    failed: dict[str, Any] | None = None
    for row in rows:
        if row["error"] and failed is None:
            # Ray Data cannot cancel the stream, so a file tells the actors to skip the remaining units.
            failed = row
            config.folder.write_bytes(config.stop_file, b"")
        elif not row["error"]:
            yield row | {name: dict(row[name]) for name in ("spent", "runtime")}
    if failed is not None:
        config.folder.delete(config.stop_file)
        raise getattr(errors, failed["error"])(failed["message"])


def annotate_missing(
    label: str,
    tables: Mapping[str, pa.Table],
    worker_config: WorkerConfig,
    config: AnnotateConfig,
    note: ProgressNote,
    set_aside: Mapping[str, pa.Table],
) -> None:
    """Answer every question that no part file holds, except those that are set aside.

    Args:
        label: prefix of the progress line.
        tables: the questions of each store.
        worker_config: configuration of the actors.
        config: sizes of batches, files and the pool.
        note: see `ProgressNote`.
        set_aside: questions of each store to skip.

    Raises:
        SlickError: an actor failed. Files that are written stay.
    """
    batches = {
        store: exclude_questions(cut_batches(table, config.batch_questions), set_aside[store])
        for store, table in tables.items()
    }
    missing = {store: missing_batches(worker_config.folder.child(store), whole) for store, whole in batches.items()}
    total, left = (sum(map(_num_questions, by_store.values())) for by_store in (batches, missing))
    progress = ProgressReporter(label, total, "questions", on_update=set_job_message)
    if not left:
        return
    if left < total:
        progress.resume_at(total - left)
        _LOG.info("%s: resuming after %s of %s questions", label, f"{progress.done:,}", f"{total:,}")
    started_at = time.monotonic()
    categories: Counter[str] = Counter()
    cost: Counter[str] = Counter()
    runtimes: set[str] = set()

    def units(on_gpu: bool, max_actors: int, num_actors: int) -> list[pa.Table]:
        max_batches = config.batches_per_file * (GPU_BATCH_FACTOR if on_gpu else 1)
        return make_units(missing, max_batches=max_batches, num_actors=max_actors, num_turns=num_actors)

    for row in run_worker_pool(
        units,
        worker_config,
        min_actors=config.min_actors,
        max_actors=config.max_actors,
        gpus_per_actor=config.gpus_per_actor,
        cpus_per_actor=config.cpus_per_actor,
    ):
        if (runtime := str(Runtime(**row["runtime"]))) not in runtimes:
            runtimes.add(runtime)
            _LOG.info("%s: %s", label, runtime)
        cost.update(row["spent"])
        if row["store"] == next(iter(tables)):
            categories.update(row["categories"])
        progress.add(row["questions"], note(categories, cost, time.monotonic() - started_at))


def _num_questions(batches: Sequence[QuestionBatch]) -> int:
    return sum(int(batch.questions.num_rows) for batch in batches)
