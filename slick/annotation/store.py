"""The store of generations: which questions are asked, in which batches, and which part files already hold them.

A batch is what the engine sees at once, so it decides floating-point details; batches are cut from the sorted list of
questions alone, whatever the number of actors or the size of files. A part file holds the answers to some batches and
is written whole by the actor that made them; a run that goes on asks only the batches that no part holds.
"""

import json
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

UNIT_SCHEMA = pa.schema(
    [
        ("store", pa.string()),
        ("first_batch", pa.int64()),
        ("relation", pa.string()),
        ("question_id", pa.list_(pa.string())),
        ("question", pa.list_(pa.string())),
        ("answers", pa.list_(pa.list_(pa.string()))),
    ]
)
"""One row a unit of work: whole batches of one relation, whose answers go into one part file of a store."""

COST_FIELDS = (
    "prompts",
    "generations",
    "prompt_tokens",
    "prefilled_tokens",
    "answer_tokens",
    "decoded_tokens",
    "seconds",
)
"""What each part file says of its cost, in the metadata of its schema; see `slick.inference.base.EngineStats`."""

_COST_KEY, _RUNTIME_KEY = b"slick.spent", b"slick.runtime"


@dataclass(frozen=True, slots=True)
class QuestionBatch:
    """Questions of one relation that the engine is given together."""

    index: int
    """Its place among all batches of the study."""
    questions: pa.Table


def select_questions(
    questions: pa.Table, *, dev: bool, exemplars: Mapping[str, Sequence[Sequence[str]]], limit: int | None
) -> pa.Table:
    """The questions to ask, sorted by relation and question_id.

    Args:
        questions: all of the study.
        dev: ask dev questions too, those left aside that serve as exemplars.
        exemplars: exemplar sets of each relation.
        limit: at most that many of each relation and split, chosen by a hash of their ids; None for all.

    Returns:
        In-distribution train and test questions, out-of-distribution test questions, and dev questions if wanted.

    Raises:
        DataError: there is none.
    """
    wanted = pc.or_(
        pc.equal(questions["split"], "test"),
        pc.and_(pc.equal(questions["split"], "train"), pc.equal(questions["domain"], "id")),
    )
    if dev:
        used = [question_id for sets in exemplars.values() for ids in sets for question_id in ids]
        is_free = pc.invert(pc.is_in(questions["question_id"], value_set=pa.array(used, pa.string())))
        wanted = pc.or_(wanted, pc.and_(pc.equal(questions["split"], "dev"), is_free))
    asked = questions.filter(wanted).sort_by([("relation", "ascending"), ("question_id", "ascending")])
    if limit is not None:
        asked = sample_by_hash(asked, limit, ("relation", "split"))
    if not asked.num_rows:
        raise DataError("the study has no train or test question to ask; see the counts in questions/manifest.json")
    return asked


def sample_by_hash(asked: pa.Table, limit: int, by: Sequence[str]) -> pa.Table:
    """At most that many questions of each group, chosen by a hash of their ids, in the order they had."""
    groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    columns = (asked[name].to_pylist() for name in ("question_id", *by))
    for row, (question_id, *group) in enumerate(zip(*columns, strict=True)):
        groups.setdefault(tuple(group), []).append((int(row_key(0, "limit", question_id)), row))
    kept = sorted(row for group in groups.values() for _, row in sorted(group)[:limit])
    return asked.take(kept)


def cut_batches(asked: pa.Table, batch_questions: int) -> list[QuestionBatch]:
    """Whole batches of each relation, the last one of a relation shorter; from the sorted questions alone."""
    batches: list[QuestionBatch] = []
    start = 0
    for run in pc.value_counts(asked["relation"]).to_pylist():
        end = start + run["counts"]
        for low in range(start, end, batch_questions):
            batches.append(QuestionBatch(len(batches), asked.slice(low, min(batch_questions, end - low))))
        start = end
    return batches


def exclude_questions(batches: Sequence[QuestionBatch], set_aside: pa.Table) -> list[QuestionBatch]:
    """The batches without the questions that are set aside; the others stay in the batches that they are in."""
    ids = pa.array(set_aside["question_id"].to_pylist(), pa.string())
    kept = []
    for batch in batches:
        left = batch.questions.filter(pc.invert(pc.is_in(batch.questions["question_id"], value_set=ids)))
        if left.num_rows:
            kept.append(QuestionBatch(batch.index, left))
    return kept


def missing_batches(folder: Folder, batches: Sequence[QuestionBatch]) -> list[QuestionBatch]:
    """The batches that no part file holds; part files that cannot be read are deleted, to be made again.

    Raises:
        StudyError: the files hold a piece of a batch, or a question twice: they come from other settings.
    """
    done: list[str] = []
    for name in folder.names(".parquet"):
        try:
            done += folder.read_table(name, ["question_id"])["question_id"].to_pylist()
        except StudyError:
            print(f"{folder}/{name} cannot be read; its questions are asked again", flush=True)
            folder.delete(name)
    held = set(done)
    whole = [batch for batch in batches if held.issuperset(batch.questions["question_id"].to_pylist())]
    num_whole = sum(batch.questions.num_rows for batch in whole)
    if num_whole != len(done):
        raise StudyError(
            f"{folder.uri} holds {len(done)} questions, of which {num_whole} make up whole batches of this run: "
            "some files are of other settings, or were copied; delete that folder to ask again"
        )
    kept = {batch.index for batch in whole}
    return [batch for batch in batches if batch.index not in kept]


