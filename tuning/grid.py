"""The grid of a sweep: variant x seed x epoch budget x policy, and the trainings that cover it. Pure.

With a constant learning rate a short training is the beginning of a long one, so each (variant, seed) is trained once,
to the largest budget, and every smaller budget and every policy is read off that one trajectory.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from slick.errors import SettingsError
from slick.variants.plan import VariantsConfig, variant_names
from tuning.policies import Policy, parse_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class GridConfig:
    """The axes of a sweep; their order is the order of trajectories and points."""

    variants: tuple[str, ...] = field(default_factory=lambda: variant_names(VariantsConfig()))
    """Names of fine-tuning sets in the study's variants/ folder."""
    seeds: tuple[int, ...] = (0,)
    """Of the trainings: order of the rows, dropout."""
    epochs: tuple[int, ...] = (50,)
    """Epoch budgets."""
    policies: tuple[str, ...] = ("fixed", "best_dev")
    """Stopping policies; `fixed` stops at the end of each budget, `fixed(n)` has points only where n is within it."""

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
        for text in self.policies:
            if not any(parse_policy(text).applies(budget) for budget in self.epochs):
                raise SettingsError(
                    f"policy {text} lies beyond every epoch budget of the grid ({max(self.epochs)} at most); "
                    "raise --epochs or lower the policy's"
                )

    def identity(self) -> dict[str, object]:
        """The settings that change results: all of them."""
        return {name: getattr(self, name) for name in ("variants", "seeds", "epochs", "policies")}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Trajectory:
    """One training of one variant and seed, evaluated every epoch."""

    variant: str
    seed: int
    epochs: int
    """Trained: the largest budget of the grid."""

    @property
    def run_id(self) -> str:
        """Name of its folder in runs/."""
        return f"{self.variant}-seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One cell of the grid; several points share one trajectory."""

    variant: str
    seed: int
    epochs: int
    """The budget; at most the epochs of the trajectory."""
    policy: Policy
    """Never the plain `fixed`: it carries its number here."""

    @property
    def run_id(self) -> str:
        """The trajectory that it is read off."""
        return f"{self.variant}-seed{self.seed}"


def trajectories(grid: GridConfig) -> list[Trajectory]:
    """One training for each variant and seed, to the largest budget; variants outermost."""
    return [
        Trajectory(variant=variant, seed=seed, epochs=max(grid.epochs))
        for variant, seed in product(grid.variants, grid.seeds)
    ]


def points(grid: GridConfig) -> list[Point]:
    """All cells of the grid that exist, each once.

    `fixed(n)` has no point where n is beyond the budget; where `fixed` and `fixed(n)` say the same there is one point.
    """
    policies = [parse_policy(text) for text in grid.policies]
    cells = product(grid.variants, grid.seeds, grid.epochs, policies)
    found = [
        Point(variant=variant, seed=seed, epochs=budget, policy=policy.at(budget))
        for variant, seed, budget, policy in cells
        if policy.applies(budget)
    ]
    return list(dict.fromkeys(found))


def pack(runs: Sequence[Trajectory], costs: Mapping[str, float], num_packs: int) -> list[list[Trajectory]]:
    """Share trajectories out among workers so that all end at about the same time.

    Longest first, each to the worker with the least to do: at most 4/3 of the best possible time (Graham 1969,
    https://doi.org/10.1137/0117039).

    Args:
        runs: to be shared out.
        costs: run_id to expected time in any unit, for example rows x epochs.
        num_packs: workers; fewer packs come back if there are fewer trajectories.

    Returns:
        Packs, none empty, the longest first; each in the order in which to run it.

    Raises:
        SettingsError: fewer than one worker.
    """
    if num_packs < 1:
        raise SettingsError(f"trajectories need at least one worker, got {num_packs}")
    packs: list[list[Trajectory]] = [[] for _ in range(min(num_packs, len(runs)))]
    loads = [0.0] * len(packs)
    for run in sorted(runs, key=lambda run: (-costs[run.run_id], run.run_id)):
        least = min(range(len(packs)), key=lambda i: (loads[i], len(packs[i]), i))
        packs[least].append(run)
        loads[least] += costs[run.run_id]
    order = sorted(range(len(packs)), key=lambda i: -loads[i])
    return [packs[i] for i in order]


def summary(grid: GridConfig) -> str:
    """What the grid will take, for people.

    >>> summary(GridConfig(variants=("natural",), seeds=(0, 1), epochs=(5, 20), policies=("fixed", "best_dev")))
    '1 variant x 2 seeds = 2 trainings of 20 epochs; with 2 epoch budgets and 2 policies 8 points'
    """
    return (
        f"{_count(len(grid.variants), 'variant')} x {_count(len(grid.seeds), 'seed')} = "
        f"{_count(len(trajectories(grid)), 'training')} of "
        f"{_count(max(grid.epochs), 'epoch')}; with {_count(len(grid.epochs), 'epoch budget')} and "
        f"{_count(len(grid.policies), 'policy', 'policies')} {_count(len(points(grid)), 'point')}"
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
