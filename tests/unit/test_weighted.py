"""Weighted sets: their rows and weights, and the section of the report."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from slick.errors import SettingsError, VariantError
from slick.report.charts import render_figure
from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.labels import variant_label
from slick.report.loading import load_study
from slick.report.measurements import InsufficientDataError
from slick.report.sections.weights import (
    QUESTION_GROUPS,
    compare_weighted_sets,
    load_unknown_weights,
    summary_text,
    weights_figure,
    weights_numbers_table,
    weights_section,
    weights_table,
)
from slick.study import fingerprint
from slick.types import Category
from slick.variants import VariantsConfig, draw_variants, read_variant, variant_names
from tests.study_builder import SMALL, write_labelled_study

WEIGHTED = VariantsConfig(weighted_shares=(0.5,))


# The drawn set.


@pytest.mark.parametrize("nested", [True, False])
def test_weighted_set_has_the_rows_of_the_sweep_with_weights_by_category(tmp_path: Path, nested: bool) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    config = replace(WEIGHTED, unknown_weight=0.1, weakly_weight=0.5, nested=nested)
    entry = draw_variants(study, config).counts["weighted-050"]
    weighted, plain = read_variant(study, "weighted-050"), read_variant(study, "unknown-050")
    assert weighted.drop_columns("weight") == plain
    expected = {Category.UNKNOWN: 0.1, Category.WEAKLY_KNOWN: 0.5}
    assert weighted["weight"].to_pylist() == [expected.get(c, 1.0) for c in weighted["category"].to_pylist()]
    assert set(weighted["category"].to_pylist()) >= {"HighlyKnown", "WeaklyKnown", "Unknown"}
    assert (entry["kind"], entry["requested_share"]) == ("weighted", 0.5)
    variants = load_study(study).variants
    assert variant_label(variants["weighted-050"]) == "D, 50 % Unknown, weighted"
    assert [v.name for v in variants.values() if v.kind == "unknown" and v.share == 0.5] == ["unknown-050"]
    assert load_unknown_weights(study) == {"weighted-050": pytest.approx(0.1)}


def test_other_sets_have_no_column_of_weights(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    draw_variants(study, WEIGHTED)
    for name in set(variant_names(WEIGHTED)) - {"weighted-050"}:
        assert read_variant(study, name).column_names == ["question_id", "category", "prompt", "target"]


def test_identity_without_weighted_sets_is_unchanged() -> None:
    """A study without weighted sets keeps its fingerprint, whatever the weights are."""
    plain = VariantsConfig()
    assert plain.identity() == VariantsConfig(unknown_weight=0.7, weakly_weight=0.2).identity()
    assert not {"weighted_shares", "unknown_weight", "weakly_weight"} & plain.identity().keys()
    identities = [fingerprint(replace(WEIGHTED, unknown_weight=weight).identity()) for weight in (0.25, 0.5)]
    assert len({*identities, fingerprint(plain.identity())}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighted_shares": (0.0,)}, "weighted_shares must be shares of whole percent from 0.01 to 0.99"),
        ({"weighted_shares": (1.0,)}, "weighted_shares must be shares of whole percent from 0.01 to 0.99"),
        ({"unknown_weight": -0.5}, "unknown_weight must be in"),
        ({"unknown_weight": math.nan}, "unknown_weight must be in"),
        ({"weakly_weight": math.inf}, "weakly_weight must be in"),
        ({"p_correct_shares": (1.0,)}, "p_correct_shares must be shares of whole percent from 0.01 to 0.99"),
        ({"min_p_correct_weight": 1.5}, "min_p_correct_weight is a share"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        VariantsConfig(**settings)


def test_set_with_weight_0_in_all_rows_is_not_drawn(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, {"P17": (0, 0, 8, 8)})
    config = VariantsConfig(weighted_shares=(0.5,), single_categories=False, size_rule="pools")
    with pytest.raises(VariantError, match=r"weighted-050 would have weight 0 in all of its 8 rows.*--unknown-weight"):
        draw_variants(study, replace(config, unknown_weight=0.0, weakly_weight=0.0))
    assert draw_variants(study, replace(config, unknown_weight=0.0)).counts["weighted-050"]["num"] == 8


# Weights by P_Correct.


def test_rows_are_weighted_by_the_share_of_all_their_answers(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    config = VariantsConfig(p_correct_shares=(0.5,))
    entry = draw_variants(study, config).counts["p-correct-050"]
    weighted, plain = read_variant(study, "p-correct-050"), read_variant(study, "unknown-050")
    assert weighted.drop_columns("weight") == plain
    expected = {"HighlyKnown": 0.9, "MaybeKnown": 0.5, "WeaklyKnown": 0.1, "Unknown": 0.05}
    assert weighted["weight"].to_pylist() == [expected[c] for c in weighted["category"].to_pylist()]
    assert set(weighted["category"].to_pylist()) == expected.keys()
    assert (entry["kind"], entry["requested_share"]) == ("p-correct", 0.5)
    assert variant_label(load_study(study).variants["p-correct-050"]) == "D, 50 % Unknown, weighted by P_Correct"


def test_identity_without_sets_weighted_by_p_correct_is_unchanged() -> None:
    plain = VariantsConfig()
    assert plain.identity() == VariantsConfig(min_p_correct_weight=0.5).identity()
    assert not {"p_correct_shares", "min_p_correct_weight"} & plain.identity().keys()
    assert VariantsConfig(p_correct_shares=(0.5,), min_p_correct_weight=0.5).identity() != plain.identity()


def test_p_correct_of_incomplete_answers_is_refused(tmp_path: Path) -> None:
    """In labels mode, not all samples of a question are drawn; the gold estimator draws none."""
    study = write_labelled_study(tmp_path, SMALL)
    table = study.child("annotate").read_table("knowledge.parquet")
    missing = [None if category == "HighlyKnown" else 0.1 for category in table["category"].to_pylist()]
    at = table.schema.get_field_index("p_correct_sampled")
    study.child("annotate").write_table(
        "knowledge.parquet", table.set_column(at, "p_correct_sampled", pa.array(missing, pa.float64()))
    )
    config = VariantsConfig(p_correct_shares=(0.5,))
    with pytest.raises(VariantError, match=r"p-correct-050 needs the share .* of [1-9]\d* of its .* --mode full and"):
        draw_variants(study, config)
    draw_variants(study, VariantsConfig())


# The section of the report.

NUM = 400
ACCURACY = {"unknown-050": 0.3, "known-050": 0.5, "weighted-050": 0.6}


def make_run(variant: str, seed: int) -> Run:
    rng = np.random.default_rng([seed, *variant.encode()])
    kept = {}
    for epoch, split in ((epoch, split) for epoch in (1, 2) for split in ("test", "ood")):
        categories = np.array([str(Category.UNKNOWN if i % 2 else Category.MAYBE_KNOWN) for i in range(NUM)])
        ids = np.array([f"{split}-{i:03d}" for i in range(NUM)])
        hit = rng.random(NUM) < (ACCURACY[variant] if epoch == 2 else 0.5)
        kept[epoch, split] = Predictions(question_ids=ids, categories=categories, hit=hit)
    groups = set(QUESTION_GROUPS.values())
    masks = {(split, category): kept[1, split].mask(category) for split, category in groups}
    return Run(
        run_id=f"{variant}-seed{seed}",
        variant=variant,
        seed=seed,
        epochs=np.array([1, 2]),
        accuracy={
            key: 100 * np.array([kept[epoch, key[0]].hit[mask].mean() for epoch in (1, 2)])
            for key, mask in masks.items()
        },
        num={key: int(mask.sum()) for key, mask in masks.items()},
        early_epoch=1,
        predictions=kept,
    )


def make_data(*names: str, weight: float | None = 0.25) -> StudyData:
    variants = {name: Variant(name=name, kind=name.split("-")[0], share=0.5, num=40) for name in names}
    runs = tuple(make_run(name, 0) for name in names)
    parts = {load_unknown_weights: {} if weight is None else {"weighted-050": weight}}
    return StudyData(variants=variants, runs=runs, loaded=parts, durations=(2,))


def test_section_compares_weighted_rows_with_full_weight_and_with_dropping_them() -> None:
    data = make_data(*ACCURACY)
    comparisons = compare_weighted_sets(data)
    assert [(c.group, c.checkpoint) for c in comparisons] == [
        (group, checkpoint) for group in QUESTION_GROUPS for checkpoint in ("early_stop", "convergence")
    ]
    late = comparisons[1]
    for kind, baseline in (("unknown", "unknown-050"), ("known", "known-050")):
        accuracy, change = late.baselines[kind]
        assert accuracy == data.accuracy(baseline, "convergence")
        assert change == data.difference(("weighted-050", "convergence"), (baseline, "convergence"))
        assert change.value == pytest.approx(100 * (0.6 - ACCURACY[baseline]), abs=8)
    table = weights_table(comparisons)
    assert table.columns[3:8] == (
        "weighted", "full weight", "dropped", "weighted - full weight", "weighted - dropped"
    )  # fmt: skip
    assert len(weights_numbers_table(comparisons).rows) == 2 * len(table.rows) == 16
    assert "minus full weight" in render_figure("weights", "alt", weights_figure(comparisons)).svg
    text = summary_text(data)
    assert text.startswith("With weight 0.25 for the 50 % of Unknown rows, test accuracy at convergence is")
    assert " from training on them with full weight and +" in text
    assert not weights_section(data).is_empty


def test_section_without_the_dropped_set_compares_with_full_weight_only() -> None:
    data = make_data("unknown-050", "weighted-050", weight=None)
    comparisons = compare_weighted_sets(data)
    assert all(set(comparison.baselines) == {"unknown"} for comparison in comparisons)
    assert {row[5] for row in weights_table(comparisons).rows} == {None}
    assert summary_text(data).startswith("With a lower weight for the 50 %")
    assert "dropping" not in summary_text(data)
    assert "minus dropped" not in render_figure("weights", "alt", weights_figure(comparisons)).svg


def test_section_without_runs_states_what_it_needs() -> None:
    for data in (make_data("unknown-050", "known-050"), make_data("weighted-050")):
        with pytest.raises(InsufficientDataError, match=r"needs finished runs of a set with weighted Unknown rows"):
            compare_weighted_sets(data)
        assert summary_text(data) == ""
        assert weights_section(data).is_empty
