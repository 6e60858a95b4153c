"""Settings of a sweep and its grid: variant x settings x seed x epoch budget x policy. No heavy imports.

With a constant learning rate, a short training is the beginning of a long one. So each (variant, settings, seed) is
trained once, to the largest budget, and every smaller budget and every policy is read off that trajectory. Where a
training depends on its length, each budget has its own trajectory.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from slick.errors import SettingsError
from slick.settings import identity_settings, register_settings, setting
from slick.variants.config import VariantsConfig, variant_names
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
    >>> grid_summary(grid, TrainConfig(), shared=True)
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


Scheduler = Literal["none", "asha", "median"]


def _is_search(values: Mapping[str, Any]) -> bool:
    return values.get("search") == "optuna"


@register_settings("sweep")
@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Which trainings, and how they are shared out."""

    grid: GridConfig = field(default_factory=GridConfig)
    """Variants, settings, seeds, epoch budgets, policies."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Of every training; its variant, seed and epochs are the grid's."""
    independent: bool = False
    """Train every budget on its own, though a short training is the beginning of a longer one; that is done without
    asking where it is not (a schedule that depends on the total)."""
    stop: Literal["full", "live"] = setting("full", "length")
    """`live`: a training ends as soon as every policy has its epoch; the points are the same, later ones cost more."""
    scheduler: Scheduler = "none"
    """Tune's scheduler, for wide searches: trainings that fall behind in dev accuracy are ended early, and have no
    points beyond their last epoch."""
    search: Literal["grid", "optuna"] = setting("grid", "result", when=_is_search)
    """`optuna`: instead of every combination of the grid's axes, train samples of them, and more of those that lie near
    the best dev accuracy so far (mean over variants and seeds)."""
    samples: int = setting(20, "result", when=_is_search)
    """Combinations of settings that a search tries."""
    samples_at_once: int = setting(4, "result", when=_is_search)
    """Samples that a search chooses before it knows how any of them does; more keep a larger cluster busy."""
    search_seed: int = setting(0, "seed", when=_is_search)
    """Of what a search draws."""
    retries: int = setting(1, "nothing")
    """Times that a trial is tried again after it failed without having come further than the last time. One that did
    come further is tried again in any case, but with 0; a machine that was taken back with notice is not counted."""
    trajectories_per_trial: int | None = setting(1, "cost")
    """Trainings that one trial does in the same workers, which saves their start (about 15 s); None: as many as keep
    all trials running at the same time."""
    max_concurrent: int | None = setting(None, "cost")
    """Trials at the same time; None: as many as the cluster holds now. With `wait_for_nodes` a number may be more."""
    keep_ray_files: bool = setting(False, "nothing")
    """Leave Tune's and Train's own result files in the study's .ray folder."""

    def __post_init__(self) -> None:
        for name in ("trajectories_per_trial", "max_concurrent", "samples", "samples_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be 1 or more, got {value}")
        if self.retries < 0:
            raise SettingsError(f"retries must be 0 or more, got {self.retries}")
        for name, allowed in (
            ("stop", ("full", "live")),
            ("scheduler", ("none", "asha", "median")),
            ("search", ("grid", "optuna")),
        ):
            if getattr(self, name) not in allowed:
                raise SettingsError(f"{name} is one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.scheduler != "none" and (self.trajectories_per_trial != 1 or self.stop == "live"):
            raise SettingsError(
                f"scheduler {self.scheduler} judges single trainings and ends them itself: it goes with "
                "--trajectories-per-trial 1 and --stop full"
            )
        if self.search == "optuna":
            self._check_search()
        for trajectory in self.trajectories:
            trajectory.config(self.train)  # settings that do not go together are refused here

    def _check_search(self) -> None:
        if not self.grid.axes:
            raise SettingsError(
                "search optuna chooses training settings, and the grid has no axes of them: give some, as --grid.axes "
                "learning_rate=1e-6..1e-3:log; budgets and policies are read off each training, and need no search"
            )
        if any(parse_axis(text).condition for text in self.grid.axes):
            raise SettingsError(
                "search optuna takes no axis with a condition; let it vary everywhere, or train the grid"
            )
        if self.scheduler != "none":
            raise SettingsError("search optuna wants the accuracy of whole trainings: it goes with --scheduler none")

    def _all_combinations(self) -> list[SettingOverrides]:
        """Every combination of the axes' values; for a search those of the ends of spans."""
        return combinations(self.grid.axes, self.train, use_span_ends=self.search == "optuna")

    @property
    def independent_reason(self) -> str:
        """Why every budget is trained on its own; empty if one trajectory serves all."""
        if self.independent:
            return "asked for"
        reasons = (
            replace(self.train, **dict(settings)).epoch_dependence_reason for settings in self._all_combinations()
        )
        return next((reason for reason in reasons if reason), "")

    @property
    def trajectories(self) -> list[Trajectory]:
        """The trainings that cover the grid; for a search those of the ends of spans, which it need not train."""
        return self.trajectories_for(self._all_combinations())

    def trajectories_for(self, chosen: Sequence[SettingOverrides]) -> list[Trajectory]:
        """The trainings that cover the grid with some combinations of settings."""
        return trajectories(
            self.grid, self.train, shared=not self.independent_reason, chosen=list(dict.fromkeys(chosen))
        )

    @property
    def stop_policies(self) -> tuple[tuple[str, int], ...]:
        """What a live training has to decide; empty if all are trained to the end."""
        if self.stop == "full":
            return ()
        policies = [parse_policy(text) for text in self.grid.policies]
        cells = [
            (policy.at(budget), budget)
            for policy in policies
            for budget in self.grid.epochs
            if policy.applies_to(budget)
        ]
        return tuple((str(policy), budget) for policy, budget in cells)

    def identity(self) -> dict[str, object]:
        """The settings that change results."""
        found = identity_settings(self) | {"train": self.train.identity(), "independent": bool(self.independent_reason)}
        if _is_search(found):
            found["search"] = [found.pop(name) for name in ("samples", "samples_at_once", "search_seed")]
        return found
