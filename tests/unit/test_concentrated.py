"""Concentrated sets: the size and share of the sweep's sets, with Unknown rows that fill whole relations."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.common import parse_config
from jobs.presets import SWEEP, VARIANTS, demo_study
from jobs.study import resolve
from slick.errors import SettingsError, VariantError
from slick.report.loading import load_study
from slick.report.sections.concentration import load_test_ids
from slick.storage import Folder
from slick.types import KNOWN_CATEGORIES, Category
from slick.variants import VariantsConfig, draw_variants, read_variant, variant_names
from slick.variants.config import relation_sizes, variant_specs
from slick.variants.sampling import RowOrder, concentrated_draws, plan_draws, select_rows
from tests.study_builder import finish_step, write_knowledge, write_questions

SIZES = {f"P{number}": 6 + 5 * number for number in range(8)}
TWO_SHARES = VariantsConfig(concentrated_shares=(0.25, 0.5), single_categories=False)


def make_pools(sizes: dict[str, int], unknown: int = 3) -> dict[str, dict[Category, list[str]]]:
    """Pools with `unknown` times as many Unknown rows as a relation needs, and three times as many Known rows."""
    return {
        relation: {
            c: [f"{relation}-{c}-{i}" for i in range(size * (unknown if c == Category.UNKNOWN else 1))]
            for c in Category
        }
        for relation, size in sizes.items()
    }


def draw_sets(config: VariantsConfig, *, sizes: dict[str, int] = SIZES) -> dict[str, list[str]]:
    pools = make_pools(sizes)
    planned = plan_draws(variant_specs(config), pools, relation_sizes(pools, config)[0], config.seed)
    return {name: select_rows(needed, pools, RowOrder(config.seed)) for name, needed in planned.items()}


def count_by_relation(question_ids: list[str]) -> dict[str, Counter[bool]]:
    """Relation -> number of Unknown (True) and Known (False) rows."""
    counts: dict[str, Counter[bool]] = {}
    for question_id in question_ids:
        relation, category, _ = question_id.split("-")
        counts.setdefault(relation, Counter())[category == Category.UNKNOWN] += 1
    return counts


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("percent", [25, 50])
def test_concentrated_set_has_the_counts_of_the_sweep_set_in_pure_relations(seed: int, percent: int) -> None:
    sets = draw_sets(VariantsConfig(concentrated_shares=(0.25, 0.5), single_categories=False, seed=seed))
    spread, concentrated = (count_by_relation(sets[f"{kind}-{percent:03d}"]) for kind in ("unknown", "concentrated"))
    assert {r: mix.total() for r, mix in concentrated.items()} == {r: mix.total() for r, mix in spread.items()} == SIZES
    assert sum(mix[True] for mix in concentrated.values()) == sum(mix[True] for mix in spread.values())
    assert sum(len(mix) == 2 for mix in concentrated.values()) <= 1
    assert all(len(mix) == 2 for mix in spread.values())


def test_seed_chooses_the_filled_relations() -> None:
    def filled(seed: int) -> frozenset[str]:
        rows = draw_sets(VariantsConfig(concentrated_shares=(0.5,), seed=seed))["concentrated-050"]
        return frozenset(r for r, mix in count_by_relation(rows).items() if not mix[False])

    assert filled(0) == filled(0)
    assert len({filled(seed) for seed in range(6)}) > 1


def test_rows_are_those_of_unknown_000_and_unknown_100() -> None:
    sets = {name: set(rows) for name, rows in draw_sets(TWO_SHARES).items()}
    known = {name: {i for i in rows if "-Unknown-" not in i} for name, rows in sets.items()}
    for name in ("concentrated-025", "concentrated-050"):
        assert sets[name] - known[name] <= sets["unknown-100"]
        assert known[name] <= sets["unknown-000"]
    assert sets["concentrated-025"] - known["concentrated-025"] < sets["concentrated-050"]
    assert known["concentrated-050"] < known["concentrated-025"]


def test_relation_with_few_unknown_rows_has_all_of_them() -> None:
    pools, sizes = (
        make_pools({"P1": 5, "P2": 5, "P3": 5, "P4": 5}, unknown=1),
        dict.fromkeys(("P1", "P2", "P3", "P4"), 8),
    )
    draws = concentrated_draws(50, pools, sizes, seed=0)
    unknown = sorted(draw.num for pool_draws in draws.values() for draw in pool_draws if draw.pool != KNOWN_CATEGORIES)
    assert unknown == [1, 5, 5, 5]
    assert {sum(draw.num for draw in pool_draws) for pool_draws in draws.values()} == {8}


def test_too_few_relations_are_refused_with_a_fix() -> None:
    with pytest.raises(VariantError, match=r"concentrated-050: 1 relations .* one with only Unknown and") as e:
        draw_sets(VariantsConfig(concentrated_shares=(0.5,)), sizes={"P1": 12})
    assert "--concentrated-shares" in str(e.value)
    draw_sets(VariantsConfig(concentrated_shares=(0.5,)), sizes={"P1": 12, "P2": 12})


@pytest.mark.parametrize("share", [0.0, 1.0, 0.123, float("nan")])
def test_shares_are_whole_percent_between_0_and_1(share: float) -> None:
    with pytest.raises(SettingsError, match=r"concentrated_shares must be shares of whole percent from 0.01 to 0.99"):
        VariantsConfig(concentrated_shares=(share,))


def test_only_the_demo_preset_has_concentrated_sets() -> None:
    assert "concentrated-050" in variant_names(VARIANTS["demo"]())
    assert "concentrated-050" in SWEEP["demo"]().grid.variants
    assert "concentrated-050" in resolve(demo_study()).sweep.grid.variants
    assert len(variant_names(VARIANTS["paper"]())) == len(SWEEP["paper"]().grid.variants) == 17
    config = parse_config(VARIANTS["paper"](), ["--concentrated-shares", "0.25"], "slick variants")
    assert variant_names(config)[-1] == "concentrated-025"


def test_identity_without_concentrated_sets_is_unchanged() -> None:
    """A finished study is not repeated; the setting is part of the identity only if it is used."""
    assert "concentrated_shares" not in VariantsConfig().identity()
    assert TWO_SHARES.identity()["concentrated_shares"] == (0.25, 0.5)


@pytest.mark.parametrize("nested", [True, False])
def test_concentrated_set_is_drawn_beside_the_sweep(tmp_path: Path, nested: bool) -> None:
    study = write_study(tmp_path)
    manifest = draw_variants(study, VariantsConfig(concentrated_shares=(0.5,), nested=nested))
    spread, concentrated = manifest.counts["unknown-050"], manifest.counts["concentrated-050"]
    assert (concentrated["kind"], concentrated["num"]) == ("concentrated", spread["num"])
    assert concentrated["unknown_share"] == spread["unknown_share"]
    table = read_variant(study, "concentrated-050")
    assert table["target"].to_pylist() == [f"gold {i}" for i in table["question_id"].to_pylist()]
    variants = load_study(study).variants
    assert variants["concentrated-050"].kind == "concentrated"
    assert variants["concentrated-050"].relations == concentrated["relations"]
    assert [v.name for v in variants.values() if v.kind == "unknown" and v.share == 0.5] == ["unknown-050"]


def write_study(path: Path) -> Folder:
    """A study with finished questions and annotate steps and the rows of `SIZES`."""
    study = Folder(str(path))
    ids = [i for pool in make_pools(SIZES).values() for ids in pool.values() for i in ids]
    rows = [{"question_id": i, "relation": i.split("-")[0], "category": i.split("-")[1]} for i in ids]
    write_questions(study, rows)
    write_knowledge(study, rows)
    finish_step(study.child("annotate"), "annotate", inputs={"questions": "questions", "model": "m"})
    return study


def test_test_questions_are_loaded_by_relation(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    table = study.child("annotate").read_table("knowledge.parquet")
    splits = ["test" if i % 2 else "train" for i in range(table.num_rows)]
    domains = ["ood" if relation == "P7" else "id" for relation in table["relation"].to_pylist()]
    for name, column in (("split", splits), ("domain", domains)):
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    study.child("annotate").write_table("knowledge.parquet", table)
    draw_variants(study, VariantsConfig(concentrated_shares=(0.5,), unknown_shares=(0.5,), size_per_relation=1))
    epochs = [
        {"epoch": 1, "split": split, "category": "all", "num": 2, "num_correct": 1, "loss": 1.0}
        for split in ("train", "dev", "test")
    ]
    for name in ("unknown-050", "concentrated-050"):
        run = study.child("runs", f"{name}-seed0")
        run.write_table("epochs.parquet", pa.Table.from_pylist(epochs))
        finish_step(run, "finetune", settings={"seed": 0})
    test_ids = load_test_ids(study)
    expected = {
        (r["relation"], r["question_id"]) for r in table.to_pylist() if (r["domain"], r["split"]) == ("id", "test")
    }
    assert {(relation, str(question_id)) for relation, ids in test_ids.items() for question_id in ids} == expected
    assert all(ids.tolist() == sorted(ids) for ids in test_ids.values())
