"""Settings of a sweep and its grid: variant x settings x seed x epoch budget x policy. No heavy imports.

With a constant learning rate, a short training equals the first epochs of a longer one. So each (variant, settings,
seed) is trained once, to the largest budget, and every smaller budget and every policy is evaluated on that trajectory.
If results depend on the length of the training, each budget has its own trajectory. Further settings whose results do
have one trajectory, for the largest budget.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from slick.errors import SettingsError
from slick.settings import check_settings, identity_settings, register_settings, setting
from slick.variants.config import VariantsConfig, variant_names
from tuning.axes import (
    VARIANT,
    SettingOverrides,
    combinations,
    further_settings,
    parse_axis,
    parse_further_settings,
)
from tuning.config import TrainConfig
from tuning.policies import Policy, parse_policy


def _has_further_seeds(values: Mapping[str, Any]) -> bool:
    return bool(values.get("further_seeds"))


def _has_further_settings(values: Mapping[str, Any]) -> bool:
    return bool(values.get("further_settings"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GridConfig:
    """The axes of a sweep; their order is the order of trajectories and points."""

    variants: tuple[str, ...] = field(default_factory=lambda: variant_names(VariantsConfig()))
    """Names of fine-tuning sets in the study's variants/ folder."""
    seeds: tuple[int, ...] = setting((0,), "seed", minimum=0)
    """Seeds of the trainings: row order, dropout."""
    further_seeds: tuple[int, ...] = setting((), "seed", when=_has_further_seeds, minimum=0)
    """Seeds of further trainings, at the base settings, of `further_seed_variants` only."""
    further_seed_variants: tuple[str, ...] = setting(
        ("unknown-000", "unknown-050", "unknown-100"), "seed", when=_has_further_seeds
    )
    """Variants that are also trained with `further_seeds`; of those that the grid lacks, none is trained."""
    epochs: tuple[int, ...] = setting((50,), minimum=1)
    """Epoch budgets."""
    policies: tuple[str, ...] = ("fixed", "best_dev")
    """Stopping policies; `fixed` stops at the end of each budget, `fixed(n)` has points only for budgets from n on."""
    axes: tuple[str, ...] = ()
    """Training settings that vary, as `learning_rate=1e-5,1e-4`. With a condition, as
    `lora_alpha=16,32 if lora_rank=16`, a setting varies only where an earlier axis has that value, or, as
    `learning_rate=1e-5,1e-4 if variant=unknown-*`, only for variants whose name matches. For searches also ranges, as
    `learning_rate=1e-6..1e-3:log` or `lora_rank=4..64`."""
    further_settings: tuple[str, ...] = setting((), when=_has_further_settings)
    """Settings that are trained in addition to the combinations of the axes, one training for each text and each of
    `seeds`: `trainable=ffn`, or several settings joined by `;`, with multiples of base settings, as
    `lora_rank=8;learning_rate=10*learning_rate`. With a condition, as `trainable=ffn if variant=unknown-050`, only for
    variants whose name matches. If their results depend on the number of epochs, only the largest budget is trained."""

    def __post_init__(self) -> None:
        for name in ("variants", "seeds", "further_seeds", "epochs", "policies"):
            values = getattr(self, name)
            if not values and name != "further_seeds":
                raise SettingsError(f"the grid has no {name}; name at least one")
            duplicates = [str(value) for value, num in Counter(values).items() if num > 1]
            if duplicates:
                raise SettingsError(
                    f"the grid names {', '.join(duplicates)} more than once among its {name}; name each once"
                )
        check_settings(self)
        repeated = sorted(set(self.seeds) & set(self.further_seeds))
        if repeated:
            raise SettingsError(
                f"further_seeds names {', '.join(map(str, repeated))}, which seeds trains already; name other seeds"
            )
        for text in self.axes:
            parse_axis(text)
        for text in self.further_settings:
            parse_further_settings(text)
        for text in self.policies:
            if not any(parse_policy(text).applies_to(budget) for budget in self.epochs):
                raise SettingsError(
                    f"policy {text} exceeds every epoch budget of the grid (at most {max(self.epochs)}); "
                    "raise --epochs or lower the policy's epochs"
                )

    def seeds_of(self, variant: str, settings: SettingOverrides = ()) -> tuple[int, ...]:
        """Seeds of the trainings of a variant with some settings."""
        has_further = not settings and variant in self.further_seed_variants
        return self.seeds + (self.further_seeds if has_further else ())

    def identity(self) -> dict[str, object]:
        """The settings that change results."""
        return identity_settings(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One training of one variant, settings and seed, evaluated every epoch."""

    variant: str
    seed: int
    epochs: int
    """Epochs to train: the largest budget that is evaluated on this trajectory."""
    settings: SettingOverrides = ()
    """Settings that differ from the sweep's base settings."""
    single_budget: bool = False
    """Whether it serves a single budget, which is then part of its name."""

    @property
    def run_id(self) -> str:
        """Name of its folder in runs/."""
        overrides = "".join(f"-{name}={value}" for name, value in self.settings)
        return f"{self.variant}-seed{self.seed}{overrides}{f'-epochs{self.epochs}' if self.single_budget else ''}"

    @property
    def settings_text(self) -> str:
        """The column `settings` of points.parquet; see `settings_text`."""
        return settings_text(self.settings)

    def config(self, base: TrainConfig) -> TrainConfig:
        """The settings of the training.

        Raises:
            SettingsError: the combined settings are invalid.
        """
        overrides: dict[str, Any] = dict(self.settings)
        return replace(base, variant=self.variant, seed=self.seed, epochs=self.epochs, **overrides)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPoint:
    """One cell of the grid; several points may share one trajectory."""

    variant: str
    seed: int
    epochs: int
    """The budget; at most the epochs of the trajectory."""
    policy: Policy
    """Plain `fixed` appears here as `fixed(budget)`."""
    settings: SettingOverrides
    run_id: str
    """The trajectory that the point is computed from."""

    @property
    def settings_text(self) -> str:
        """The column `settings` of points.parquet; see `settings_text`."""
        return settings_text(self.settings)


def settings_text(settings: SettingOverrides) -> str:
    """The column `settings` of points.parquet, as `learning_rate=0.0001;lora_rank=8`; empty without overrides."""
    return ";".join(f"{name}={value}" for name, value in settings)


def trajectories(
    grid: GridConfig, base: TrainConfig, *, shared: bool, chosen: Sequence[SettingOverrides] | None = None
) -> list[Trajectory]:
    """The trainings that cover the grid, ordered by variant first.

    Args:
        grid: the axes.
        base: settings that the axes override.
        shared: one training serves all budgets.
        chosen: combinations of settings; None: all of the grid's axes, with the ends of ranges.
    """
    return [
        Trajectory(
            variant=variant, seed=seed, epochs=epochs, settings=training.settings, single_budget=training.single_budget
        )
        for variant in grid.variants
        for training in _variant_trainings(grid, base, variant, shared, chosen)
        for seed, epochs in product(grid.seeds_of(variant, training.settings), training.lengths)
    ]


def points(
    grid: GridConfig, base: TrainConfig, *, shared: bool, chosen: Sequence[SettingOverrides] | None = None
) -> list[GridPoint]:
    """All points of the grid, each once.

    `fixed(n)` has no point for budgets below n. Where `fixed` and `fixed(n)` coincide there is one point.

    The arguments are those of `trajectories`.
    """
    policies = [parse_policy(text) for text in grid.policies]
    cells = (
        (variant, training, *cell)
        for variant in grid.variants
        for training in _variant_trainings(grid, base, variant, shared, chosen)
        for cell in product(grid.seeds_of(variant, training.settings), training.budgets, policies)
    )
    grid_points = [
        GridPoint(
            variant=variant,
            seed=seed,
            epochs=budget,
            policy=policy.at(budget),
            settings=training.settings,
            run_id=Trajectory(
                variant=variant,
                seed=seed,
                epochs=budget if training.single_budget else training.lengths[0],
                settings=training.settings,
                single_budget=training.single_budget,
            ).run_id,
        )
        for variant, training, seed, budget, policy in cells
        if policy.applies_to(budget)
    ]
    return list(dict.fromkeys(grid_points))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Training:
    """Settings that a variant is trained with, the lengths of these trainings, and the budgets of their points."""

    settings: SettingOverrides
    lengths: tuple[int, ...]
    budgets: tuple[int, ...]
    single_budget: bool


def _variant_trainings(
    grid: GridConfig, base: TrainConfig, variant: str, shared: bool, chosen: Sequence[SettingOverrides] | None
) -> list[_Training]:
    """The trainings of a variant with one seed: of the axes' combinations, then of the further settings."""
    combined = _variant_settings(grid, base, variant, chosen)
    largest = (max(grid.epochs),)
    trainings = []
    for settings in (*combined, *further_settings(grid.further_settings, base, combined, variant=variant)):
        is_dependent = settings not in combined and replace(base, **dict(settings)).epoch_dependence_reason
        budgets = largest if is_dependent else grid.epochs
        trainings.append(
            _Training(
                settings=settings,
                lengths=largest if shared else budgets,
                budgets=budgets,
                single_budget=bool(not shared or is_dependent),
            )
        )
    return trainings


def _variant_settings(
    grid: GridConfig, base: TrainConfig, variant: str, chosen: Sequence[SettingOverrides] | None
) -> Sequence[SettingOverrides]:
    """The combinations of the axes that a variant is trained with."""
    applicable = combinations(grid.axes, base, variant=variant, use_range_ends=True)
    if chosen is None:
        return applicable
    if not any((axis.condition or ("",))[0] == VARIANT for axis in map(parse_axis, grid.axes)):
        return chosen
    return [settings for settings in chosen if settings in applicable]


def pack_by_cost(costs: Mapping[str, float], num_packs: int) -> list[list[str]]:
    """Distribute trajectories over workers so that all finish at about the same time.

    Longest processing time first: the makespan is at most 4/3 of the optimum (Graham 1969,
    https://doi.org/10.1137/0117039).

    Args:
        costs: run_id -> expected time in any unit, for example rows x epochs.
        num_packs: number of workers; there are fewer packs if there are fewer trajectories.

    Returns:
        Non-empty packs of run_ids, the longest pack first, each in execution order.

    Raises:
        SettingsError: `num_packs` is below 1.
    """
    if num_packs < 1:
        raise SettingsError(f"trajectories need at least one worker, got {num_packs}")
    packs: list[list[str]] = [[] for _ in range(min(num_packs, len(costs)))]
    loads = [0.0] * len(packs)
    for run in sorted(costs, key=lambda run: (-costs[run], run)):
        lightest = min(range(len(packs)), key=lambda i: (loads[i], len(packs[i]), i))
        packs[lightest].append(run)
        loads[lightest] += costs[run]
    order = sorted(range(len(packs)), key=lambda i: -loads[i])
    return [packs[i] for i in order]


def grid_summary(grid: GridConfig, base: TrainConfig, *, shared: bool) -> str:
    """The size of the grid in one sentence.

    >>> grid = GridConfig(variants=("natural",), seeds=(0, 1), epochs=(5, 20), policies=("fixed", "best_dev"))
    >>> grid_summary(grid, TrainConfig(), shared=True)
    '1 variant x 2 seeds = 2 trainings, 40 epochs in all; with 2 epoch budgets and 2 policies 8 points'
    """
    runs = trajectories(grid, base, shared=shared)
    counts = {len(_variant_settings(grid, base, variant, None)) for variant in grid.variants}
    num_combinations = (
        f"{min(counts)} to {max(counts)} combinations" if len(counts) > 1 else _pluralize(max(counts), "combination")
    )
    settings = f" x {num_combinations} of settings" if grid.axes else ""
    num_further = len(grid.further_seeds) * len(set(grid.variants) & set(grid.further_seed_variants))
    further = f" + {num_further:,} with further seeds" if num_further else ""
    num_further_settings = sum(
        len(grid.seeds) * len(further_settings(grid.further_settings, base, combined, variant=variant))
        for variant in grid.variants
        for combined in [_variant_settings(grid, base, variant, None)]
    )
    further += f" + {num_further_settings:,} with further settings" if num_further_settings else ""
    return (
        f"{_pluralize(len(grid.variants), 'variant')} x {_pluralize(len(grid.seeds), 'seed')}{settings}{further} = "
        f"{_pluralize(len(runs), 'training')}, {_pluralize(sum(run.epochs for run in runs), 'epoch')} in all; with "
        f"{_pluralize(len(grid.epochs), 'epoch budget')} and {_pluralize(len(grid.policies), 'policy', 'policies')} "
        f"{_pluralize(len(points(grid, base, shared=shared)), 'point')}"
    )


def _pluralize(number: int, singular: str, plural: str = "") -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


Scheduler = Literal["none", "asha", "median"]


def _is_search(values: Mapping[str, Any]) -> bool:
    return values.get("search") == "optuna"


@register_settings("sweep")
@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """The trainings of a sweep, and how they are distributed."""

    grid: GridConfig = field(default_factory=GridConfig)
    """Variants, settings, seeds, epoch budgets, policies."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Base settings of every training; variant, seed and epochs come from the grid."""
    independent: bool = False
    """Train every budget separately, although a short training equals the first epochs of a longer one. This is always
    done if results depend on the number of epochs (a learning-rate schedule)."""
    stop: Literal["full", "live"] = setting("full", "length")
    """`live`: a training ends as soon as every policy is decided; the points are the same, but adding budgets or
    policies later costs more."""
    scheduler: Scheduler = "none"
    """Ray Tune's scheduler, for wide searches: trainings with a low dev accuracy are stopped early, and have no points
    beyond their last epoch."""
    search: Literal["grid", "optuna"] = setting("grid", "result", when=_is_search)
    """`optuna`: instead of every combination of the grid's axes, train samples of them, preferably near the best dev
    accuracy so far (mean over variants and seeds)."""
    samples: int = setting(20, "result", when=_is_search, minimum=1)
    """Combinations of settings that a search tries."""
    samples_at_once: int = setting(4, "result", when=_is_search, minimum=1)
    """Samples that a search draws before it knows their results; more of them keep a larger cluster busy."""
    search_seed: int = setting(0, "seed", when=_is_search)
    """Seed of the search."""
    retries: int = setting(1, "nothing", minimum=0)
    """Times that a trial is retried after it failed without progress since its last failure. Failures after progress
    are always retried unless this is 0; preemptions with notice are not counted."""
    trajectories_per_trial: int | None = setting(1, "cost", minimum=1)
    """Trainings that one trial runs in the same workers, which saves their start (about 15 s); None: as many as keep
    all concurrent trials busy."""
    max_concurrent: int | None = setting(None, "cost", minimum=1)
    """Concurrent trials; None: as many as fit into the cluster now. With `wait_for_nodes` it may be more than fit."""
    keep_ray_files: bool = setting(False, "nothing")
    """Keep the result files of Ray Tune and Ray Train in the study's .ray folder."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.scheduler != "none" and (self.trajectories_per_trial != 1 or self.stop == "live"):
            raise SettingsError(
                f"scheduler {self.scheduler} compares single trainings and stops them itself; it needs "
                "--trajectories-per-trial 1 and --stop full"
            )
        if self.scheduler != "none" and self.train.evaluate == "needed":
            raise SettingsError(
                f"scheduler {self.scheduler} stops trainings at epochs that are not known in advance, so with evaluate "
                "needed their last epoch would have no test rows; give --train.evaluate all, or --scheduler none"
            )
        if self.search == "optuna":
            self._check_search()
        for trajectory in self.trajectories:
            trajectory.config(self.train)  # refuses invalid combinations of settings

    def _check_search(self) -> None:
        if not self.grid.axes:
            raise SettingsError(
                "search optuna searches training settings, but the grid has no axes; give some, as --grid.axes "
                "learning_rate=1e-6..1e-3:log. Budgets and policies are evaluated on each training and need no search"
            )
        if any(parse_axis(text).condition for text in self.grid.axes):
            raise SettingsError(
                "search optuna takes no axis with a condition; remove the condition, or use --search grid"
            )
        if self.grid.further_settings:
            raise SettingsError(
                "search optuna trains only the settings that it samples, but the grid has further settings; give "
                "--search grid, or train them in a sweep of their own"
            )
        if self.scheduler != "none":
            raise SettingsError("search optuna needs the accuracy of complete trainings; give --scheduler none")

    def _all_combinations(self) -> list[SettingOverrides]:
        """Every combination of the axes' values; for a search, of the ends of its ranges."""
        return combinations(self.grid.axes, self.train, use_range_ends=self.search == "optuna")

    @property
    def independent_reason(self) -> str:
        """Why every budget is trained separately; empty if one trajectory serves all."""
        if self.independent:
            return "--independent was given"
        reasons = (
            replace(self.train, **dict(settings)).epoch_dependence_reason for settings in self._all_combinations()
        )
        return next((reason for reason in reasons if reason), "")

    @property
    def trajectories(self) -> list[Trajectory]:
        """The trainings that cover the grid; for a search, those at the ends of its ranges, which it may not train."""
        return self.trajectories_for(self._all_combinations())

    def trajectories_for(self, chosen: Sequence[SettingOverrides]) -> list[Trajectory]:
        """The trainings that cover the grid with the chosen combinations of settings."""
        return trajectories(
            self.grid, self.train, shared=not self.independent_reason, chosen=list(dict.fromkeys(chosen))
        )

    @property
    def stop_policies(self) -> tuple[tuple[str, int], ...]:
        """Policies and budgets that end a live training once all are decided; empty for full trainings."""
        return self.point_policies if self.stop == "live" else ()

    @property
    def point_policies(self) -> tuple[tuple[str, int], ...]:
        """Policies and budgets of the grid's points."""
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
        identity = identity_settings(self)
        identity |= {"train": self.train.identity(), "independent": bool(self.independent_reason)}
        if _is_search(identity):
            identity["search"] = [identity.pop(name) for name in ("samples", "samples_at_once", "search_seed")]
        return identity
