"""Remedies against forgetting: their trainings, what each learns, loses and costs, and the verdict on each.

The set is `unknown-050`, half of whose rows are Unknown. Every remedy is compared with no remedy, which is training on
that set to convergence. An Unknown fact is learned if the question of an Unknown row of the set is answered with a gold
answer at the checkpoint. A HighlyKnown fact is lost if a HighlyKnown test question is answered wrongly; before
fine-tuning, all of them are answered right under every prompt. Answers are paired by question.

The rule was fixed before any result was seen. Facts lost are tested two-sided at 5 %, with Holm's correction for the
number of remedies. A remedy is

- *harmful* if it loses reliably more facts,
- *a trade* if it loses reliably fewer, and learns reliably fewer or has a reliably lower test accuracy (95 % interval
  below 0, without correction, so that a cost is not overlooked),
- *worth it* if it loses reliably fewer, and a fall of `LEARNED_MARGIN` points of facts learned and of `ACCURACY_MARGIN`
  points of test accuracy are excluded by the 95 % intervals,
- *inconclusive* otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from slick.report.measurements import (
    MIN_SEEDS,
    Z_95,
    InsufficientDataError,
    Measurement,
    interval_ends,
    mean_over_seeds,
    paired_se,
    round1,
    seed_se,
)
from slick.report.statistics.intervals import holm

NO_REMEDY = "none"
LEARNED_MARGIN = 5.0
"""Points of Unknown facts learned that a remedy that is worth it may cost at most."""
ACCURACY_MARGIN = 1.5
"""Points of test accuracy likewise: the largest loss that the paper calls small, as in the findings."""
MIN_QUESTIONS = 20
"""HighlyKnown questions and Unknown rows below which nothing is decided, for the normal approximation."""
MAX_FACTOR = 1000.0
"""The largest factor of further questions that is stated."""
ALPHA = 0.05

FloatArray = NDArray[np.float64]


class Verdict(StrEnum):
    """Whether a remedy is worth it; the module defines the rule."""

    WORTH_IT = "worth it"
    TRADE = "a trade"
    HARMFUL = "harmful"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyRun:
    """The answers of one training at the checkpoint of a remedy; U Unknown rows, T test questions."""

    remedy: str
    """`NO_REMEDY`, or the remedy in words."""
    seed: int
    epochs: int
    """Epochs up to the checkpoint."""
    unknown_ids: NDArray[np.str_]
    """The Unknown rows of the set, sorted, of shape (U,)."""
    learned: NDArray[np.bool_] | None
    """Whether each is answered with a gold answer, of shape (U,); None if the training does not have these rows."""
    test_ids: NDArray[np.str_]
    """Sorted, of shape (T,)."""
    is_highly_known: NDArray[np.bool_]
    """Shape (T,)."""
    correct: NDArray[np.bool_]
    """Shape (T,)."""
    training_seconds: float | None
    """Time of the training up to the checkpoint, without evaluation; None if it was not stored."""
    num_passes: int
    """Forward passes of one row each, including those of a frozen model."""
    abstained: NDArray[np.bool_] | None = None
    """Whether the answer to each test question is "I don't know", of shape (T,); None if no row has that target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemedyComparison:
    """A remedy compared with no remedy: percentages, and differences in points."""

    remedy: str
    seeds: tuple[int, ...]
    learned: Measurement | None
    """Unknown facts learned; None if the Unknown rows are not in the training."""
    lost: Measurement
    """HighlyKnown facts lost."""
    accuracy: Measurement
    """On all test questions in distribution."""
    learned_change: Measurement
    """A training without the Unknown rows counts as one that learns none of them."""
    lost_change: Measurement
    accuracy_change: Measurement
    lost_p: float
    """Of no difference in facts lost, with Holm's correction."""
    num_remedies: int
    """Remedies that the correction is for."""
    num_unknown: int
    num_highly_known: int
    num_test: int
    abstained: Measurement | None
    """HighlyKnown facts that are lost because the answer is "I don't know"; None if no row has that target."""
    relative_time: float | None
    """Training time relative to no remedy."""
    relative_passes: float

    @property
    def verdict(self) -> Verdict:
        """The verdict by the rule of the module."""
        if min(self.num_unknown, self.num_highly_known) < MIN_QUESTIONS or self.lost_p > ALPHA:
            return Verdict.INCONCLUSIVE
        if self.lost_change.value > 0:
            return Verdict.HARMFUL
        if self.reliable_costs:
            return Verdict.TRADE
        return Verdict.INCONCLUSIVE if self._open_costs() else Verdict.WORTH_IT

    @property
    def reliable_costs(self) -> tuple[str, ...]:
        """What reliably falls, of facts learned and test accuracy."""
        return tuple(name for name, change, *_ in self._costs() if interval_ends(change)[1] < 0)

    def explanation(self) -> str:
        """The reason of the verdict, without full stop."""
        if self.abstained is None:
            return self._reason()
        lost, abstained = round1(self.lost.value), round1(self.abstained.value)
        return (
            f"{self._reason()}; of the {lost:.1f} % of facts lost, {abstained:.1f} points are “I don’t know” and not "
            "wrong answers"
        )

    def _reason(self) -> str:
        few = [
            f"{num} {what}"
            for num, what in ((self.num_highly_known, "HighlyKnown test questions"), (self.num_unknown, "Unknown rows"))
            if num < MIN_QUESTIONS
        ]
        if few:
            return f"{' and '.join(few)} are too few to decide anything"
        fewer = " and ".join(self.reliable_costs)
        if self.verdict is Verdict.HARMFUL:
            return "it loses more facts" + (f", and has {fewer}" if fewer else "")
        if self.verdict is Verdict.TRADE:
            return f"it loses fewer facts, but has {fewer}"
        if self.verdict is Verdict.WORTH_IT:
            return (
                f"it loses fewer facts; falls of {LEARNED_MARGIN:g} points of facts learned and {ACCURACY_MARGIN:g} of "
                "test accuracy are excluded"
            )
        if self.lost_p > ALPHA:
            costs = f"; it has {fewer}" if fewer else ""
            return f"no reliable difference in facts lost: {self._needed_for_lost()}{costs}"
        return f"it loses fewer facts, but its cost is not clear: {'; '.join(self._open_costs())}"

    def _costs(self) -> tuple[tuple[str, Measurement, float, int, str], ...]:
        """A fall in words, the change, its margin, and the number of rows behind it with their name."""
        return (
            ("fewer facts learned", self.learned_change, LEARNED_MARGIN, self.num_unknown, "Unknown rows"),
            ("a lower test accuracy", self.accuracy_change, ACCURACY_MARGIN, self.num_test, "test questions"),
        )

    def _open_costs(self) -> list[str]:
        """For each cost that is neither reliable nor excluded, how much data would decide it."""
        texts = []
        for name, change, margin, num, what in self._costs():
            low, high = interval_ends(change)
            if high >= 0 and low <= -margin:
                distances = [change.value + margin, -change.value]
                factors = [(Z_95 * change.se / distance) ** 2 for distance in distances if distance > 0]
                texts.append(f"{name}? {_needed_text(num, what, min(factors))}")
        return texts

    def _needed_for_lost(self) -> str:
        z = NormalDist().inv_cdf(1 - ALPHA / 2 / self.num_remedies)
        change = self.lost_change
        factor = (z * change.se / change.value) ** 2 if change.value else math.inf
        return _needed_text(self.num_highly_known, "HighlyKnown test questions", factor)


