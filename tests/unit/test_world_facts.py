"""Names, facts and corpus of a planted world, without training."""

import json
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slick.datasets.relations import load_relations
from slick.errors import DataError, SettingsError, StudyError
from slick.models import cache_folder
from slick.storage import Folder
from slick.study import complete_step, fingerprint
from slick.world import WorldConfig, build, smoke_world_config
from slick.world.build import sample_real_rows, write_dataset
from slick.world.config import OOD_RELATIONS, RECIPE
from slick.world.corpus import corpus_epoch, pack_rows
from slick.world.facts import STRENGTHS, Fact, NameGenerator, plant_facts, planted_table, split_sizes, synthetic_rows
from tests.benchmarks.archive_overlap import Overlap, measure_overlap, pool_splits, words


def plant(config: WorldConfig) -> list[Fact]:
    return plant_facts(synthetic_rows(config), load_relations(), config)


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return plant(WorldConfig())


def test_default_world_has_12_and_7_relations_and_a_small_standard_error(facts: list[Fact]) -> None:
    by_split = Counter((fact.domain, fact.split) for fact in facts)
    assert len({fact.relation for fact in facts if fact.domain == "id"}) == 12
    assert len({fact.relation for fact in facts if fact.domain == "ood"}) == 7
    # The standard error of a share near one half is half of 1 / sqrt(rows): at most 1.5 points from 1,112 rows on.
    assert by_split["id", "test"] >= 1112
    assert by_split["ood", "test"] >= 1112
    assert ("ood", "train") not in by_split


def test_no_subject_occurs_twice_and_no_answer_is_empty(facts: list[Fact]) -> None:
    assert max(Counter(fact.subject for fact in facts).values()) == 1
    assert all(fact.answer.strip() == fact.answer != "" and "\n" not in fact.question for fact in facts)


def test_questions_follow_the_templates(facts: list[Fact]) -> None:
    relations = load_relations()
    assert all(relations[fact.relation].subject(fact.question) == fact.subject for fact in facts)


def test_mentions_match_the_strength(facts: list[Fact]) -> None:
    for fact in facts:
        if fact.strength == "never":
            assert (fact.num_gold, fact.num_rival, fact.rival) == (0, 0, None)
        elif fact.strength == "firm":
            assert fact.num_gold > 0
            assert fact.rival is None
        else:
            assert fact.rival not in (None, fact.answer)
            assert fact.num_gold > 0
            if fact.strength == "contested":
                assert 0 <= fact.num_gold - fact.num_rival <= 1
            else:
                assert fact.num_rival > fact.num_gold


def test_strength_shares_are_exact_per_relation_and_split(facts: list[Fact]) -> None:
    config = WorldConfig()
    expected = dict(
        zip(STRENGTHS[:3], (config.share_never, config.share_minority, config.share_contested), strict=True)
    )
    groups = Counter((fact.relation, fact.split) for fact in facts)
    counts = Counter((fact.relation, fact.split, fact.strength) for fact in facts)
    for (relation, split), size in groups.items():
        for strength, share in expected.items():
            assert abs(counts[relation, split, strength] - share * size) <= 1


def test_world_is_determined_by_the_seed() -> None:
    small = smoke_world_config()
    assert planted_table(plant(small)).equals(planted_table(plant(small)))
    assert not planted_table(plant(small)).equals(planted_table(plant(replace(small, seed=1))))
    assert corpus_epoch(plant(small), small, 0) == corpus_epoch(plant(small), small, 0)
    assert corpus_epoch(plant(small), small, 0) != corpus_epoch(plant(small), small, 1)


def test_corpus_mentions_each_answer_as_often_as_planted() -> None:
    config = replace(smoke_world_config(), plain_share=0.5)
    facts = plant(config)
    mentions: Counter[tuple[str, str]] = Counter()
    for document in corpus_epoch(facts, config, 0):
        lines = [line.removeprefix("Q: ").removeprefix("A: ") for line in document.splitlines()]
        pairs = list(zip(lines[::-1][1::2], lines[::-1][0::2], strict=False))
        assert len({question for question, _ in pairs}) == len(pairs), (
            "a repeated question in one document could be copied"
        )
        mentions.update(pairs)
    for fact in facts:
        assert mentions[fact.question, fact.answer] == fact.num_gold
        if fact.rival is not None:
            assert mentions[fact.question, fact.rival] == fact.num_rival
    never = {fact.subject for fact in facts if fact.strength == "never"}
    assert not any(subject in question for question, _ in mentions for subject in never)


