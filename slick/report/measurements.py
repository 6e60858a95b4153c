"""Measurements: percentages with standard errors, and differences of them in percentage points. Pure."""

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

P = ParamSpec("P")
T = TypeVar("T")

EARLY_STOP = "early_stop"
"""The epoch with the highest dev accuracy; the earliest one if several tie."""

CONVERGENCE = "convergence"
"""The last epoch."""

ANY_KNOWN = "Known"
"""The three Known categories together."""

MIN_SEEDS = 3
"""With at least this many seeds, standard errors include the variance between seeds."""

PAIRING_NOTE = "Differences are paired over questions; from three seeds on, their error is at least the one over seeds."
"""How differences are measured, for the text of sections."""

Z_95 = 1.96
"""Half the width of a 95 % interval, in standard errors. Larger differences exceed noise."""

CheckpointRef = str | int
"""`EARLY_STOP`, `CONVERGENCE`, or the number of an epoch (from 1)."""


class InsufficientDataError(Exception):
    """The study lacks the data of a finding, figure or table. The message says what is missing."""


class Measurement(NamedTuple):
    """A percentage, or a difference in percentage points."""

    value: float
    se: float
    """Standard error, percentage points."""
    num_seeds: int


def value_or_reason(compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T | None, str]:
    """The result with an empty reason, or None and the reason why it cannot be computed."""
    try:
        return compute(*args, **kwargs), ""
    except InsufficientDataError as reason:
        return None, str(reason)


def seed_se(values: NDArray[np.float64]) -> float:
    """Standard error of the mean over seeds, widened for their small number; `values` has shape (seeds,).

    It is multiplied by the ratio of the 97.5 % quantiles of Student's t and of the normal distribution, so that `Z_95`
    of it are half the width of the 95 % interval of few seeds.
    """
    from scipy.stats import t

    widening = float(t.ppf(0.975, len(values) - 1)) / Z_95
    return float(values.std(ddof=1) / np.sqrt(len(values))) * widening


def paired_se(gaps: NDArray[np.float64], scale: float = 100.0) -> float:
    """Standard error of the mean of paired differences.

    Half a question that improves by `scale` and half a question that worsens by as much are added, so that a few
    unchanged questions do not give an error of 0.

    Args:
        gaps: shape (questions,), each in [-scale, scale] for a difference of two answers.
        scale: points.

    Source: Agresti and Min 2005, https://doi.org/10.1002/sim.1781.

    >>> paired_se(np.zeros(10)) > 0
    True
    """
    num = len(gaps) + 2
    variance = (float((gaps**2).sum()) + scale**2) / num - (float(gaps.sum()) / num) ** 2
    return float(np.sqrt(variance / num))


def binomial_se(percent: float, num_rows: int) -> float:
    """Standard error of a percentage of rows, in percentage points.

    Half a success and half a failure are added, so that 0 % and 100 % of few rows do not have an error of 0.
    """
    share = (percent / 100.0 * num_rows + 0.5) / (num_rows + 1)
    return float(100.0 * np.sqrt(share * (1.0 - share) / num_rows))


def mean_over_seeds(percentages: Sequence[float] | NDArray[np.float64], num_rows: int) -> Measurement:
    """The mean of one percentage per seed.

    Its error is the binomial error of one seed or, with `MIN_SEEDS` seeds, the error over seeds if that is larger:
    seeds that agree do not show how the accuracy would differ on other questions.
    """
    values = np.asarray(percentages, dtype=np.float64)
    mean = float(values.mean())
    se = binomial_se(mean, num_rows)
    return Measurement(mean, max(se, seed_se(values)) if len(values) >= MIN_SEEDS else se, len(values))


def subtract(a: Measurement, b: Measurement) -> Measurement:
    """The difference a - b of two independent measurements."""
    return Measurement(a.value - b.value, float(np.hypot(a.se, b.se)), min(a.num_seeds, b.num_seeds))


def mean_measurement(cells: Sequence[Measurement]) -> Measurement:
    """The mean of several measurements. Its error assumes full correlation between them, which is conservative."""
    return Measurement(
        float(np.mean([cell.value for cell in cells])),
        float(np.mean([cell.se for cell in cells])),
        min(cell.num_seeds for cell in cells),
    )


