"""The grid of a sweep and the trainings that cover it."""

import itertools
import random

import pytest

from slick.errors import SettingsError
from tuning.grid import GridConfig, Trajectory, pack, points, summary, trajectories

GRID = GridConfig(
    variants=("unknown-000", "unknown-100"),
    seeds=(0, 7),
    epochs=(2, 5, 20),
    policies=("fixed", "fixed(5)", "best_dev", "patience(3)"),
)


def test_one_training_for_each_variant_and_seed_to_the_largest_budget() -> None:
    runs = trajectories(GRID)
    assert [run.run_id for run in runs] == [
        "unknown-000-seed0",
        "unknown-000-seed7",
        "unknown-100-seed0",
        "unknown-100-seed7",
    ]
    assert {run.epochs for run in runs} == {20}


def test_points_are_the_cross_product_of_what_exists() -> None:
    of_one = [(p.epochs, str(p.policy)) for p in points(GRID) if p.run_id == "unknown-100-seed7"]
    assert of_one == [
        (2, "fixed(2)"),  # fixed(5) has no point here
        (2, "best_dev"),
        (2, "patience(3)"),
        (5, "fixed(5)"),  # `fixed` and `fixed(5)` are one point
        (5, "best_dev"),
        (5, "patience(3)"),
        (20, "fixed(20)"),
        (20, "fixed(5)"),
        (20, "best_dev"),
        (20, "patience(3)"),
    ]
    assert len(points(GRID)) == 4 * len(of_one)


def test_points_are_covered_by_trajectories_and_none_is_there_twice() -> None:
    longest = {run.run_id: run.epochs for run in trajectories(GRID)}
    found = points(GRID)
    assert len(set(found)) == len(found)
    assert all(point.epochs <= longest[point.run_id] for point in found)


def test_the_defaults_are_the_papers_seventeen_runs() -> None:
    assert len(trajectories(GridConfig())) == 17
    assert len(points(GridConfig())) == 17 * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": ()}, "no variants"),
        ({"seeds": ()}, "no seeds"),
        ({"epochs": ()}, "no epochs"),
        ({"policies": ()}, "no policies"),
        ({"variants": ("natural", "natural")}, "names natural more than once among its variants"),
        ({"seeds": (1, 2, 1)}, "names 1 more than once"),
        ({"epochs": (0,)}, "epochs must be 1 or more, got 0"),
        ({"epochs": (5, -3)}, "got -3"),
        ({"seeds": (-1,)}, "seeds must be 0 or more"),
        ({"policies": ("best",)}, "no stopping policy 'best'"),
        ({"epochs": (5, 10), "policies": ("fixed(11)",)}, r"fixed\(11\) lies beyond every epoch budget"),
    ],
)
def test_an_impossible_grid_is_refused(settings: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        GridConfig(**settings)  # type: ignore[arg-type]


def runs_costing(costs: list[float]) -> tuple[list[Trajectory], dict[str, float]]:
    runs = [Trajectory(variant="natural", seed=seed, epochs=3) for seed in range(len(costs))]
    return runs, {run.run_id: cost for run, cost in zip(runs, costs, strict=True)}


@pytest.mark.parametrize(
    ("costs", "num_packs", "loads"),
    [
        ([5, 4, 3, 3, 3], 2, [10, 8]),
        ([1, 1, 1], 3, [1, 1, 1]),
        ([1, 1], 5, [1, 1]),
        ([0, 0, 0], 3, [0, 0, 0]),  # free ones are spread too
        ([], 2, []),
        ([2, 9, 2], 1, [13]),
    ],
)
def test_packing(costs: list[float], num_packs: int, loads: list[float]) -> None:
    runs, cost_of = runs_costing(costs)
    packs = pack(runs, cost_of, num_packs)
    assert [sum(cost_of[run.run_id] for run in each) for each in packs] == loads
    assert all(packs)
    assert sorted(itertools.chain(*packs)) == sorted(runs)


def test_packing_is_near_the_best_possible_and_does_not_depend_on_the_order() -> None:
    generator = random.Random(0)
    for _ in range(30):
        runs, cost_of = runs_costing([generator.randint(1, 20) for _ in range(7)])
        packs = pack(runs, cost_of, 3)
        assert pack(runs[::-1], cost_of, 3) == packs
        best = min(
            max(sum(cost_of[run.run_id] for run, to in zip(runs, where, strict=True) if to == k) for k in range(3))
            for where in itertools.product(range(3), repeat=7)
        )
        longest = max(sum(cost_of[run.run_id] for run in each) for each in packs)
        assert longest <= (4 / 3 - 1 / 9) * best  # Graham's bound for three workers


def test_packing_needs_a_worker() -> None:
    with pytest.raises(SettingsError, match="at least one worker, got 0"):
        pack(trajectories(GRID), {}, 0)


def test_the_summary_counts_trainings_and_points() -> None:
    assert summary(GRID) == (
        "2 variants x 2 seeds = 4 trainings of 20 epochs; with 3 epoch budgets and 4 policies 40 points"
    )
