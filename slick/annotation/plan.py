"""Plans: which questions form a batch. They are files, so that no process holds the questions of all relations. No Ray.

The engine receives one batch at a time, so batches determine floating-point details. They depend on the sorted list of
questions alone, not on the number of actors or the size of files. A plan file has the batches of one relation, or of
one small table; an actor reads those of its unit. Plans are made anew by each run, and deleted at its end.
"""

import logging
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from slick.annotation.prompting import PROMPT_GROUP, SUFFIX
from slick.errors import StudyError
from slick.storage import Folder

_LOG = logging.getLogger(__name__)

TEMPORARY = "temporary"
"""Folder inside annotate/ of an unfinished run: plans, and parts of the labels."""
PLANS = "plans"

PLAN_SCHEMA = pa.schema(
    [
        ("batch", pa.int64()),
        ("question_id", pa.string()),
        (SUFFIX, pa.string()),
        ("answers", pa.list_(pa.string())),
    ]
)
"""One row per question, sorted by batch; batches count from 0 in each file."""

_ROWS_PER_GROUP, _MAX_GROUPS = 2048, 1000
"""A unit reads whole row groups, and the index of all row groups."""

UNIT_SCHEMA = pa.schema(
    [
        ("store", pa.string()),
        ("part", pa.int64()),
        ("plan", pa.string()),
        ("relation", pa.string()),
        (PROMPT_GROUP, pa.string()),
        ("batches", pa.list_(pa.int64())),
    ]
)
"""One row per unit of work: batches of one prompt group in a plan file of a store. Their answers form one part file,
named by `part`, the position of the first batch among all batches of the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """Successive batches of one prompt group in a plan file."""

    relation: str
    prompt_group: str
    batches: NDArray[np.int64]
    """Their indices in the file, ascending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The content of a plan file, or the part of it that is left to do, without the questions."""

    file: str
    runs: tuple[BatchRun, ...]
    num_batches: int
    """All batches of the file, also those of which every question is set aside; they count in the names of parts."""
    num_questions: int
    """Questions of the runs."""
    first: int = 0
    """Position of the file's first batch among all batches of the store."""


def plan_folder(folder: Folder, store: str) -> Folder:
    """The folder of a store's plans.

    Args:
        folder: the folder of the stores.
        store: its name.
    """
    return folder.child(TEMPORARY, PLANS, store)


@contextmanager
def temporary_files(folder: Folder) -> Iterator[Folder]:
    """The folder `temporary` inside `folder`, empty; deleted when the block ends."""
    temporary = folder.child(TEMPORARY)
    temporary.delete()
    try:
        yield temporary
    except BaseException:
        try:
            temporary.delete()
        except StudyError:
            _LOG.info("%s is left; the next run deletes it", temporary)
        raise
    temporary.delete()


