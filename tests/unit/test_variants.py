"""Fine-tuning sets: size, mix of each relation, nesting, and errors."""

import functools
import itertools
import math
import multiprocessing
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.common import parse_config
from slick.errors import DataError, SettingsError, StudyError, VariantError
from slick.storage import Folder
from slick.study import require_manifest
from slick.study_files import QUESTION_SCHEMA, VARIANT_SCHEMA
from slick.types import KNOWN_CATEGORIES, Category
from slick.variants import VariantsConfig, draw_variants, read_variant, variant_names
from slick.variants.config import relation_sizes, variant_specs
from slick.variants.sampling import RowOrder, natural_mix, num_unknown, plan_draws, select_rows
from tests.study_builder import PAPER, SMALL, CategoryCounts, finish_step, write_labelled_study
from tuning.data import read_replay_rows, read_rows

SHARES = VariantsConfig().unknown_shares


def make_pools(counts: CategoryCounts) -> dict[str, dict[Category, list[str]]]:
    return {
        relation: {c: [f"{relation}-{c}-{i}" for i in range(num)] for c, num in zip(Category, nums, strict=True)}
        for relation, nums in counts.items()
    }


@functools.cache
def paper_sets() -> dict[str, list[str]]:
    return draw_sets(PAPER, VariantsConfig())


def draw_sets(counts: CategoryCounts, config: VariantsConfig) -> dict[str, list[str]]:
    """Set name -> question_ids. The ids of `pools_of` contain relation and category."""
    pools = make_pools(counts)
    planned = plan_draws(variant_specs(config), pools, relation_sizes(pools, config)[0])
    order = RowOrder(config.seed)
    return {name: select_rows(needed, pools, order) for name, needed in planned.items()}


def count_by_relation_and_category(question_ids: list[str]) -> Counter[tuple[str, str]]:
    return Counter((i.split("-")[0], i.split("-")[1]) for i in question_ids)


def unknown_ids(question_ids: list[str]) -> set[str]:
    return {i for i in question_ids if "-Unknown-" in i}


# Numbers of the paper.


def test_set_size_of_the_paper() -> None:
    sizes, dropped = relation_sizes(make_pools(PAPER), VariantsConfig())
    assert sizes == {r: min(nums) for r, nums in PAPER.items()}
    assert (sum(sizes.values()), dropped) == (6142, [])


def test_seventeen_sets_of_the_paper() -> None:
    sets = paper_sets()
    assert len(sets) == 17
    assert {name: len(ids) for name, ids in sets.items() if not name.startswith("known")} == dict.fromkeys(
        [name for name in sets if not name.startswith("known")], 6142
    )
    for share in SHARES:
        # Each of the 12 relations is off by less than one row; by design the errors cancel.
        assert abs(len(unknown_ids(sets[f"unknown-{round(100 * share):03d}"])) - share * 6142) <= 2, share


# Invariants of every set, on tables of several shapes.


@pytest.mark.parametrize("counts", [PAPER, SMALL, {"P1": (40, 40, 40, 40)}], ids=["paper", "small", "one relation"])
def test_sets_have_the_same_rows_per_relation_and_their_share(counts: CategoryCounts) -> None:
    config = VariantsConfig(idk_shares=(0.5, 1.0))
    sets = draw_sets(counts, config)
    all_ids = {i for pool in make_pools(counts).values() for ids in pool.values() for i in ids}
    for spec in variant_specs(config):
        ids = sets[spec.name]
        assert ids == sorted(set(ids)), f"{spec.name} must be sorted, without duplicates"
        assert set(ids) <= all_ids
        for relation, nums in counts.items():
            relation_ids = [i for i in ids if i.startswith(f"{relation}-")]
            size, unknown = min(nums), len(unknown_ids(relation_ids))
            if spec.kind == "known":
                assert unknown == 0
                assert abs(len(relation_ids) - (1 - (spec.requested_share or 0)) * size) < 1
                continue
            assert len(relation_ids) == size, f"{spec.name} must have {size} rows of {relation}"
            if spec.requested_share is not None:
                assert abs(unknown - spec.requested_share * size) < 1
            if spec.category is not None:
                assert {i.split("-")[1] for i in relation_ids} == {spec.category.value}


