"""The grid of a sweep: variant x settings x seed x epoch budget x policy, and the trainings that cover it. Pure.

With a constant learning rate a short training is the beginning of a long one, so each (variant, settings, seed) is
trained once, to the largest budget, and every smaller budget and every policy is read off that one trajectory. Where a
training depends on its length, each budget has a trajectory of its own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from slick.errors import SettingsError
from slick.settings import identity_settings, setting
from slick.variants.plan import VariantsConfig, variant_names
from tuning.axes import VARIANT, SettingOverrides, combinations, parse_axis
from tuning.config import TrainConfig
from tuning.policies import Policy, parse_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class GridConfig:
    """The axes of a sweep; their order is the order of trajectories and points."""

    variants: tuple[str, ...] = field(default_factory=lambda: variant_names(VariantsConfig()))
    """Names of fine-tuning sets in the study's variants/ folder."""
    seeds: tuple[int, ...] = setting((0,), "seed")
    """Of the trainings: order of the rows, dropout."""
    epochs: tuple[int, ...] = (50,)
    """Epoch budgets."""
    policies: tuple[str, ...] = ("fixed", "best_dev")
    """Stopping policies; `fixed` stops at the end of each budget, `fixed(n)` has points only where n is within it."""
    axes: tuple[str, ...] = ()
    """Training settings that vary, as `learning_rate=1e-5,1e-4`; with a condition, as
    `lora_alpha=16,32 if lora_rank=16`, a setting varies only where an axis before it has that value, or, as
    `learning_rate=1e-5,1e-4 if variant=unknown-*`, only for variants of such a name. For searches also spans, as
    `learning_rate=1e-6..1e-3:log` or `lora_rank=4..64`."""

    def __post_init__(self) -> None:
        for name in ("variants", "seeds", "epochs", "policies"):
            values = getattr(self, name)
            if not values:
                raise SettingsError(f"the grid has no {name}; name at least one")
            twice = [str(value) for value, num in Counter(values).items() if num > 1]
            if twice:
                raise SettingsError(
                    f"the grid names {', '.join(twice)} more than once among its {name}; name each once"
                )
        for name, lowest in (("seeds", 0), ("epochs", 1)):
            for value in getattr(self, name):
                if value < lowest:
                    raise SettingsError(f"the grid's {name} must be {lowest} or more, got {value}")
        for text in self.axes:
            parse_axis(text)
        for text in self.policies:
            if not any(parse_policy(text).applies_to(budget) for budget in self.epochs):
                raise SettingsError(
                    f"policy {text} lies beyond every epoch budget of the grid ({max(self.epochs)} at most); "
                    "raise --epochs or lower the policy's"
                )

    def identity(self) -> dict[str, object]:
        """The settings that change results: all of them."""
        return identity_settings(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One training of one variant, settings and seed, evaluated every epoch."""

    variant: str
    seed: int
    epochs: int
    """Trained: the largest budget that it serves."""
    settings: SettingOverrides = ()
    """Those that differ from the sweep's own."""
    single_budget: bool = False
    """It serves one budget, which is part of its name."""

    @property
    def run_id(self) -> str:
        """Name of its folder in runs/."""
        changed = "".join(f"-{name}={value}" for name, value in self.settings)
        return f"{self.variant}-seed{self.seed}{changed}{f'-epochs{self.epochs}' if self.single_budget else ''}"

    @property
    def settings_text(self) -> str:
        """As points.parquet has it, `learning_rate=0.0001;lora_rank=8`; empty for the sweep's own settings."""
        return settings_text(self.settings)

    def config(self, base: TrainConfig) -> TrainConfig:
        """The settings of the training.

        Raises:
            SettingsError: the grid's values do not go together.
        """
        changed: dict[str, Any] = dict(self.settings)
        return replace(base, variant=self.variant, seed=self.seed, epochs=self.epochs, **changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPoint:
    """One cell of the grid; several points may share one trajectory."""

    variant: str
    seed: int
    epochs: int
    """The budget; at most the epochs of the trajectory."""
    policy: Policy
    """Never the plain `fixed`: it carries its number here."""
    settings: SettingOverrides
    run_id: str
    """The trajectory that it is read off."""

    @property
    def settings_text(self) -> str:
        """As points.parquet has it, `learning_rate=0.0001;lora_rank=8`; empty for the sweep's own settings."""
        return settings_text(self.settings)


def settings_text(settings: SettingOverrides) -> str:
    """As points.parquet has it, `learning_rate=0.0001;lora_rank=8`."""
    return ";".join(f"{name}={value}" for name, value in settings)


def trajectories(
    grid: GridConfig, base: TrainConfig, *, shared: bool, chosen: Sequence[SettingOverrides] | None = None
) -> list[Trajectory]:
    """The trainings that cover the grid, variants outermost.

    Args:
        base: settings that the grid's axes change.
        shared: one training serves all budgets.
        chosen: combinations of settings; None: all of the grid's axes, of spans their ends.
    """
    budgets = (max(grid.epochs),) if shared else grid.epochs
    return [
        Trajectory(variant=variant, seed=seed, epochs=budget, settings=settings, single_budget=not shared)
        for variant in grid.variants
        for settings, seed, budget in product(_variant_settings(grid, base, variant, chosen), grid.seeds, budgets)
    ]


def points(
    grid: GridConfig, base: TrainConfig, *, shared: bool, chosen: Sequence[SettingOverrides] | None = None
) -> list[GridPoint]:
    """All cells of the grid that exist, each once.

    `fixed(n)` has no point where n is beyond the budget; where `fixed` and `fixed(n)` say the same there is one point.
    """
    policies = [parse_policy(text) for text in grid.policies]
    largest = max(grid.epochs)
    cells = (
        (variant, *cell)
        for variant in grid.variants
        for cell in product(_variant_settings(grid, base, variant, chosen), grid.seeds, grid.epochs, policies)
    )
    found = [
        GridPoint(
            variant=variant,
            seed=seed,
            epochs=budget,
            policy=policy.at(budget),
            settings=settings,
            run_id=Trajectory(
                variant=variant,
                seed=seed,
                epochs=largest if shared else budget,
                settings=settings,
                single_budget=not shared,
            ).run_id,
        )
        for variant, settings, seed, budget, policy in cells
        if policy.applies_to(budget)
    ]
    return list(dict.fromkeys(found))


def _variant_settings(
    grid: GridConfig, base: TrainConfig, variant: str, chosen: Sequence[SettingOverrides] | None
) -> Sequence[SettingOverrides]:
    """The combinations of settings that a variant is trained with."""
    own = combinations(grid.axes, base, variant=variant, use_span_ends=True)
    if chosen is None:
        return own
    if not any((axis.condition or ("",))[0] == VARIANT for axis in map(parse_axis, grid.axes)):
        return chosen
    return [settings for settings in chosen if settings in own]


def pack_by_cost(costs: Mapping[str, float], num_packs: int) -> list[list[str]]:
    """Share trajectories out among workers so that all end at about the same time.

    Longest first, each to the worker with the least to do: at most 4/3 of the best possible time (Graham 1969,
    https://doi.org/10.1137/0117039).

    Args:
        costs: run_id to expected time in any unit, for example rows x epochs.
        num_packs: workers; fewer packs come back if there are fewer trajectories.

    Returns:
        Packs of run_ids, none empty, the longest first; each in the order in which to run it.

    Raises:
        SettingsError: fewer than one worker.
    """
    if num_packs < 1:
        raise SettingsError(f"trajectories need at least one worker, got {num_packs}")
    packs: list[list[str]] = [[] for _ in range(min(num_packs, len(costs)))]
    loads = [0.0] * len(packs)
    for run in sorted(costs, key=lambda run: (-costs[run], run)):
        least = min(range(len(packs)), key=lambda i: (loads[i], len(packs[i]), i))
        packs[least].append(run)
        loads[least] += costs[run]
    order = sorted(range(len(packs)), key=lambda i: -loads[i])
    return [packs[i] for i in order]


def grid_summary(grid: GridConfig, base: TrainConfig, *, shared: bool) -> str:
    """What the grid will take, for people.

    >>> grid = GridConfig(variants=("natural",), seeds=(0, 1), epochs=(5, 20), policies=("fixed", "best_dev"))
    >>> summary(grid, TrainConfig(), shared=True)
    '1 variant x 2 seeds = 2 trainings, 40 epochs in all; with 2 epoch budgets and 2 policies 8 points'
    """
    runs = trajectories(grid, base, shared=shared)
    each = {len(_variant_settings(grid, base, variant, None)) for variant in grid.variants}
    numbers = f"{min(each)} to {max(each)} combinations" if len(each) > 1 else _pluralize(max(each), "combination")
    changed = f" x {numbers} of settings" if grid.axes else ""
    return (
        f"{_pluralize(len(grid.variants), 'variant')} x {_pluralize(len(grid.seeds), 'seed')}{changed} = "
        f"{_pluralize(len(runs), 'training')}, {_pluralize(sum(run.epochs for run in runs), 'epoch')} in all; with "
        f"{_pluralize(len(grid.epochs), 'epoch budget')} and {_pluralize(len(grid.policies), 'policy', 'policies')} "
        f"{_pluralize(len(points(grid, base, shared=shared)), 'point')}"
    )


def _pluralize(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
