"""Confidence intervals of proportions."""

from math import sqrt
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """The ends of a confidence interval, in [0, 1]."""

    low: float
    high: float


def wilson_interval(num: float, total: float, confidence: float = 0.95) -> Interval:
    """The confidence interval of a proportion of Wilson 1927, without continuity correction.

    Args:
        num: successes; a fraction where they are weighted.
        total: trials, above 0.
        confidence: of the two-sided interval.

    >>> [round(end, 3) for end in wilson_interval(1, 5)]
    [0.036, 0.624]
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = num / total
    center = share + z**2 / (2 * total)
    margin = z * sqrt((share * (1 - share) + z**2 / (4 * total)) / total)
    scale = 1 + z**2 / total
    return Interval(max(0.0, (center - margin) / scale), min(1.0, (center + margin) / scale))
