"""Ranks of right answers among wrong ones, and the share of Unknown questions that are ranked correctly. Pure.

K of a question is the share of pairs of a right and a wrong answer in which the right one has the higher score; ties
count half. There are two kinds of wrong answers, and their K have different meanings:

- The model's own wrong answers, as in arXiv:2503.15299. K is below one half for an absent fact, not near it: the model
  chose these answers, so it scores them higher than a gold answer that it never gave.
- Distractors, which are gold answers of other questions (`slick.annotation.candidates`). Over all pairs of absent facts
  K is one half, because gold answer and distractor are then exchangeable.

So K = 1 against the own wrong answers is evidence that needs no comparison, but is rare by construction. The share of
Unknown questions with hidden knowledge is estimated from K against distractors. If the gold answers of a share s are
ranked above all distractors, and the others are absent, then K is s + (1 - s) / 2; so s is estimated by 2 K - 1. Every
question has at most K = 1, so it is also a lower bound of the share of questions with any hidden knowledge. A single
question that is ranked above all distractors may be so by chance, the more often the fewer distractors it has.

All pairs have the same weight, so a question counts as often as it has distractors. With equal weights of questions, K
would exceed one half for absent facts: gold answers that are frequent guesses have fewer pairs and more wins.

Ranking above distractors shows that the model relates the answer to the question. It does not show that it learned the
fact: an inference, as from a name to a country, has the same effect.

Source: Z. Gekhman et al. 2025, "Inside-Out: Hidden Factual Knowledge in LLMs", arXiv:2503.15299, for K.

Legend of array suffixes: Q questions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.report.measurements import InsufficientDataError
from slick.report.statistics.intervals import RankStatistic, wilson_interval
from slick.report.statistics.p_true import MIN_CHOICE_MASS
from slick.types import Category

FloatArray = NDArray[np.float64]

LOG_PROBABILITY, PER_TOKEN, P_TRUE = "log-probability", "log-probability per token", "P(True)"
MEASURES = (LOG_PROBABILITY, PER_TOKEN, P_TRUE)
TESTED_MEASURES = (LOG_PROBABILITY, P_TRUE)
"""Measures that may show hidden knowledge; chosen in advance. Their intervals have Bonferroni's correction."""

HIDDEN, NONE, INCONCLUSIVE = "hidden knowledge", "none", "inconclusive"
"""Verdicts: the interval of the share is above 0; it is below `NEGLIGIBLE_SHARE`; neither."""
NEGLIGIBLE_SHARE = 0.05
"""A smaller share of the Unknown questions counts as none; fixed in advance."""
MIN_QUESTIONS = 10
"""Minimum number of questions, and of subjects, for an interval."""

CONFIRMED, CONTRADICTED = "confirmed", "contradicted"
NEAR_HALF = 0.05
"""K is near one half if its interval is within this distance, and far if the interval is beyond; fixed in advance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rankings:
    """The ranks of right answers by each measure; all arrays have shape (Q,), and NaN where nothing was compared."""

    question_ids: NDArray[np.str_]
    relations: NDArray[np.str_]
    categories: NDArray[np.str_]
    clusters: NDArray[np.str_]
    """The subject of each question; questions of one subject are not independent."""
    gold: NDArray[np.str_]
    """The first gold answer."""
    own: Mapping[str, FloatArray]
    """By measure: K against the model's own wrong answers, of all right answers that were scored."""
    against_distractors: Mapping[str, FloatArray]
    """By measure: K of the gold answer against distractors."""
    num_distractors: NDArray[np.int64]
    """Number of pairs of a question and a distractor: the weight of the question in a mean of these K."""
    choice_mass: float
    """Probability of both choices of P(True) together, averaged over all answers."""

    @property
    def is_p_true_informative(self) -> bool:
        """Whether the model answers the prompt of P(True) with one of its choices."""
        return self.choice_mass >= MIN_CHOICE_MASS

    def mask(self, category: str) -> NDArray[np.bool_]:
        """True for the questions of a category, shape (Q,)."""
        return np.asarray(self.categories == category)


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenShare:
    """The split of the Unknown questions by one measure. Shares are in [0, 1]."""

    measure: str
    num: int
    """Unknown questions with a distractor."""
    k: RankStatistic
    """Mean K against distractors, and its interval."""
    above_distractors: float
    """Share of gold answers above all distractors, which includes those that are so by chance."""
    above_own: float
    """Share of gold answers above all of the model's own wrong answers (K = 1), of questions with any."""

    @property
    def share(self) -> float:
        """Estimated share of questions that are ranked correctly but never generated; below 0 if K is below 1 / 2."""
        return 2 * self.k.value - 1

    @property
    def low(self) -> float:
        """The lower end of its interval."""
        return 2 * self.k.low - 1

    @property
    def high(self) -> float:
        """The upper end of its interval."""
        return 2 * self.k.high - 1

    @property
    def verdict(self) -> str:
        """`HIDDEN`, `NONE` or `INCONCLUSIVE`."""
        if self.low > 0:
            return HIDDEN
        return NONE if self.high < NEGLIGIBLE_SHARE else INCONCLUSIVE


