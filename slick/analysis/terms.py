"""The terms of the analysis: checkpoints, measured percentages, and what cannot be told. Pure."""

from typing import NamedTuple

EARLY = "early_stop"
"""The epoch with the best dev accuracy, ties to the earliest."""

LAST = "convergence"
"""The last epoch."""

POOLED = "Known"
"""The three Known categories together."""

MIN_SEEDS = 3
"""From this many seeds on, errors cover the spread over seeds too."""

When = str | int
"""`EARLY`, `LAST`, or the number of an epoch (from 1)."""


class NotTestable(Exception):
    """A finding cannot be judged with what the study holds; the message says what is missing."""


class Cell(NamedTuple):
    """A measured percentage, or a difference of two in points."""

    value: float
    se: float
    """Standard error, points."""
    num_seeds: int
