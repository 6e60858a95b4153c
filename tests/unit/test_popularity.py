"""Popularity of subjects: read from a source, kept with the questions, and held against what is known and lost."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slick.errors import DataError
from slick.questions import QuestionsConfig, prepare_questions, read_questions
from slick.questions.popularity import row_popularity
from slick.questions.prepare import POPULARITY, QUESTION_SCHEMA
from slick.questions.relations import load_relations
from slick.storage import Folder
from slick.study import read_manifest
from slick.world import smoke_world
from slick.world.build import write_dataset
from slick.world.corpus import edition
from slick.world.facts import invented_rows, plant

ROWS = [
    {"relation": "P19", "split": split, "question": f"Where was {split} {i} born?", "answers": [f"{split}ville {i}"]}
    for split in ("train", "dev", "test")
    for i in range(3)
]


def with_popularity(values: list[object], column: str = "popularity") -> list[dict]:
    return [{**row, column: value} for row, value in zip(ROWS, values, strict=True)]


def write(path: Path, rows: list[dict]) -> Path:
    """By the name's suffix: JSONL, CSV or Parquet."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        cells = [[*(row[k] for k in ("relation", "split", "question")), row["answers"][0]] for row in rows]
        extra = [name for name in rows[0] if name not in ROWS[0]]
        lines = [",".join(["relation", "split", "question", "answer", *extra])]
        for row, line in zip(rows, cells, strict=True):
            lines.append(",".join([*line, *("" if row[name] is None else str(row[name]) for name in extra)]))
        path.write_text("\n".join(lines))
    return path


def prepared(tmp_path: Path, source: Path) -> Folder:
    study = Folder(str(tmp_path / f"study-{source.name}"))
    prepare_questions(study, QuestionsConfig(source=str(source), filter="none"))
    return study


def stored(study: Folder) -> dict[str, float | None]:
    table = read_questions(study, columns=["question", "popularity"])
    return dict(zip(table["question"].to_pylist(), table["popularity"].to_pylist(), strict=True))


# Reading.


@pytest.mark.parametrize("column", ["popularity", "s_pop"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_popularity_is_read_from_every_kind_of_table(tmp_path: Path, suffix: str, column: str) -> None:
    values: list[object] = [0, 1, 2.5, None, 4, 1520, 6, 7, None]
    study = prepared(tmp_path, write(tmp_path / f"set.{suffix}", with_popularity(values, column)))
    assert stored(study) == {row["question"]: value for row, value in zip(ROWS, values, strict=True)}
    assert study.child("questions").read_table("part-P19.parquet").schema == QUESTION_SCHEMA.append(POPULARITY)
    assert read_manifest(study.child("questions")).counts["with_popularity"] == 7


def test_popularity_is_read_from_the_layout_of_entity_questions(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / "eq" / split).mkdir(parents=True)
        rows = [{"question": r["question"], "answers": r["answers"], "popularity": 7} for r in ROWS
                if r["split"] == split]  # fmt: skip
        (tmp_path / "eq" / split / f"P19.{split}.json").write_text(json.dumps(rows[:2] + [rows[2] | {"popularity": 0}]))
    assert sorted(stored(prepared(tmp_path, tmp_path / "eq")).values()) == [0.0] * 3 + [7.0] * 6


def test_without_popularity_the_files_are_those_of_before(tmp_path: Path) -> None:
    """Neither schema nor ids nor order change, and a column of nothing is no column."""
    plain = prepared(tmp_path, write(tmp_path / "plain.jsonl", ROWS)).child("questions")
    empty = prepared(tmp_path, write(tmp_path / "empty.jsonl", with_popularity([None] * 9))).child("questions")
    assert plain.read_table("part-P19.parquet").schema == QUESTION_SCHEMA
    assert plain.read_bytes("part-P19.parquet") == empty.read_bytes("part-P19.parquet")
    full = prepared(tmp_path, write(tmp_path / "full.jsonl", with_popularity(list(range(9))))).child("questions")
    assert full.read_table("part-P19.parquet").drop(["popularity"]).equals(plain.read_table("part-P19.parquet"))


@pytest.mark.parametrize("bad", [-1, "many", "1,520", "nan", "inf", "1_000", True, [3], -0.5, 10**400, "٣"])
def test_what_is_no_popularity_is_refused_with_its_row(tmp_path: Path, bad: object) -> None:
    values: list[object] = [5] * 9
    values[4] = bad
    source = write(tmp_path / "set.jsonl", with_popularity(values))
    with pytest.raises(DataError, match=r"set\.jsonl, line 5: popularity is .*, wanted a finite number of 0 or more"):
        prepared(tmp_path, source)


def test_nan_in_parquet_is_not_taken_for_unknown(tmp_path: Path) -> None:
    source = write(tmp_path / "set.parquet", with_popularity([1.0] * 8 + [float("nan")]))
    with pytest.raises(DataError, match=r"set\.parquet, row 9: popularity is nan"):
        prepared(tmp_path, source)


def test_the_column_of_ones_own_goes_before_popqas() -> None:
    assert row_popularity({"s_pop": 3, "popularity": 4}) == 4.0
    assert row_popularity({"s_pop": -3, "popularity": ""}) is None


# Worlds.


def test_a_worlds_popularity_is_the_number_of_documents_that_mention_the_subject(tmp_path: Path) -> None:
    config = replace(smoke_world(), seed=3)
    facts = plant(invented_rows(config), load_relations(), config)
    documents = edition(facts, config, 0)
    for fact in facts:
        assert sum(fact.question in document.split("\n") or f"Q: {fact.question}" in document.split("\n")
                   for document in documents) == fact.popularity  # fmt: skip
    assert {fact.popularity for fact in facts if fact.strength == "never"} == {0}
    write_dataset(tmp_path, facts, load_relations())
    rows = [row for path in sorted((tmp_path / "dataset").rglob("*.json")) for row in json.loads(path.read_text())]
    assert [set(row) for row in rows] == [{"question", "answers", "popularity"}] * len(facts)
    assert sorted(row["popularity"] for row in rows) == sorted(fact.popularity for fact in facts)
    assert np.isfinite([fact.popularity for fact in facts]).all()
