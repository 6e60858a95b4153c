"""The grid of a sweep and the trainings that cover it."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from slick.errors import SettingsError
from tuning.axes import combinations
from tuning.config import TrainConfig
from tuning.grid import GridConfig, grid_summary, pack_by_cost, points, trajectories
from tuning.sweep import SweepConfig

BASE = TrainConfig()
GRID = GridConfig(
    variants=("unknown-000", "unknown-100"),
    seeds=(0, 7),
    epochs=(2, 5, 20),
    policies=("fixed", "fixed(5)", "best_dev", "patience(3)"),
)


def test_one_trajectory_per_variant_and_seed_to_the_largest_budget() -> None:
    runs = trajectories(GRID, BASE, shared=True)
    assert [run.run_id for run in runs] == [
        "unknown-000-seed0",
        "unknown-000-seed7",
        "unknown-100-seed0",
        "unknown-100-seed7",
    ]
    assert {run.epochs for run in runs} == {20}


def test_points_are_the_cross_product_without_impossible_points() -> None:
    points_of_run = [
        (p.epochs, str(p.policy)) for p in points(GRID, BASE, shared=True) if p.run_id == "unknown-100-seed7"
    ]
    assert points_of_run == [
        (2, "fixed(2)"),  # fixed(5) has no point with this budget
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
    assert len(points(GRID, BASE, shared=True)) == 4 * len(points_of_run)


def test_points_are_unique_and_covered_by_trajectories() -> None:
    longest = {run.run_id: run.epochs for run in trajectories(GRID, BASE, shared=True)}
    grid_points = points(GRID, BASE, shared=True)
    assert len(set(grid_points)) == len(grid_points)
    assert all(point.epochs <= longest[point.run_id] for point in grid_points)


def test_default_grid_has_the_17_runs_of_the_paper() -> None:
    assert len(trajectories(GridConfig(), BASE, shared=True)) == 17
    assert len(points(GridConfig(), BASE, shared=True)) == 17 * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variants": ()}, "no variants"),
        ({"seeds": ()}, "no seeds"),
        ({"epochs": ()}, "no epochs"),
        ({"policies": ()}, "no policies"),
        ({"variants": ("natural", "natural")}, "names natural more than once among its variants"),
        ({"seeds": (1, 2, 1)}, "names 1 more than once"),
        ({"further_seeds": (1, 1)}, "names 1 more than once among its further_seeds"),
        ({"further_seeds": (1, 0)}, "further_seeds names 0, which seeds trains already"),
        ({"epochs": (0,)}, "epochs must be 1 or more, got 0"),
        ({"epochs": (5, -3)}, "got -3"),
        ({"seeds": (-1,)}, "seeds must be 0 or more"),
        ({"policies": ("best",)}, "no stopping policy 'best'"),
        ({"epochs": (5, 10), "policies": ("fixed(11)",)}, r"fixed\(11\) exceeds every epoch budget"),
    ],
)
def test_invalid_grid_is_refused(settings: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        GridConfig(**settings)  # type: ignore[arg-type]


def costs_by_run(costs: list[float]) -> dict[str, float]:
    return {f"natural-seed{seed}": cost for seed, cost in enumerate(costs)}


@pytest.mark.parametrize(
    ("costs", "num_packs", "loads"),
    [
        ([5, 4, 3, 3, 3], 2, [10, 8]),
        ([1, 1, 1], 3, [1, 1, 1]),
        ([1, 1], 5, [1, 1]),
        ([0, 0, 0], 3, [0, 0, 0]),  # runs without cost are distributed too
        ([], 2, []),
        ([2, 9, 2], 1, [13]),
    ],
)
def test_packs_have_balanced_costs(costs: list[float], num_packs: int, loads: list[float]) -> None:
    cost_of = costs_by_run(costs)
    packs = pack_by_cost(cost_of, num_packs)
    assert [sum(cost_of[run] for run in pack) for pack in packs] == loads
    assert all(packs)
    assert sorted(itertools.chain(*packs)) == sorted(cost_of)


def test_packing_is_near_optimal_and_independent_of_order() -> None:
    generator = random.Random(0)
    for _ in range(30):
        cost_of = costs_by_run([generator.randint(1, 20) for _ in range(7)])
        packs = pack_by_cost(cost_of, 3)
        assert pack_by_cost(dict(reversed(cost_of.items())), 3) == packs
        best = min(
            max(
                sum(cost for cost, worker in zip(cost_of.values(), assignment, strict=True) if worker == k)
                for k in range(3)
            )
            for assignment in itertools.product(range(3), repeat=7)
        )
        longest = max(sum(cost_of[run] for run in pack) for pack in packs)
        assert longest <= (4 / 3 - 1 / 9) * best  # Graham's bound for three workers


def test_packing_needs_at_least_one_worker() -> None:
    with pytest.raises(SettingsError, match="at least one worker, got 0"):
        pack_by_cost({"natural-seed0": 1.0}, 0)


def test_summary_counts_trainings_and_points() -> None:
    assert grid_summary(GRID, BASE, shared=True) == (
        "2 variants x 2 seeds = 4 trainings, 80 epochs in all; with 3 epoch budgets and 4 policies 40 points"
    )
    assert grid_summary(GRID, BASE, shared=False).startswith("2 variants x 2 seeds = 12 trainings, 108 epochs in all; ")


def test_further_seeds_are_trained_for_some_variants_at_the_base_settings() -> None:
    grid = GridConfig(
        variants=("unknown-000", "unknown-010", "unknown-100"),
        further_seeds=(1, 2),
        further_seed_variants=("unknown-000", "unknown-100", "unknown-050"),
        axes=("learning_rate=1e-5,1e-4 if variant=unknown-000",),
    )
    runs = [run.run_id for run in trajectories(grid, BASE, shared=True)]
    assert runs == [
        *(f"unknown-000-seed{seed}" for seed in (0, 1, 2)),
        "unknown-000-seed0-learning_rate=0.0001",
        "unknown-010-seed0",
        *(f"unknown-100-seed{seed}" for seed in (0, 1, 2)),
    ]
    assert {point.run_id for point in points(grid, BASE, shared=True)} == set(runs)
    assert "1 seed x 1 to 2 combinations of settings + 4 with further seeds = 8 trainings" in grid_summary(
        grid, BASE, shared=True
    )
    assert GridConfig(further_seed_variants=()).identity() == GridConfig().identity()


def test_unshared_budgets_have_separate_trajectories() -> None:
    runs = trajectories(GRID, BASE, shared=False)
    assert [run.run_id for run in runs[:3]] == [f"unknown-000-seed0-epochs{n}" for n in (2, 5, 20)]
    longest = {run.run_id: run.epochs for run in runs}
    cells = points(GRID, BASE, shared=False)
    assert all(point.epochs == longest[point.run_id] for point in cells)
    assert len(cells) == len(points(GRID, BASE, shared=True))


def test_axes_and_conditions() -> None:
    axes = ("learning_rate=1e-5,1e-4", "lora_rank=0,8 if learning_rate=1e-4", "lora_alpha=8,32 if lora_rank=8")
    chosen = combinations(axes, BASE)
    high = ("learning_rate", 1e-4)
    assert chosen == [
        (),
        (high,),
        (high, ("lora_rank", 8), ("lora_alpha", 8.0)),
        (high, ("lora_rank", 8), ("lora_alpha", 32.0)),
    ]
    grid = GridConfig(variants=("natural",), epochs=(4,), axes=axes)
    runs = trajectories(grid, BASE, shared=True)
    assert [run.run_id for run in runs[:3]] == [
        "natural-seed0",  # the base settings add nothing to the id, so an earlier run is reused
        "natural-seed0-learning_rate=0.0001",
        "natural-seed0-learning_rate=0.0001-lora_rank=8-lora_alpha=8.0",
    ]
    config = runs[2].config(BASE)
    assert (config.learning_rate, config.lora_rank, config.lora_alpha, config.epochs) == (1e-4, 8, 8.0, 4)
    assert {point.settings_text for point in points(grid, BASE, shared=True)} == {
        "",
        "learning_rate=0.0001",
        "learning_rate=0.0001;lora_rank=8;lora_alpha=8.0",
        "learning_rate=0.0001;lora_rank=8;lora_alpha=32.0",
    }


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("learning_rate", "written `NAME=VALUE,VALUE`"),
        ("learning-rate=1", "written `NAME=VALUE,VALUE`"),
        ("rate=1,2", "no setting rate changes results; there are .*learning_rate"),
        ("seed=1,2", "seed is an axis of the grid itself, --grid.seeds"),
        ("epochs=1,2", "epochs is an axis of the grid itself, --grid.epochs"),
        ("policy=fixed,best_dev", "policy is an axis of the grid itself, --grid.policies"),
        ("learning_rate=1e-3..1e-5", "a range must go from a number to a larger number"),
        ("trainable=all..ffn", "a range must go from a number"),
        ("dropout=0.0..0.3:log", "a logarithmic range must begin above 0"),
        ("lora_rank=4..8 if dropout=0.05", "a range takes no condition"),
        ("learning_rate=1e-5..fast", "learning_rate is 'fast', it must be float"),
        ("num_workers=1,2", "no setting num_workers changes results"),
        ("learning_rate=fast", "learning_rate is 'fast', it must be float"),
        ("trainable=all,head", "trainable is 'head', it must be all, attention, ffn"),
        ("lora_rank=8,8", "names a value more than once"),
        ("lora_rank=8 if rate=1", "no setting rate"),
    ],
)
def test_invalid_axis_is_refused(axis: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        GridConfig(axes=(axis,))


def test_invalid_combinations_of_axis_values_are_refused() -> None:
    with pytest.raises(SettingsError, match="lora_rank is 0, so there is no LoRA to scale"):
        SweepConfig(grid=GridConfig(axes=("lora_alpha=8,16",)))
    with pytest.raises(SettingsError, match="dropout is a share"):
        SweepConfig(grid=GridConfig(axes=("dropout=0.0,5",)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"independent": True}, "--independent was given"),
        ({"train": TrainConfig(schedule="cosine")}, "schedule cosine lowers the learning rate towards the last epoch"),
        ({"train": TrainConfig(replay_known=5)}, "5 Known rows are replayed in the last epoch"),
        ({"grid": GridConfig(epochs=(2, 5), axes=("schedule=constant,linear",))}, "schedule linear"),
    ],
)
def test_budgets_share_a_trajectory_unless_results_depend_on_the_number_of_epochs(
    change: dict[str, Any], why: str
) -> None:
    config = replace(SweepConfig(grid=GridConfig(epochs=(2, 5))), **change)
    assert config.independent_reason.startswith(why) if why else not config.independent_reason
    runs = config.trajectories
    assert len({run.epochs for run in runs}) == (2 if why else 1)


FURTHER = (
    "trainable=ffn if variant=unknown-*",
    "replay_known=2*batch_size if variant=unknown-050",
    "lora_rank=8;learning_rate=10*learning_rate if variant=unknown-050",
)


def test_further_settings_are_trained_beside_the_combinations() -> None:
    """They multiply neither with axes nor with further seeds."""
    grid = GridConfig(
        variants=("unknown-050", "natural"),
        seeds=(3,),
        further_seeds=(4,),
        epochs=(2, 5),
        policies=("fixed", "best_dev"),
        axes=("dropout=0.0,0.1",),
        further_settings=FURTHER,
    )
    base = TrainConfig(dropout=0.0, learning_rate=2.2e-4, batch_size=32)
    without = replace(grid, further_settings=())
    runs = trajectories(grid, base, shared=True)
    added = [run for run in runs if run not in trajectories(without, base, shared=True)]
    assert [run.run_id for run in added] == [
        "unknown-050-seed3-trainable=ffn",
        "unknown-050-seed3-replay_known=64-epochs5",
        "unknown-050-seed3-lora_rank=8-learning_rate=0.0022",
    ]
    assert {run.epochs for run in runs} == {5}
    cells = points(grid, base, shared=True)
    assert {point.run_id for point in cells} == {run.run_id for run in runs}
    lengths = {point.settings_text: set() for point in cells}
    for point in cells:
        lengths[point.settings_text].add((point.epochs, str(point.policy)))
    assert lengths["replay_known=64"] == {(5, "fixed(5)"), (5, "best_dev")}, "rows are replayed in the last epoch only"
    assert lengths["lora_rank=8;learning_rate=0.0022"] == lengths[""]
    assert not SweepConfig(grid=grid, train=base).independent_reason, "other trainings still serve all budgets"
    assert "+ 3 with further settings = 8 trainings" in grid_summary(grid, base, shared=True)


def test_further_settings_of_independent_budgets() -> None:
    grid = GridConfig(variants=("unknown-050",), epochs=(2, 5), further_settings=FURTHER[:2])
    runs = trajectories(grid, BASE, shared=False)
    assert [run.run_id for run in runs] == [
        "unknown-050-seed0-epochs2",
        "unknown-050-seed0-epochs5",
        "unknown-050-seed0-trainable=ffn-epochs2",
        "unknown-050-seed0-trainable=ffn-epochs5",
        "unknown-050-seed0-replay_known=256-epochs5",
    ]
    assert {point.run_id for point in points(grid, BASE, shared=False)} == {run.run_id for run in runs}


def test_further_settings_that_are_trained_already_are_not_repeated() -> None:
    axes = ("learning_rate=1e-5,1e-4",)
    grid = GridConfig(variants=("natural",), epochs=(4,), axes=axes, policies=("fixed",))
    more = ("learning_rate=10*learning_rate", "trainable=all", "dropout=0.1;dtype=float32", "dtype=float32;dropout=0.1")
    runs = trajectories(replace(grid, further_settings=more), BASE, shared=True)
    assert [run.run_id for run in runs] == [
        *(run.run_id for run in trajectories(grid, BASE, shared=True)),
        "natural-seed0-dropout=0.1-dtype=float32",
    ]


def test_grid_without_further_settings_keeps_its_identity() -> None:
    assert "further_settings" not in GridConfig().identity()
    assert GridConfig(further_settings=FURTHER).identity() != GridConfig().identity()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainable", "written `NAME=VALUE` or `NAME=VALUE;NAME=VALUE`"),
        ("trainable=ffn; lora_rank=8", "without spaces"),
        ("trainable=ffn if dropout=0.1", "` if variant=PATTERN`"),
        ("lora_rank=4,8", "each setting has one value"),
        ("lora_rank=4;lora_rank=8", "name a setting more than once"),
        ("rate=1", "further settings 'rate=1': no setting rate changes results"),
        ("epochs=3", r"epochs is an axis of the grid itself, --grid\.epochs"),
        ("trainable=head", "trainable is 'head', it must be all, attention, ffn"),
        ("lora_rank=2*rate", "no setting rate changes results"),
        ("trainable=2*lora_rank", "trainable is not a number, so trainable cannot be 2\\*lora_rank"),
        ("lora_rank=8..16", "lora_rank is '8..16', it must be int"),
    ],
)
def test_invalid_further_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        GridConfig(further_settings=(text,))


def test_further_settings_that_no_training_takes_are_refused() -> None:
    def sweep(*texts: str, **changes: Any) -> SweepConfig:
        return SweepConfig(grid=GridConfig(axes=("dropout=0.0,0.1",), further_settings=texts), **changes)

    with pytest.raises(SettingsError, match="lora_rank is 0, so there is no LoRA to scale"):
        sweep("lora_alpha=8")
    with pytest.raises(SettingsError, match="lora_alpha is a multiple of lora_alpha, which is none; give its value"):
        sweep("lora_rank=8;lora_alpha=2*lora_alpha")
    with pytest.raises(SettingsError, match="search optuna trains only the settings that it samples"):
        sweep("trainable=ffn", search="optuna")


def test_stop_policies_of_a_live_sweep() -> None:
    grid = GridConfig(epochs=(2, 5), policies=("fixed", "fixed(3)", "patience(1)"))
    assert SweepConfig(grid=grid).stop_policies == ()
    assert set(SweepConfig(grid=grid, stop="live").stop_policies) == {
        ("fixed(2)", 2),
        ("fixed(5)", 5),
        ("fixed(3)", 5),
        ("patience(1)", 2),
        ("patience(1)", 5),
    }


def test_scheduler_needs_one_training_per_trial() -> None:
    with pytest.raises(SettingsError, match="scheduler asha compares single trainings"):
        SweepConfig(scheduler="asha", trajectories_per_trial=2)
    with pytest.raises(SettingsError, match="scheduler is one of none, asha, median"):
        SweepConfig(scheduler="hyperband")  # type: ignore[arg-type]


def test_axis_with_a_condition_on_the_variant() -> None:
    axis = "learning_rate=1e-5,1e-4 if variant=unknown-?[05]0"
    names = ("unknown-000", "unknown-010", "natural")
    grid = GridConfig(variants=names, epochs=(5,), policies=("fixed",), axes=(axis,))
    base = TrainConfig(learning_rate=1e-5)
    for chosen in (None, combinations(grid.axes, base)):
        runs = [run.run_id for run in trajectories(grid, base, shared=True, chosen=chosen)]
        expected = ["unknown-000-seed0", "unknown-000-seed0-learning_rate=0.0001", "unknown-010-seed0", "natural-seed0"]
        assert runs == expected
        assert [point.run_id for point in points(grid, base, shared=True, chosen=chosen)] == expected
    text = grid_summary(grid, base, shared=True)
    assert "3 variants x 1 seed x 1 to 2 combinations of settings = 4 trainings" in text