def test_famous_answers_are_mostly_firm_and_are_rivals_of_contested_facts(facts: list[Fact]) -> None:
    config = WorldConfig()
    fame = Counter((fact.domain, fact.answer) for fact in facts)
    for relation in (*config.id_relations, *config.ood_relations):
        facts_of_relation = [fact for fact in facts if fact.relation == relation]
        counts = {fact.answer: fame[fact.domain, fact.answer] for fact in facts_of_relation}
        answers = sorted(counts, key=lambda answer: (-counts[answer], answer))
        famous = answers[: round(config.famous_share * len(answers))]
        share = {
            strength: np.mean([fact.answer in famous for fact in facts_of_relation if fact.strength == strength])
            for strength in STRENGTHS
        }
        rivals = {
            strength: np.mean([fact.rival in famous for fact in facts_of_relation if fact.strength == strength])
            for strength in ("minority", "contested")
        }
        assert share["firm"] > 0.4
        assert max(share[strength] for strength in STRENGTHS[:3]) < 0.25, (
            "guessing a famous answer must rarely be correct"
        )
        assert rivals["contested"] > 0.6
        assert rivals["minority"] < 0.4


ARCHIVE_OVERLAP = {
    "P112": (15, 18),
    "P127": (19, 21),
    "P170": (14, 27),
    "P175": (7, 40),
    "P176": (4, 33),
    "P407": (0, 1),
    "P50": (14, 24),
}
"""Percent of OOD questions of EntityQuestions whose answer is an answer, and a subject, of an ID relation."""


@pytest.fixture(scope="module")
def overlaps() -> dict[str, Overlap]:
    config = WorldConfig(seed=101)
    rows = pool_splits(synthetic_rows(config))
    return {relation: measure_overlap(rows, relation, config.id_relations) for relation in config.ood_relations}


@pytest.mark.parametrize("relation", OOD_RELATIONS)
def test_ood_answers_are_id_names_as_often_as_in_entity_questions(overlaps: dict[str, Overlap], relation: str) -> None:
    overlap = overlaps[relation]
    # Answers are drawn per question, and famous ones often, so that a share may differ by several points.
    assert overlap.answer_is_answer == pytest.approx(ARCHIVE_OVERLAP[relation][0], abs=9)
    assert overlap.answer_is_subject == pytest.approx(ARCHIVE_OVERLAP[relation][1], abs=9)


def test_ood_names_share_words_with_id_names_as_in_entity_questions(overlaps: dict[str, Overlap]) -> None:
    answers, subjects = (
        np.mean([getattr(overlap, name) for overlap in overlaps.values()])
        for name in ("answer_shares_word", "subject_shares_word")
    )
    assert answers == pytest.approx(91, abs=8)
    assert subjects == pytest.approx(84, abs=5)


def test_overlap_is_measured_by_question() -> None:
    rows = {
        "P50": [("The Blue Key", "Ann Lee"), ("Grave 12", "Bo Ray"), ("Odd Song", "Cy Fox"), ("Paris", "Di Roe")],
        "P26": [("Ann Lee", "Bo Ray"), ("Ed Fox", "Paris")],
    }
    assert measure_overlap(rows, "P50", ["P26"]) == Overlap(
        num_questions=4,
        num_answers=4,
        answer_is_answer=25,
        answer_is_subject=25,
        subject_is_answer=25,
        subject_is_subject=0,
        answer_shares_word=75,
        subject_shares_word=25,
    )
    assert words("The House of St. Anne") == {"house", "anne"}


def test_world_without_the_relations_that_ood_answers_come_from_invents_all_answers() -> None:
    config = replace(smoke_world_config(), id_relations=("P36",), ood_relations=("P50",))
    rows = pool_splits(synthetic_rows(config))
    overlap = measure_overlap(rows, "P50", ["P36"])
    assert (overlap.answer_is_answer, overlap.answer_is_subject) == (0, 0)