def _needed_text(num: int, what: str, factor: float) -> str:
    """How much data would decide a difference, if its value stayed the same.

    >>> _needed_text(400, "test questions", 3.016), _needed_text(400, "test questions", 1e9)
    ('about 1,200 test questions instead of 400 would decide it', 'more data would not decide it')
    """
    if factor > MAX_FACTOR:
        return "more data would not decide it"
    total = num * max(factor, 1.0)
    rounded = max(num + 1, round(total, 1 - math.floor(math.log10(total))))
    return f"about {rounded:,.0f} {what} instead of {num:,} would decide it"


def compare_remedies(runs: Sequence[RemedyRun]) -> list[RemedyComparison]:
    """Compare every remedy with no remedy, over the seeds that all of them have; no remedy itself comes first.

    Args:
        runs: of all remedies, in the order of the result.

    Raises:
        InsufficientDataError: there is no training without a remedy or none with one, they have no seed in common, or
            their questions differ.
    """
    by_remedy: dict[str, dict[int, RemedyRun]] = {}
    for run in runs:
        by_remedy.setdefault(run.remedy, {})[run.seed] = run
    if NO_REMEDY not in by_remedy or len(by_remedy) < 2:
        raise InsufficientDataError(
            "needs finished runs of unknown-050 and of a remedy, to the same number of epochs (--experiments remedies)"
        )
    seeds = tuple(sorted(set.intersection(*(set(by_seed) for by_seed in by_remedy.values()))))
    if not seeds:
        raise InsufficientDataError("needs runs of unknown-050 and of all remedies with the same seed")
    groups = {remedy: [by_seed[seed] for seed in seeds] for remedy, by_seed in by_remedy.items()}
    _check_same_questions(groups)
    base = groups[NO_REMEDY]
    others = [remedy for remedy in groups if remedy != NO_REMEDY]
    adjusted = holm([_p_value(_lost(groups[remedy]) - _lost(base)) for remedy in others])
    p_values = {NO_REMEDY: 1.0, **dict(zip(others, adjusted, strict=True))}
    return [_compare(groups[remedy], base, p_values[remedy], len(others)) for remedy in (NO_REMEDY, *others)]