def pair_share(right: FloatArray, wrong: FloatArray, weights: NDArray[np.int64] | None = None) -> float:
    """K: share of pairs in which the right answer has the higher score; ties count half.

    Args:
        right: scores of right answers.
        wrong: scores of wrong answers.
        weights: how often each wrong answer counts; None for once.

    >>> pair_share(np.array([2.0]), np.array([1.0, 2.0, 3.0]))
    0.5
    >>> pair_share(np.array([2.0]), np.array([1.0, 3.0]), np.array([3, 1]))
    0.75
    """
    difference = right[:, None] - wrong[None]
    wins = ((difference > 0) + 0.5 * (difference == 0)).mean(axis=0)
    return float(np.average(wins, weights=weights))


def rank_answers(
    candidates: Iterable[Mapping[str, Any]], categories: Mapping[str, str], subjects: Mapping[str, str | None]
) -> Rankings:
    """The ranks of all questions.

    Args:
        candidates: rows of `slick.study_files.CANDIDATE_SCHEMA`.
        categories: question_id -> category.
        subjects: question_id -> subject; a question without one is a cluster of its own.
    """
    by_question: dict[str, list[Mapping[str, Any]]] = {}
    for row in candidates:
        by_question.setdefault(row["question_id"], []).append(row)
    ids = sorted(by_question)
    own_k, distractor_k = ({measure: np.full(len(ids), np.nan) for measure in MEASURES} for _ in range(2))
    golds, num_distractors = [], np.zeros(len(ids), dtype=np.int64)
    for i, question_id in enumerate(ids):
        rows = by_question[question_id]
        (gold,) = (row for row in rows if row["is_gold"])
        golds.append(gold)
        right, own = (np.array([test(row) for row in rows]) for test in (lambda row: row["is_right"], _is_own_wrong))
        weights = np.array([row["num_distractors"] for row in rows])
        num_distractors[i] = weights.sum()
        for measure, scores in _scores(rows).items():
            if own.any():
                own_k[measure][i] = pair_share(scores[right], scores[own])
            if weights.any():
                score = scores[rows.index(gold)]
                distractor_k[measure][i] = pair_share(np.array([score]), scores, weights)
    mass = [row["p_a"] + row["p_b"] for rows in by_question.values() for row in rows]
    return Rankings(
        question_ids=np.array(ids, dtype=str),
        relations=np.array([row["relation"] for row in golds], dtype=str),
        categories=np.array([categories[name] for name in ids], dtype=str),
        clusters=np.array([subjects.get(name) or f"question {name}" for name in ids], dtype=str),
        gold=np.array([row["answer"] for row in golds], dtype=str),
        own=own_k,
        against_distractors=distractor_k,
        num_distractors=num_distractors,
        choice_mass=float(np.mean(mass)) if mass else 0.0,
    )


def _is_own_wrong(row: Mapping[str, Any]) -> bool:
    return bool(row["count"] > 0 and not row["is_right"])


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, FloatArray]:
    """The scores of the candidates of a question by measure."""
    total = np.array([np.mean(row["log_probability"]) for row in rows])
    return {
        LOG_PROBABILITY: total,
        PER_TOKEN: total / np.array([row["num_tokens"] for row in rows]),
        P_TRUE: np.array([row["p_true"] for row in rows]),
    }


