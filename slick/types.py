"""The nouns that all rooms share, in the spelling of Gekhman et al. 2024 (arXiv:2405.05904)."""

from dataclasses import dataclass
from enum import StrEnum


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
