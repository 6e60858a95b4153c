"""The paper's significance test: accuracies of 100 chunks of the test rows, compared by a paired t-test. Pure.

Source: Gekhman et al. 2024, arXiv:2405.05904, appendix I.
"""

import numpy as np
from numpy.typing import NDArray


def chunk_accuracies(rows: NDArray[np.float64], num_chunks: int = 100, seed: int = 0) -> NDArray[np.float64]:
    """Shuffle the rows, cut them into near-equal chunks, and average each.

    Args:
        rows: shape (N,), 1.0 for a right answer, 0.0 for a wrong one, or the share of seeds that were right.
        num_chunks: fewer are made where there are fewer rows.
        seed: of the shuffle; the same seed and N give the same chunks, so that two models can be paired.

    Returns:
        Shape (min(num_chunks, N),), shares in [0, 1].
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    return np.array([chunk.mean() for chunk in np.array_split(rows[order], min(num_chunks, len(rows)))])


def paired_p_value(
    first: NDArray[np.float64], second: NDArray[np.float64], num_chunks: int = 100, seed: int = 0
) -> float:
    """Two-sided p of the paired t-test over chunks; 1.0 if the two never differ.

    Args:
        first: shape (N,), as in `chunk_accuracies`.
        second: shape (N,), the same N >= 2 rows in the same order.
        num_chunks: as in `chunk_accuracies`.
        seed: as in `chunk_accuracies`.

    Raises:
        ValueError: the two cannot be paired.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(f"a paired test needs two rows or more, the same for both; got {len(first)} and {len(second)}")
    a, b = chunk_accuracies(first, num_chunks, seed), chunk_accuracies(second, num_chunks, seed)
    if np.allclose(a, b):
        return 1.0
    if np.allclose(a - b, (a - b)[0]):
        return 0.0  # the same difference in every chunk: t is infinite
    from scipy.stats import ttest_rel

    return float(ttest_rel(a, b).pvalue)


def significance_stars(p_value: float) -> str:
    """`**` for p < 0.01, `*` for p < 0.05, as the paper prints them.

    >>> significance_stars(0.003), significance_stars(0.03), significance_stars(0.3)
    ('**', '*', '')
    """
    return "**" if p_value < 0.01 else "*" if p_value < 0.05 else ""
