"""Answer stores: which questions to annotate, and the part files that hold their answers.

An actor writes the answers to some batches as one part file, atomically. A resumed run annotates the batches that no
part file holds.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from slick.errors import DataError, StudyError
from slick.precision import merge_runtimes
from slick.rng import row_key
from slick.storage import Folder, FolderLike, as_folder
from slick.study_files import read_answer_part, read_part_metadata

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
        questions: the questions of all relations, or of some.
        dev: annotate dev questions too, except those that serve as exemplars.
        exemplars: exemplar sets of each relation.
        limit: at most this many of each relation and split, chosen by a hash of their ids; None for all.
        with_exemplars: annotate all dev questions, also those that serve as exemplars.

    Returns:
        In-distribution train and test questions, out-of-distribution test questions, and dev questions if `dev`.
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
    return selected if limit is None else sample_by_hash(selected, limit, ("relation", "split"))


def check_selected(num_selected: int) -> None:
    """Refuse a study without a question to annotate.

    Raises:
        DataError: there is none.
    """
    if not num_selected:
        raise DataError(
            "the study has no train or test question to annotate; see the counts in questions/manifest.json"
        )


def sample_by_hash(questions: pa.Table, limit: int, by: Sequence[str]) -> pa.Table:
    """At most `limit` questions of each group, chosen by a hash of their ids, in their original order."""
    groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    columns = (questions[name].to_pylist() for name in ("question_id", *by))
    for row, (question_id, *group) in enumerate(zip(*columns, strict=True)):
        groups.setdefault(tuple(group), []).append((int(row_key(0, "limit", question_id)), row))
    kept = sorted(row for group in groups.values() for _, row in sorted(group)[:limit])
    return questions.take(kept)


def write_part(
    folder: Folder, part: int, rows: pa.Table, cost: Mapping[str, float], runtime: Mapping[str, str]
) -> None:
    """Write the answers to a unit atomically; writing them again has no effect.

    Args:
        folder: the store.
        part: number in the file's name.
        rows: the answers.
        cost: their cost, by the names of `COST_FIELDS`.
        runtime: device, dtype and attention kernel of the engine.
    """
    name = f"part-{part:06d}.parquet"
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


def part_cost_and_runtime(folder: Folder, name: str) -> tuple[dict[str, float], dict[str, str]]:
    """The cost of one part file, see `part_cost`, and the device, dtype and attention kernel of its engine."""
    cost, runtime = read_part_metadata(folder, name, [_COST_KEY, _RUNTIME_KEY])
    return {key: float(cost.get(key, 0)) for key in COST_FIELDS}, runtime


def total_cost(folder: Folder) -> tuple[dict[str, float], dict[str, str]]:
    """Total cost of all part files, including those of interrupted runs, and the runtime of their engines.

    Returns:
        Sums by the names of `COST_FIELDS`; device, dtype and attention kernel, see `slick.precision.merge_runtimes`.
    """
    total = dict.fromkeys(COST_FIELDS, 0.0)
    runtimes = []
    for name in folder.names(".parquet"):
        cost, runtime = part_cost_and_runtime(folder, name)
        for key in COST_FIELDS:
            total[key] += cost[key]
        runtimes.append(runtime)
    return total, merge_runtimes(runtimes)
