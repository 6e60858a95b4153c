"""The recommended trial of a sweep, on points with a known result."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from slick.report.data import StudyData, Variant
from slick.report.measurements import InsufficientDataError
from slick.report.recommendation import TrialSpec, recommend, t_interval_over_seeds
from slick.report.statistics.effects import axis_effects


def variants(*shares: float) -> dict[str, Variant]:
    """D and D_Known at each share; only D at 0 and 1."""
    by_name = {}
    for share in shares:
        kinds = ("unknown", "known") if 0 < share < 1 else ("unknown",)
        for kind in kinds:
            name = f"{kind}-{round(100 * share):03d}"
            by_name[name] = Variant(name=name, kind=kind, share=share, num=100)
    return by_name


def point(variant: str, policy: str, dev: float | None, test: float | None, **changes: Any) -> dict[str, Any]:
    """One point; by default, `fixed(n)` stops at n with a budget of n."""
    n = int(policy[6:-1]) if policy.startswith("fixed") else changes.get("epochs", 10)
    values = {"seed": 0, "epochs": n, "stop_epoch": n, "cost_epochs": n} | changes
    return {"variant": variant, "policy": policy, "dev_all": dev, "test_all": test, **values}


def study(points: Iterable[dict[str, Any]], *shares: float) -> StudyData:
    return StudyData(variants=variants(*shares), points=tuple(points))


HALF = [
    point("unknown-050", "fixed(5)", 0.40, 0.38),
    point("unknown-050", "fixed(10)", 0.30, 0.20),
    point("unknown-050", "best_dev", 0.41, 0.35, stop_epoch=3, cost_epochs=10),
    point("unknown-050", "patience(2)", 0.41, 0.34, stop_epoch=3, cost_epochs=5),
    point("known-050", "fixed(5)", 0.50, 0.45),
    point("known-050", "patience(2)", 0.10, 0.36, stop_epoch=2, cost_epochs=4),
    point("known-050", "fixed(10)", 0.50, 0.44),
]


def test_highest_dev_accuracy_is_recommended_and_ties_go_to_the_fewest_epochs() -> None:
    (choice,) = recommend(study(HALF, 0.5)).by_share
    assert choice.trial == TrialSpec(
        "patience(2)", 10, ""
    )  # best_dev has the same accuracy for 10 epochs; fixed(5) is better on test
    assert (choice.dev.value, choice.test.value) == pytest.approx((41.0, 34.0))
    assert (choice.stop_epoch.value, choice.cost_epochs.value) == (3, 5)
    assert choice.longest == 10
    assert (choice.gain.value, choice.saved.value) == pytest.approx((14.0, 5.0))
    assert choice.filtering.value == pytest.approx(
        2.0
    )  # compared with the same policy, not with the best one of D_Known


def test_ties_with_equal_cost_go_to_the_smallest_budget() -> None:
    points = [point("unknown-050", "patience(1)", 0.4, 0.3, epochs=n, stop_epoch=1, cost_epochs=2) for n in (8, 2, 5)]
    points.append(point("unknown-050", "best_dev", 0.4, 0.3, epochs=3, stop_epoch=1, cost_epochs=2))
    (choice,) = recommend(study(points, 0.5)).by_share
    assert choice.trial == TrialSpec("patience(1)", 2, "")


def test_differences_from_rounding_errors_are_ties() -> None:
    dev = {"best_dev": (0.1, 0.2, 0.3), "fixed(2)": (0.3, 0.2, 0.1), "fixed(9)": (0.6, 0.0, 0.0)}
    assert len({float(np.mean(values)) for values in dev.values()}) > 1
    points = [point("unknown-050", p, v, 0.3, seed=s) for p, values in dev.items() for s, v in enumerate(values)]
    (choice,) = recommend(study(points, 0.5)).by_share
    assert choice.trial == TrialSpec("fixed(2)", 2, "")


def test_one_seed_gives_no_intervals() -> None:
    (choice,) = recommend(study(HALF, 0.5)).by_share
    for estimate in (choice.dev, choice.test, choice.gain, choice.saved, choice.filtering):
        assert estimate.value is not None
        assert (estimate.low, estimate.high, estimate.num_seeds) == (None, None, 1)
        assert "one seed" in estimate.missing_reason


def test_differences_are_paired_by_seed_as_in_scipys_t_test() -> None:
    rng = np.random.default_rng(5)
    level = rng.normal(0.4, 0.1, 6)  # the variance between seeds is much larger than the difference
    early, late = level + rng.normal(0.02, 0.003, 6), level
    points = [point("unknown-050", "best_dev", 0.5, early[s], seed=s) for s in range(6)]
    points += [point("unknown-050", "fixed(10)", 0.4, late[s], seed=s) for s in reversed(range(6))]
    (choice,) = recommend(study(points, 0.5)).by_share
    reference = ttest_rel(100 * early, 100 * late).confidence_interval(0.95)
    assert (choice.gain.low, choice.gain.high) == pytest.approx((reference.low, reference.high))
    assert choice.gain.low is not None
    assert choice.test.low is not None
    assert choice.gain.low > 0
    assert choice.test.low < 100 * late.mean()


def test_intervals_have_their_nominal_coverage() -> None:
    rng = np.random.default_rng(6)
    estimates = [t_interval_over_seeds(rng.normal(1.0, 2.0, 3).tolist()) for _ in range(2000)]
    covered = np.mean(
        [
            estimate.low is not None and estimate.high is not None and estimate.low < 1.0 < estimate.high
            for estimate in estimates
        ]
    )
    assert 0.935 <= covered <= 0.965  # nominally 0.95; three standard errors of 2,000 draws are 0.015


def test_filtering_needs_both_known_and_unknown_rows() -> None:
    points = [point(name, "fixed(5)", 0.4, 0.3) for name in ("unknown-000", "unknown-100", "unknown-050")]
    recommendation = recommend(study(points, 0.0, 0.5, 1.0))
    reasons = {choice.share: choice.filtering.missing_reason for choice in recommendation.by_share}
    assert all(choice.filtering.value is None for choice in (*recommendation.by_share, recommendation.overall))
    assert "no Unknown rows" in reasons[0.0]
    assert "no rows would be left" in reasons[1.0]
    assert "no such trial of D_Known" in reasons[0.5]


def test_filtering_needs_the_same_trial_of_d_known() -> None:
    points = [*HALF[:4], HALF[4]]
    (choice,) = recommend(study(points, 0.5)).by_share
    assert choice.trial == TrialSpec("patience(2)", 10, "")
    assert choice.filtering.value is None


def test_paired_difference_needs_common_seeds() -> None:
    points = [point("unknown-050", "fixed(5)", 0.4, 0.3, seed=0), point("known-050", "fixed(5)", 0.4, 0.4, seed=1)]
    (choice,) = recommend(study(points, 0.5)).by_share
    assert (choice.filtering.value, choice.filtering.missing_reason) == (None, "the two trials have no seed in common")


def test_without_dev_accuracy_nothing_is_recommended() -> None:
    points = [{**point, "dev_all": None} for point in HALF]
    (choice,) = recommend(study(points, 0.5)).by_share
    assert choice.trial is None
    for estimate in (choice.dev, choice.test, choice.stop_epoch, choice.gain, choice.saved, choice.filtering):
        assert (estimate.value, estimate.low, estimate.high) == (None, None, None)
        assert "none can be selected" in estimate.missing_reason


def test_trial_without_one_of_the_seeds_is_not_recommended() -> None:
    points = [point("unknown-050", "fixed(5)", 0.3, 0.3, seed=seed) for seed in (0, 1)]
    points.append(point("unknown-050", "best_dev", 0.9, 0.9, seed=1))
    (choice,) = recommend(study(points, 0.5)).by_share
    assert choice.trial == TrialSpec("fixed(5)", 5, "")


def test_gain_needs_a_fixed_training_length() -> None:
    (choice,) = recommend(study([HALF[2], HALF[3]], 0.5)).by_share
    assert choice.longest is None
    assert (choice.gain.value, choice.saved.value) == (None, None)
    assert "no fixed training length" in choice.gain.missing_reason


def test_fixed_length_within_a_longer_budget_is_a_baseline() -> None:
    points = [point("unknown-050", "fixed(4)", 0.3, 0.2, epochs=10), point("unknown-050", "best_dev", 0.4, 0.3)]
    (choice,) = recommend(study(points, 0.5)).by_share
    assert (choice.longest, choice.saved.value) == (4, -6)
    assert choice.gain.value == pytest.approx(10.0)


def test_overall_recommendation_has_the_best_mean_over_shares() -> None:
    dev = {"unknown-000": (0.50, 0.48), "unknown-100": (0.10, 0.40)}
    points = [
        point(name, policy, value, value - 0.05)
        for name, values in dev.items()
        for policy, value in zip(("fixed(10)", "fixed(2)"), values, strict=True)
    ]
    recommendation = recommend(study(points, 0.0, 1.0))
    assert [choice.trial and choice.trial.policy for choice in recommendation.by_share] == ["fixed(10)", "fixed(2)"]
    assert recommendation.overall.trial == TrialSpec("fixed(2)", 2, "")
    assert recommendation.overall.dev.value == pytest.approx(44.0)
    assert recommendation.overall.gain.value == pytest.approx(14.0)


def test_training_settings_are_part_of_a_trial() -> None:
    points = [
        point("unknown-050", "fixed(5)", 0.4, 0.40),
        point("unknown-050", "fixed(20)", 0.3, 0.30),
        point("unknown-050", "fixed(5)", 0.6, 0.50, settings="dropout=0.1"),
        point("unknown-050", "fixed(10)", 0.5, 0.45, settings="dropout=0.1"),
        point("known-050", "fixed(5)", 0.4, 0.90),
        point("known-050", "fixed(5)", 0.4, 0.52, settings="dropout=0.1"),
    ]
    (choice,) = recommend(study(points, 0.5)).by_share
    assert choice.trial == TrialSpec("fixed(5)", 5, "dropout=0.1")
    assert choice.longest == 10
    assert choice.gain.value == pytest.approx(5.0)
    assert choice.filtering.value == pytest.approx(2.0)


def test_only_variants_of_the_sweep_are_recommended() -> None:
    natural = Variant(name="natural", kind="natural", share=None, num=100)
    points = (point("natural", "fixed(5)", 0.9, 0.9),)
    with pytest.raises(InsufficientDataError, match="needs a finished sweep"):
        recommend(StudyData(variants={"natural": natural} | variants(0.5), points=points))
    with pytest.raises(InsufficientDataError, match="needs a finished sweep"):
        recommend(StudyData())


def test_settings_tried_at_some_shares_only_are_neither_recommended_nor_an_axis() -> None:
    rows = [
        point(name, policy, dev, dev, settings=settings)
        for name in ("unknown-000", "unknown-050", "unknown-100")
        for policy, dev in (("fixed(5)", 0.4), ("fixed(10)", 0.3))
        for settings, dev in (("", dev), ("learning_rate=1e-05", dev + 0.2))
        if not settings or name != "unknown-050"
    ]
    data = study(rows, 0.0, 0.5, 1.0)
    recommendation = recommend(data)
    assert [choice.trial.settings for choice in (*recommendation.by_share, recommendation.overall) if choice.trial] == [
        ""
    ] * 4
    assert "learning_rate" not in {effect.axis for effect in axis_effects(data).axes}
    complete = study([*rows, *(row | {"variant": "unknown-050"} for row in rows if row["settings"])], 0.0, 0.5, 1.0)
    assert recommend(complete).overall.trial == TrialSpec("fixed(5)", 5, "learning_rate=1e-05")
    assert "learning_rate" in {effect.axis for effect in axis_effects(complete).axes}
