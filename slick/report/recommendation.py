"""Which point of a sweep to use, at each share of Unknown rows and over all of them. Pure.

The choice is made by dev accuracy alone, so the test accuracy of what is chosen is a fair estimate. Differences are
paired by seed, and intervals are over seeds (Student's t, 95 %): what another training would bring, not what other test
questions would. One seed gives no interval. What the sweep does not hold is None with a reason, never 0.
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
    """Why there is no value or no interval; empty where both are."""


class TrialSpec(NamedTuple):
    """What a point is apart from variant and seed: all that one decides before a training."""

    policy: str
    budget: int
    """Epochs."""
    settings: str
    """Training settings that differ from the sweep's own, as in points.parquet; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedTrial:
    """The best recipe for some fine-tuning sets, and what it brings; accuracies in percent, differences in points."""

    share: float | None
    """Share of Unknown rows in [0, 1]; None for one recipe at all shares."""
    trial: TrialSpec | None
    """None if there is nothing to choose by; every estimate then says why."""
    dev: Estimate
    test: Estimate
    stop_epoch: Estimate
    cost_epochs: Estimate
    longest: int | None
    """Epochs of the longest fixed training that it is compared with."""
    gain: Estimate
    """Test accuracy minus that of the longest fixed training."""
    saved: Estimate
    """Epochs of the longest fixed training minus those spent."""
    filtering: Estimate
    """Test accuracy of the Known rows alone minus that of all rows, both by this recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One choice for each share of Unknown rows, ascending, and one for all of them together."""

    by_share: tuple[RecommendedTrial, ...]
    overall: RecommendedTrial


class _PointTable:
    """The points of a sweep by variant, recipe and seed."""

    def __init__(self, points: Iterable[SweepPoint]) -> None:
        self._rows: dict[tuple[str, TrialSpec], dict[int, SweepPoint]] = {}
        for row in points:
            trial = TrialSpec(str(row["policy"]), int(row["epochs"]), str(row.get("settings") or ""))
            self._rows.setdefault((row["variant"], trial), {})[int(row["seed"])] = row
        self.recipes = sorted({trial for _, trial in self._rows})

    def seeds(self, name: str) -> set[int]:
        return {seed for (variant, _), rows in self._rows.items() if variant == name for seed in rows}

    def by_seed(self, names: Sequence[str], trial: TrialSpec, column: str, scale: float = 1.0) -> dict[int, float]:
        """Mean over the variants for each seed that has a value in all of them."""
        rows = [self._rows.get((name, trial), {}) for name in names]
        shared = set.intersection(*(set(of_one) for of_one in rows))
        values: dict[int, list[Any]] = {s: [of_one[s].get(column) for of_one in rows] for s in sorted(shared)}
        return {seed: scale * float(np.mean(found)) for seed, found in values.items() if None not in found}


def recommend(data: StudyData) -> Recommendation:
    """The best point at each share of Unknown rows.

    Best is the highest dev accuracy, averaged over seeds; among equals the fewest epochs spent, then the smallest
    budget. A point that was not reached with every seed of its variant is no candidate, nor are training settings that
    were tried at some shares alone: they cannot be advised at the others.

    Args:
        data: its `points` and `variants` are used.

    Raises:
        NotTestable: the sweep has no points of variants with a share of Unknown rows.
    """
    cells = _PointTable(points_with_common_settings(data))
    partners = {round(v.share, 6): v.name for v in data.variants.values() if v.kind == "known" and v.share is not None}
    sweep = sorted(
        (variant.share, variant.name)
        for variant in data.variants.values()
        if variant.kind == "unknown" and variant.share is not None and cells.seeds(variant.name)
    )
    if not sweep:
        raise InsufficientDataError(
            "needs a finished sweep over variants with a share of Unknown rows (unknown-000 to -100)"
        )
    pairs = {share: (name, partners.get(round(share, 6))) for share, name in sweep}
    return Recommendation(
        by_share=tuple(_recommend_for(cells, {share: pair}, share) for share, pair in pairs.items()),
        overall=_recommend_for(cells, pairs, None),
    )