def _check_same_questions(groups: Mapping[str, Sequence[RemedyRun]]) -> None:
    first = groups[NO_REMEDY][0]
    for remedy, runs in groups.items():
        for run in runs:
            same_test = np.array_equal(run.test_ids, first.test_ids)
            if not same_test or (run.learned is not None and not np.array_equal(run.unknown_ids, first.unknown_ids)):
                raise InsufficientDataError(
                    f"the runs of {remedy} (seed {run.seed}) and without a remedy do not have the same questions"
                )
    if not (len(first.unknown_ids) and first.is_highly_known.any()):
        raise InsufficientDataError("needs Unknown rows and HighlyKnown test questions")


def _compare(
    group: Sequence[RemedyRun], base: Sequence[RemedyRun], lost_p: float, num_remedies: int
) -> RemedyComparison:
    first = base[0]
    learned, base_learned = _learned(group), _learned(base)
    times = [_mean_time(runs) for runs in (group, base)]
    return RemedyComparison(
        remedy=group[0].remedy,
        seeds=tuple(run.seed for run in group),
        learned=None if group[0].learned is None else _percentage(learned),
        lost=_percentage(_lost(group)),
        accuracy=_percentage(_correct(group)),
        learned_change=_difference(learned - base_learned),
        lost_change=_difference(_lost(group) - _lost(base)),
        accuracy_change=_difference(_correct(group) - _correct(base)),
        lost_p=lost_p,
        num_remedies=num_remedies,
        num_unknown=len(first.unknown_ids),
        num_highly_known=int(first.is_highly_known.sum()),
        num_test=len(first.test_ids),
        abstained=_abstained(group),
        relative_time=times[0] / times[1] if times[0] is not None and times[1] else None,
        relative_passes=sum(run.num_passes for run in group) / sum(run.num_passes for run in base),
    )


def _learned(runs: Sequence[RemedyRun]) -> FloatArray:
    """Shape (seeds, U)."""
    return np.array(
        [np.zeros(len(run.unknown_ids)) if run.learned is None else run.learned for run in runs], dtype=np.float64
    )


def _lost(runs: Sequence[RemedyRun]) -> FloatArray:
    """Shape (seeds, HighlyKnown test questions)."""
    return np.array([~run.correct[run.is_highly_known] for run in runs], dtype=np.float64)


def _correct(runs: Sequence[RemedyRun]) -> FloatArray:
    """Shape (seeds, T)."""
    return np.array([run.correct for run in runs], dtype=np.float64)


def _abstained(runs: Sequence[RemedyRun]) -> Measurement | None:
    flags = [run.abstained[run.is_highly_known] for run in runs if run.abstained is not None]
    return _percentage(np.array(flags, dtype=np.float64)) if len(flags) == len(runs) else None


def _mean_time(runs: Sequence[RemedyRun]) -> float | None:
    times = [run.training_seconds for run in runs if run.training_seconds is not None]
    return float(np.mean(times)) if len(times) == len(runs) else None


def _percentage(answers_SQ: FloatArray) -> Measurement:
    return mean_over_seeds(100.0 * answers_SQ.mean(axis=1), answers_SQ.shape[1])


def _difference(gaps_SQ: FloatArray) -> Measurement:
    """The mean of paired differences in points; from `MIN_SEEDS` seeds on, its error is at least that over seeds."""
    gaps = 100.0 * gaps_SQ.mean(axis=0)
    se = paired_se(gaps)
    if len(gaps_SQ) >= MIN_SEEDS:
        se = max(se, seed_se(100.0 * gaps_SQ.mean(axis=1)))
    return Measurement(float(gaps.mean()), se, len(gaps_SQ))


def _p_value(gaps_SQ: FloatArray) -> float:
    """Two-sided, of no difference: the largest of the tests below.

    Over questions: that of the interval, and the exact sign test of the questions that differ (McNemar's test for one
    seed), since few of them are far from normal. From `MIN_SEEDS` seeds on also Student's t over seeds, which `seed_se`
    has at 95 % only.
    """
    gaps = gaps_SQ.mean(axis=0)
    z = abs(float(gaps.mean())) / paired_se(gaps, 1.0)
    p_values = [2 * NormalDist().cdf(-z), _sign_test(int((gaps > 0).sum()), int((gaps < 0).sum()))]
    if len(gaps_SQ) >= MIN_SEEDS:
        from scipy.stats import t

        by_seed = gaps_SQ.mean(axis=1)
        error = float(by_seed.std(ddof=1) / np.sqrt(len(by_seed)))
        p_values.append(float(2 * t.sf(abs(by_seed.mean()) / error, len(by_seed) - 1)) if error else 0.0)
    return max(p_values)


def _sign_test(num_positive: int, num_negative: int) -> float:
    """The two-sided p-value of as many positive and negative differences.

    >>> round(_sign_test(8, 1), 4), _sign_test(0, 0)
    (0.0391, 1.0)
    """
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(num_positive, num_negative), num_positive + num_negative, 0.5)))