def write_plan(folder: Folder, file: str, questions: pa.Table, batch_questions: int, set_aside: pa.Table) -> Plan:
    """Cut questions into batches of one prompt group each, the last of which may be shorter, and write them to a file.

    Args:
        folder: the plans of a store.
        file: name of the file.
        questions: with the columns of `PromptBuilder.add_prompts`, sorted by prompt group.
        batch_questions: questions per batch.
        set_aside: questions that are left out; the others stay in their batches.
    """
    batch, starts = cut_batches(questions[PROMPT_GROUP], batch_questions)
    is_kept = pc.invert(
        pc.is_in(questions["question_id"], value_set=pa.array(set_aside["question_id"].to_pylist(), pa.string()))
    )
    kept = np.asarray(is_kept.to_numpy(zero_copy_only=False), dtype=bool)
    table = pa.table([pa.array(batch), *(questions[name] for name in PLAN_SCHEMA.names[1:])], schema=PLAN_SCHEMA)
    table = table.filter(pa.array(kept))
    size = max(_ROWS_PER_GROUP, -(-table.num_rows // _MAX_GROUPS))
    parts = (table.slice(start, size) for start in range(0, table.num_rows, size))
    folder.write_table_parts(file, PLAN_SCHEMA, parts)
    runs = []
    for start, end in pairwise([*starts, len(batch)]):
        names = {name: questions[name][start].as_py() for name in ("relation", PROMPT_GROUP)}
        if (batches := np.unique(batch[start:end][kept[start:end]])).size:
            runs.append(BatchRun(batches=batches, **names))
    return Plan(
        file=file,
        runs=tuple(runs),
        num_batches=int(batch[-1]) + 1 if len(batch) else 0,
        num_questions=table.num_rows,
    )


def cut_batches(groups: pa.ChunkedArray, batch_questions: int) -> tuple[NDArray[np.int64], list[int]]:
    """The batch of each question, from 0, and the row where each prompt group begins.

    Args:
        groups: the prompt group of each question; those of one group follow one another.
        batch_questions: questions per batch.

    >>> batches, starts = cut_batches(pa.chunked_array([["a", "a", "a", "b"]]), 2)
    >>> batches.tolist(), starts
    ([0, 0, 1, 2], [0, 3])
    """
    counts = [entry["counts"] for entry in pc.value_counts(groups).to_pylist()]
    starts = np.cumsum([0, *counts])
    batches, first = [], 0
    for count in counts:
        of_group = first + np.arange(count, dtype=np.int64) // batch_questions
        batches.append(of_group)
        first = int(of_group[-1]) + 1
    return np.concatenate([np.empty(0, np.int64), *batches]), starts[:-1].tolist()


def place_plans(plans: Sequence[Plan]) -> list[Plan]:
    """The plans of a store, in this order, with their positions among all batches of the store."""
    placed, first = [], 0
    for plan in plans:
        placed.append(replace(plan, first=first))
        first += plan.num_batches
    return placed


def parts_by_plan(plans: Sequence[Plan], names: Sequence[str]) -> list[list[str]]:
    """The part files of each plan, by their names; the last plan gets those that no plan can have.

    Args:
        plans: placed plans of a store, at least one.
        names: the part files of the store.
    """
    firsts = [plan.first for plan in plans]
    parts: list[list[str]] = [[] for _ in plans]
    for name in names:
        match = re.fullmatch(r"part-(\d+)\.parquet", name)
        place = int(np.searchsorted(firsts, int(match[1]), side="right")) - 1 if match else len(plans) - 1
        parts[place].append(name)
    return parts


def missing_batches(folder: Folder, store: str, plan: Plan, parts: Sequence[str]) -> Plan:
    """The batches of a plan that no part file holds. Unreadable part files are deleted, so their batches are missing.

    Args:
        folder: the folder of the stores.
        store: its name.
        plan: the plan.
        parts: its part files.

    Raises:
        StudyError: the files hold part of a batch, or a question twice, so they come from other settings.
    """
    stored = []
    answers = folder.child(store)
    for name in parts:
        try:
            stored.append(answers.read_table(name, ["question_id"])["question_id"].cast(pa.string()))
        except StudyError:
            _LOG.info("%s/%s cannot be read; its questions are annotated again", answers, name)
            answers.delete(name)
    if not stored:
        return plan
    stored_ids = pa.chunked_array([chunk for column in stored for chunk in column.chunks], pa.string())
    planned = plan_folder(folder, store).read_table(plan.file, ["batch", "question_id"])
    is_stored = pc.is_in(planned["question_id"], value_set=stored_ids.combine_chunks())
    batch = planned["batch"].to_numpy()
    num_in_batch = np.bincount(batch, minlength=plan.num_batches)
    num_stored = np.bincount(batch[is_stored.to_numpy(zero_copy_only=False)], minlength=plan.num_batches)
    is_complete = num_stored == num_in_batch
    num_complete = int(num_in_batch[is_complete].sum())
    if num_complete != len(stored_ids):
        raise StudyError(
            f"{answers.uri} holds {len(stored_ids):,} questions in {parts[0]} and {len(parts) - 1:,} further files, of "
            f"which {num_complete:,} form complete batches of this run: some files have other settings, or are copies; "
            "delete that folder to annotate again"
        )
    runs = (replace(run, batches=run.batches[~is_complete[run.batches]]) for run in plan.runs)
    return replace(
        plan, runs=tuple(run for run in runs if run.batches.size), num_questions=plan.num_questions - num_complete
    )


def make_units(
    missing: Mapping[str, Sequence[Plan]], *, max_batches: int, num_actors: int, num_turns: int
) -> Iterator[dict[str, Any]]:
    """Units of work, rows of `UNIT_SCHEMA`.

    Units of `num_turns` prompt groups alternate. Actors receive units in turn as well, so each actor gets few groups,
    and few actors compute the prefixes of a group.

    Args:
        missing: the batches of each store to annotate.
        max_batches: maximum number of batches per unit.
        num_actors: maximum number of actors that share the units; see `unit_size`.
        num_turns: groups that alternate: the present number of actors. With more, an actor might evict the prefixes of
            a group before it gets that group again.
    """
    num_left = sum(run.batches.size for plans in missing.values() for plan in plans for run in plan.runs)
    waiting = ((store, plan, run) for store, plans in missing.items() for plan in plans for run in plan.runs)
    turns = deque(group for _, group in zip(range(num_turns), waiting, strict=False))
    while turns:
        store, plan, run = turns.popleft()
        size = unit_size(num_left, max_batches, num_actors)
        batches, left = run.batches[:size], run.batches[size:]
        yield {
            "store": store,
            "part": plan.first + int(batches[0]),
            "plan": plan.file,
            "relation": run.relation,
            PROMPT_GROUP: run.prompt_group,
            "batches": batches.tolist(),
        }
        num_left -= batches.size
        if left.size:
            turns.append((store, plan, replace(run, batches=left)))
        elif (following := next(waiting, None)) is not None:
            turns.append(following)


def unit_size(num_left: int, max_batches: int, num_actors: int) -> int:
    """Batches in the next unit if `num_left` remain: a quarter of an actor's share, from 1 to `max_batches`.

    Large units have less overhead; towards the end they shrink, so that all actors finish at about the same time
    (guided self-scheduling, Polychronopoulos and Kuck 1987).

    >>> [unit_size(num_left, 16, 8) for num_left in (3000, 320, 100, 5)]
    [16, 10, 3, 1]
    """
    return max(1, min(max_batches, num_left // (4 * num_actors)))


def read_unit(folder: Folder, unit: Mapping[str, Any]) -> pa.Table:
    """The questions of a unit, as `PLAN_SCHEMA`.

    Args:
        folder: the folder of the stores.
        unit: a row of `UNIT_SCHEMA`.

    Raises:
        StudyError: the plan file lacks one of its batches.
    """
    plans, batches = plan_folder(folder, unit["store"]), np.array(unit["batches"], np.int64)

    def read(file: pq.ParquetFile) -> pa.Table:
        column = file.schema_arrow.get_field_index("batch")
        groups = []
        for group in range(file.metadata.num_row_groups):
            bounds = file.metadata.row_group(group).column(column).statistics
            if ((bounds.min <= batches) & (batches <= bounds.max)).any():
                groups.append(group)
        return file.read_row_groups(groups, use_threads=False)

    table = plans.read_parquet(unit["plan"], read)
    table = table.filter(pc.is_in(table["batch"], value_set=pa.array(batches)))
    if lacking := set(unit["batches"]) - set(table["batch"].unique().to_pylist()):
        raise StudyError(f"{plans}/{unit['plan']} lacks batches {sorted(lacking)[:5]}; run the same command again")
    return table
