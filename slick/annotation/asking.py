"""Which batches of questions are still to be asked, handed to the pool of actors, with progress on the terminal."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from slick.annotation.asker import WorkerConfig
from slick.annotation.config import AnnotateConfig
from slick.annotation.generations import QuestionBatch, cut_batches, exclude_questions, make_units, missing_batches
from slick.annotation.pool import run_worker_pool
from slick.cluster import set_job_message
from slick.precision import Runtime
from slick.progress import ProgressReporter

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
