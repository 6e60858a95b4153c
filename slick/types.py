"""Terms of the paper: questions, categories, P_Correct, and how hits determine the category. Pure.

Array suffixes: Q questions, P few-shot prompts, S answers per prompt (1 if greedy).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slick.errors import DataError


class Category(StrEnum):
    """How well a model knows the answer to a question, best first."""

    HIGHLY_KNOWN = "HighlyKnown"
    MAYBE_KNOWN = "MaybeKnown"
    WEAKLY_KNOWN = "WeaklyKnown"
    UNKNOWN = "Unknown"


KNOWN_CATEGORIES = (Category.HIGHLY_KNOWN, Category.MAYBE_KNOWN, Category.WEAKLY_KNOWN)
"""The three categories that the paper pools as Known."""

ALL_CATEGORIES = "all"
"""Value of the column `category` for rows over all categories, in epochs.parquet and points.parquet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a question set."""

    question_id: str
    relation: str
    domain: str
    """`id` (in distribution: used for fine-tuning) or `ood` (out of distribution: used for testing only)."""
    split: str
    """`train`, `dev` or `test`."""
    subject: str | None
    question: str
    answers: tuple[str, ...]
    popularity: float | None = None
    """Popularity of the subject, in the unit of the source; None if the source has none."""


def p_correct(hits_QPS: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of correct answers to each question at one temperature.

    Args:
        hits_QPS: shape (Q, P, S); True for correct answers.

    Returns:
        Shape (Q,), a share in [0, 1], not percent.

    Raises:
        DataError: P or S is 0; a question without answers is not Unknown.

    Source: Gekhman et al. 2024, arXiv:2405.05904, section 3 (P = 10; S = 1 at T = 0, 16 at T = 0.5).

    >>> p_correct(np.array([[[True], [False]]]))
    array([0.5])
    """
    if 0 in hits_QPS.shape[1:]:
        raise DataError(f"P_Correct needs at least one prompt and one answer, got hits of shape {hits_QPS.shape}")
    return np.asarray(hits_QPS.mean(axis=(1, 2)), dtype=np.float64)


def categorize(greedy_hits: int, greedy_total: int, sampled_hits: int, sampled_total: int) -> Category:
    """The SliCK category of one question.

    Args:
        greedy_hits: number of correct greedy answers.
        greedy_total: number of greedy answers.
        sampled_hits: number of correct samples.
        sampled_total: number of samples; may be 0 if a greedy answer is correct, because samples then do not matter.

    Raises:
        DataError: the counts are inconsistent, or there are too few answers to determine the category.

    Source: Gekhman et al. 2024, arXiv:2405.05904, figure 2.

    >>> categorize(10, 10, 160, 160), categorize(0, 10, 1, 160), categorize(0, 10, 0, 160)
    (<Category.HIGHLY_KNOWN: 'HighlyKnown'>, <Category.WEAKLY_KNOWN: 'WeaklyKnown'>, <Category.UNKNOWN: 'Unknown'>)
    """
    if not (0 <= greedy_hits <= greedy_total and 0 <= sampled_hits <= sampled_total and greedy_total > 0):
        raise DataError(
            f"inconsistent counts: {greedy_hits} of {greedy_total} greedy answers and {sampled_hits} of "
            f"{sampled_total} samples are correct"
        )
    if greedy_hits == greedy_total:
        return Category.HIGHLY_KNOWN
    if greedy_hits > 0:
        return Category.MAYBE_KNOWN
    if sampled_hits > 0:
        return Category.WEAKLY_KNOWN
    if sampled_total == 0:
        raise DataError("without a correct greedy answer, samples are needed to separate WeaklyKnown from Unknown")
    return Category.UNKNOWN


def categories(
    greedy_hits: NDArray[np.int64], greedy_total: NDArray[np.int64], sampled_hits: NDArray[Any]
) -> list[str]:
    """`categorize` for many questions at once: arrays of shape (Q,), which are not checked."""
    names = np.select(
        [greedy_hits == greedy_total, greedy_hits > 0, sampled_hits > 0],
        [Category.HIGHLY_KNOWN.value, Category.MAYBE_KNOWN.value, Category.WEAKLY_KNOWN.value],
        Category.UNKNOWN.value,
    )
    return [str(category) for category in names]


def clopper_pearson_upper(num_answers: int, confidence: float = 0.95) -> float:
    """Upper bound of P_Correct after `num_answers` independent wrong answers.

    The one-sided Clopper-Pearson bound: the p at which `num_answers` wrong answers have probability 1 - confidence.

    >>> round(clopper_pearson_upper(160), 4)
    0.0185
    """
    if num_answers < 1:
        raise DataError(f"a bound needs at least one answer, got {num_answers}")
    return float(1.0 - (1.0 - confidence) ** (1.0 / num_answers))
