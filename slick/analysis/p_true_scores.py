"""How likely the model found the gold answers right before any fine-tuning, as the study holds it. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PTrueScores:
    """P(True) of the ID test questions; both arrays have shape (questions,)."""

    question_ids: NDArray[np.str_]
    """Ascending."""
    p_true: NDArray[np.float64]
    """In [0, 1]."""
