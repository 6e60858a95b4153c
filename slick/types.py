"""Terms of the paper: categories, questions, and how hits become P_Correct and a category. Pure.

Legend of array suffixes: Q questions, P few-shot prompts, S answers sampled under one prompt (1 when greedy).
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from slick.errors import DataError


class Category(StrEnum):
    """What a model knows of one question, strongest first."""

    HIGHLY_KNOWN = "HighlyKnown"
    MAYBE_KNOWN = "MaybeKnown"
    WEAKLY_KNOWN = "WeaklyKnown"
    UNKNOWN = "Unknown"


KNOWN_CATEGORIES = (Category.HIGHLY_KNOWN, Category.MAYBE_KNOWN, Category.WEAKLY_KNOWN)
"""The three categories that the paper pools as Known."""

ALL_CATEGORIES = "all"
"""The word for 'rows of every category' in epochs.parquet and points.parquet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row of a question set."""

    question_id: str
    relation: str
    domain: str
    """`id` (in distribution: fine-tuned on) or `ood` (only ever tested on)."""
    split: str
    """`train`, `dev` or `test`."""
    subject: str | None
    question: str
    answers: tuple[str, ...]
    popularity: float | None = None
    """Of the subject, in the unit of the source; None where that does not say."""


def p_correct(hits_QPS: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of right answers to each question at one temperature.

    Args:
        hits_QPS: shape (Q, P, S); True where the answer matched.

    Returns:
        Shape (Q,), a share in [0, 1], not percent.

    Raises:
        DataError: P or S is 0; an unasked question is not an unknown one.

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
        sampled_total: may be 0 where a greedy answer hit, since samples then do not change the category.

    Raises:
        DataError: counts that cannot be, or too few answers to tell.

    Source: Gekhman et al. 2024, arXiv:2405.05904, figure 2.

    >>> categorize(10, 10, 160, 160), categorize(0, 10, 1, 160), categorize(0, 10, 0, 160)
    (<Category.HIGHLY_KNOWN: 'HighlyKnown'>, <Category.WEAKLY_KNOWN: 'WeaklyKnown'>, <Category.UNKNOWN: 'Unknown'>)
    """
    if not (0 <= greedy_hits <= greedy_total and 0 <= sampled_hits <= sampled_total and greedy_total > 0):
        raise DataError(
            f"counts that cannot be: {greedy_hits} of {greedy_total} greedy answers, "
            f"{sampled_hits} of {sampled_total} samples"
        )
    if greedy_hits == greedy_total:
        return Category.HIGHLY_KNOWN
    if greedy_hits > 0:
        return Category.MAYBE_KNOWN
    if sampled_hits > 0:
        return Category.WEAKLY_KNOWN
    if sampled_total == 0:
        raise DataError("no greedy answer hit and no sample was drawn: whether the question is Unknown cannot be told")
    return Category.UNKNOWN


def clopper_pearson_upper(num_answers: int, confidence: float = 0.95) -> float:
    """Upper bound of P_Correct after `num_answers` independent answers without a hit.

    The exact (Clopper-Pearson) one-sided bound: the p at which no hit in that many has probability 1 - confidence.

    >>> round(clopper_pearson_upper(160), 4)
    0.0185
    """
    if num_answers < 1:
        raise DataError(f"a bound needs at least one answer, got {num_answers}")
    return float(1.0 - (1.0 - confidence) ** (1.0 / num_answers))
