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
    context: str | None = None
    """The messages before the question, if it comes from a conversation; see `slick.study_files.CONTEXT_FIELD`."""
    answer_start: str | None = None
    """The text before the answer, if it is a sentence of a longer one; see `slick.study_files.ANSWER_START_FIELD`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


def categories(
    greedy_hits: NDArray[np.int64], greedy_total: NDArray[np.int64], sampled_hits: NDArray[Any]
) -> list[str]:
    """The SliCK category of each question.

    Args:
        greedy_hits: number of correct greedy answers, shape (Q,).
        greedy_total: number of greedy answers, at least 1, shape (Q,).
        sampled_hits: number of correct samples, or whether there are any, shape (Q,). It matters only where no greedy
            answer is correct.

    Source: Gekhman et al. 2024, arXiv:2405.05904, figure 2.

    >>> categories(np.array([10, 1, 0, 0]), np.array([10, 10, 10, 10]), np.array([160, 0, 1, 0]))
    ['HighlyKnown', 'MaybeKnown', 'WeaklyKnown', 'Unknown']
    """
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
