"""E24: the trends at the other learning rates of the sweep, from its points alone. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slick.report.data import StudyData
from slick.report.findings.base import CheckResult, Condition, finding, judge
from slick.report.findings.knowledge import category_totals
from slick.report.findings.sweep import trend_weights
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    InsufficientDataError,
    Measurement,
    confidence_interval,
    format_with_error,
    mean_over_seeds,
    round1_values,
)
from slick.report.recommendation import SweepPoint
from slick.storage import Folder
from slick.study import read_manifest
from slick.types import ALL_CATEGORIES

LEARNING_RATE = "learning_rate"
EARLY_POLICY = "best_dev"
PAPER_RATIO = 10
"""The later version of the paper tries 1e-5 and 1e-4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRateTrend:
    """Accuracy by ascending share of Unknown rows at one learning rate."""

    rate: str
    shares: tuple[float, ...]
    cells: Mapping[str, tuple[Measurement, ...]]
    """Policy -> one accuracy per share: `EARLY_POLICY`, then `fixed(n)` by ascending n."""

    @property
    def last(self) -> str:
        """The longest fixed training."""
        return [policy for policy in self.cells if policy != EARLY_POLICY][-1]


@finding(
    "E24",
    claim="The trends persist at a second learning rate",
    paper="a figure, not printed; 1e-5 and 1e-4",
    experiments=("unknown_ratio",),
)
def e24(data: StudyData) -> CheckResult:
    """At each learning rate ten times as far, accuracy falls with the share as in E3, and early stop is above the end.

    points.parquet has no predictions, so accuracies are not paired by question, and errors are larger than in E3.
    """
    conditions: list[Condition] = []
    own: dict[str, dict[str, list[float]]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    num = _num_test_questions(data)
    for trend in distant_learning_rates(data):
        at = f"at learning rate {trend.rate}"
        weights = trend_weights(trend.shares)
        intervals[trend.rate] = {}
        for policy, cells in trend.cells.items():
            fall = _weighted_sum([-weight for weight in weights], cells)
            text = f"{at}, {_policy_label(policy)}, accuracy falls by {format_with_error(fall)} points over the shares"
            conditions.append(Condition(text=text, value=fall, num=num))
            intervals[trend.rate][f"fall {_policy_label(policy)}"] = confidence_interval(fall)
        early, last = trend.cells[EARLY_POLICY], trend.cells[trend.last]
        parts = [1 / len(early)] * len(early) + [-1 / len(last)] * len(last)
        loss = _weighted_sum(parts, [*early, *last])
        text = f"{at}, accuracy falls by {format_with_error(loss)} points from early stop to convergence on average"
        conditions.append(Condition(text=text, value=loss, num=num))
        intervals[trend.rate]["mean loss"] = confidence_interval(loss)
        own[trend.rate] = {EARLY_STOP: round1_values([early[0].value, early[-1].value])}
        own[trend.rate][CONVERGENCE] = round1_values([last[0].value, last[-1].value])
    success = (
        f"at learning rate {' and '.join(own)}, accuracy falls with the share at all training lengths; "
        + "; ".join(condition.text for condition in conditions if "on average" in condition.text)
    )
    return judge(conditions, own, success, intervals)


def load_learning_rate(study: Folder) -> float | None:
    """The learning rate of the sweep's default settings; None without a finished sweep."""
    manifest = read_manifest(study.child("sweep"))
    rate = manifest.settings.get("train", {}).get(LEARNING_RATE) if manifest else None
    return float(rate) if rate else None


def distant_learning_rates(data: StudyData) -> list[LearningRateTrend]:
    """The sweeps at learning rates that are as far from the default one as the paper's are: ten times.

    Raises:
        InsufficientDataError: there is none, or as `other_learning_rates`.
    """
    trends, own = other_learning_rates(data), data.load_cached(load_learning_rate, None)
    if own is None:
        raise InsufficientDataError("the learning rate of the sweep's other runs is not known")
    distant = [trend for trend in trends if _is_distant(float(trend.rate), own)]
    if not distant:
        raise InsufficientDataError(
            f"the sweep's learning rates are {own:g}, {', '.join(trend.rate for trend in trends)}; "
            "the paper's differ ten times; add one, as in "
            f'`slick sweep PRESET --grid.axes "learning_rate={own:g},{PAPER_RATIO * own:g}" --out DIR`'
        )
    return distant


def _is_distant(first: float, second: float) -> bool:
    return max(first, second) / min(first, second) > PAPER_RATIO * (1 - 1e-6)


def _weighted_sum(weights: Sequence[float], cells: Sequence[Measurement]) -> Measurement:
    """A weighted sum of independent measurements."""
    value = sum(weight * cell.value for weight, cell in zip(weights, cells, strict=True))
    variance = sum((weight * cell.se) ** 2 for weight, cell in zip(weights, cells, strict=True))
    return Measurement(value, variance**0.5, min(cell.num_seeds for cell in cells))


def _policy_label(policy: str) -> str:
    """The training length of a policy, in words.

    >>> _policy_label("best_dev"), _policy_label("fixed(10)")
    ('at early stop', 'after 10 epochs')
    """
    return "at early stop" if policy == EARLY_POLICY else f"after {policy[6:-1]} epochs"


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
