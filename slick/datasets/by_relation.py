"""The stored questions of a study, one relation at a time, for steps that must not hold all of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slick.errors import StudyError
from slick.storage import Folder
from slick.stored_files import check_same_columns, read_validated_table
from slick.study import require_manifest
from slick.study_files import QUESTION_SCHEMA, QUESTIONS_SPEC

QUESTIONS = "questions"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRelation:
    """A relation, and the files that hold its questions."""

    relation: str
    files: tuple[str, ...]
    num_questions: int
    """In all files and splits."""


def list_relations(study: Folder) -> list[StoredRelation]:
    """The relations of a study's questions, sorted by name. Reads statistics where the files have them.

    Raises:
        StudyError: the questions step is not finished, or a file does not match.
    """
    folder = study.child(QUESTIONS)
    require_manifest(folder, QUESTIONS)
    files: dict[str, list[str]] = {}
    num_questions: Counter[str] = Counter()
    columns: dict[str, set[str]] = {}
    for name in folder.names(".parquet"):
        if not name.startswith("part-"):
            continue
        counts, columns[name] = _inspect(folder, name)
        num_questions.update(counts)
        for relation in counts:
            files.setdefault(relation, []).append(name)
    if not columns:
        raise StudyError(f"{folder} holds no part-*.parquet; run `slick questions` with this --out first")
    check_same_columns(folder, columns, QUESTIONS_SPEC)
    return [
        StoredRelation(relation=name, files=tuple(files[name]), num_questions=num_questions[name])
        for name in sorted(files)
    ]


def read_relation(study: Folder, stored: StoredRelation, columns: Sequence[str]) -> pa.Table:
    """The questions of one relation, sorted by question_id.

    Args:
        study: its folder.
        stored: the relation.
        columns: names of `slick.study_files.QUESTION_SCHEMA` or of optional columns, which are left out if the files
            have none.

    Raises:
        StudyError: a file does not match.
    """
    folder = study.child(QUESTIONS)
    names = [*dict.fromkeys([*columns, "relation", "domain", "split", "question_id"])]
    table = pa.concat_tables(read_validated_table(folder, name, QUESTIONS_SPEC, names) for name in stored.files)
    table = table.filter(pc.equal(table["relation"], stored.relation))
    table = table.sort_by([(name, "ascending") for name in ("question_id", "domain", "split")])
    return table.select([name for name in columns if name in table.column_names])


def _inspect(folder: Folder, name: str) -> tuple[Counter[str], set[str]]:
    """Relation -> number of questions of a file, and those of its columns that every step reads if there are any."""
    names, counts = folder.read_parquet(
        name, lambda file: (file.schema_arrow.names, _count_by_statistics(file.metadata))
    )
    if counts is None:
        table = read_validated_table(folder, name, QUESTIONS_SPEC, ["relation"])
        counts = Counter({row["values"]: row["counts"] for row in pc.value_counts(table["relation"]).to_pylist()})
    return counts, set(names) & {*QUESTION_SCHEMA.names, *QUESTIONS_SPEC.optional}


def _count_by_statistics(metadata: pq.FileMetaData) -> Counter[str] | None:
    """Relation -> number of questions of a file whose row groups each have one; None if statistics do not say so."""
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if names.count("relation") != 1 or not metadata.num_row_groups:
        return None
    counts: Counter[str] = Counter()
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(names.index("relation")).statistics
        is_known = statistics is not None and statistics.has_min_max and statistics.null_count == 0
        if not is_known or not isinstance(statistics.min, str) or statistics.min != statistics.max:
            return None
        counts[statistics.min] += metadata.row_group(group).num_rows
    return counts
