"""The recommended trial of a sweep, at each share of Unknown rows and over all of them. Pure.

Trials are selected by dev accuracy alone, so the test accuracy of the selected one is unbiased. Differences are paired
by seed. Intervals are 95 % Student's t intervals over seeds, so they cover the variance of trainings but not that of
test questions, and need at least two seeds. Values that the sweep lacks are None with a reason, never 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError

DEV_COLUMN, TEST_COLUMN = "dev_all", "test_all"

SweepPoint = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds with its 95 % interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    num_seeds: int = 0
    missing_reason: str = ""
    """Why there is no value or no interval; empty if there are both."""


class TrialSpec(NamedTuple):
    """The choices of a trial that apply to every variant and seed."""

    policy: str
    budget: int
    """Epochs."""
    settings: str
    """Training settings that differ from the sweep's defaults, as in points.parquet; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedTrial:
    """The best trial for one share of Unknown rows, or for all; accuracies in percent, differences in points."""

    share: float | None
    """Share of Unknown rows in [0, 1]; None for one trial at all shares."""
    trial: TrialSpec | None
    """None if no trial has dev accuracies with every seed; every estimate then has the reason."""
    dev: Estimate
    test: Estimate
    stop_epoch: Estimate
    cost_epochs: Estimate
    longest: int | None
    """Epochs of the longest fixed training, the baseline of `gain` and `saved`."""
    gain: Estimate
    """Test accuracy minus that of the longest fixed training."""
    saved: Estimate
    """Epochs of the longest fixed training minus the epochs trained."""
    filtering: Estimate
    """Test accuracy of D_Known minus that of D, both with this trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One trial for each share of Unknown rows, ascending, and one for all shares."""

    by_share: tuple[RecommendedTrial, ...]
    overall: RecommendedTrial


class _PointTable:
    """The points of a sweep by variant, trial and seed."""

    def __init__(self, points: Iterable[SweepPoint]) -> None:
        self._rows: dict[tuple[str, TrialSpec], dict[int, SweepPoint]] = {}
        for row in points:
            trial = TrialSpec(str(row["policy"]), int(row["epochs"]), str(row.get("settings") or ""))
            self._rows.setdefault((row["variant"], trial), {})[int(row["seed"])] = row
        self.trials = sorted({trial for _, trial in self._rows})

    def seeds(self, name: str) -> set[int]:
        return {seed for (variant, _), rows in self._rows.items() if variant == name for seed in rows}

    def by_seed(self, names: Sequence[str], trial: TrialSpec, column: str, scale: float = 1.0) -> dict[int, float]:
        """The mean over variants for each seed that has a value in all of them."""
        points = [self._rows.get((name, trial), {}) for name in names]
        shared = sorted(set.intersection(*map(set, points)))
        by_seed: dict[int, list[Any]] = {seed: [rows[seed].get(column) for rows in points] for seed in shared}
        return {seed: scale * float(np.mean(values)) for seed, values in by_seed.items() if None not in values}


def recommend(data: StudyData) -> Recommendation:
    """The best trial at each share of Unknown rows and over all shares.

    The best trial has the highest dev accuracy, averaged over seeds; ties are broken by the fewest epochs trained, then
    by the smallest budget. Candidates are trials that finished with every seed of a variant, with training settings
    that were tried at every share.

    Args:
        data: its `points` and `variants` are used.

    Raises:
        InsufficientDataError: the sweep has no points of variants with a share of Unknown rows.
    """
    points = _PointTable(points_with_common_settings(data))
    partners = {round(v.share, 6): v.name for v in data.variants.values() if v.kind == "known" and v.share is not None}
    sweep = sorted(
        (variant.share, variant.name)
        for variant in data.variants.values()
        if variant.kind == "unknown" and variant.share is not None and points.seeds(variant.name)
    )
    if not sweep:
        raise InsufficientDataError(
            "needs a finished sweep over variants with a share of Unknown rows (unknown-000 to -100)"
        )
    pairs = {share: (name, partners.get(round(share, 6))) for share, name in sweep}
    return Recommendation(
        by_share=tuple(_recommend_for(points, {share: pair}, share) for share, pair in pairs.items()),
        overall=_recommend_for(points, pairs, None),
    )


def points_with_common_settings(data: StudyData) -> list[SweepPoint]:
    """The points whose training settings were tried at every share of Unknown rows of the sweep."""
    shares = {v.name for v in data.variants.values() if v.kind == "unknown" and v.share is not None}
    tried: dict[str, set[str]] = {}
    for point in data.points:
        if point["variant"] in shares:
            tried.setdefault(str(point.get("settings") or ""), set()).add(str(point["variant"]))
    swept = set[str]().union(*tried.values())
    return [point for point in data.points if tried.get(str(point.get("settings") or ""), swept) == swept]


