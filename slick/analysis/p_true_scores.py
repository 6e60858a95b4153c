"""How likely the model found the gold answers right before any fine-tuning, as the study holds it. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_CHOICE_MASS = 0.01
"""Below this share of the probability the two choices are not what a model answers with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PTrueScores:
    """P(True) of the ID test questions; arrays have shape (questions,)."""

    question_ids: NDArray[np.str_]
    """Ascending."""
    p_true: NDArray[np.float64]
    """In [0, 1]."""
    choice_mass: float | None = None
    """Share of the probability that `(A` and `(B` have together, on average over the questions."""

    @property
    def caveat(self) -> str:
        """A sentence without its stop where the model does not take the prompt for a choice of two; else empty."""
        if self.choice_mass is None or self.choice_mass >= MIN_CHOICE_MASS:
            return ""
        share = f"{100 * self.choice_mass:.2g} %" if self.choice_mass >= 1e-4 else "less than 0.01 %"
        return (
            f"the two choices have {share} of the probability together, so the model does not take the "
            "prompt for a choice of two and its P(True) is hardly an opinion"
        )
