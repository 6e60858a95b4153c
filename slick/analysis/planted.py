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

from slick.analysis.terms import InsufficientDataError
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
