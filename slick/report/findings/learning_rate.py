"""E24: the trends at the other learning rates of the sweep, from its points alone. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slick.report.data import StudyData
from slick.report.findings.base import CheckResult, describe_failures, finding
from slick.report.findings.knowledge import category_totals
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    Z_95,
    InsufficientDataError,
    Measurement,
    confidence_interval,
    format_with_error,
    mean_measurement,
    mean_over_seeds,
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
    """Accuracy by ascending share of Unknown rows at one learning rate."""

    rate: str
    shares: tuple[float, ...]
    cells: Mapping[str, tuple[Measurement, ...]]
    """Policy to one accuracy per share: `EARLY_POLICY`, then `fixed(n)` by ascending n."""

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
    """At each other learning rate, accuracy falls with the share as in E3, and early stop is not below convergence.

    points.parquet has no predictions, so accuracies are not paired by question, and the test of the fall at convergence
    is stricter than in E3. The paper shows the curves without numbers, so only the sign of the mean difference between
    early stop and convergence is tested.
    """
    failed, own, intervals, rhos = [], {}, {}, []
    for trend in other_learning_rates(data):
        at = f"at learning rate {trend.rate}"
        for policy, cells in trend.cells.items():
            values = [cell.value for cell in cells]
            rhos.append(rank_correlation(trend.shares, values))
            if rhos[-1] >= 0 or values[-1] >= values[0]:
                failed.append(f"{at}, the rank correlation of {policy} with the share is {rhos[-1]:+.2f}")
        early, last = trend.cells[EARLY_POLICY], trend.cells[trend.last]
        fall = subtract(last[0], last[-1])
        loss = mean_measurement([subtract(a, b) for a, b in zip(early, last, strict=True)])
        if fall.value <= Z_95 * fall.se:
            failed.append(f"{at}, the fall at convergence, {format_with_error(fall)} points, is within noise")
        if loss.value < 0:
            failed.append(f"{at}, the mean loss to convergence is negative, {format_with_error(loss)} points")
        own[trend.rate] = {EARLY_STOP: round1_values([early[0].value, early[-1].value])}
        own[trend.rate][CONVERGENCE] = round1_values([last[0].value, last[-1].value])
        intervals[trend.rate] = {
            "fall_at_convergence": confidence_interval(fall),
            "mean_loss": confidence_interval(loss),
        }
    success = (
        f"at learning rate {' and '.join(own)}, the rank correlation with the share is {min(rhos):+.2f} to "
        f"{max(rhos):+.2f} at all training lengths, and the mean accuracy at early stop is not below convergence"
    )
    return CheckResult(not failed, own, describe_failures(failed, success), intervals)


def other_learning_rates(data: StudyData) -> list[LearningRateTrend]:
    """The sweep at each learning rate but the default one, with all other settings at their defaults.

    Learning rates that lack shares, early stop or a fixed training length, as in a search, are left out.

    Raises:
        InsufficientDataError: no other learning rate is complete.
    """
    points: dict[str, list[SweepPoint]] = {}
    for point in data.points:
        name, _, rate = str(point.get("settings") or "").partition("=")
        if name == LEARNING_RATE and ";" not in rate and point.get("test_all") is not None:
            points.setdefault(rate, []).append(point)
    if not points:
        raise InsufficientDataError(
            "the sweep has one learning rate; add a second, as in "
            '`slick sweep PRESET --grid.axes "learning_rate=1e-5,1e-4" --out DIR`'
        )
    trends, errors = [], []
    for rate in sorted(points, key=float):
        try:
            trends.append(_learning_rate_trend(data, rate, points[rate]))
        except InsufficientDataError as error:
            errors.append(error)
    if not trends:
        raise errors[0]
    return trends


def _learning_rate_trend(data: StudyData, rate: str, rows: Sequence[SweepPoint]) -> LearningRateTrend:
    shares = {v.name: v.share for v in data.variants.values() if v.kind == "unknown" and v.share is not None}
    budget = max(int(point["epochs"]) for point in rows)
    values: dict[str, dict[float, dict[int, float]]] = {}
    for point in rows:
        policy = str(point["policy"])
        is_used = policy.startswith("fixed(") or (policy == EARLY_POLICY and int(point["epochs"]) == budget)
        if is_used and point["variant"] in shares:
            by_seed = values.setdefault(policy, {}).setdefault(shares[point["variant"]], {})
            by_seed[int(point["seed"])] = 100.0 * float(point["test_all"])
    fixed = sorted((policy for policy in values if policy != EARLY_POLICY), key=lambda name: int(name[6:-1]))
    early = values.get(EARLY_POLICY, {})
    if len(early) < 3 or not fixed or set(values[fixed[-1]]) != set(early):
        raise InsufficientDataError(
            f"at learning rate {rate}, the sweep needs points of {EARLY_POLICY} and of a fixed training length at the "
            "same 3 or more shares of Unknown rows"
        )
    num = _num_test_questions(data)
    ordered = tuple(sorted(early))
    policies = [EARLY_POLICY, *(policy for policy in fixed if set(values[policy]) == set(early))]
    cells = {
        policy: tuple(mean_over_seeds([*values[policy][share].values()], num) for share in ordered)
        for policy in policies
    }
    return LearningRateTrend(rate=rate, shares=ordered, cells=cells)


def _num_test_questions(data: StudyData) -> int:
    """The number of test questions, which the points do not store."""
    num = next((run.num["test", ALL_CATEGORIES] for run in data.runs if ("test", ALL_CATEGORIES) in run.num), 0)
    num = num or sum(category_totals(data, "id", "test").values())
    if not num:
        raise InsufficientDataError("standard errors need the number of test questions, which the study does not have")
    return num