def points_with_common_settings(data: StudyData) -> list[SweepPoint]:
    """The points whose training settings were tried at every share of Unknown rows that was swept."""
    shares = {v.name for v in data.variants.values() if v.kind == "unknown" and v.share is not None}
    tried: dict[str, set[str]] = {}
    for point in data.points:
        if point["variant"] in shares:
            tried.setdefault(str(point.get("settings") or ""), set()).add(str(point["variant"]))
    swept = set[str]().union(*tried.values())
    return [point for point in data.points if tried.get(str(point.get("settings") or ""), swept) == swept]


def t_interval_over_seeds(values: Sequence[float], missing: str = "not measured") -> Estimate:
    """Mean and 95 % t interval.

    Args:
        values: one a seed.
        missing: the reason to give if there are none.

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

    reach = float(t.ppf(0.975, num - 1) * np.std(values, ddof=1) / np.sqrt(num))
    return Estimate(value=mean, low=mean - reach, high=mean + reach, num_seeds=num)


def _recommend_for(
    cells: _PointTable, pairs: Mapping[float, tuple[str, str | None]], share: float | None
) -> RecommendedTrial:
    names = [name for name, _ in pairs.values()]
    seeds = set.intersection(*(cells.seeds(name) for name in names))
    best = _best_trial(cells, names, seeds)
    if best is None:
        none = Estimate(missing_reason="no point has a dev accuracy with every seed, so there is nothing to choose by")
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
        return t_interval_over_seeds(list(cells.by_seed(names, best, column, scale).values()))

    longest = _longest_fixed(cells, names, seeds, best.settings)
    gain = saved = Estimate(missing_reason="the grid has no fixed budget that was reached with every seed")
    if longest is not None:
        end = longest[1]
        gain = _paired_difference(*(cells.by_seed(names, trial, TEST_COLUMN, 100.0) for trial in (best, end)))
        saved = _paired_difference(*(cells.by_seed(names, trial, "cost_epochs") for trial in (end, best)))
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
        filtering=_filtering_effect(cells, pairs, best),
    )


def _best_trial(cells: _PointTable, names: Sequence[str], seeds: set[int]) -> TrialSpec | None:
    ranked = []
    for trial in cells.recipes:
        dev, cost = (cells.by_seed(names, trial, column) for column in (DEV_COLUMN, "cost_epochs"))
        if seeds and dev.keys() == seeds:
            # Means of the same numbers may differ in their last bits; such a difference is a tie.
            ranked.append((-round(float(np.mean([*dev.values()])), 12), float(np.mean([*cost.values()])), trial))
    return min(ranked, key=lambda one: (one[0], one[1], one[2].budget, one[2]))[2] if ranked else None


def _longest_fixed(
    cells: _PointTable, names: Sequence[str], seeds: set[int], settings: str
) -> tuple[int, TrialSpec] | None:
    found = []
    for trial in cells.recipes:
        if trial.policy.startswith("fixed(") and trial.settings == settings:
            ends = cells.by_seed(names, trial, "stop_epoch")
            if ends and cells.by_seed(names, trial, TEST_COLUMN).keys() == seeds:
                found.append((round(max(ends.values())), trial))
    return max(found, default=None)


def _filtering_effect(cells: _PointTable, pairs: Mapping[float, tuple[str, str | None]], trial: TrialSpec) -> Estimate:
    """Known rows alone against all rows, over those shares at which both were run."""
    both = [
        (name, partner) for name, partner in pairs.values() if partner and cells.by_seed([partner], trial, TEST_COLUMN)
    ]
    if not both:
        shares = set(pairs)
        if shares == {0.0}:
            return Estimate(missing_reason="there are no Unknown rows to filter out")
        if shares == {1.0}:
            return Estimate(missing_reason="no row would be left")
        return Estimate(
            missing_reason="the sweep has no such point of the Known rows alone (variants known-010 to -090)"
        )
    known, whole = (
        cells.by_seed(names, trial, TEST_COLUMN, 100.0) for names in zip(*((k, d) for d, k in both), strict=True)
    )
    return _paired_difference(known, whole)


def _paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    """The first minus the second, paired by seed."""
    gaps = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    return t_interval_over_seeds(gaps, "the two have no seed in common")
