"""Questions, plans and control questions of one relation at a time are those of the whole study."""

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from slick.annotation.controls import control_questions, draw_controls, find_names, invent_subjects
from slick.annotation.knowledge import SampleCounts, add_rare_knowledge, knowledge_table, label_questions
from slick.annotation.plan import temporary_files
from slick.annotation.uncertainty import EVIDENCE_SCHEMA
from slick.datasets import read_questions
from slick.datasets.by_relation import list_relations, read_relation
from slick.errors import StudyError
from slick.storage import Folder
from slick.study_files import QUESTION_SCHEMA
from tests import study_builder


def rows(relation: str, num: int = 6, split: str = "train") -> list[dict[str, object]]:
    return [
        {
            "question_id": f"{relation}-{split}-{num - i:03d}",
            "relation": relation,
            "domain": "id",
            "split": split,
            "subject": f"Ada {relation} {i}",
            "question": f"Where was Ada {relation} {i} born?",
            "answers": ["London"],
        }
        for i in range(num)
    ]


@pytest.fixture
def study(tmp_path: Path) -> Folder:
    """Two files of two relations each."""
    study = Folder(str(tmp_path))
    study_builder.write_questions(study, [*rows("P2"), *rows("P1"), *rows("P1", split="dev")], "q" * 16)
    both = pa.Table.from_pylist([*rows("P9"), *rows("P10")], QUESTION_SCHEMA)
    study.child("questions").write_table("part-more.parquet", both)
    return study


def test_relations_are_those_of_all_questions(study: Folder) -> None:
    relations = list_relations(study)
    assert [(stored.relation, stored.num_questions) for stored in relations] == [
        ("P1", 12),
        ("P10", 6),
        ("P2", 6),
        ("P9", 6),
    ]
    tables = [read_relation(study, stored, QUESTION_SCHEMA.names) for stored in relations]
    assert all(table["question_id"].to_pylist() == sorted(table["question_id"].to_pylist()) for table in tables)
    keys = [(name, "ascending") for name in ("relation", "question_id")]
    assert pa.concat_tables(tables).equals(read_questions(study).sort_by(keys))


def test_columns_are_selected_and_optional_ones_left_out(study: Folder) -> None:
    (stored, *_) = list_relations(study)
    assert read_relation(study, stored, ["question_id", "context"]).column_names == ["question_id"]


def test_a_file_that_lacks_a_column_of_others_is_refused(study: Folder) -> None:
    folder = study.child("questions")
    table = folder.read_table("part-more.parquet")
    folder.write_table("part-more.parquet", table.append_column("context", pa.nulls(table.num_rows, pa.string())))
    with pytest.raises(StudyError, match="lacks a column that other files of that folder have"):
        list_relations(study)


def test_files_of_one_relation_each_are_counted_by_their_statistics(study: Folder) -> None:
    table = pa.Table.from_pylist(rows("P31"), QUESTION_SCHEMA)
    study.child("questions").write_table_parts("part-P31.parquet", QUESTION_SCHEMA, [table, table.slice(2)])
    assert [stored.num_questions for stored in list_relations(study) if stored.relation == "P31"] == [10]


def test_only_some_files_may_have_popularity(study: Folder) -> None:
    folder = study.child("questions")
    table = folder.read_table("part-more.parquet")
    folder.write_table("part-more.parquet", table.append_column("popularity", pa.array([1] * table.num_rows)))
    assert len(list_relations(study)) == 4


def test_unfinished_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="run `slick questions`"):
        list_relations(Folder(str(tmp_path)))


def test_names_in_use_are_replaced_by_other_names() -> None:
    questions = pa.Table.from_pylist([*rows("P19"), *rows("P20")])
    drawn = draw_controls(questions, 2)
    first = invent_subjects(drawn, 0, lambda _: [])["subject"].to_pylist()
    asked: list[str] = []

    def find_used(names: Sequence[str]) -> Collection[str]:
        asked.extend(names)
        return {first[0], first[2]} & set(names)

    subjects = invent_subjects(drawn, 0, find_used)["subject"].to_pylist()
    assert len(set(subjects)) == 4
    assert not {first[0], first[2]} & set(subjects)
    assert set(subjects) <= set(asked)
    assert len(asked) == len(set(asked)), "no name is looked for twice"


def test_names_are_looked_for_in_all_questions() -> None:
    questions = pa.Table.from_pylist(rows("P19"))
    (name,) = control_questions(questions.slice(0, 1), 1, seed=0)["subject"].to_pylist()
    renamed = pa.Table.from_pylist([{**rows("P19")[0], "question": f"Is {name} Ada P19 0?"}, *rows("P19")[1:]])
    assert find_names(renamed["question"], [name, "Nobody"]) == [name]
    assert name not in control_questions(renamed, 9, seed=0)["subject"].to_pylist()


def test_temporary_files_are_deleted_also_after_an_error(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.child("temporary").write_bytes("left", b"")
    with temporary_files(folder) as temporary:
        assert temporary.names() == []
        temporary.write_bytes("file", b"")
    assert folder.folders() == []
    with pytest.raises(StudyError), temporary_files(folder) as temporary:
        temporary.read_bytes("missing")
    assert folder.folders() == []


def test_labels_of_parts_are_those_of_all_questions() -> None:
    hits = [0, 0, 0, 3, 1, 0, 7, 0]
    columns = {"greedy_hits": [0] * 8, "greedy_total": [2] * 8, "sampled_hits": hits, "sampled_total": [16] * 8}
    evidence = pa.table(
        {
            "question_id": [f"q{i}" for i in range(8)],
            **columns,
            **{name: [num / 16 for num in hits] for name in ("p_correct_sampled", "p_low", "p_high")},
            "chance_known": pa.nulls(8, pa.float64()),
        },
        schema=EVIDENCE_SCHEMA,
    )
    questions = pa.table(
        {"question_id": evidence["question_id"], **{name: ["x"] * 8 for name in ("relation", "domain", "split")}}
    )
    whole = knowledge_table(questions, evidence)
    assert whole["chance_known"].null_count == 3
    counts, tables = SampleCounts(), []
    for part in (slice(0, 3), slice(3, 8)):
        num = part.stop - part.start
        tables.append(label_questions(questions.slice(part.start, num), evidence.slice(part.start, num)))
        of_part = SampleCounts()
        of_part.add(tables[-1], is_judged=False)
        counts.merge(of_part)
    probability = counts.rare_knowledge_probability()
    assert probability is not None
    assert 0 < probability < 1
    assert pa.concat_tables([add_rare_knowledge(table, probability) for table in tables]).equals(whole)
