"""Labels and knowledge measures compared with the ground truth of a synthetic world. Pure.

The corpus of a world states the gold answer of a fact `num_gold` times and one rival answer `num_rival` times. The
planted probability of the gold answer is its share of the two, and 0 for a fact that was never planted. A model that
fits its corpus samples the answer about that often at temperature 1; a lower temperature sharpens the probabilities.

Legend of array suffixes: F facts.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slick.report.measurements import InsufficientDataError
from slick.report.statistics.intervals import Proportion, RankStatistic, proportion, spearman
from slick.types import Category

FloatArray = NDArray[np.float64]
STRENGTHS = ("firm", "contested", "minority", "never")
"""Planted strengths, as in `slick.world.facts`, strongest first."""

MIN_FACTS = 10
"""Minimum number of facts for a rank correlation."""

BIN_WIDTH = 0.05
"""Planted probabilities are binned to multiples of this."""

REWORDED = "the answer stands among other words, which the matcher does not take"
RIVAL = "it mostly says the rival planted beside the answer"
OTHER_FACT_ANSWER = "it mostly says the answer to another question of the relation"
UNRELATED_ANSWER = "it mostly says what answers no question of the relation"
MISS_CAUSES = (REWORDED, RIVAL, OTHER_FACT_ANSWER, UNRELATED_ANSWER)
"""Causes of the label Unknown for a planted fact; the first that applies counts."""

COPIED_FROM_PROMPT = "every hit came where the prompt's own examples show the answer"
FREQUENT_GUESS = "it gives this answer to other unplanted questions as well, once a question or more"
RARE_GUESS = "it gives this answer to other unplanted questions as well, less than once a question"
UNEXPLAINED = "it gives this answer to no other unplanted question"
GUESS_CAUSES = (COPIED_FROM_PROMPT, FREQUENT_GUESS, RARE_GUESS, UNEXPLAINED)
"""Causes of a Known label for a fact that was never planted; the first that applies counts."""


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
    """P_Correct of sampled answers; NaN unless all samples were drawn."""
    cause: NDArray[np.str_]
    """Why the label disagrees with the planted strength, one of `MISS_CAUSES` or `GUESS_CAUSES`; empty if it agrees or
    the cause is unknown."""
    cause_missing_reason: str = ""
    """Why causes could not be determined; empty if they were."""
    temperature: float | None = None
    """Sampling temperature; None if unknown."""
    num_unmatched_questions: int = 0
    """Annotated questions that are not facts of the world."""

    @property
    def planted_probability(self) -> FloatArray:
        """Planted probability of the gold answer, shape (F,)."""
        return np.asarray(self.num_gold / np.maximum(self.num_gold + self.num_rival, 1), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin:
    """Facts of similar planted probability, and the mean of a measure over them with its 95 % interval."""

    planted_probability: float
    """Mean planted probability of the bin."""
    num: int
    mean: float
    low: float
    high: float


def counts_by_strength(facts: PlantedFacts) -> dict[str, dict[str, int]]:
    """Number of facts per category by planted strength, strongest first; strengths without facts are omitted.

    Raises:
        InsufficientDataError: the world has an unknown strength.
    """
    unexpected = set(facts.strength.tolist()) - set(STRENGTHS)
    if unexpected:
        raise InsufficientDataError(
            f"world/planted.parquet has the strengths {sorted(unexpected)}, expected only {', '.join(STRENGTHS)}"
        )
    tally = Counter(zip(facts.strength.tolist(), facts.category.tolist(), strict=True))
    by_strength = {s: {str(category): tally[s, str(category)] for category in Category} for s in STRENGTHS}
    return {strength: counts for strength, counts in by_strength.items() if sum(counts.values())}


def unknown_share(facts: PlantedFacts, strength: str) -> Proportion:
    """Share of the facts of a strength that are labelled Unknown.

    Raises:
        InsufficientDataError: no fact has that strength.
    """
    of_strength = facts.strength == strength
    num = int((of_strength & (facts.category == Category.UNKNOWN)).sum())
    return proportion(num, int(of_strength.sum()), "there is no such fact")


def false_unknown_rates(facts: PlantedFacts) -> dict[str, Proportion]:
    """Share of planted facts labelled Unknown, by strength."""
    return {name: unknown_share(facts, name) for name in counts_by_strength(facts) if name != "never"}


def false_known_rate(facts: PlantedFacts) -> Proportion:
    """Share of never-planted facts labelled Known.

    Raises:
        InsufficientDataError: every fact was planted.
    """
    unknown = unknown_share(facts, "never")
    return proportion(unknown.total - unknown.num, unknown.total, "there is no such fact")


def cause_counts(facts: PlantedFacts, strength: str) -> dict[str, int]:
    """Number of facts of a strength with a wrong label by cause, in the order in which causes are tested.

    Raises:
        InsufficientDataError: the answers were not stored.
    """
    if facts.cause_missing_reason:
        raise InsufficientDataError(facts.cause_missing_reason)
    tally = Counter(facts.cause[facts.strength == strength].tolist())
    return {cause: tally[cause] for cause in (GUESS_CAUSES if strength == "never" else MISS_CAUSES) if tally[cause]}


def calibration_bins(facts: PlantedFacts, measure_F: FloatArray) -> list[CalibrationBin]:
    """Mean of a measure by planted probability, ascending.

    Args:
        facts: of the world.
        measure_F: in [0, 1]; NaN where it was not measured.

    Raises:
        InsufficientDataError: it was measured for no fact.
    """
    measured = np.isfinite(measure_F)
    if not measured.any():
        raise InsufficientDataError("it was measured for no planted fact")
    chance, values = facts.planted_probability[measured], measure_F[measured]
    bin_of_fact = np.round(chance / BIN_WIDTH)
    bins = []
    for bin_index in np.unique(bin_of_fact):
        chosen = values[bin_of_fact == bin_index]
        low, high = _mean_interval(chosen)
        mean_chance = float(chance[bin_of_fact == bin_index].mean())
        bins.append(
            CalibrationBin(
                planted_probability=mean_chance, num=len(chosen), mean=float(chosen.mean()), low=low, high=high
            )
        )
    return bins


def apply_temperature(chance: FloatArray, temperature: float) -> FloatArray:
    """The probability of the answer against one rival when sampling at a temperature.

    Exact for answers that differ in one token; an approximation otherwise.

    >>> apply_temperature(np.array([0.0, 0.25, 0.5, 1.0]), 0.5).tolist()
    [0.0, 0.1, 0.5, 1.0]
    """
    gold, rival = chance ** (1 / temperature), (1 - chance) ** (1 / temperature)
    return np.asarray(gold / (gold + rival), dtype=np.float64)


def planted_rank_correlation(
    facts: PlantedFacts, measure_F: FloatArray, among: NDArray[np.bool_] | None = None
) -> RankStatistic:
    """Spearman's rank correlation of planted probability and measure.

    Args:
        facts: of the world.
        measure_F: NaN where it was not measured.
        among: mask of the facts to use; None for all.

    Raises:
        InsufficientDataError: there are too few facts, or one of the two variables is constant.
    """
    measured = np.isfinite(measure_F) & (True if among is None else among)
    chance, values = facts.planted_probability[measured], measure_F[measured]
    if len(values) < MIN_FACTS:
        raise InsufficientDataError(f"needs {MIN_FACTS} measured facts or more, there are {len(values)}")
    if len(np.unique(chance)) < 2 or len(np.unique(values)) < 2:
        raise InsufficientDataError("planted chance or measure is the same for all of these facts")
    return spearman(chance, values)


def planted_auroc(facts: PlantedFacts, measure_F: FloatArray) -> RankStatistic:
    """AUROC: the probability that a planted fact scores above a never-planted one; ties count half.

    Raises:
        InsufficientDataError: there are fewer than two measured facts of either kind.

    Source: the interval is DeLong's, computed by mid-ranks (Sun and Xu 2014, IEEE Signal Processing Letters 21).
    """
    from scipy.stats import binomtest, norm, rankdata

    measured = np.isfinite(measure_F)
    never = facts.strength == "never"
    above, below = measure_F[measured & ~never], measure_F[measured & never]
    if min(len(above), len(below)) < 2:
        raise InsufficientDataError("needs two planted and two never planted facts that were measured")
    ranks = rankdata(np.concatenate([above, below]))
    wins = (ranks[: len(above)] - rankdata(above)) / len(below)
    losses = 1 - (ranks[len(above) :] - rankdata(below)) / len(above)
    area = float(wins.mean())
    error = np.sqrt(wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses))
    if error == 0:  # perfect separation: an exact binomial interval over the facts of the smaller group
        low, high = binomtest(round(area * min(len(above), len(below))), min(len(above), len(below))).proportion_ci()
        return RankStatistic(area, float(min(low, area)), float(max(high, area)), len(ranks))
    reach = float(norm.ppf(0.975) * error)
    return RankStatistic(area, max(area - reach, 0.0), min(area + reach, 1.0), len(ranks))


def _mean_interval(values: FloatArray) -> tuple[float, float]:
    """Student's t interval over facts; an exact binomial interval where all facts have the same value."""
    from scipy.stats import binomtest, t

    num, mean = len(values), float(values.mean())
    spread = float(values.std(ddof=1)) if num > 1 else 0.0
    if spread == 0.0:
        low, high = binomtest(round(mean * num), num).proportion_ci(method="exact")
        return float(min(low, mean)), float(max(high, mean))
    reach = float(t.ppf(0.975, num - 1)) * spread / np.sqrt(num)
    return float(max(mean - reach, 0.0)), float(min(mean + reach, 1.0))
