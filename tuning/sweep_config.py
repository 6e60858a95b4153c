"""The settings of a sweep: which trainings, and how they are shared out. No heavy imports: `--help` reads this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from slick.errors import SettingsError
from slick.settings import identity_settings, register_settings, setting
from tuning.axes import SettingOverrides, combinations, parse_axis
from tuning.config import TrainConfig
from tuning.grid import GridConfig, Trajectory, trajectories
from tuning.policies import parse_policy

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
