"""Agreement of answer matchers with a person's grades: Cohen's kappa. Pure.

Source: Cohen 1960, Educational and Psychological Measurement 20. Interval: Fleiss, Cohen and Everitt 1969,
Psychological Bulletin 72.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from slick.matching import JUDGE, make_matcher
from slick.report.measurements import InsufficientDataError

COMPARED_MATCHERS = ("exact", "contains", "f1")
"""Matchers that are compared with grades, besides the judge."""


class Kappa(NamedTuple):
    """Cohen's kappa of two raters."""

    kappa: float
    low: float
    """Lower end of the 95 % interval, at least -1."""
    high: float
    """Upper end, at most 1."""
    num: int
    """Answers that both have rated."""
    agreement: float
    """Share of them on which both agree."""


class GradedAnswer(NamedTuple):
    """An answer that a person has graded."""

    question: str
    gold: Sequence[str]
    answer: str
    is_correct: bool
    """By the person."""
    judged: bool | None = None
    """By the judge; None without a judge or an outcome."""


def cohens_kappa(first: Sequence[bool], second: Sequence[bool]) -> Kappa:
    """Agreement of two raters beyond chance: 1 for perfect agreement, 0 for what chance would give.

    Raises:
        InsufficientDataError: there are no answers, or both raters give all of them the same rating, so that chance
            alone explains full agreement.

    >>> round(cohens_kappa([True] * 25 + [False] * 25, [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15).kappa, 9)
    0.4
    """
    from statsmodels.stats.inter_rater import cohens_kappa as kappa_of_counts

    counts = np.zeros((2, 2))
    np.add.at(counts, (np.array(first, dtype=np.intp), np.array(second, dtype=np.intp)), 1)
    if not counts.sum():
        raise InsufficientDataError("there are no answers that both have rated")
    if counts.trace() == counts.sum() == counts.max():
        rating = "correct" if first[0] else "incorrect"
        raise InsufficientDataError(f"both call all {int(counts.sum()):,} answers {rating}, so kappa is not defined")
    with np.errstate(invalid="ignore"):  # a test statistic that is not used divides by 0 if a rater is constant
        result = kappa_of_counts(counts)
    kappa, low, high = (round(float(value), 12) + 0.0 for value in (result.kappa, result.kappa_low, result.kappa_upp))
    return Kappa(
        kappa,
        max(-1.0, low),
        min(1.0, high),
        int(counts.sum()),
        float(counts.trace() / counts.sum()),
    )


def matcher_kappas(answers: Sequence[GradedAnswer]) -> dict[str, Kappa | str]:
    """Kappa of each matcher with the grades, or the reason why there is none; the judge if it has an outcome.

    The judge is compared on the answers that have an outcome.
    """
    ratings: Mapping[str, list[tuple[bool, bool]]] = {
        matcher: [(row.is_correct, make_matcher(row.gold, matcher).is_hit(row.answer)) for row in answers]
        for matcher in COMPARED_MATCHERS
    }
    judged = [(row.is_correct, row.judged) for row in answers if row.judged is not None]
    kappas: dict[str, Kappa | str] = {}
    for matcher, pairs in {**ratings, **({JUDGE: judged} if judged else {})}.items():
        try:
            kappas[matcher] = cohens_kappa([person for person, _ in pairs], [other for _, other in pairs])
        except InsufficientDataError as reason:
            kappas[matcher] = str(reason)
    return kappas
