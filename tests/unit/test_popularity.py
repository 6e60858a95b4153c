"""Popularity of subjects: read from a source, stored with the questions, and related to knowledge and harm."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slick.datasets import QuestionsConfig, prepare_questions, read_questions
from slick.datasets.columns import parse_popularity
from slick.datasets.relations import load_relations
from slick.errors import DataError
from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.sections.popularity import harm_table, load_popularity, popularity_section, summary_sentences
from slick.report.statistics.popularity import (
    PopularityData,
    category_shares,
    estimate_harm,
    popularity_bins,
    popularity_correlation,
    variant_popularity,
)
from slick.storage import Folder
from slick.study import complete_step, read_manifest
from slick.study_files import POPULARITY_FIELD, QUESTION_SCHEMA
from slick.types import Category
from slick.world import smoke_world_config
from slick.world.build import write_dataset
from slick.world.corpus import corpus_epoch
from slick.world.facts import plant_facts, synthetic_rows

ROWS = [
    {"relation": "P19", "split": split, "question": f"Where was {split} {i} born?", "answers": [f"{split}ville {i}"]}
    for split in ("train", "dev", "test")
    for i in range(3)
]


def with_popularity(values: list[object], column: str = "popularity") -> list[dict]:
    return [{**row, column: value} for row, value in zip(ROWS, values, strict=True)]


def write(path: Path, rows: list[dict]) -> Path:
    """Write JSONL, CSV or Parquet, by the suffix."""
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
    prepare_questions(study, QuestionsConfig(questions=str(source), filter="none"))
    return study


def stored(study: Folder) -> dict[str, float | None]:
    table = read_questions(study, columns=["question", "popularity"])
    return dict(zip(table["question"].to_pylist(), table["popularity"].to_pylist(), strict=True))


# Reading.


@pytest.mark.parametrize("column", ["popularity", "s_pop"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_popularity_is_read_from_every_format(tmp_path: Path, suffix: str, column: str) -> None:
    values: list[object] = [0, 1, 2.5, None, 4, 1520, 6, 7, None]
    study = prepared(tmp_path, write(tmp_path / f"set.{suffix}", with_popularity(values, column)))
    assert stored(study) == {row["question"]: value for row, value in zip(ROWS, values, strict=True)}
    assert study.child("questions").read_table("part-P19.parquet").schema == QUESTION_SCHEMA.append(POPULARITY_FIELD)
    assert read_manifest(study.child("questions")).counts["with_popularity"] == 7


def test_popularity_is_read_from_the_layout_of_entity_questions(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / "eq" / split).mkdir(parents=True)
        rows = [
            {"question": r["question"], "answers": r["answers"], "popularity": 7} for r in ROWS if r["split"] == split
        ]
        (tmp_path / "eq" / split / f"P19.{split}.json").write_text(json.dumps([*rows[:2], rows[2] | {"popularity": 0}]))
    assert sorted(stored(prepared(tmp_path, tmp_path / "eq")).values()) == [0.0] * 3 + [7.0] * 6


def test_files_without_popularity_are_unchanged(tmp_path: Path) -> None:
    """Schema, ids and order do not change, and an empty column is not stored."""
    plain = prepared(tmp_path, write(tmp_path / "plain.jsonl", ROWS)).child("questions")
    empty = prepared(tmp_path, write(tmp_path / "empty.jsonl", with_popularity([None] * 9))).child("questions")
    assert plain.read_table("part-P19.parquet").schema == QUESTION_SCHEMA
    assert plain.read_bytes("part-P19.parquet") == empty.read_bytes("part-P19.parquet")
    full = prepared(tmp_path, write(tmp_path / "full.jsonl", with_popularity(list(range(9))))).child("questions")
    assert full.read_table("part-P19.parquet").drop(["popularity"]).equals(plain.read_table("part-P19.parquet"))


@pytest.mark.parametrize("bad", [-1, "many", "1,520", "nan", "inf", "1_000", True, [3], -0.5, 10**400, "٣"])
def test_invalid_popularity_is_refused_with_its_row(tmp_path: Path, bad: object) -> None:
    values: list[object] = [5] * 9
    values[4] = bad
    source = write(tmp_path / "set.jsonl", with_popularity(values))
    with pytest.raises(DataError, match=r"set\.jsonl, line 5: popularity is .*, expected a finite number of 0 or more"):
        prepared(tmp_path, source)


def test_nan_in_parquet_is_not_a_missing_popularity(tmp_path: Path) -> None:
    source = write(tmp_path / "set.parquet", with_popularity([1.0] * 8 + [float("nan")]))
    with pytest.raises(DataError, match=r"set\.parquet, row 9: popularity is nan"):
        prepared(tmp_path, source)


def test_column_popularity_precedes_s_pop() -> None:
    assert parse_popularity({"s_pop": 3, "popularity": 4}) == 4.0
    assert parse_popularity({"s_pop": -3, "popularity": ""}) is None


# Worlds.


def test_popularity_in_a_world_is_the_number_of_documents_with_the_subject(tmp_path: Path) -> None:
    config = replace(smoke_world_config(), seed=3)
    facts = plant_facts(synthetic_rows(config), load_relations(), config)
    documents = corpus_epoch(facts, config, 0)
    for fact in facts:
        assert (
            sum(
                fact.question in document.split("\n") or f"Q: {fact.question}" in document.split("\n")
                for document in documents
            )
            == fact.popularity
        )
    assert {fact.popularity for fact in facts if fact.strength == "never"} == {0}
    write_dataset(tmp_path, facts, load_relations())
    rows = [row for path in sorted((tmp_path / "dataset").rglob("*.json")) for row in json.loads(path.read_text())]
    assert [set(row) for row in rows] == [{"question", "answers", "popularity"}] * len(facts)
    assert sorted(row["popularity"] for row in rows) == sorted(fact.popularity for fact in facts)
    assert np.isfinite([fact.popularity for fact in facts]).all()


# Knowledge by popularity


def known_of(values: list[float], categories: list[Category] | None = None, **more: object) -> PopularityData:
    num = len(values)
    named = [str(c) for c in categories or [Category.MAYBE_KNOWN] * num]
    chance = np.array([{"HighlyKnown": 1.0, "MaybeKnown": 0.5}.get(name, 0.0) for name in named])
    return PopularityData(
        question_ids=np.array([f"Q-{i:04d}" for i in range(num)]),
        relations=np.array(["P1"] * num),
        categories=np.array(named),
        greedy=chance,
        sampled=chance,
        values=np.array(values, dtype=np.float64),
        **more,
    )  # type: ignore[arg-type]


def test_bins_never_split_equal_popularity() -> None:
    bins = popularity_bins(known_of([0.0] * 30 + list(range(1, 71))))
    assert bins.labels == ("0", "1 to 20", "21 to 45", "46 to 70")
    assert np.bincount(bins.bin_of_question).tolist() == [30, 20, 25, 25]
    assert popularity_bins(known_of([0.0] * 90 + [1.0] * 5 + [1520.0] * 5)).labels == ("0", "1 to 1,520")
    even = popularity_bins(known_of([float(value) for value in np.random.default_rng(0).permutation(400)]))
    assert np.bincount(even.bin_of_question).tolist() == [100] * 4
    with pytest.raises(InsufficientDataError, match="all subjects are equally popular"):
        popularity_bins(known_of([3.0] * 50))


def test_category_shares_by_bin() -> None:
    categories = [Category.UNKNOWN] * 3 + [Category.WEAKLY_KNOWN] + [Category.HIGHLY_KNOWN] * 4
    known = known_of([0, 0, 0, 0, 5, 6, 7, 8], categories)
    shares = category_shares(known, popularity_bins(known, 2))
    assert shares.tolist() == [[0, 0, 0.25, 0.75], [1, 0, 0, 0]]


def test_rank_correlation_interval_agrees_with_bootstrap() -> None:
    """With as many ties as worlds have, both intervals agree within 0.02 for 2,000 questions."""
    from scipy.stats import bootstrap, spearmanr

    rng = np.random.default_rng(5)
    popularity = np.round(np.maximum(rng.normal(5, 6, 2000), 0))
    p_correct = np.round(np.clip(0.05 * popularity + rng.normal(0, 0.4, 2000), 0, 1), 1)
    result = popularity_correlation(popularity, p_correct)
    resampled = bootstrap(
        (popularity, p_correct),
        lambda a, b: spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=400,
        method="percentile",
        rng=rng,
    )
    assert (result.low, result.high) == pytest.approx(tuple(resampled.confidence_interval), abs=0.02)
    assert result.low < result.value < result.high
    assert result.value == pytest.approx(spearmanr(popularity, p_correct).statistic)


def test_perfect_and_undefined_correlations() -> None:
    up = np.arange(50.0)
    assert popularity_correlation(up, up).value == pytest.approx(1.0)
    assert popularity_correlation(up, -up).high < -0.99
    for popularity, p_correct, missing_reason in (
        (up[:5], up[:5], "needs 10 questions"),
        (up * 0, up, "equally popular"),
        (up, np.full(50, np.nan), "annotate in mode full"),
    ):
        with pytest.raises(InsufficientDataError, match=missing_reason):
            popularity_correlation(popularity, p_correct)


# Harm by popularity


SIZE = 400
"""Test questions: a quarter of popularity 0, all of these Unknown; the others Known."""


def study(fall: dict[int, float], *, popular: bool = True) -> StudyData:
    """With 100 % Unknown rows, accuracy on each quarter of the test questions falls from 0.5 by `fall`."""
    quarter = np.repeat(np.arange(4), SIZE // 4)
    categories = [Category.UNKNOWN if q == 0 else Category.HIGHLY_KNOWN for q in quarter]
    rows = {"unknown-000": np.arange(100, 400, 3), "unknown-100": np.arange(0, 120), "idk-050": np.arange(5)}
    known = known_of([float(10 * q + i % 5 * (q > 0)) for i, q in enumerate(quarter)], categories, rows=rows)
    rng = np.random.default_rng(1)
    base = np.where(quarter == 0, 0.0, 0.5)
    chance = {"unknown-000": base, "unknown-100": base - np.array([fall.get(int(q), 0.0) for q in quarter])}
    runs = []
    for name, right in chance.items():
        hit = {1: rng.random(SIZE) < base, 2: rng.random(SIZE) < right}
        kept = {
            (epoch, "test"): Predictions(question_ids=known.question_ids, categories=known.categories, hit=item)
            for epoch, item in hit.items()
        }
        accuracy = {("test", "all"): 100 * np.array([item.mean() for item in hit.values()])}
        runs.append(
            Run(
                run_id=f"{name}-seed0",
                variant=name,
                seed=0,
                epochs=np.array([1, 2]),
                accuracy=accuracy,
                num={("test", "all"): SIZE},
                early_epoch=1,
                predictions=kept,
            )
        )
    variants = {
        "unknown-000": Variant(name="unknown-000", kind="unknown", share=0.0, num=100),
        "unknown-100": Variant(name="unknown-100", kind="unknown", share=1.0, num=120),
        "idk-050": Variant(name="idk-050", kind="idk", share=0.5, num=5),
    }
    return StudyData(variants=variants, runs=tuple(runs), loaded={load_popularity: known if popular else None})


def test_harm_is_estimated_by_quantile() -> None:
    result = [
        item for item in estimate_harm(study({2: 0.4})) if item.checkpoint == CONVERGENCE and item.category == "all"
    ]
    changes = [item.comparison.change for item in result if item.comparison]
    assert [item.comparison.num for item in result if item.comparison] == [100] * 4
    assert changes[2].value == pytest.approx(-40, abs=15)
    assert [abs(change.value) > 1.96 * change.se for change in changes] == [False, False, True, False]
    assert {item.checkpoint for item in estimate_harm(study({}))} == {EARLY_STOP, CONVERGENCE}


def test_quantile_without_known_questions_has_a_reason() -> None:
    missing = [item for item in estimate_harm(study({})) if item.category == "Known" and item.quantile == 0]
    assert all(item.comparison is None and "needs 10 test questions or more" in item.missing_reason for item in missing)
    table = harm_table(study({}))
    assert sum(row[-1] != "" for row in table.rows) == len(missing) == 2


def test_training_sets_are_matched_on_popularity() -> None:
    without, only = variant_popularity(study({}))
    assert (without.name, without.matched_share, without.median_unknown) == ("unknown-000", 1.0, None)
    assert (only.num, only.median_known is None) == (120, False)
    assert only.shares == pytest.approx((100 / 120, 20 / 120, 0, 0))
    assert only.matched_share == pytest.approx(20 / 120)
    assert only.median_unknown == 0.0
    data = study({})
    known = data.loaded[load_popularity]
    alone = replace(known, rows={**known.rows, "unknown-000": np.arange(0)})
    assert [item.matched_share for item in variant_popularity(replace(data, loaded={load_popularity: alone}))] == [None]


def test_section_reports_correlation_harm_and_missing_data() -> None:
    text = " ".join(summary_sentences(study({1: 0.45, 2: 0.45, 3: 0.45})))
    assert "P_Correct of sampled answers rises with popularity" in text
    assert "At convergence, 100 % Unknown rows significantly reduce accuracy on Known test questions" in text
    assert "in 3 of 3 quantiles" in text
    assert "17 % of their training rows can be matched on popularity" in text
    assert "in 0 of 3 quantiles" in " ".join(summary_sentences(study({})))
    shown = popularity_section(study({}))
    assert [exhibit.missing for exhibit in shown.exhibits] == [None] * 7
    without = popularity_section(study({}, popular=False))
    assert without.is_empty
    assert all("a column popularity or s_pop" in str(exhibit.missing) for exhibit in without.exhibits)
    assert summary_sentences(study({}, popular=False)) == []


def test_load_popularity_of_annotated_questions_and_training_rows(tmp_path: Path) -> None:
    values: list[object] = [0, 1, 2.5, None, 4, 1520, 6, 7, None]
    study = prepared(tmp_path, write(tmp_path / "set.jsonl", with_popularity(values)))
    answered = read_questions(study, columns=["question_id", "relation", "domain", "split", "popularity"])
    num = answered.num_rows - 1  # one question was not annotated
    names = answered["question_id"].to_pylist()
    knowledge = answered.slice(0, num).drop(["popularity"]).append_column("category", pa.array(["Unknown"] * num))
    for name, share in (("p_correct_greedy", 0.0), ("p_correct_sampled", None)):
        knowledge = knowledge.append_column(name, pa.array([share] * num, pa.float64()))
    assert load_popularity(study, []) is None
    study.child("annotate").write_table("knowledge.parquet", knowledge)
    complete_step(study.child("annotate"), "annotate", "a", settings={}, inputs={}, counts={}, started_at=0.0)
    study.child("variants").write_table("natural.parquet", pa.table({"question_id": names[:4]}))
    known = load_popularity(study, ["natural"])
    assert known is not None
    expected = {
        name: value for name, value in zip(names, answered["popularity"].to_pylist(), strict=True) if value is not None
    }
    expected.pop(names[-1], None)
    assert dict(zip(known.question_ids.tolist(), known.values.tolist(), strict=True)) == expected
    assert known.num_unknown_popularity == num - len(expected)
    assert set(known.question_ids[known.rows["natural"]]) == set(names[:4]) & expected.keys()
    assert np.isnan(known.sampled).all()
    plain = prepared(tmp_path, write(tmp_path / "plain.jsonl", ROWS))
    assert load_popularity(plain, []) is None
