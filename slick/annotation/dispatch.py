"""Sends the batches that have no answers yet to a pool of Ray Data actors, with progress on the terminal.

The one import of ray.data in this package. Actors write the answers; only counts come back to the driver.
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


def run_worker_pool(
    units_of: Callable[[bool, int, int], Sequence[pa.Table]],
    config: WorkerConfig,
    *,
    min_actors: int,
    max_actors: int | None,
    gpus_per_actor: float | None,
    cpus_per_actor: float,
) -> Iterator[dict[str, Any]]:
    """Stream the units through a pool of actors; a row of `SUMMARY_SCHEMA` for each, in the order they finish.

    An actor that dies, or whose machine does, is started anew however often that happens, and the units it had are
    answered again (Ray Data's own setting); an error of an actor ends the stream. Actors on a machine that will be
    taken back get no new units.

    Args:
        units_of: the units, told whether they are for GPUs, how many actors there may be, and how many there are now.

    Raises:
        SlickError: what an actor could not do.
    """
    import ray
    import ray.data

    from slick.cluster import connect

    connect()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    cluster = ray.cluster_resources()
    num_gpus = gpus_per_actor if gpus_per_actor is not None else float(cluster.get("GPU", 0) > 0)
    # Where CPUs count, Ray's own tasks keep two slots: a pool that holds every slot would wait for itself for ever.
    room = cluster.get("GPU", 0) / num_gpus if num_gpus else (cluster.get("CPU", 1) - 2) / cpus_per_actor
    wanted = max(min_actors, max_actors or max(1, int(room)))
    units = units_of(num_gpus > 0, wanted, max(1, min(wanted, int(room))))
    most = max(min_actors, min(wanted, len(units)))
    least = min(min_actors, most)
    pool = ray.data.ActorPoolStrategy(
        min_size=least,
        max_size=most,
        initial_size=max(least, min(most, int(room))),
        max_tasks_in_flight_per_actor=2,  # few, so that the last units spread over all actors
    )
    # Not from_arrow: that starts processes that look at every unit, and then idle beside the actors.
    done = ray.data.from_blocks(list(units)).map_batches(
        AnnotationWorker,
        fn_constructor_kwargs={"config": with_engine(config, num_gpus=num_gpus)},
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        num_gpus=num_gpus,
        num_cpus=cpus_per_actor,
    )
    done.context.enable_progress_bars = False
    done.context.print_on_execution_start = False
    done.context.execution_no_progress_timeout_s = -1  # a unit of a large model may take hours
    # Ray prefetches one by default: what is done would be heard of only when something else is done too.
    finished = done.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    yield from _raise_first_error((row for table in finished for row in table.to_pylist()), config)


def _raise_first_error(rows: Iterable[dict[str, Any]], config: WorkerConfig) -> Iterator[dict[str, Any]]:
    """What actors have done; the first error is raised once all of them have stopped."""
    failed: dict[str, Any] | None = None
    for row in rows:
        if row["error"] and failed is None:
            # Ray Data cannot be told to stop, so the actors are: those units that are left come back unanswered.
            failed = row
            config.folder.write_bytes(config.stop_file, b"")
        elif not row["error"]:
            yield row | {name: dict(row[name]) for name in ("spent", "runtime")}
    if failed is not None:
        config.folder.delete(config.stop_file)
        raise getattr(errors, failed["error"])(failed["message"])


GPU_BATCH_FACTOR = 8
"""Times as many batches of a unit on a GPU as on a CPU."""

ProgressNote = Callable[[Mapping[str, int], Mapping[str, float], float], str]
"""What to say beside the progress, of questions by category in the first store, cost, and seconds so far."""


def annotate_missing(
    label: str,
    tables: Mapping[str, pa.Table],
    asker: WorkerConfig,
    config: AnnotateConfig,
    note: ProgressNote,
    set_aside: Mapping[str, pa.Table],
) -> None:
    """Ask every question that no part file holds, but for those that are set aside.

    Args:
        label: what the progress is of.
        tables: the questions of each store.
        asker: what the actors must know.
        config: how the work is cut and spread.
        note: follows the figures of the progress.
        set_aside: questions of each store that are not asked.

    Raises:
        SlickError: what an actor could not do. What was written stays.
    """
    batches = {
        store: exclude_questions(cut_batches(table, config.batch_questions), set_aside[store])
        for store, table in tables.items()
    }
    missing = {store: missing_batches(asker.folder.child(store), found) for store, found in batches.items()}
    total, left = (sum(_num_questions(found) for found in some.values()) for some in (batches, missing))
    progress = ProgressReporter(label, total, "questions", on_update=set_job_message)
    if not left:
        return
    if left < total:
        progress.resume_at(total - left)
        print(f"{label}: going on after {progress.done:,} of {total:,} questions", flush=True)
    began = time.monotonic()
    so_far: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    runtimes: set[str] = set()

    def units_of(on_gpu: bool, num_actors: int, num_present: int) -> list[pa.Table]:
        most = config.batches_per_file * (GPU_BATCH_FACTOR if on_gpu else 1)
        return make_units(missing, most=most, num_actors=num_actors, num_turns=num_present)

    for row in run_worker_pool(
        units_of,
        asker,
        min_actors=config.min_actors,
        max_actors=config.max_actors,
        gpus_per_actor=config.gpus_per_actor,
        cpus_per_actor=config.cpus_per_actor,
    ):
        if (runtime := str(Runtime(**row["runtime"]))) not in runtimes:
            runtimes.add(runtime)
            print(f"{label}: {runtime}", flush=True)
        spent.update(row["spent"])
        if row["store"] == next(iter(tables)):
            so_far.update(row["categories"])
        progress.add(row["questions"], note(so_far, spent, time.monotonic() - began))


def _num_questions(batches: Sequence[QuestionBatch]) -> int:
    return sum(int(batch.questions.num_rows) for batch in batches)
