"""Measurements in percent with their standard errors: terms, arithmetic, intervals and text. Pure."""

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

EARLY_STOP = "early_stop"
"""The epoch with the best dev accuracy, ties to the earliest."""

CONVERGENCE = "convergence"
"""The last epoch."""

ANY_KNOWN = "Known"
"""The three Known categories together."""

MIN_SEEDS = 3
"""From this many seeds on, errors cover the spread over seeds too."""

CheckpointRef = str | int
"""`EARLY`, `LAST`, or the number of an epoch (from 1)."""


class InsufficientDataError(Exception):
    """A finding cannot be judged with what the study holds; the message says what is missing."""


class Measurement(NamedTuple):
    """A measured percentage, or a difference of two in points."""

    value: float
    se: float
    """Standard error, points."""
    num_seeds: int


Z_95 = 1.96
"""Standard errors beyond which a difference counts as more than noise."""


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; 0.0 if either side does not vary.

    >>> rank_correlation([0, 1, 2], [9, 5, 1])
    -1.0
    """
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    from scipy.stats import rankdata

    return round(float(np.corrcoef(rankdata(x), rankdata(y))[0, 1]), 3)


def subtract(a: Measurement, b: Measurement) -> Measurement:
    """The difference a - b of two independent measurements."""
    return Measurement(a.value - b.value, float(np.hypot(a.se, b.se)), min(a.num_seeds, b.num_seeds))


def mean_measurement(cells: Sequence[Measurement]) -> Measurement:
    """The mean of several measurements; errors are added as if they moved together, which is never too small."""
    return Measurement(
        float(np.mean([cell.value for cell in cells])),
        float(np.mean([cell.se for cell in cells])),
        min(cell.num_seeds for cell in cells),
    )


def confidence_interval(cell: Measurement) -> list[float]:
    """The 95 % interval, by the same `Z` standard errors as the judgement: it is clear of 0 where a difference counts.

    >>> confidence_interval(Measurement(2.0, 0.5, 1))
    [1.02, 2.98]
    """
    return [round(cell.value - Z_95 * cell.se, 2), round(cell.value + Z_95 * cell.se, 2)]


def round1(value: float) -> float:
    """A percentage to the one decimal that people see; halves go up, and the dust of binary fractions does not count.

    All that shows a percentage rounds here: 27.25 may be stored as 27.249... or 27.250...1, by how it was reckoned.

    >>> round1(27.25), round1(100 * 0.2725), round1(-0.25)
    (27.3, 27.3, -0.3)
    """
    if not np.isfinite(value):
        return float(value)
    exact = Decimal(repr(round(float(value), 9)))
    return float(exact.quantize(Decimal("0.1"), ROUND_HALF_UP)) + 0.0  # + 0.0: there is no minus nought for people


def format_with_error(cell: Measurement) -> str:
    """A percentage or difference with its error, for people.

    >>> format_with_error(Measurement(1.25, 0.5, 1))
    '1.3 ± 0.5'
    """
    return f"{round1(cell.value):.1f} ± {round1(cell.se):.1f}"


def format_percent(share: float) -> str:
    """A share as a whole percentage.

    >>> format_percent(0.25)
    '25 %'
    """
    return f"{100 * share:.0f} %"


def round1_values(values: Sequence[float]) -> list[float]:
    """Points to one decimal, as JSON."""
    return [round1(value) for value in values]


def checkpoint_label(checkpoint: CheckpointRef) -> str:
    """A checkpoint in words.

    >>> checkpoint_label("early_stop"), checkpoint_label(10), checkpoint_label(1)
    ('early stop', '10 epochs', '1 epoch')
    """
    if isinstance(checkpoint, int):
        return f"{checkpoint} epoch{'' if checkpoint == 1 else 's'}"
    return {EARLY_STOP: "early stop", CONVERGENCE: "convergence"}[checkpoint]


def bonferroni_z(num: int) -> float:
    """Standard errors beyond which one of several differences counts, Bonferroni's way.

    A claim that nothing of a kind happens is judged by many comparisons; each at `Z` would find something by chance
    in one of 20. This bound keeps that chance for all of them together.

    Source: O. J. Dunn 1961, https://doi.org/10.1080/01621459.1961.10482090.

    >>> round(bonferroni_z(1), 2), round(bonferroni_z(20), 2)
    (1.96, 3.02)
    """
    from scipy.stats import norm

    return float(norm.ppf(1.0 - 0.025 / max(num, 1)))


def require_power(cells: Sequence[Measurement], limit: float = 5.0) -> None:
    """Refuse to call things equal when the data could not have shown a difference.

    Raises:
        NotTestable: two standard errors exceed `limit` points.
    """
    worst = max(cell.se for cell in cells)
    if Z_95 * worst > limit:
        raise InsufficientDataError(
            f"'about equal' cannot be judged: a difference has a standard error of {worst:.1f} points; use more test "
            "rows or seeds"
        )


def value_or_reason(compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T | None, str]:
    """The result with an empty reason, or None and the reason why it cannot be computed."""
    try:
        return compute(*args, **kwargs), ""
    except InsufficientDataError as reason:
        return None, str(reason)


def interval_ends(cell: Measurement) -> tuple[float, float]:
    """Both ends of the 95 % interval, not rounded."""
    return cell.value - Z_95 * cell.se, cell.value + Z_95 * cell.se


def format_with_interval(value: float, low: float, high: float, spec: str = ".1f", unit: str = "") -> str:
    """A value with its interval; `spec` is the number format, rounded half up if it has one decimal.

    >>> format_with_interval(27.25, -0.001, 31.0), format_with_interval(0.437, 0.41, 0.4612, ".2f")
    ('27.3 (0.0 to 31.0)', '0.44 (0.41 to 0.46)')
    """
    value, low, high = (
        round1(number) if spec.endswith(".1f") else round(number, 2) + 0.0 for number in (value, low, high)
    )
    return f"{value:{spec}}{unit} ({low:{spec}} to {high:{spec}})"
