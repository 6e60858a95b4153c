"""Answer stores: which questions to annotate, in which batches, and which part files hold their answers.

The engine receives one batch at a time, so batches determine floating-point details. They depend on the sorted list of
questions alone, not on the number of actors or the size of files. An actor writes the answers to some batches as one
part file, atomically. A resumed run annotates the batches that no part file holds.
"""

import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from slick.errors import DataError, StudyError
from slick.precision import merge_runtimes
from slick.rng import row_key
from slick.storage import Folder, FolderLike, as_folder
from slick.study_files import read_answer_part, read_part_metadata

_LOG = logging.getLogger(__name__)

UNIT_SCHEMA = pa.schema(
    [
        ("store", pa.string()),
        ("first_batch", pa.int64()),
        ("relation", pa.string()),
        ("prompt_group", pa.string()),
        ("question_id", pa.list_(pa.string())),
        ("suffix", pa.list_(pa.string())),
        ("answers", pa.list_(pa.list_(pa.string()))),
    ]
)
"""One row per unit of work: whole batches of one prompt group, whose answers form one part file of a store."""

COST_FIELDS = (
    "prompts",
    "generations",
    "prompt_tokens",
    "prefilled_tokens",
    "answer_tokens",
    "decoded_tokens",
    "seconds",
)
"""Cost of a part file, in the metadata of its schema; see `slick.inference.base.EngineStats`."""

_COST_KEY, _RUNTIME_KEY = b"slick.spent", b"slick.runtime"


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """Questions of one prompt group that the engine receives together."""

    index: int
    """Position among all batches of the store."""
    questions: pa.Table


def select_questions(
    questions: pa.Table,
    *,
    dev: bool,
    exemplars: Mapping[str, Sequence[Sequence[str]]],
    limit: int | None,
    with_exemplars: bool = False,
) -> pa.Table:
    """The questions to annotate, sorted by relation and question_id.

    Args:
        questions: all questions of the study.
        dev: annotate dev questions too, except those that serve as exemplars.
        exemplars: exemplar sets of each relation.
        limit: at most this many of each relation and split, chosen by a hash of their ids; None for all.
        with_exemplars: annotate all dev questions, also those that serve as exemplars.

    Returns:
        In-distribution train and test questions, out-of-distribution test questions, and dev questions if `dev`.

    Raises:
        DataError: there is none.
    """
    is_selected = pc.or_(
        pc.equal(questions["split"], "test"),
        pc.and_(pc.equal(questions["split"], "train"), pc.equal(questions["domain"], "id")),
    )
    if with_exemplars:
        is_selected = pc.or_(is_selected, pc.equal(questions["split"], "dev"))
    elif dev:
        used = [question_id for sets in exemplars.values() for ids in sets for question_id in ids]
        is_free = pc.invert(pc.is_in(questions["question_id"], value_set=pa.array(used, pa.string())))
        is_selected = pc.or_(is_selected, pc.and_(pc.equal(questions["split"], "dev"), is_free))
    selected = questions.filter(is_selected).sort_by([("relation", "ascending"), ("question_id", "ascending")])
    if limit is not None:
        selected = sample_by_hash(selected, limit, ("relation", "split"))
    if not selected.num_rows:
        raise DataError(
            "the study has no train or test question to annotate; see the counts in questions/manifest.json"
        )
    return selected


def sample_by_hash(questions: pa.Table, limit: int, by: Sequence[str]) -> pa.Table:
    """At most `limit` questions of each group, chosen by a hash of their ids, in their original order."""
    groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    columns = (questions[name].to_pylist() for name in ("question_id", *by))
    for row, (question_id, *group) in enumerate(zip(*columns, strict=True)):
        groups.setdefault(tuple(group), []).append((int(row_key(0, "limit", question_id)), row))
    kept = sorted(row for group in groups.values() for _, row in sorted(group)[:limit])
    return questions.take(kept)


def cut_batches(questions: pa.Table, batch_questions: int) -> list[QuestionBatch]:
    """Split questions, sorted by prompt group, into batches of one group each; its last batch may be shorter."""
    batches: list[QuestionBatch] = []
    start = 0
    for run in pc.value_counts(questions["prompt_group"]).to_pylist():
        end = start + run["counts"]
        for low in range(start, end, batch_questions):
            batches.append(QuestionBatch(len(batches), questions.slice(low, min(batch_questions, end - low))))
        start = end
    return batches


def exclude_questions(batches: Sequence[QuestionBatch], set_aside: pa.Table) -> list[QuestionBatch]:
    """The batches without the questions that are set aside; other questions stay in their batches."""
    ids = pa.array(set_aside["question_id"].to_pylist(), pa.string())
    kept = []
    for batch in batches:
        questions = batch.questions.filter(pc.invert(pc.is_in(batch.questions["question_id"], value_set=ids)))
        if questions.num_rows:
            kept.append(QuestionBatch(batch.index, questions))
    return kept


def missing_batches(folder: Folder, batches: Sequence[QuestionBatch]) -> list[QuestionBatch]:
    """The batches that no part file holds; unreadable part files are deleted, so their batches are missing too.

    Raises:
        StudyError: the files hold part of a batch, or a question twice, so they come from other settings.
    """
    stored: list[str] = []
    for name in folder.names(".parquet"):
        try:
            stored += folder.read_table(name, ["question_id"])["question_id"].to_pylist()
        except StudyError:
            _LOG.info("%s/%s cannot be read; its questions are annotated again", folder, name)
            folder.delete(name)
    stored_ids = set(stored)
    complete = [batch for batch in batches if stored_ids.issuperset(batch.questions["question_id"].to_pylist())]
    num_complete = sum(batch.questions.num_rows for batch in complete)
    if num_complete != len(stored):
        raise StudyError(
            f"{folder.uri} holds {len(stored)} questions, of which {num_complete} form complete batches of this run: "
            "some files have other settings, or are copies; delete that folder to annotate again"
        )
    complete_indices = {batch.index for batch in complete}
    return [batch for batch in batches if batch.index not in complete_indices]