def mean_interval(
    values: FloatArray,
    clusters: NDArray[np.str_],
    weights: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
) -> RankStatistic:
    """The mean of values in [0, 1] over questions, with an interval that allows for questions of the same subject.

    Wilson's interval for as many independent questions as give the standard error of the mean over clusters. So it
    stays within [0, 1], and values that are all equal are not certain. Student's t replaces the normal distribution.

    Args:
        values: shape (Q,); NaN is left out.
        clusters: shape (Q,).
        weights: shape (Q,); None for equal ones.
        confidence: of the two-sided interval.

    Raises:
        InsufficientDataError: there are fewer than `MIN_QUESTIONS` clusters.
    """
    from scipy.stats import t

    kept = np.isfinite(values)
    weight = np.ones(int(kept.sum())) if weights is None else weights[kept].astype(np.float64)
    values, (_, index) = values[kept], np.unique(clusters[kept], return_inverse=True)
    num_clusters = int(index.max()) + 1 if len(index) else 0
    if num_clusters < MIN_QUESTIONS:
        raise InsufficientDataError(f"needs {MIN_QUESTIONS} questions of different subjects, there are {num_clusters}")
    mean = float(np.average(values, weights=weight))
    sums = np.bincount(index, weights=weight * (values - mean))
    variance = num_clusters / (num_clusters - 1) * float((sums**2).sum()) / float(weight.sum()) ** 2
    spread = mean * (1 - mean)
    num_effective = spread / variance if variance > 0 and spread > 0 else float(num_clusters)
    quantile = float(t.ppf((1 + confidence) / 2, num_clusters - 1))
    low, high = wilson_interval(mean * num_effective, num_effective, 2 * NormalDist().cdf(quantile) - 1)
    return RankStatistic(mean, min(low, mean), max(high, mean), len(values))  # rounding may exclude a mean of 0 or 1


def distractor_interval(
    rankings: Rankings, measure: str, mask: NDArray[np.bool_], confidence: float = 0.95
) -> RankStatistic:
    """K against distractors over some questions, in which all pairs have the same weight.

    Raises:
        InsufficientDataError: see `mean_interval`.
    """
    return mean_interval(
        rankings.against_distractors[measure][mask],
        rankings.clusters[mask],
        rankings.num_distractors[mask],
        confidence,
    )


def claim_measures(rankings: Rankings) -> tuple[str, ...]:
    """Measures that may show hidden knowledge: P(True) only if the model answers its prompt."""
    return tuple(name for name in TESTED_MEASURES if name != P_TRUE or rankings.is_p_true_informative)


def hidden_share(rankings: Rankings, measure: str, *, num_tests: int = 1) -> HiddenShare:
    """The split of the Unknown questions by one measure.

    Args:
        rankings: of the study.
        measure: one of `MEASURES`.
        num_tests: number of measures that are tested: intervals are simultaneous by Bonferroni's correction.

    Raises:
        InsufficientDataError: there are too few Unknown questions with a distractor.
    """
    unknown = rankings.mask(Category.UNKNOWN)
    k = distractor_interval(rankings, measure, unknown, 1 - 0.05 / num_tests)
    compared = rankings.against_distractors[measure][unknown & (rankings.num_distractors > 0)]
    own = rankings.own[measure][unknown]
    own = own[np.isfinite(own)]
    return HiddenShare(
        measure=measure,
        num=k.num,
        k=k,
        above_distractors=float((compared == 1.0).mean()),
        above_own=float((own == 1.0).mean()) if len(own) else 0.0,
    )


def validate_half(statistic: RankStatistic) -> str:
    """Whether K of absent facts is near one half: `CONFIRMED`, `CONTRADICTED` or `INCONCLUSIVE`."""
    if abs(statistic.low - 0.5) <= NEAR_HALF and abs(statistic.high - 0.5) <= NEAR_HALF:
        return CONFIRMED
    is_far = statistic.low > 0.5 + NEAR_HALF or statistic.high < 0.5 - NEAR_HALF
    return CONTRADICTED if is_far else INCONCLUSIVE


def validate_above_half(statistic: RankStatistic) -> str:
    """Whether K of present facts is above one half: `CONFIRMED`, `CONTRADICTED` or `INCONCLUSIVE`."""
    if statistic.low > 0.5:
        return CONFIRMED
    return CONTRADICTED if statistic.high < 0.5 else INCONCLUSIVE