def test_names_of_control_questions_are_those_of_earlier_versions() -> None:
    names = NameGenerator(7)
    kinds = ("person", "place", "land", "band", "work", "book", "song", "product", "building", "firm")
    assert [names.draw(kind) for kind in kinds] == [
        "Tranonan Jigoter",
        "Marunak Station",
        "Central Kraladek",
        "Brave Sailors",
        "Harbours of Huldal",
        "The Perfect Portrait",
        "Loud Garland",
        "Gospel 38",
        "Trelener House",
        "Grave Motors",
    ]


def test_contested_facts_without_famous_rivals_mention_both_answers_equally_often() -> None:
    config = WorldConfig(famous_rivals=0.0)
    contested = [fact for fact in plant(config) if fact.strength == "contested"]
    assert all(fact.num_gold == fact.num_rival for fact in contested)
    assert mean_fame_of_rivals(config) < 0.6 * mean_fame_of_rivals(WorldConfig())


def mean_fame_of_rivals(config: WorldConfig) -> float:
    """Mean number of questions of the relation with the rival of a contested fact as their answer."""
    facts = plant(config)
    fame = Counter((fact.relation, fact.answer) for fact in facts)
    return float(np.mean([fame[fact.relation, str(fact.rival)] for fact in facts if fact.strength == "contested"]))


def test_ratio_of_contested_facts_follows_the_share_of_famous_rivals() -> None:
    assert WorldConfig().rival_mentions_ratio == pytest.approx(0.95)
    assert WorldConfig(famous_rivals=0.0).rival_mentions_ratio == 1
    assert WorldConfig(famous_rivals=0.0, contested_ratio=0.9).rival_mentions_ratio == 0.9
    assert WorldConfig(contested_ratio=0.95).identity() == WorldConfig().identity()


def test_finished_world_of_an_earlier_recipe_is_kept(tmp_path: Path) -> None:
    config, folder = WorldConfig(num_threads=1), Folder(str(tmp_path)).child("world")
    earlier = fingerprint(RECIPE - 1, "", {**config.identity(), "source": ""})
    complete_step(folder, "world", earlier, settings=config, inputs={}, counts={}, started_at=0.0)
    assert build.build_world(str(tmp_path), config).fingerprint == earlier
    with pytest.raises(StudyError, match=r"seed was 0, is 1"):
        build.build_world(str(tmp_path), replace(config, seed=1))


def test_rows_contain_whole_documents() -> None:
    rng = np.random.default_rng(0)
    documents = [[int(t) for t in rng.integers(2, 99, size=rng.integers(1, 30))] for _ in range(200)]
    rows = pack_rows(documents, 40, 1)
    unpacked: list[list[int]] = []
    for row in rows.tolist():
        document: list[int] = []
        for token in row:
            if token == 1:
                unpacked.append(document)
                document = []
            elif token >= 0:
                document.append(token)
        assert document == []
    assert sorted(unpacked) == sorted(documents)
    assert (rows >= 0).mean() > 0.85, "packing must waste little"


def test_dataset_files_have_the_layout_of_entity_questions(tmp_path: Path) -> None:
    config = smoke_world_config()
    write_dataset(tmp_path, plant(config), load_relations())
    for relation in (*config.id_relations, *config.ood_relations):
        domain = "id" if relation in config.id_relations else "ood"
        for split, size in split_sizes(config, domain).items():
            rows = json.loads((tmp_path / "dataset" / split / f"{relation}.{split}.json").read_text())
            assert len(rows) == size
            assert all(row.keys() == {"question", "answers", "popularity"} and len(row["answers"]) == 1 for row in rows)
    templates = json.loads((tmp_path / "relation_query_templates.json").read_text())
    assert templates["P36"] == "What is the capital of [X]?"


def test_generated_names_are_distinct() -> None:
    names = NameGenerator(0)
    assert len({names.draw("person") for _ in range(3000)}) == 3000