def make_units(
    missing: Mapping[str, Sequence[QuestionBatch]], *, max_batches: int, num_actors: int, num_turns: int
) -> list[pa.Table]:
    """Units of work, each a table of one row of `UNIT_SCHEMA`.

    Units of `num_turns` prompt groups alternate. Actors receive units in turn as well, so each actor gets few groups,
    and few actors compute the prefixes of a group.

    Args:
        missing: the batches of each store to annotate.
        max_batches: maximum number of batches per unit.
        num_actors: maximum number of actors that share the units; see `unit_size`.
        num_turns: groups that alternate: the present number of actors. With more, an actor might evict the prefixes of
            a group before it gets that group again.
    """
    num_left = sum(map(len, missing.values()))
    waiting = deque(
        (store, deque(run)) for store, batches in missing.items() for _, run in groupby(batches, key=_prompt_group)
    )
    turns = deque(waiting.popleft() for _ in range(min(num_turns, len(waiting))))
    units: list[pa.Table] = []
    while turns:
        store, run = turns.popleft()
        group = [run.popleft() for _ in range(min(len(run), unit_size(num_left, max_batches, num_actors)))]
        units.append(_make_unit(store, group))
        num_left -= len(group)
        if run:
            turns.append((store, run))
        elif waiting:
            turns.append(waiting.popleft())
    return units


def unit_size(num_left: int, max_batches: int, num_actors: int) -> int:
    """Batches in the next unit if `num_left` remain: a quarter of an actor's share, from 1 to `max_batches`.

    Large units have less overhead; towards the end they shrink, so that all actors finish at about the same time
    (guided self-scheduling, Polychronopoulos and Kuck 1987).

    >>> [unit_size(num_left, 16, 8) for num_left in (3000, 320, 100, 5)]
    [16, 10, 3, 1]
    """
    return max(1, min(max_batches, num_left // (4 * num_actors)))


def _prompt_group(batch: QuestionBatch) -> str:
    return str(batch.questions["prompt_group"][0])


def _make_unit(store: str, batches: list[QuestionBatch]) -> pa.Table:
    questions = pa.concat_tables(batch.questions for batch in batches)
    row = {name: questions[name].to_pylist() for name in ("question_id", "suffix", "answers")}
    row |= {name: questions[name][0].as_py() for name in ("relation", "prompt_group")}
    row |= {"store": store, "first_batch": batches[0].index}
    return pa.Table.from_pylist([row], schema=UNIT_SCHEMA)


def write_part(
    folder: Folder, first_batch: int, rows: pa.Table, cost: Mapping[str, float], runtime: Mapping[str, str]
) -> None:
    """Write the answers to a unit atomically; writing them again has no effect.

    Args:
        folder: the store.
        first_batch: index of the unit's first batch, which names the file.
        rows: the answers.
        cost: their cost, by the names of `COST_FIELDS`.
        runtime: device, dtype and attention kernel of the engine.
    """
    name = f"part-{first_batch:06d}.parquet"
    metadata = {_COST_KEY: json.dumps(dict(cost)), _RUNTIME_KEY: json.dumps(dict(runtime))}
    folder.write_table(name, rows.replace_schema_metadata(metadata))


def read_generations(study: FolderLike, columns: list[str] | None = None) -> pa.Table:
    """All generations of a study, sorted by relation and question_id; one row per question, see `GENERATION_SCHEMA`.

    For studies whose texts fit into memory; `read_parts` reads file by file.

    Raises:
        StudyError: there are none yet.
    """
    study = as_folder(study)
    folder = study.child("annotate", "generations")
    table = pa.concat_tables(read_parts(folder, columns))
    keys = [(name, "ascending") for name in ("relation", "question_id") if name in table.column_names]
    return table.sort_by(keys) if keys else table


def read_parts(folder: Folder, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The part files of a store, one at a time.

    Raises:
        StudyError: there is none.
    """
    names = folder.names(".parquet")
    if not names:
        raise StudyError(f"{folder.uri} holds no answers; run `slick annotate` with this --out first")
    for name in names:
        yield read_answer_part(folder, name, columns)


def part_cost(folder: Folder, name: str) -> dict[str, float]:
    """The cost of one part file, by the names of `COST_FIELDS`; costs that it lacks are 0."""
    (cost,) = read_part_metadata(folder, name, [_COST_KEY])
    return {key: float(cost.get(key, 0)) for key in COST_FIELDS}


def total_cost(folder: Folder) -> tuple[dict[str, float], dict[str, str]]:
    """Total cost of all part files, including those of interrupted runs, and the runtime of their engines.

    Returns:
        Sums by the names of `COST_FIELDS`; device, dtype and attention kernel, see `slick.precision.merge_runtimes`.
    """
    total = dict.fromkeys(COST_FIELDS, 0.0)
    runtimes = []
    for name in folder.names(".parquet"):
        cost, runtime = read_part_metadata(folder, name, [_COST_KEY, _RUNTIME_KEY])
        for key in COST_FIELDS:
            total[key] += cost.get(key, 0)
        runtimes.append(runtime)
    return total, merge_runtimes(runtimes)