def t_interval_over_seeds(values: Sequence[float], missing: str = "not measured") -> Estimate:
    """The mean over seeds with its 95 % t interval.

    Args:
        values: one per seed.
        missing: the reason if there are none.

    >>> t_interval_over_seeds([1.0, 2.0, 3.0]).value
    2.0
    """
    num = len(values)
    if not num:
        return Estimate(missing_reason=missing)
    mean = float(np.mean(values))
    if num == 1:
        return Estimate(value=mean, num_seeds=1, missing_reason="one seed, so no interval")
    from scipy.stats import t

    margin = float(t.ppf(0.975, num - 1) * np.std(values, ddof=1) / np.sqrt(num))
    return Estimate(value=mean, low=mean - margin, high=mean + margin, num_seeds=num)


def _recommend_for(
    points: _PointTable, pairs: Mapping[float, tuple[str, str | None]], share: float | None
) -> RecommendedTrial:
    names = [name for name, _ in pairs.values()]
    seeds = set.intersection(*(points.seeds(name) for name in names))
    best = _best_trial(points, names, seeds)
    if best is None:
        none = Estimate(missing_reason="no trial has a dev accuracy with every seed, so none can be selected")
        return RecommendedTrial(
            share=share,
            trial=None,
            dev=none,
            test=none,
            stop_epoch=none,
            cost_epochs=none,
            longest=None,
            gain=none,
            saved=none,
            filtering=none,
        )

    def mean(column: str, scale: float = 1.0) -> Estimate:
        return t_interval_over_seeds(list(points.by_seed(names, best, column, scale).values()))

    longest = _longest_fixed(points, names, seeds, best.settings)
    gain = saved = Estimate(missing_reason="the sweep has no fixed training length that finished with every seed")
    if longest is not None:
        end = longest[1]
        gain = _paired_difference(*(points.by_seed(names, trial, TEST_COLUMN, 100.0) for trial in (best, end)))
        saved = _paired_difference(*(points.by_seed(names, trial, "cost_epochs") for trial in (end, best)))
    return RecommendedTrial(
        share=share,
        trial=best,
        dev=mean(DEV_COLUMN, 100.0),
        test=mean(TEST_COLUMN, 100.0),
        stop_epoch=mean("stop_epoch"),
        cost_epochs=mean("cost_epochs"),
        longest=None if longest is None else longest[0],
        gain=gain,
        saved=saved,
        filtering=_filtering_effect(points, pairs, best),
    )


def _best_trial(points: _PointTable, names: Sequence[str], seeds: set[int]) -> TrialSpec | None:
    ranked = []
    for trial in points.trials:
        dev, cost = (points.by_seed(names, trial, column) for column in (DEV_COLUMN, "cost_epochs"))
        if seeds and dev.keys() == seeds:
            mean_dev = round(float(np.mean([*dev.values()])), 12)  # differences in the last bits are ties
            ranked.append((-mean_dev, float(np.mean([*cost.values()])), trial.budget, trial))
    return min(ranked)[-1] if ranked else None


def _longest_fixed(
    points: _PointTable, names: Sequence[str], seeds: set[int], settings: str
) -> tuple[int, TrialSpec] | None:
    candidates = []
    for trial in points.trials:
        if trial.policy.startswith("fixed(") and trial.settings == settings:
            ends = points.by_seed(names, trial, "stop_epoch")
            if ends and points.by_seed(names, trial, TEST_COLUMN).keys() == seeds:
                candidates.append((round(max(ends.values())), trial))
    return max(candidates, default=None)


def _filtering_effect(points: _PointTable, pairs: Mapping[float, tuple[str, str | None]], trial: TrialSpec) -> Estimate:
    """Accuracy of D_Known minus that of D, over the shares at which both were run."""
    both = [(known, d) for d, known in pairs.values() if known and points.by_seed([known], trial, TEST_COLUMN)]
    if not both:
        if set(pairs) == {0.0}:
            return Estimate(missing_reason="there are no Unknown rows to filter out")
        if set(pairs) == {1.0}:
            return Estimate(missing_reason="no rows would be left")
        return Estimate(missing_reason="the sweep has no such trial of D_Known (variants known-010 to known-090)")
    return _paired_difference(*(points.by_seed(names, trial, TEST_COLUMN, 100.0) for names in zip(*both, strict=True)))


def _paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    """`first` minus `second`, paired by seed."""
    gaps = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    return t_interval_over_seeds(gaps, "the two trials have no seed in common")