def test_known_sets_are_sweep_sets_without_unknown_rows() -> None:
    sets = paper_sets()
    for percent in ("010", "025", "050", "075", "090"):
        sweep_set = sets[f"unknown-{percent}"]
        assert set(sets[f"known-{percent}"]) == set(sweep_set) - unknown_ids(sweep_set)


def test_idk_sets_have_the_rows_of_their_sweep_set() -> None:
    sets = paper_sets()
    assert sets["idk-050"] == sets["unknown-050"]


@pytest.mark.parametrize("counts", [PAPER, SMALL], ids=["paper", "small"])
def test_sets_of_larger_shares_contain_those_of_smaller_ones(counts: CategoryCounts) -> None:
    sweep = tuple(x / 100 for x in range(0, 101, 5))
    sets = draw_sets(counts, VariantsConfig(unknown_shares=sweep, min_per_relation=1))
    names = [f"unknown-{x:03d}" for x in range(0, 101, 5)]
    for smaller, larger in itertools.pairwise(names):
        assert unknown_ids(sets[smaller]) <= unknown_ids(sets[larger])
        assert set(sets[larger]) - unknown_ids(sets[larger]) <= set(sets[smaller])


def test_natural_set_has_the_mix_of_each_relation() -> None:
    counts = count_by_relation_and_category(paper_sets()["natural"])
    for relation, nums in PAPER.items():
        for category, num in zip(Category, nums, strict=True):
            assert abs(counts[relation, category] - num * min(nums) / sum(nums)) < 1


def test_known_rows_are_drawn_uniformly_from_the_pooled_known_rows() -> None:
    # Hypergeometric counts of the three categories in 1,000 draws of 100 from 600; each within 5 standard errors of its
    # mean, so a correct draw fails for fewer than 3 x 6e-7 of all seeds.
    pools = make_pools({"P1": (300, 200, 100, 200)})
    specs = variant_specs(VariantsConfig(unknown_shares=(0.0,), known_shares=(), idk_shares=(), natural=False))
    planned = plan_draws(specs, pools, {"P1": 100})["unknown-000"]
    draws = [count_by_relation_and_category(select_rows(planned, pools, RowOrder(seed))) for seed in range(1000)]
    for category, num in zip(KNOWN_CATEGORIES, (300, 200, 100), strict=True):
        share = num / 600
        error = math.sqrt(100 * share * (1 - share) * (500 / 599) / 1000)
        assert abs(sum(counts["P1", category] for counts in draws) / 1000 - 100 * share) < 5 * error


def test_all_rows_are_equally_likely() -> None:
    # 2,000 draws of 5 from 20: each row 500 times on average, standard error 19.4. The largest of 20 deviations exceeds
    # 5 of them with a probability below 20 x 6e-7.
    pools = make_pools({"P1": (0, 0, 0, 20)})
    need = plan_draws([s for s in variant_specs(VariantsConfig()) if s.name == "unknown-100"], pools, {"P1": 5})[
        "unknown-100"
    ]
    times = Counter(i for seed in range(2000) for i in select_rows(need, pools, RowOrder(seed)))
    assert len(times) == 20
    assert all(abs(num - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75) for num in times.values())


