"""Points of HighlyKnown accuracy lost: values, epochs, errors, and missing data."""

from dataclasses import replace

import numpy as np
import pytest

from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.measurements import InsufficientDataError
from slick.report.sections.retention import (
    category_changes,
    category_changes_table,
    known_only_ablation,
    retention_curves,
    retention_epochs_table,
    retention_section,
    retention_surface,
    retention_table,
)
from slick.types import Category

CATEGORIES = [str(category) for category in Category]
HIGHLY, MAYBE, WEAKLY, UNKNOWN = CATEGORIES
ROWS = 400


def run(variant: str, curves: dict[str, list[float]], *, split: str = "test", seed: int = 0) -> Run:
    accuracy = {(split, name): np.array(values, dtype=float) for name, values in curves.items()}
    return Run(
        run_id=f"{variant}-seed{seed}",
        variant=variant,
        seed=seed,
        epochs=np.arange(1, 1 + len(next(iter(curves.values())))),
        accuracy=accuracy,
        num=dict.fromkeys(accuracy, ROWS),
        early_epoch=1,
    )


def study(*runs: Run) -> StudyData:
    result = {run.variant for run in runs}
    variants = {}
    for name in result:
        kind, share = name.split("-")
        variants[name] = Variant(name=name, kind=kind, share=int(share) / 100, num=100)
    return StudyData(variants=variants, runs=runs, durations=(2, 4))


PLANTED = study(
    run("unknown-000", {HIGHLY: [80, 90, 88, 85], WEAKLY: [5, 6, 9, 10], UNKNOWN: [0, 0, 1, 2]}),
    run("unknown-050", {HIGHLY: [90, 80, 60, 50], WEAKLY: [5, 4, 3, 1], UNKNOWN: [0, 1, 2, 4]}),
    run("known-050", {HIGHLY: [80, 84, 84, 80]}),
)


def test_losses_are_counted_from_the_best_epoch() -> None:
    none, half = retention_curves(PLANTED)
    assert (none.share, none.best_epoch, none.best_accuracy.value) == (0.0, 2, 90.0)
    assert [cell.value for cell in none.points_lost] == [10, 0, 2, 5]
    assert (half.best_epoch, [cell.value for cell in half.points_lost]) == (1, [0, 10, 30, 40])
    assert half.points_lost_at(3).value == 30
    assert half.points_lost[0].se == 0


def test_without_predictions_epochs_are_treated_as_independent() -> None:
    half = retention_curves(PLANTED)[1]
    apart = np.sqrt(0.9 * 0.1 / ROWS + 0.5 * 0.5 / ROWS) * 100
    assert half.points_lost_at(4).se == pytest.approx(apart, rel=0.02)


def test_with_predictions_the_error_is_paired() -> None:
    ids, categories = np.array([f"q{i}" for i in range(ROWS)]), np.full(ROWS, HIGHLY)
    first, last = np.arange(ROWS) < 360, np.arange(ROWS) < 200
    kept = {
        (epoch, "test"): Predictions(question_ids=ids, categories=categories, hit=hit)
        for epoch, hit in ((1, first), (4, last))
    }
    data = replace(PLANTED, runs=(replace(PLANTED.runs[1], predictions=kept),))
    (half,) = retention_curves(data)
    assert half.points_lost_at(4).value == 40
    assert half.points_lost_at(4).se == pytest.approx(100 * np.sqrt(0.4 * 0.6 / (ROWS - 1)), rel=1e-3)


def test_from_three_seeds_the_error_includes_the_spread_over_seeds() -> None:
    falls, t_ratio = (10, 40, 70), 4.3027 / 1.96  # of Student's t with 2 degrees of freedom
    data = study(*(run("unknown-100", {HIGHLY: [90, 90 - fall]}, seed=seed) for seed, fall in enumerate(falls)))
    (curve,) = retention_curves(data)
    assert curve.points_lost[-1].value == 40
    assert curve.points_lost[-1].se == pytest.approx(t_ratio * np.std(falls, ddof=1) / np.sqrt(3), rel=1e-4)
    assert curve.points_lost[-1].num_seeds == 3


def test_ablation_compares_with_the_same_set_without_unknown_rows() -> None:
    none, half = known_only_ablation(PLANTED)
    assert (none.points_lost_known, none.cost) == (None, None)
    assert half.points_lost_known is not None
    assert half.cost is not None
    assert (half.points_lost.value, half.points_lost_known.value, half.cost.value) == (40, 4, 30)


def test_changes_of_other_categories_use_the_same_epochs() -> None:
    result = {curve.share: category_changes(PLANTED, curve) for curve in retention_curves(PLANTED)}
    assert {name: cell.value for name, cell in result[0.0].items()} == {HIGHLY: -5, WEAKLY: 4, UNKNOWN: 2}
    assert {name: cell.value for name, cell in result[0.5].items()} == {HIGHLY: -40, WEAKLY: -4, UNKNOWN: 4}


def test_section_reports_losses() -> None:
    shown = retention_section(PLANTED)
    assert not [exhibit.missing for exhibit in shown.exhibits if exhibit.missing]
    assert "D with 0 % Unknown rows loses 5.0 (" in shown.result
    assert "D with 50 % loses 40.0 (" in shown.result
    assert "Without its Unknown rows, D with 50 % loses 4.0 (" in shown.result
    table = {row[0]: row for row in retention_table(PLANTED).rows}
    assert table["0 %"][1:2] + table["0 %"][3:] == ("90.0 (epoch 2)", None, None, None)
    assert str(table["50 %"][4]).startswith("30.0 (")
    losses = {(row[0], row[2]): row[3] for row in retention_epochs_table(PLANTED).rows}
    assert len(losses) == 12
    assert (losses["unknown-050", 4], losses["known-050", 4]) == (40, 4)
    assert len(category_changes_table(PLANTED).rows) == 6


def test_table_includes_out_of_distribution_losses() -> None:
    both = PLANTED.runs[1]
    ood = run("unknown-050", {HIGHLY: [50, 50, 45, 47]}, split="ood")
    whole = replace(both, accuracy={**both.accuracy, **ood.accuracy}, num={**both.num, **ood.num})
    (row,) = retention_table(replace(PLANTED, runs=(whole,))).rows
    assert str(row[-1]).startswith("3.0 (")


def test_missing_ablation_or_share_omits_only_its_exhibits() -> None:
    data = replace(PLANTED, runs=PLANTED.runs[:1])
    missing = [exhibit.missing for exhibit in retention_section(data).exhibits if exhibit.missing]
    assert len(missing) == 2
    assert any("two shares" in str(why) for why in missing)
    assert any("kind known" in str(why) for why in missing)
    with pytest.raises(InsufficientDataError, match="two training lengths"):
        retention_surface(retention_curves(PLANTED), (2,))


def test_missing_highlyknown_questions_are_reported() -> None:
    untested = study(run("unknown-050", {"all": [50, 40]}))
    for data, why in ((StudyData(), "needs runs"), (untested, "no test accuracy of HighlyKnown rows")):
        shown = retention_section(data)
        assert shown.is_empty
        assert all(why in str(exhibit.missing) for exhibit in shown.exhibits[:2])
        assert "loses" not in shown.result
    holes = study(run("unknown-050", {HIGHLY: [50, float("nan"), 40]}))
    with pytest.raises(InsufficientDataError, match="at every epoch"):
        retention_curves(holes)
