"""E24: the trends of the sweep at its other learning rates, from the points of the sweep alone. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slick.report.data import StudyData, binomial_se, seed_se
from slick.report.findings.base import CheckResult, describe_failures, finding
from slick.report.findings.knowledge import category_totals
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    MIN_SEEDS,
    Z_95,
    InsufficientDataError,
    Measurement,
    confidence_interval,
    format_with_error,
    mean_measurement,
    rank_correlation,
    round1_values,
    subtract,
)
from slick.report.recommendation import SweepPoint
from slick.types import ALL_CATEGORIES

LEARNING_RATE = "learning_rate"
EARLY_POLICY = "best_dev"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRateTrend:
    """The %Unknown sweep at one learning rate; accuracies by ascending share of Unknown rows."""

    rate: str
    shares: tuple[float, ...]
    cells: Mapping[str, tuple[Measurement, ...]]
    """Policy to accuracies; `EARLY_POLICY`, and `fixed(n)` by ascending n."""

    @property
    def last(self) -> str:
        """The longest fixed training."""
        return [policy for policy in self.cells if policy != EARLY_POLICY][-1]


@finding(
    "E24",
    claim="The trends persist at a second learning rate",
    paper="a figure, not printed",
    experiments=("unknown_ratio",),
)
def e24(data: StudyData) -> CheckResult:
    """At each other learning rate accuracy falls with the share (as E3), and early stop is above convergence.

    Judged from points.parquet, whose accuracies cannot be paired by question: errors are those of independent samples,
    so the fall at convergence is held to a harder test than in E3. For early stop against convergence the direction of
    the mean over shares is asked for, as the paper shows the curves without numbers.
    """
    failed, own, intervals, rhos = [], {}, {}, []
    for trend in other_learning_rates(data):
        at = f"at learning rate {trend.rate}"
        for policy, cells in trend.cells.items():
            values = [cell.value for cell in cells]
            rhos.append(rank_correlation(trend.shares, values))
            if rhos[-1] >= 0 or values[-1] >= values[0]:
                failed.append(f"{at}, {policy} has rank correlation {rhos[-1]:+.2f} with the share")
        early, last = trend.cells[EARLY_POLICY], trend.cells[trend.last]
        fall = subtract(last[0], last[-1])
        loss = mean_measurement([subtract(a, b) for a, b in zip(early, last, strict=True)])
        if fall.value <= Z_95 * fall.se:
            failed.append(f"{at} the fall at convergence, {format_with_error(fall)} points, is within noise")
        if loss.value < 0:
            failed.append(f"{at} convergence is {format_with_error(loss)} points from early stop, above it on average")
        own[trend.rate] = {EARLY_STOP: round1_values([early[0].value, early[-1].value])}
        own[trend.rate][CONVERGENCE] = round1_values([last[0].value, last[-1].value])
        intervals[trend.rate] = {
            "fall_at_convergence": confidence_interval(fall),
            "mean_loss": confidence_interval(loss),
        }
    good = (
        f"at learning rate {' and '.join(own)}, rank correlation with the share {min(rhos):+.2f} to {max(rhos):+.2f} "
        "at all training lengths, and early stop is above convergence on average"
    )
    return CheckResult(not failed, own, describe_failures(failed, good), intervals)


def other_learning_rates(data: StudyData) -> list[LearningRateTrend]:
    """The sweep at each learning rate but its own, where nothing else differs from its settings.

    A rate that lacks shares, early stop or a fixed length, as in a search, is left out.

    Raises:
        NotTestable: there is none, or none is whole; then with what the first one lacks.
    """
    found: dict[str, list[SweepPoint]] = {}
    for point in data.points:
        name, _, rate = str(point.get("settings") or "").partition("=")
        if name == LEARNING_RATE and ";" not in rate and point.get("test_all") is not None:
            found.setdefault(rate, []).append(point)
    if not found:
        raise InsufficientDataError(
            "the sweep holds one learning rate; add a second, as in "
            '`slick sweep PRESET --grid.axes "learning_rate=1e-5,1e-4" --out DIR`'
        )
    whole, lacking = [], []
    for rate, rows in sorted(found.items(), key=lambda one: float(one[0])):
        try:
            whole.append(_learning_rate_trend(data, rate, rows))
        except InsufficientDataError as reason:
            lacking.append(reason)
    if not whole:
        raise lacking[0]
    return whole


def _learning_rate_trend(data: StudyData, rate: str, rows: Sequence[SweepPoint]) -> LearningRateTrend:
    shares = {v.name: v.share for v in data.variants.values() if v.kind == "unknown" and v.share is not None}
    budget = max(int(point["epochs"]) for point in rows)
    values: dict[str, dict[float, dict[int, float]]] = {}
    for point in rows:
        policy = str(point["policy"])
        whole = policy.startswith("fixed(") or (policy == EARLY_POLICY and int(point["epochs"]) == budget)
        if whole and point["variant"] in shares:
            by_seed = values.setdefault(policy, {}).setdefault(shares[point["variant"]], {})
            by_seed[int(point["seed"])] = 100.0 * float(point["test_all"])
    fixed = sorted((policy for policy in values if policy != EARLY_POLICY), key=lambda name: int(name[6:-1]))
    early = values.get(EARLY_POLICY, {})
    if len(early) < 3 or not fixed or set(values[fixed[-1]]) != set(early):
        raise InsufficientDataError(
            f"at learning rate {rate} the sweep needs points of {EARLY_POLICY} and of a fixed length at the same three "
            "shares of Unknown rows or more"
        )
    num = _num_test_questions(data)
    ordered = tuple(sorted(early))
    policies = [EARLY_POLICY, *(policy for policy in fixed if set(values[policy]) == set(early))]
    cells = {
        policy: tuple(_mean_over_seeds([*values[policy][share].values()], num) for share in ordered)
        for policy in policies
    }
    return LearningRateTrend(rate=rate, shares=ordered, cells=cells)


def _num_test_questions(data: StudyData) -> int:
    """Rows behind a test accuracy; the points do not say."""
    num = next((run.num["test", ALL_CATEGORIES] for run in data.runs if ("test", ALL_CATEGORIES) in run.num), 0)
    num = num or sum(category_totals(data, "id", "test").values())
    if not num:
        raise InsufficientDataError("the number of test questions is not known, so no error can be told")
    return num


def _mean_over_seeds(values: list[float], num: int) -> Measurement:
    mean = float(np.mean(values))
    by_seed = seed_se(np.array(values)) if len(values) >= MIN_SEEDS else 0.0
    return Measurement(mean, max(by_seed, binomial_se(mean, num)), len(values))