def make_units(
    missing: Mapping[str, Sequence[QuestionBatch]], *, most: int, num_actors: int, num_turns: int
) -> list[pa.Table]:
    """Units of work, each a table of one row of `UNIT_SCHEMA`.

    `num_turns` relations take turns. Actors are handed units in turns as well, so each of them meets few relations, and
    the prefixes of a relation are computed by few of them.

    Args:
        missing: the batches of each store that are to be asked.
        most: batches of a unit at most.
        num_actors: that may come to share the units; see `unit_size`.
        num_turns: relations that take turns: the actors that are there. With more, an actor might meet relations
            again whose prefixes it no longer keeps.
    """
    left = sum(map(len, missing.values()))
    waiting = deque(
        (store, deque(run)) for store, batches in missing.items() for _, run in groupby(batches, key=_relation)
    )
    turns = deque(waiting.popleft() for _ in range(min(num_turns, len(waiting))))
    units: list[pa.Table] = []
    while turns:
        store, run = turns.popleft()
        group = [run.popleft() for _ in range(min(len(run), unit_size(left, most, num_actors)))]
        units.append(_make_unit(store, group))
        left -= len(group)
        if run:
            turns.append((store, run))
        elif waiting:
            turns.append(waiting.popleft())
    return units


def unit_size(left: int, most: int, num_actors: int) -> int:
    """Batches of the next unit, where so many are left: a quarter of each actor's share, within 1 and `most`.

    Large units cost less to hand out and to store; towards the end they shrink, so that no actor waits long for the
    last one (guided self-scheduling, Polychronopoulos and Kuck 1987).

    >>> [unit_size(left, 16, 8) for left in (3000, 320, 100, 5)]
    [16, 10, 3, 1]
    """
    return max(1, min(most, left // (4 * num_actors)))


def _relation(batch: QuestionBatch) -> str:
    return str(batch.questions["relation"][0])


def _make_unit(store: str, batches: list[QuestionBatch]) -> pa.Table:
    questions = pa.concat_tables(batch.questions for batch in batches)
    row = {name: questions[name].to_pylist() for name in ("question_id", "question", "answers")}
    row |= {"store": store, "first_batch": batches[0].index, "relation": _relation(batches[0])}
    return pa.Table.from_pylist([row], schema=UNIT_SCHEMA)


def write_part(
    folder: Folder, first_batch: int, rows: pa.Table, spent: Mapping[str, float], runtime: Mapping[str, str]
) -> None:
    """Store the answers to a unit, whole or not at all; writing it again changes nothing.

    Args:
        spent: what they cost, by the names of `COST_FIELDS`.
        runtime: device, dtype and attention kernel that made them.
    """
    name = f"part-{first_batch:06d}.parquet"
    metadata = {_COST_KEY: json.dumps(dict(spent)), _RUNTIME_KEY: json.dumps(dict(runtime))}
    folder.write_table(name, rows.replace_schema_metadata(metadata))


def read_generations(study: FolderLike, columns: list[str] | None = None) -> pa.Table:
    """All generations of a study, by relation and question_id; one row a question, see `GENERATION_SCHEMA`.

    For studies whose texts fit into memory; `read_parts` goes file by file.

    Raises:
        StudyError: nothing was generated yet.
    """
    study = as_folder(study)
    folder = study.child("annotate", "generations")
    table = pa.concat_tables(read_parts(folder, columns))
    keys = [(name, "ascending") for name in ("relation", "question_id") if name in table.column_names]
    return table.sort_by(keys) if keys else table


def read_parts(folder: Folder, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The part files of a store, one by one.

    Raises:
        StudyError: there is none.
    """
    names = folder.names(".parquet")
    if not names:
        raise StudyError(f"{folder.uri} holds no answers; run `slick annotate` with this --out first")
    for name in names:
        yield read_answer_part(folder, name, columns)


def total_cost(folder: Folder) -> tuple[dict[str, float], dict[str, str]]:
    """What all part files cost together, and what made them, also those of earlier, interrupted runs.

    Returns:
        The sums, by the names of `COST_FIELDS`; device, dtype and attention kernel, joined by
        `slick.precision.merge_runtimes`.
    """
    total = dict.fromkeys(COST_FIELDS, 0.0)
    runtimes = []
    for name in folder.names(".parquet"):
        spent, runtime = read_part_metadata(folder, name, [_COST_KEY, _RUNTIME_KEY])
        for key in COST_FIELDS:
            total[key] += spent.get(key, 0)
        runtimes.append(runtime)
    return total, merge_runtimes(runtimes)
