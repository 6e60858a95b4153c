"""Hyperparameter search: ranges, samples, and settings that it refuses."""

import sys
from dataclasses import replace

import pytest

from slick.errors import SettingsError
from tuning.axes import Axis, SettingOverrides, parse_axis
from tuning.config import TrainConfig
from tuning.grid import GridConfig, SweepConfig
from tuning.trials import check_search

BASE = TrainConfig()
AXES = ("learning_rate=1e-6..1e-3:log", "lora_rank=4..64", "dropout=0.0..0.3", "dtype=float32,bfloat16")
CONFIG = SweepConfig(grid=GridConfig(axes=AXES), search="optuna")


def search_samples(num_rounds: int, seed: int = 0) -> list[SettingOverrides]:
    """Samples of a search for a learning rate near 1e-5."""
    pytest.importorskip("optuna", reason="optuna is not installed: pip install 'slick-knowledge[optuna]'")
    from math import log10

    from tuning.trials import SettingsSearch

    search = SettingsSearch(AXES, BASE, seed)
    for _ in range(num_rounds):
        search.tell([-abs(log10(dict(settings).get("learning_rate", 1e-5)) + 5) for settings in search.ask(4)])
    return search.suggestions


def test_ranges_are_parsed() -> None:
    assert parse_axis(AXES[0]) == Axis("learning_rate", (1e-6, 1e-3), None, "log")
    assert parse_axis(AXES[1]) == Axis("lora_rank", (4, 64), None, "linear")


def test_samples_are_within_the_axes_and_improve() -> None:
    samples = [dict(settings) for settings in search_samples(15)]
    rates = [settings["learning_rate"] for settings in samples]
    assert all(1e-6 <= rate <= 1e-3 and len(f"{rate:e}".rstrip("0")) <= len("1.234e-05") + 3 for rate in rates)
    assert {type(settings["lora_rank"]) for settings in samples} == {int}
    assert all(4 <= settings["lora_rank"] <= 64 and 0 <= settings.get("dropout", 0.05) <= 0.3 for settings in samples)
    assert {settings.get("dtype", "float32") for settings in samples} == {"float32", "bfloat16"}

    def mean_distance(rates_of_part: list[float]) -> float:
        from math import log10

        return sum(abs(log10(rate) + 5) for rate in rates_of_part) / len(rates_of_part)

    assert mean_distance(rates[-20:]) < mean_distance(rates[:20])


def test_longer_search_starts_with_the_same_samples() -> None:
    longer = search_samples(5)
    assert longer[: 4 * 3] == search_samples(3)
    assert search_samples(3, seed=1) != search_samples(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "grid"}, "is a range of numbers, which a grid cannot enumerate.*--search optuna"),
        ({"grid": GridConfig()}, "the grid has no axes.*Budgets and policies are evaluated on each training"),
        (
            {"grid": GridConfig(axes=("lora_rank=0,8", "lora_alpha=8,16 if lora_rank=8"))},
            "search optuna takes no axis with a condition",
        ),
        ({"scheduler": "asha", "trajectories_per_trial": 1}, "give --scheduler none"),
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"search": "random"}, "search is one of grid, optuna"),
        ({"grid": GridConfig(axes=("dropout=0.0..2.0",))}, "dropout is a share"),
    ],
)
def test_invalid_search_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        replace(CONFIG, **changes)


def test_search_settings_are_part_of_the_identity() -> None:
    assert replace(CONFIG, samples=21).identity() != CONFIG.identity()
    plain = SweepConfig()
    assert replace(plain, samples=21).identity() == plain.identity(), "without a search, samples must not count"
    assert "search" not in plain.identity()


def test_missing_optuna_is_reported_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SettingsError, match=r"needs optuna: pip install 'slick-knowledge\[optuna\]'"):
        check_search()