def interval_ends(cell: Measurement) -> tuple[float, float]:
    """Both ends of the 95 % interval, not rounded."""
    return cell.value - Z_95 * cell.se, cell.value + Z_95 * cell.se


def is_significant(difference: Measurement) -> bool:
    """Whether the 95 % interval of a difference excludes 0."""
    low, high = interval_ends(difference)
    return low > 0 or high < 0


def rounded_with_interval(cell: Measurement) -> tuple[float, float, float]:
    """A measurement and the ends of its 95 % interval, with three decimals, for CSV files."""
    low, high = interval_ends(cell)
    return round(cell.value, 3), round(low, 3), round(high, 3)


def confidence_interval(cell: Measurement) -> list[float]:
    """The 95 % interval with two decimals, as JSON. It excludes 0 if the difference exceeds noise.

    >>> confidence_interval(Measurement(2.0, 0.5, 1))
    [1.02, 2.98]
    """
    return [round(end, 2) for end in interval_ends(cell)]


def round1(value: float) -> float:
    """A percentage rounded half up to the one decimal that is displayed.

    All displayed percentages are rounded here. Floating-point error does not matter: 27.25 may be stored as 27.249...
    or as 27.250...1.

    >>> round1(27.25), round1(100 * 0.2725), round1(-0.25)
    (27.3, 27.3, -0.3)
    """
    if not np.isfinite(value):
        return float(value)
    exact = Decimal(repr(round(float(value), 9)))
    return float(exact.quantize(Decimal("0.1"), ROUND_HALF_UP)) + 0.0  # + 0.0 turns -0.0 into 0.0


def round1_values(values: Sequence[float]) -> list[float]:
    """Several values, each rounded by `round1`."""
    return [round1(value) for value in values]


def format_with_error(cell: Measurement) -> str:
    """A measurement with its standard error.

    >>> format_with_error(Measurement(1.25, 0.5, 1))
    '1.3 ± 0.5'
    """
    return f"{round1(cell.value):.1f} ± {round1(cell.se):.1f}"


def format_interval(low: float, high: float, spec: str = "+.1f") -> str:
    """The ends of an interval; `spec` is the number format.

    >>> format_interval(-2.25, 0.3), format_interval(12.0, 14.0, ".1f")
    ('-2.3 to +0.3', '12.0 to 14.0')
    """
    return f"{_format_number(low, spec)} to {_format_number(high, spec)}"


def format_with_interval(value: float, low: float, high: float, spec: str = ".1f", unit: str = "") -> str:
    """A value with its interval; `spec` is the number format.

    >>> format_with_interval(27.25, -0.001, 31.0), format_with_interval(0.437, 0.41, 0.4612, ".2f")
    ('27.3 (0.0 to 31.0)', '0.44 (0.41 to 0.46)')
    """
    return f"{_format_number(value, spec)}{unit} ({format_interval(low, high, spec)})"


def format_change(value: float, low: float | None = None, high: float | None = None, unit: str = "") -> str:
    """A difference with its interval, if it has one.

    >>> format_change(-1.25, -2.2, -0.3), format_change(1.0, unit=" points")
    ('-1.3 (-2.2 to -0.3)', '+1.0 points')
    """
    if low is None or high is None:
        return f"{_format_number(value, '+.1f')}{unit}"
    return format_with_interval(value, low, high, "+.1f", unit)


def format_difference(cell: Measurement) -> str:
    """A difference with its 95 % interval.

    >>> format_difference(Measurement(-1.25, 0.5, 3))
    '-1.3 (-2.2 to -0.3)'
    """
    return format_change(cell.value, *interval_ends(cell))


def _format_number(value: float, spec: str) -> str:
    """Numbers with one decimal are rounded half up; none is -0."""
    return f"{round1(value) if spec.endswith('.1f') else round(value, 2) + 0.0:{spec}}"


def checkpoint_label(checkpoint: CheckpointRef) -> str:
    """The name of a checkpoint.

    >>> checkpoint_label("early_stop"), checkpoint_label(10), checkpoint_label(1)
    ('early stop', '10 epochs', '1 epoch')
    """
    if isinstance(checkpoint, int):
        return f"{checkpoint} epoch{'' if checkpoint == 1 else 's'}"
    return {EARLY_STOP: "early stop", CONVERGENCE: "convergence"}[checkpoint]