def test_draw_is_determined_by_the_seed() -> None:
    first, again, other = (draw_sets(PAPER, VariantsConfig(seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first["unknown-050"] != other["unknown-050"]
    assert (
        count_by_relation_and_category(first["unknown-050"]).total()
        == count_by_relation_and_category(other["unknown-050"]).total()
    )


def test_rows_of_other_relations_do_not_change_a_draw() -> None:
    # Another relation adds rows and changes the rounding, but never the order of the rows of P26.
    alone, together = ({**SMALL, **added} for added in ({}, {"P99": (20, 20, 20, 20)}))
    for name in ("highlyknown", "unknown-000", "unknown-100", "natural"):
        ids = [{i for i in draw_sets(c, VariantsConfig())[name] if i.startswith("P26")} for c in (alone, together)]
        assert ids[0] == ids[1], name


# Rounding.


def test_number_of_unknown_rows_is_monotone_and_accurate() -> None:
    for num_relations in (1, 2, 7, 12):
        for index in range(num_relations):
            for num_rows in (1, 2, 3, 10, 222, 1323):
                nums = [num_unknown(percent, num_rows, index, num_relations) for percent in range(101)]
                assert nums == sorted(nums)
                assert (nums[0], nums[-1]) == (0, num_rows)
                assert all(abs(num - percent * num_rows / 100) < 1 for percent, num in enumerate(nums))


def test_rounding_errors_of_equal_relations_cancel() -> None:
    # Rounding each to the nearest row would give 12 x 3 = 36 of 120, 30 percent instead of 25.
    assert sum(num_unknown(25, 10, index, 12) for index in range(12)) == 30


def test_rounding_error_of_a_set_is_at_most_half_a_row_per_relation() -> None:
    generator = np.random.default_rng(0)
    for num_relations in (1, 3, 12, 40):
        sizes = generator.integers(1, 50, num_relations)
        for percent in range(0, 101, 5):
            total = sum(num_unknown(percent, int(n), i, num_relations) for i, n in enumerate(sizes))
            assert abs(total - percent * sizes.sum() / 100) <= num_relations / 2


@pytest.mark.parametrize(
    ("counts", "num_rows", "expected"),
    [
        ((5, 3, 0, 2), 5, (3, 1, 0, 1)),  # 2.5, 1.5, 0, 1: the first of two equal remainders is rounded up
        ((1, 1, 1, 1), 4, (1, 1, 1, 1)),
        ((1, 1, 1, 1), 2, (1, 1, 0, 0)),
        ((0, 0, 0, 7), 3, (0, 0, 0, 3)),
        ((100, 1, 1, 1), 1, (1, 0, 0, 0)),
        ((4, 3, 2, 1), 10, (4, 3, 2, 1)),
    ],
)
def test_natural_mix_uses_largest_remainders(counts: tuple[int, ...], num_rows: int, expected: tuple[int, ...]) -> None:
    assert tuple(natural_mix(dict(zip(Category, counts, strict=True)), num_rows).values()) == expected


# Errors.


def test_empty_category_is_refused_with_counts_and_fixes() -> None:
    counts = {**SMALL, "P36": (0, 12, 8, 30)}
    with pytest.raises(VariantError) as caught:
        relation_sizes(make_pools(counts), VariantsConfig())
    message = str(caught.value)
    assert "P36: 0 HighlyKnown, 12 MaybeKnown, 8 WeaklyKnown, 30 Unknown" in message
    assert "P17" not in message
    assert "--drop-empty-relations (3 of 4 relations remain)" in message
    assert "--size-rule pools --no-single-categories" in message


def test_drop_empty_relations_leaves_them_out() -> None:
    counts = {**SMALL, "P36": (0, 12, 8, 30)}
    sizes, dropped = relation_sizes(make_pools(counts), VariantsConfig(drop_empty_relations=True))
    assert (set(sizes), dropped) == (set(SMALL), ["P36"])
    assert draw_sets(counts, VariantsConfig(drop_empty_relations=True)) == draw_sets(SMALL, VariantsConfig())


def test_min_per_relation_sets_the_smallest_relation() -> None:
    with pytest.raises(VariantError, match=r"fewer than 6:\n  P19: 5 HighlyKnown"):
        relation_sizes(make_pools(SMALL), VariantsConfig(min_per_relation=6))
    sizes, dropped = relation_sizes(make_pools(SMALL), VariantsConfig(min_per_relation=6, drop_empty_relations=True))
    assert (sizes, dropped) == ({"P17": 7, "P26": 11}, ["P19"])


def test_no_remaining_relation_is_refused() -> None:
    with pytest.raises(VariantError, match="fewer than 99") as caught:
        relation_sizes(make_pools(SMALL), VariantsConfig(min_per_relation=99, drop_empty_relations=True))
    assert "--drop-empty-relations" not in str(caught.value)


def test_pooled_sizes_allow_an_empty_category() -> None:
    counts = {"P1": (0, 30, 10, 25), "P2": (1, 5, 2, 40)}
    config = VariantsConfig(size_rule="pools", single_categories=False)
    assert relation_sizes(make_pools(counts), config)[0] == {"P1": 25, "P2": 8}
    with pytest.raises(VariantError, match="P1: highlyknown needs 25 HighlyKnown rows, there are 0"):
        relation_sizes(make_pools(counts), VariantsConfig(size_rule="pools"))


def test_size_per_relation_is_used_or_refused() -> None:
    assert set(relation_sizes(make_pools(SMALL), VariantsConfig(size_per_relation=4))[0].values()) == {4}
    with pytest.raises(VariantError, match="P17: weaklyknown needs 8 WeaklyKnown rows, there are 7"):
        relation_sizes(make_pools(SMALL), VariantsConfig(size_per_relation=8))
    with pytest.raises(VariantError) as caught:
        relation_sizes(make_pools(SMALL), VariantsConfig(size_per_relation=500))
    message = str(caught.value)
    assert message.count("P17:") == 5, "one line per pool, for any number of sets"
    assert "P17: unknown-100 needs 500 Unknown rows, there are 10" in message
    assert "P17: unknown-000 needs 500 Known rows, there are 24" in message


def test_share_that_rounds_to_no_rows_is_refused() -> None:
    with pytest.raises(VariantError, match=r"unknown-010: a share of 0\.1 rounds to no Unknown rows in 1 rel"):
        relation_sizes(make_pools({"P1": (3, 3, 3, 3)}), VariantsConfig())
    with pytest.raises(VariantError, match=r"known-090: a share of 0\.9 rounds to no Known rows"):
        relation_sizes(make_pools({"P1": (1, 1, 1, 1)}), VariantsConfig(unknown_shares=(0.0,), known_shares=(0.9,)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unknown_shares": (50,)}, "got 50; 50 percent is 0.5"),
        ({"unknown_shares": (-0.1,)}, "from 0 to 1, got -0.1"),
        ({"unknown_shares": (0.125,)}, "whole percent"),
        ({"unknown_shares": (float("nan"),)}, "got nan"),
        ({"unknown_shares": (0.5, 0.25, 0.5)}, "more than once"),
        ({"known_shares": (0.0,)}, "from 0.01 to 0.99"),
        ({"known_shares": (1.0,)}, "from 0.01 to 0.99"),
        ({"idk_shares": (0.0,)}, "from 0.01 to 1"),
        ({"idk_phrase": "  "}, "one line of text"),
        ({"idk_phrase": "no\nidea"}, "one line of text"),
        ({"size_per_relation": 0}, "size_per_relation must be 1 or more"),
        ({"min_per_relation": 0}, "min_per_relation must be 1 or more"),
        (
            {"unknown_shares": (), "known_shares": (), "idk_shares": (), "single_categories": False, "natural": False},
            "select no fine-tuning set",
        ),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        VariantsConfig(**settings)


def test_names_of_the_default_sets() -> None:
    assert variant_names(VariantsConfig()) == (
        *(f"unknown-{x}" for x in ("000", "010", "025", "050", "075", "090", "100")),
        *(f"known-{x}" for x in ("010", "025", "050", "075", "090")),
        *("highlyknown", "maybeknown", "weaklyknown", "natural", "idk-050"),
    )


# The step `variants`.


def test_step_writes_sets_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    manifest = draw_variants(study, VariantsConfig())
    assert manifest.inputs == {"knowledge": "k1", "model": "m1"}
    assert tuple(manifest.counts) == variant_names(VariantsConfig())
    assert "|D| = 23 rows from 3 relations, 17 sets" in capsys.readouterr().out
    for name, entry in manifest.counts.items():
        table = read_variant(study, name)
        assert table.schema.equals(VARIANT_SCHEMA)
        ids = table["question_id"].to_pylist()
        assert not {i for i in ids if i.startswith(("test", "ood"))}, "only in-distribution training questions"
        assert [i.split("-")[1] for i in ids] == table["category"].to_pylist()
        assert table["prompt"].to_pylist() == [f"Answer the following question.\nWhat of {i}?\n" for i in ids]
        counted = {r: {c.value: count_by_relation_and_category(ids)[r, c] for c in Category} for r in SMALL}
        assert entry["relations"] == counted
        assert (entry["num"], entry["dropped_relations"]) == (len(ids), [])
        assert entry["unknown_share"] == pytest.approx(len(unknown_ids(ids)) / len(ids))
        assert sum(entry["categories"].values()) == len(ids)
    assert manifest.counts["unknown-025"]["requested_share"] == 0.25
    assert manifest.counts["natural"]["requested_share"] is None


def test_targets_are_the_first_gold_answer_or_the_idk_phrase(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    draw_variants(study, VariantsConfig(idk_phrase="No idea"))
    plain, idk = (read_variant(study, name).to_pylist() for name in ("unknown-050", "idk-050"))
    assert [row["target"] for row in plain] == [f"gold {row['question_id']}" for row in plain]
    expected = [{**row, "target": "No idea"} if row["category"] == "Unknown" else row for row in plain]
    assert idk == expected


@pytest.mark.parametrize("nested", [True, False])
def test_row_order_does_not_matter(tmp_path: Path, nested: bool) -> None:
    config = VariantsConfig(nested=nested)
    studies = [write_labelled_study(tmp_path / str(order), SMALL, order=order) for order in (1, 2)]
    for study in studies:
        draw_variants(study, config)
    for name in variant_names(config):
        assert read_variant(studies[0], name).equals(read_variant(studies[1], name)), name


def test_sets_that_are_not_nested_share_rows_with_their_known_set(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, {"P17": (60, 60, 60, 90), "P19": (60, 70, 80, 200)})
    draw_variants(study, VariantsConfig(nested=False))
    sets = {name: read_variant(study, name)["question_id"].to_pylist() for name in variant_names(VariantsConfig())}
    assert not unknown_ids(sets["unknown-010"]) <= unknown_ids(sets["unknown-025"])  # probability below 1e-4
    assert set(sets["known-025"]) == set(sets["unknown-025"]) - unknown_ids(sets["unknown-025"])
    assert sets["idk-050"] == sets["unknown-050"]


def test_finished_step_is_kept_and_other_settings_are_refused(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    first = draw_variants(study, VariantsConfig())
    assert draw_variants(study, VariantsConfig()) == first
    with pytest.raises(StudyError, match=r"drawn with seed 0; the settings now have seed 1, .* choose another --out"):
        draw_variants(study, VariantsConfig(seed=1))


def test_dropped_relations_are_in_the_manifest(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, {**SMALL, "P36": (0, 12, 8, 30)})
    counts = draw_variants(study, VariantsConfig(drop_empty_relations=True)).counts
    assert all(entry["dropped_relations"] == ["P36"] for entry in counts.values())
    assert all(set(entry["relations"]) == set(SMALL) for entry in counts.values())


def test_refused_draw_leaves_no_manifest(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, {**SMALL, "P36": (0, 12, 8, 30)})
    with pytest.raises(VariantError):
        draw_variants(study, VariantsConfig())
    with pytest.raises(StudyError, match="not finished"):
        require_manifest(study.child("variants"), "variants")
    # The fix in the message must work in the same folder.
    assert draw_variants(study, VariantsConfig(drop_empty_relations=True)).counts


def test_unknown_name_is_refused_with_the_names(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    with pytest.raises(StudyError, match="run `slick variants`"):
        read_variant(study, "natural")
    draw_variants(study, VariantsConfig(unknown_shares=(0.5,), known_shares=(), idk_shares=(), single_categories=False))
    with pytest.raises(VariantError, match="has no variant 'unknown-50'; it has unknown-050, natural"):
        read_variant(study, "unknown-50")


def test_annotation_of_other_questions_is_refused(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    finish_step(study.child("questions"), "questions", identity="q2")
    with pytest.raises(StudyError, match=r"annotate was made from questions q1, .* is now q2"):
        draw_variants(study, VariantsConfig())


def test_unfinished_annotation_is_refused(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    study.child("annotate").delete("manifest.json")
    with pytest.raises(StudyError, match=r"annotate is not finished: .* run `slick annotate`"):
        draw_variants(study, VariantsConfig())


@pytest.mark.parametrize("category", [None, "unknown", "Known"])
def test_invalid_category_is_refused(tmp_path: Path, category: str | None) -> None:
    study = write_labelled_study(tmp_path, SMALL, categories={"P17-Unknown-3": category})
    message = (
        "category has no value in 1 of"
        if category is None
        else f"category holds {category!r}, expected one of HighlyKnown"
    )
    with pytest.raises(StudyError, match=message):
        draw_variants(study, VariantsConfig())


def test_repeated_or_missing_question_is_refused(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    folder = study.child("annotate")
    table = folder.read_table("knowledge.parquet")
    folder.write_table("knowledge.parquet", pa.concat_tables([table, table.slice(3, 1)]))
    with pytest.raises(DataError, match="question P17-HighlyKnown-3 occurs twice"):
        draw_variants(study, VariantsConfig())
    folder.write_table("knowledge.parquet", table)
    questions = study.child("questions")
    questions.write_table("part-00000.parquet", questions.read_table("part-00000.parquet").slice(1))
    with pytest.raises(DataError, match="P17-HighlyKnown-0 is not a training question of"):
        draw_variants(study, VariantsConfig())


def test_knowledge_table_without_training_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VariantError, match="no in-distribution training questions"):
        draw_variants(write_labelled_study(tmp_path, {}), VariantsConfig())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--drop-empty-relations", "--min-per-relation", "5"], {"drop_empty_relations": True, "min_per_relation": 5}),
        (["--size-rule", "pools", "--no-single-categories"], {"size_rule": "pools", "single_categories": False}),
        (["--size-per-relation", "7"], {"size_per_relation": 7}),
        (
            ["--unknown-shares", "0", "0.5", "--known-shares", "--idk-shares"],
            {"unknown_shares": (0.0, 0.5), "idk_shares": ()},
        ),
    ],
)
def test_flags_in_messages_exist(flags: list[str], expected: dict[str, Any]) -> None:
    config = parse_config(VariantsConfig(), flags, "slick variants paper")
    assert {name: getattr(config, name) for name in expected} == expected


def test_invalid_flag_value_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match=r"got 50\.0; 50 percent is 0\.5"):
        parse_config(VariantsConfig(), ["--unknown-shares", "50"], "slick variants paper")


def test_prompts_and_targets_are_in_nfc(tmp_path: Path) -> None:
    pairs = []
    for form in ("NFC", "NFD"):
        study = write_labelled_study(tmp_path / form, SMALL)
        folder = study.child("questions")
        rows = folder.read_table("part-00000.parquet").to_pylist()
        for row in rows:
            row["subject"] = None
            row["split"] = "dev" if row["question_id"].startswith("test-1") else row["split"]
            row["question"] = unicodedata.normalize(form, f"Né où, {row['question_id']}?")
            row["answers"] = [unicodedata.normalize(form, f"Málaga {row['question_id']}")]
        folder.write_table("part-00000.parquet", pa.Table.from_pylist(rows, schema=QUESTION_SCHEMA))
        draw_variants(study, VariantsConfig())
        rows_by_split = read_rows(study, "unknown-050")
        pairs.append([(row.suffix, row.target) for split in ("train", "dev", "test") for row in rows_by_split[split]])
        pairs.append([(row["prompt"], row["target"]) for row in read_variant(study, "unknown-050").to_pylist()])
        replay = read_replay_rows(study, "unknown-050", 3, seed=0)
        assert all(
            row.accepted == (unicodedata.normalize(form, row.target),) for row in [*rows_by_split["train"], *replay]
        )
    assert pairs[:2] == pairs[2:]
    assert all(unicodedata.is_normalized("NFC", text) for pair in pairs[0] + pairs[1] for text in pair)


def _draw(study: str, start: Callable[[], object], delay: float, results: Any) -> None:
    start()
    time.sleep(delay)
    try:
        results.put(len(draw_variants(Folder(study), VariantsConfig()).counts))
    except StudyError as error:
        results.put(str(error))


def test_concurrent_draws_leave_a_consistent_study(tmp_path: Path) -> None:
    """The second draw is refused by the lock or finds the finished sets; every manifest has its sets."""
    context = multiprocessing.get_context("fork")
    for attempt in range(6):
        study = write_labelled_study(tmp_path / str(attempt), SMALL)
        results, barrier = context.Queue(), context.Barrier(2)
        delays = (0.0, 0.004 * attempt)
        processes = [context.Process(target=_draw, args=(study.uri, barrier.wait, d, results)) for d in delays]
        for process in processes:
            process.start()
        outcomes = [results.get() for _ in processes]
        for process in processes:
            process.join()
        assert 17 in outcomes, outcomes
        assert all(
            result == 17 or "variants is being written by another run: variants" in result for result in outcomes
        ), outcomes
        counts = require_manifest(study.child("variants"), "variants").counts
        assert study.child("variants").names(".parquet") == sorted(f"{name}.parquet" for name in counts)
