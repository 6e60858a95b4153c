"""Answers to all planned questions that no part file holds. No Ray, except through `slick.annotation.worker`."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from slick.annotation.plan import (
    Plan,
    make_units,
    missing_batches,
    parts_by_plan,
    place_plans,
    plan_folder,
    temporary_files,
    write_plan,
)
from slick.annotation.tasks import run_tasks
from slick.annotation.worker import GPU_BATCH_FACTOR, WorkerConfig, run_worker_pool
from slick.cluster import set_job_message
from slick.formatting import ProgressReporter
from slick.precision import Runtime
from slick.storage import Folder

if TYPE_CHECKING:
    from slick.annotation.config import AnnotateConfig

_LOG = logging.getLogger(__name__)

ProgressNote = Callable[[Mapping[str, int], Mapping[str, float], float], str]
"""Text to append to the progress line, from questions by category in the first store, cost and seconds so far."""


def annotate_tables(
    label: str,
    tables: Mapping[str, pa.Table],
    worker_config: WorkerConfig,
    config: "AnnotateConfig",
    note: ProgressNote,
    set_aside: Mapping[str, pa.Table],
    items: str = "questions",
) -> None:
    """Answer every question that no part file holds, except those that are set aside.

    Args:
        label: prefix of the progress line.
        tables: the questions of each store, with their prompts, sorted by prompt group.
        worker_config: configuration of the actors.
        config: sizes of batches, files and the pool.
        note: see `ProgressNote`.
        set_aside: questions of each store to skip.
        items: what a row is called in progress lines.

    Raises:
        SlickError: an actor failed. Written files are kept.
    """
    with temporary_files(worker_config.folder):
        plans = {
            store: [write_table_plan(worker_config.folder, store, table, config.batch_questions, set_aside[store])]
            for store, table in tables.items()
        }
        annotate_missing(label, plans, worker_config, config, note, items=items)


def write_table_plan(
    folder: Folder, store: str, questions: pa.Table, batch_questions: int, set_aside: pa.Table
) -> Plan:
    """The plan of a store that has one table of questions; see `write_plan`."""
    return write_plan(plan_folder(folder, store), "all.parquet", questions, batch_questions, set_aside)


def annotate_missing(
    label: str,
    plans: Mapping[str, Sequence[Plan]],
    worker_config: WorkerConfig,
    config: "AnnotateConfig",
    note: ProgressNote,
    *,
    items: str = "questions",
    parallel: bool = False,
) -> None:
    """Answer every planned question that no part file holds.

    Args:
        label: prefix of the progress line.
        plans: the plans of each store, the first of which determines the categories in progress lines.
        worker_config: configuration of the actors.
        config: sizes of files and the pool.
        note: see `ProgressNote`.
        items: what a row is called in progress lines.
        parallel: look for stored answers in Ray Data tasks.

    Raises:
        SlickError: an actor failed. Written files are kept.
    """
    missing = find_missing(worker_config.folder, plans, parallel=parallel)
    total, left = (sum(plan.num_questions for of_store in by.values() for plan in of_store) for by in (plans, missing))
    progress = ProgressReporter(label, total, items, on_update=set_job_message)
    if not left:
        return
    if left < total:
        progress.resume_at(total - left)
        _LOG.info("%s: resuming after %s of %s %s", label, f"{progress.done:,}", f"{total:,}", items)
    started_at = time.monotonic()
    categories: Counter[str] = Counter()
    cost: Counter[str] = Counter()
    runtimes: set[str] = set()

    def units(on_gpu: bool, max_actors: int, num_actors: int) -> Iterator[dict[str, Any]]:
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
        if row["store"] == next(iter(plans)):
            categories.update(row["categories"])
        progress.add(row["questions"], note(categories, cost, time.monotonic() - started_at))


def find_missing(
    folder: Folder, plans: Mapping[str, Sequence[Plan]], *, parallel: bool = False
) -> dict[str, list[Plan]]:
    """What is left to do of the plans of each store; see `missing_batches`."""
    missing = {}
    for store, of_store in plans.items():
        placed = place_plans(of_store)
        names = folder.child(store).names(".parquet")
        by_plan = parts_by_plan(placed, names) if placed else []
        started = [(plan, parts) for plan, parts in zip(placed, by_plan, strict=True) if parts]
        found = run_tasks(partial(_missing_batches, folder, store), started, parallel=parallel)
        by_file = {plan.file: plan for plan in found}
        missing[store] = [by_file.get(plan.file, plan) for plan in placed]
    return missing


def _missing_batches(folder: Folder, store: str, item: tuple[Plan, list[str]]) -> Plan:
    return missing_batches(folder, store, *item)
