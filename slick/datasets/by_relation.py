"""The stored questions of a study, one relation at a time, for steps that must not hold all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slick.errors import StudyError
from slick.storage import Folder
from slick.stored_files import check_same_columns, read_validated_table
from slick.study import require_manifest
from slick.study_files import QUESTIONS_SPEC

QUESTIONS = "questions"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRelation:
    """A relation, and the files that hold its questions."""

    relation: str
    files: tuple[str, ...]
    num_questions: int
    """Rows of these files, which may include other relations."""


def list_relations(study: Folder) -> list[StoredRelation]:
    """The relations of a study's questions, sorted by name. Reads statistics where the files have them.

    Raises:
        StudyError: the questions step is not finished, or a file does not match.
    """
    folder = study.child(QUESTIONS)
    require_manifest(folder, QUESTIONS)
    files: dict[str, list[str]] = {}
    num_questions: dict[str, int] = {}
    columns: dict[str, set[str]] = {}
    for name in folder.names(".parquet"):
        if not name.startswith("part-"):
            continue
        relations, columns[name], num = _inspect(folder, name)
        for relation in relations:
            files.setdefault(relation, []).append(name)
            num_questions[relation] = num_questions.get(relation, 0) + num
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


def _inspect(folder: Folder, name: str) -> tuple[list[str], set[str], int]:
    """The relations, columns and number of rows of a file."""
    names, relations, num_rows = folder.read_parquet(
        name, lambda file: (file.schema_arrow.names, _relations_by_statistics(file.metadata), file.metadata.num_rows)
    )
    if relations is None:
        relations = read_validated_table(folder, name, QUESTIONS_SPEC, ["relation"])["relation"].unique().to_pylist()
    return relations, set(names) & set(QUESTIONS_SPEC.schema.names), num_rows


def _relations_by_statistics(metadata: pq.FileMetaData) -> list[str] | None:
    """The relations of a file whose row groups each have one; None if the statistics do not say so."""
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if names.count("relation") != 1 or not metadata.num_row_groups:
        return None
    relations: set[str] = set()
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(names.index("relation")).statistics
        is_known = statistics is not None and statistics.has_min_max and statistics.null_count == 0
        if not is_known or not isinstance(statistics.min, str) or statistics.min != statistics.max:
            return None
        relations.add(statistics.min)
    return sorted(relations)
