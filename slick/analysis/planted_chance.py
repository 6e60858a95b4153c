"""How well a measure of knowledge recovers the chance with which a world planted its answers. Pure."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.analysis.planted import MIN_FACTS, FloatArray, PlantedFacts
from slick.analysis.terms import InsufficientDataError

BIN_WIDTH = 0.05
"""Planted chances are binned to multiples of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """Facts of about one planted chance, and the mean of a measure over them with its 95 % interval."""

    planted_probability: float
    """Mean planted chance."""
    num: int
    mean: float
    low: float
    high: float


class RankStatistic(NamedTuple):
    """A rank correlation or a ranking's area, with its 95 % interval and the facts behind it."""

    value: float
    low: float
    high: float
    num: int


def calibration_bins(facts: PlantedFacts, measure_F: FloatArray) -> list[CalibrationBin]:
    """Mean of a measure by planted chance, ascending.

    Args:
        facts: what was planted.
        measure_F: in [0, 1]; NaN where it was not measured.

    Raises:
        NotTestable: it was measured for no fact.
    """
    seen = np.isfinite(measure_F)
    if not seen.any():
        raise InsufficientDataError("it was measured for no planted fact")
    chance, values = facts.planted_probability[seen], measure_F[seen]
    places = np.round(chance / BIN_WIDTH)
    found = []
    for place in np.unique(places):
        chosen = values[places == place]
        low, high = _mean_interval(chosen)
        mean_chance = float(chance[places == place].mean())
        found.append(
            CalibrationBin(
                planted_probability=mean_chance, num=len(chosen), mean=float(chosen.mean()), low=low, high=high
            )
        )
    return found


def apply_temperature(chance: FloatArray, temperature: float) -> FloatArray:
    """The chance of the answer beside one rival when chances are sharpened by a temperature.

    As if the two answers differed in one token; those that differ in more are sharpened by less or more.

    >>> apply_temperature(np.array([0.0, 0.25, 0.5, 1.0]), 0.5).tolist()
    [0.0, 0.1, 0.5, 1.0]
    """
    gold, rival = chance ** (1 / temperature), (1 - chance) ** (1 / temperature)
    return np.asarray(gold / (gold + rival), dtype=np.float64)


def planted_rank_correlation(
    facts: PlantedFacts, measure_F: FloatArray, among: NDArray[np.bool_] | None = None
) -> RankStatistic:
    """Spearman's rank correlation of planted chance and measure.

    Args:
        facts: what was planted.
        measure_F: NaN where it was not measured.
        among: only these facts; None for all.

    Raises:
        NotTestable: too few facts, or one of the two sides does not vary.

    Source: the interval is that of Bonett and Wright 2000, Psychometrika 65.
    """
    from scipy.stats import norm, spearmanr

    seen = np.isfinite(measure_F) & (True if among is None else among)
    chance, values = facts.planted_probability[seen], measure_F[seen]
    num = len(values)
    if num < MIN_FACTS:
        raise InsufficientDataError(f"needs {MIN_FACTS} measured facts or more, there are {num}")
    if len(np.unique(chance)) < 2 or len(np.unique(values)) < 2:
        raise InsufficientDataError("planted chance or measure is the same for all of these facts")
    rho = float(spearmanr(chance, values).statistic)
    reach = float(norm.ppf(0.975)) * np.sqrt((1 + rho**2 / 2) / (num - 3))
    at = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    return RankStatistic(rho, float(np.tanh(at - reach)), float(np.tanh(at + reach)), num)


def planted_auroc(facts: PlantedFacts, measure_F: FloatArray) -> RankStatistic:
    """The chance that a planted fact scores above one never planted, ties counting half (area under the ROC curve).

    Raises:
        NotTestable: one of the two sides has fewer than two measured facts.

    Source: the interval is DeLong's by mid-ranks (Sun and Xu 2014, IEEE Signal Processing Letters 21).
    """
    from scipy.stats import binomtest, norm, rankdata

    seen = np.isfinite(measure_F)
    never = facts.strength == "never"
    above, below = measure_F[seen & ~never], measure_F[seen & never]
    if min(len(above), len(below)) < 2:
        raise InsufficientDataError("needs two planted and two never planted facts that were measured")
    ranks = rankdata(np.concatenate([above, below]))
    wins = (ranks[: len(above)] - rankdata(above)) / len(below)
    losses = 1 - (ranks[len(above) :] - rankdata(below)) / len(above)
    area = float(wins.mean())
    error = np.sqrt(wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses))
    if error == 0:  # all apart: as sure as so many trials, one a fact of the smaller side
        low, high = binomtest(round(area * min(len(above), len(below))), min(len(above), len(below))).proportion_ci()
        return RankStatistic(area, float(min(low, area)), float(max(high, area)), len(ranks))
    reach = float(norm.ppf(0.975) * error)
    return RankStatistic(area, max(area - reach, 0.0), min(area + reach, 1.0), len(ranks))


def _mean_interval(values: FloatArray) -> tuple[float, float]:
    """Student's t over facts; where all facts agree, as many exact trials as there are facts."""
    from scipy.stats import binomtest, t

    num, mean = len(values), float(values.mean())
    spread = float(values.std(ddof=1)) if num > 1 else 0.0
    if spread == 0.0:
        low, high = binomtest(round(mean * num), num).proportion_ci(method="exact")
        return float(min(low, mean)), float(max(high, mean))
    reach = float(t.ppf(0.975, num - 1)) * spread / np.sqrt(num)
    return float(max(mean - reach, 0.0)), float(min(mean + reach, 1.0))
