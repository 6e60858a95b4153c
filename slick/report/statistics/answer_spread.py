"""Entropy and agreement of the sampled answers to a question. Pure.

Source: G. A. Miller 1955, "Note on the bias of information estimates", for the correction of the entropy.

Legend of array suffixes: Q questions.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, log2

import numpy as np
from numpy.typing import NDArray

from slick.report.measurements import InsufficientDataError
from slick.report.statistics.hidden import MIN_QUESTIONS
from slick.report.statistics.intervals import RankStatistic

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpread:
    """How much the sampled answers to a question differ; all arrays have shape (Q,)."""

    question_ids: NDArray[np.str_]
    categories: NDArray[np.str_]
    clusters: NDArray[np.str_]
    """The subject of each question; questions of one subject are not independent."""
    entropy: FloatArray
    """In bits, with Miller's correction."""
    agreement: FloatArray
    """Share of the most frequent answer, in [0, 1]."""


def entropy_bits(counts: Sequence[int]) -> float:
    """Entropy of answers in bits, with Miller's correction for few answers, (distinct - 1) / (2 num ln 2).

    Without the correction, the entropy of few samples is too low. It remains an estimate of the samples at their
    temperature and top-k, not of the model's distribution.

    >>> round(entropy_bits([1, 1]), 2), entropy_bits([5])
    (1.36, 0.0)
    """
    num = sum(counts)
    plugin = sum(count / num * log2(num / count) for count in counts)
    return plugin + (len(counts) - 1) / (2 * num * log(2))


def agreement(counts: Sequence[int]) -> float:
    """Share of the most frequent answer.

    >>> agreement([3, 1])
    0.75
    """
    return max(counts) / sum(counts)


def spread_of(
    counts: Mapping[str, Counter[str]], categories: Mapping[str, str], subjects: Mapping[str, str | None]
) -> AnswerSpread:
    """Entropy and agreement of each question.

    Args:
        counts: question_id -> number of sampled answers by normalized text; questions without any are left out.
        categories: question_id -> category.
        subjects: question_id -> subject.
    """
    ids = sorted(name for name, of_question in counts.items() if of_question)
    return AnswerSpread(
        question_ids=np.array(ids, dtype=str),
        categories=np.array([categories[name] for name in ids], dtype=str),
        clusters=np.array([subjects.get(name) or f"question {name}" for name in ids], dtype=str),
        entropy=np.array([entropy_bits(list(counts[name].values())) for name in ids]),
        agreement=np.array([agreement(list(counts[name].values())) for name in ids]),
    )


def value_interval(values: FloatArray, clusters: NDArray[np.str_]) -> RankStatistic:
    """The mean of values of any size over questions, with Student's 95 % interval over clusters.

    Raises:
        InsufficientDataError: there are fewer than `MIN_QUESTIONS` clusters.
    """
    from scipy.stats import t

    _, index = np.unique(clusters, return_inverse=True)
    num_clusters = int(index.max()) + 1 if len(index) else 0
    if num_clusters < MIN_QUESTIONS:
        raise InsufficientDataError(f"needs {MIN_QUESTIONS} questions of different subjects, there are {num_clusters}")
    mean = float(values.mean())
    sums = np.bincount(index, weights=values - mean)
    error = np.sqrt(num_clusters / (num_clusters - 1) * (sums**2).sum()) / len(values)
    reach = float(t.ppf(0.975, num_clusters - 1) * error)
    return RankStatistic(mean, mean - reach, mean + reach, len(values))
