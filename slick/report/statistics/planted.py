"""What was planted in a world beside what annotation says of it: the truth that no downloaded model comes with. Pure.

The corpus of a world names the answer of a fact `num_gold` times and one rival `num_rival` times; the planted chance of
the answer is its share of the two, and 0 where the fact was never planted. A model that learned its corpus well says
the answer about that often when it samples at temperature 1; at another temperature the shares are sharper.

Legend of array suffixes: F facts.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.report.measurements import InsufficientDataError
from slick.types import Category

FloatArray = NDArray[np.float64]

STRENGTHS = ("firm", "contested", "minority", "never")
"""As `slick.world.facts` plants them, strongest first."""

MIN_FACTS = 10
"""Fewer facts than this give no rank correlation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedFacts:
    """The annotated facts of a world; all arrays have shape (F,)."""

    question_ids: NDArray[np.str_]
    strength: NDArray[np.str_]
    num_gold: NDArray[np.int64]
    num_rival: NDArray[np.int64]
    category: NDArray[np.str_]
    greedy: FloatArray
    """P_Correct of greedy answers, in [0, 1]."""
    sampled: FloatArray
    """P_Correct of sampled answers; NaN where not all samples were drawn."""
    cause: NDArray[np.str_]
    """Why the label is not what was planted, one of `MISSED` or `GUESSED`; empty where it is, or cannot be told."""
    cause_missing_reason: str = ""
    """Why no cause could be told; empty if they were looked for."""
    temperature: float | None = None
    """Of the samples; None if it is not known."""
    num_unmatched_questions: int = 0
    """Annotated questions that are no fact of the world."""

    @property
    def planted_probability(self) -> FloatArray:
        """Planted chance of the answer."""
        return np.asarray(self.num_gold / np.maximum(self.num_gold + self.num_rival, 1), dtype=np.float64)


REWORDED = "the answer stands among other words, which the matcher does not take"
RIVAL = "it mostly says the rival planted beside the answer"
OTHER_FACT_ANSWER = "it mostly says the answer to another question of the relation"
UNRELATED_ANSWER = "it mostly says what answers no question of the relation"
MISS_CAUSES = (REWORDED, RIVAL, OTHER_FACT_ANSWER, UNRELATED_ANSWER)
"""Causes of Unknown for a planted fact; the first that applies."""

COPIED_FROM_PROMPT = "every hit came where the prompt's own examples show the answer"
FREQUENT_GUESS = "it gives this answer to other unplanted questions as well, once a question or more"
RARE_GUESS = "it gives this answer to other unplanted questions as well, less than once a question"
UNEXPLAINED = "it gives this answer to no other unplanted question"
GUESS_CAUSES = (COPIED_FROM_PROMPT, FREQUENT_GUESS, RARE_GUESS, UNEXPLAINED)
"""Causes of Known for a fact that was never planted; the first that applies."""


class Proportion(NamedTuple):
    """A count out of a total, and the Wilson interval of its share (95 %)."""

    num: int
    total: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.num / self.total


def proportion(num: int, total: int) -> Proportion:
    """A share with its interval.

    Raises:
        NotTestable: there is nothing to take a share of.

    >>> [round(part, 3) for part in proportion(1, 100)[2:]]
    [0.002, 0.054]
    """
    if not total:
        raise InsufficientDataError("there is no such fact")
    from scipy.stats import binomtest

    low, high = binomtest(num, total).proportion_ci(method="wilson")
    return Proportion(num, total, float(low), float(high))


def counts_by_strength(facts: PlantedFacts) -> dict[str, dict[str, int]]:
    """Facts of each category by planted strength, strongest first; strengths without a fact are left out.

    Raises:
        NotTestable: a strength is none that a world plants.
    """
    strange = set(facts.strength.tolist()) - set(STRENGTHS)
    if strange:
        raise InsufficientDataError(
            f"world/planted.parquet names strengths {sorted(strange)}, wanted some of {STRENGTHS}"
        )
    tally = Counter(zip(facts.strength.tolist(), facts.category.tolist(), strict=True))
    found = {s: {str(category): tally[s, str(category)] for category in Category} for s in STRENGTHS}
    return {strength: counts for strength, counts in found.items() if sum(counts.values())}


def unknown_share(facts: PlantedFacts, strength: str) -> Proportion:
    """Facts of a strength that are labelled Unknown.

    Raises:
        NotTestable: no fact has that strength.
    """
    of_strength = facts.strength == strength
    num = int((of_strength & (facts.category == Category.UNKNOWN)).sum())
    return proportion(num, int(of_strength.sum()))


def false_unknown_rates(facts: PlantedFacts) -> dict[str, Proportion]:
    """Planted facts labelled Unknown, by strength."""
    return {name: unknown_share(facts, name) for name in counts_by_strength(facts) if name != "never"}


def false_known_rate(facts: PlantedFacts) -> Proportion:
    """Never-planted facts labelled Known.

    Raises:
        NotTestable: every fact was planted.
    """
    unknown = unknown_share(facts, "never")
    return proportion(unknown.total - unknown.num, unknown.total)


def cause_counts(facts: PlantedFacts, strength: str) -> dict[str, int]:
    """Facts of a strength whose label is not what was planted, by cause, in the order in which causes are tried.

    Raises:
        NotTestable: the answers that would tell were not kept.
    """
    if facts.cause_missing_reason:
        raise InsufficientDataError(facts.cause_missing_reason)
    tally = Counter(facts.cause[facts.strength == strength].tolist())
    return {cause: tally[cause] for cause in (GUESS_CAUSES if strength == "never" else MISS_CAUSES) if tally[cause]}


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