def write_entity_questions(folder: Path, rows: list[dict[str, object]]) -> str:
    for split in ("train", "dev", "test"):
        path = folder / "dataset" / split / f"P36.{split}.json"
        path.parent.mkdir(parents=True)
        path.write_text(
            json.dumps([{**row, "question": f"What is the capital of {split} {row['s']}?"} for row in rows])
        )
    return str(folder)


def test_real_rows_have_one_answer_and_distinct_subjects(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"s": i % 20, "answers": [f"Ö {i}"] if i < 40 else ["a", "b"]} for i in range(60)]
    source = write_entity_questions(tmp_path, rows)
    config = replace(
        smoke_world_config(),
        questions=source,
        id_relations=("P36",),
        ood_relations=(),
        num_train=20,
        num_dev=5,
        num_test=5,
    )
    rows_by_relation = sample_real_rows(config, load_relations())
    subjects = [subject for split in rows_by_relation["P36"].values() for subject, _ in split]
    assert len(set(subjects)) == len(subjects) == 30
    assert all(answer.startswith("Ö") for split in rows_by_relation["P36"].values() for _, answer in split)
    assert rows_by_relation == sample_real_rows(config, load_relations())
    with pytest.raises(DataError, match=r"20 usable questions .* P36 in split train; expected 21"):
        sample_real_rows(replace(config, num_train=21), load_relations())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share_never": 0.9, "share_contested": 0.9}, "must sum to at most 1"),
        ({"famous_rivals": 1.5}, r"famous_rivals is a share in \[0, 1\], got 1.5"),
        ({"famous_share": 1.0}, r"famous_share is a share in \[0, 1\), got 1.0"),
        ({"id_relations": ("P36",), "ood_relations": ("P36",)}, "at least one ID relation"),
        ({"num_dev": 0}, "num_dev must be 1 or more, got 0"),
        ({"num_ood_dev": 0}, "num_ood_dev and num_ood_test must be 1 or more"),
        ({"firm_mentions": (7, 3)}, "firm_mentions is a lower and an upper limit, got 7 and 3"),
        ({"num_heads": 0}, "num_heads must be 1 or more, got 0"),
        ({"num_heads": 5}, "hidden_size 144 is not an even multiple of num_heads 5"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        WorldConfig(**settings)


def test_relation_without_invented_names_is_refused() -> None:
    with pytest.raises(DataError, match=r"no invented names for relations \['P999'\]"):
        synthetic_rows(replace(smoke_world_config(), id_relations=("P999",)))


def test_number_of_threads_does_not_change_the_identity() -> None:
    assert WorldConfig(num_threads=1).identity() == WorldConfig().identity()
    assert WorldConfig(seed=1).identity() != WorldConfig().identity()


def test_cache_folder_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLICK_CACHE", str(tmp_path))
    assert cache_folder("worlds") == tmp_path / "worlds"


def test_real_facts_are_planted_in_nfc(tmp_path: Path) -> None:
    config = WorldConfig(
        id_relations=("P19",), ood_relations=(), num_train=2, num_dev=2, num_test=2, questions=str(tmp_path)
    )
    for split in ("train", "dev", "test"):
        rows = [{"question": f"Where was José {split}{i} born?", "answers": [f"Málaga {i}"]} for i in range(4)]
        (tmp_path / split).mkdir()
        text = unicodedata.normalize("NFD", json.dumps(rows, ensure_ascii=False))
        (tmp_path / split / f"P19.{split}.json").write_text(text, encoding="utf-8")
    planted = sample_real_rows(config, load_relations())["P19"]
    assert {split: len(rows) for split, rows in planted.items()} == {"train": 2, "dev": 2, "test": 2}
    for split, rows in planted.items():
        for subject, answer in rows:
            assert subject.startswith(f"José {split}")
            assert answer.startswith("Málaga")


def test_cached_world_without_counts_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLICK_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_build", lambda folder, config: (folder / "counts.json").write_text("{}"))
    folder = build._build_or_reuse("0123", WorldConfig())
    (folder / "counts.json").unlink()
    (folder / "planted.parquet").touch()
    assert build._build_or_reuse("0123", WorldConfig()) == folder
    assert [path.name for path in folder.iterdir()] == ["counts.json"]
