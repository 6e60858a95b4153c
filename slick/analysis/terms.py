"""The terms of the analysis: checkpoints, measured percentages, and what cannot be told. Pure."""

from typing import NamedTuple

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
