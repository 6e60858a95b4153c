"""Axis effects and response surface, compared with sums of squares computed by hand."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from slick.report.data import StudyData, Variant
from slick.report.measurements import InsufficientDataError
from slick.report.statistics.effects import (
    DEFAULT_LEVEL,
    EPOCHS_AXIS,
    POLICY_AXIS,
    SEED_AXIS,
    SHARE_AXIS,
    axis_effects,
    eta_squared_by_axis,
    response_surface,
)

SHARES = {"unknown-000": 0.0, "unknown-050": 0.5, "unknown-100": 1.0}
VARIANTS = {name: Variant(name=name, kind="unknown", share=share, num=100) for name, share in SHARES.items()}
VARIANTS["natural"] = Variant(name="natural", kind="natural", share=None, num=100)


def accuracy(variant: str, epochs: int, policy: str, seed: int) -> float:
    """Additive effects: 20 points by share, 10 by epochs, 6 by policy and 2 by seed."""
    fall = {"unknown-000": 0.0, "unknown-050": 0.05, "unknown-100": 0.2, "natural": -0.5}[variant]
    return 0.5 - fall - {5: 0.0, 10: 0.1}[epochs] + (0.0 if policy.startswith("fixed") else 0.06) + 0.02 * seed


def points(seeds: tuple[int, ...] = (0, 1)) -> list[dict[str, Any]]:
    result = []
    for variant, epochs, policy, seed in product((*SHARES, "natural"), (5, 10), ("fixed", "best_dev"), seeds):
        name = f"fixed({epochs})" if policy == "fixed" else policy
        result.append(
            {
                "variant": variant,
                "epochs": epochs,
                "policy": name,
                "seed": seed,
                "stop_epoch": epochs if policy == "fixed" else 1,
                "test_all": accuracy(variant, epochs, policy, seed),
            }
        )
    return result


def study(rows: list[dict[str, Any]]) -> StudyData:
    return StudyData(variants=VARIANTS, points=tuple(rows))


def eta_squared(groups: list[Any], values: np.ndarray) -> float:
    """Between-group sum of squares over the total sum of squares, by definition."""
    mean = values.mean()
    between = sum(
        groups.count(level) * (np.mean([v for g, v in zip(groups, values, strict=True) if g == level]) - mean) ** 2
        for level in set(groups)
    )
    return float(between / ((values - mean) ** 2).sum())


def test_simulated_effects_on_a_balanced_grid() -> None:
    effects = axis_effects(study(points()))
    assert effects.balanced
    assert effects.num_points == 3 * 2 * 2 * 2  # without the natural variant, which is not part of the sweep
    spreads = {item.axis: item.effect_size for item in effects.axes}
    assert spreads == pytest.approx({SHARE_AXIS: 20.0, EPOCHS_AXIS: 10.0, POLICY_AXIS: 6.0, SEED_AXIS: 2.0})
    assert effects.residual_share == pytest.approx(0.0, abs=1e-12)
    assert sum(item.share or 0.0 for item in effects.axes) == pytest.approx(1.0)
    shares = {item.axis: item.share or 0.0 for item in effects.axes}
    assert shares[SHARE_AXIS] > shares[EPOCHS_AXIS] > shares[POLICY_AXIS] > shares[SEED_AXIS] > 0
    # Two levels d apart have a variance of d^2 / 4; the three shares, at 0, 5 and 20 points, one of 650 / 9.
    assert shares[EPOCHS_AXIS] / shares[SHARE_AXIS] == pytest.approx((10**2 / 4) / (650 / 9))


def test_balanced_grid_gives_anova_shares() -> None:
    rng = np.random.default_rng(1)
    cells = list(product("abc", "xy", "pqrs"))
    levels = {axis: [cell[i] for cell in cells] for i, axis in enumerate(("first", "second", "third"))}
    values = rng.normal(size=len(cells))
    effects = eta_squared_by_axis(levels, values)
    assert effects.balanced
    for item in effects.axes:
        assert item.share == pytest.approx(eta_squared(levels[item.axis], values))
    assert sum(item.share or 0.0 for item in effects.axes) + effects.residual_share == pytest.approx(1.0)


def test_interactions_are_part_of_the_residual() -> None:
    cells = list(product((0, 1), (0, 1)))
    effects = eta_squared_by_axis(
        {"a": [a for a, _ in cells], "b": [b for _, b in cells]}, np.array([0.0, 1.0, 1.0, 0.0])
    )
    assert [item.share for item in effects.axes] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert effects.residual_share == pytest.approx(1.0)


def test_unbalanced_grid_gives_drop_one_shares() -> None:
    rows = [row for row in points() if not (row["epochs"] == 10 and row["variant"] != "unknown-100")]
    effects = axis_effects(study(rows))
    assert not effects.balanced
    spreads = {item.axis: item.effect_size for item in effects.axes}
    assert spreads == pytest.approx({SHARE_AXIS: 20.0, EPOCHS_AXIS: 10.0, POLICY_AXIS: 6.0, SEED_AXIS: 2.0})
    shares = {item.axis: item.share or 0.0 for item in effects.axes}
    sweep_rows = [row for row in rows if row["variant"] in SHARES]
    expected = eta_squared([row["epochs"] for row in sweep_rows], np.array([row["test_all"] for row in sweep_rows]))
    assert (
        shares[EPOCHS_AXIS] < expected / 2
    )  # all points of 10 epochs have 100 % Unknown rows, which lowers the accuracy too


def test_repeated_combination_is_not_balanced() -> None:
    values = np.array([1.0, 2.0, 3.0, 5.0, 5.5])
    assert eta_squared_by_axis({"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]}, values[:4]).balanced
    assert not eta_squared_by_axis({"a": [0, 0, 1, 1, 1], "b": [0, 1, 0, 1, 1]}, values).balanced


def test_drop_one_sums_of_squares_agree_with_least_squares() -> None:
    a, b = [0, 0, 0, 1, 1], [0, 1, 1, 0, 1]
    values = np.array([1.0, 2.0, 4.0, 3.0, 9.0])
    design = np.column_stack([np.ones(5), a, b])

    def residual(columns: list[int]) -> float:
        part = design[:, columns]
        return float(((values - part @ np.linalg.inv(part.T @ part) @ part.T @ values) ** 2).sum())

    total = residual([0])
    first, second = eta_squared_by_axis({"a": a, "b": b}, values).axes
    assert first.share == pytest.approx((residual([0, 2]) - residual([0, 1, 2])) / total)
    assert second.share == pytest.approx((residual([0, 1]) - residual([0, 1, 2])) / total)


def test_axis_with_one_level_has_no_share() -> None:
    effects = axis_effects(study(points(seeds=(3,))))
    seed = next(item for item in effects.axes if item.axis == SEED_AXIS)
    assert (seed.share, seed.effect_size, seed.num_levels) == (None, None, 1)
    assert "one level" in seed.missing_reason
    assert effects.balanced


def test_collinear_axes_have_no_shares() -> None:
    rows = [row for row in points() if (row["epochs"] == 5) == (row["seed"] == 0)]
    effects = {item.axis: item for item in axis_effects(study(rows)).axes}
    for axis in (EPOCHS_AXIS, SEED_AXIS):
        assert effects[axis].share is None
        assert effects[axis].effect_size is None
        assert "cannot be told apart" in effects[axis].missing_reason
    assert effects[SHARE_AXIS].effect_size == pytest.approx(20.0)


def test_training_settings_are_axes() -> None:
    rows = [{**row, "settings": ""} for row in points()]
    rows += [{**row, "settings": "dropout=0.1;lora_rank=8", "test_all": row["test_all"] - 0.03} for row in points()]
    effects = {item.axis: item for item in axis_effects(study(rows)).axes}
    assert set(effects) == {SHARE_AXIS, EPOCHS_AXIS, POLICY_AXIS, SEED_AXIS, "dropout", "lora_rank"}
    assert effects["dropout"].share is None  # it changes only together with lora_rank
    alone = [{**row, "settings": row["settings"].split(";")[0]} for row in rows]
    (dropout,) = [item for item in axis_effects(study(alone)).axes if item.axis == "dropout"]
    assert (dropout.num_levels, dropout.effect_size) == (2, pytest.approx(3.0))
    assert DEFAULT_LEVEL not in effects


def test_missing_or_constant_points_are_refused() -> None:
    with pytest.raises(InsufficientDataError, match="two points or more"):
        axis_effects(StudyData())
    same = [{**row, "test_all": 0.3} for row in points()]
    with pytest.raises(InsufficientDataError, match="the same at every point"):
        axis_effects(study(same))
    with pytest.raises(InsufficientDataError, match="two points or more"):
        axis_effects(study([{**row, "test_all": None} for row in points()]))


def test_surface_averages_fixed_points_over_seeds() -> None:
    surface = response_surface(study(points()))
    assert (surface.shares, surface.epochs) == ((0.0, 0.5, 1.0), (5, 10))
    expected = [[100 * (accuracy(v, e, "fixed", 0) + accuracy(v, e, "fixed", 1)) / 2 for e in (5, 10)] for v in SHARES]
    assert surface.accuracy_SE == pytest.approx(np.array(expected))
    assert surface.num_seeds_SE.tolist() == [[2, 2]] * 3


def test_empty_cells_are_nan_and_repeated_points_count_once() -> None:
    rows = [row for row in points() if (row["variant"], row["policy"]) != ("unknown-050", "fixed(10)")]
    twice = [{**row, "epochs": 10} for row in rows if row["policy"] == "fixed(5)" and row["seed"] == 1]
    surface = response_surface(study([*rows, *twice]))
    assert np.isnan(surface.accuracy_SE[1, 1])
    assert surface.num_seeds_SE.tolist() == [[2, 2], [2, 0], [2, 2]]
    assert surface.accuracy_SE[0, 0] == pytest.approx(response_surface(study(points())).accuracy_SE[0, 0])


def test_surface_uses_one_training_setting() -> None:
    changed = [{**row, "settings": "dropout=0.1", "test_all": 0.1} for row in points()]
    both = study([*points(), *changed])
    assert response_surface(both).accuracy_SE == pytest.approx(response_surface(study(points())).accuracy_SE)
    assert response_surface(both, "dropout=0.1").accuracy_SE == pytest.approx(np.full((3, 2), 10.0))


@pytest.mark.parametrize(
    "kept",
    [
        lambda row: row["epochs"] == 5,
        lambda row: row["variant"] == "unknown-050",
        lambda row: row["policy"] == "best_dev",
    ],
)
def test_surface_needs_two_shares_and_two_budgets(kept: Any) -> None:
    with pytest.raises(InsufficientDataError, match="two shares of Unknown rows and two epoch budgets or more"):
        response_surface(study([row for row in points() if kept(row)]))
