"""The paper's paired t-test over chunks of questions, over many shuffles into chunks. Pure.

Whether a difference near the threshold is significant depends on the shuffle, so the median p-value over shuffles is
reported.

Source: Gekhman et al. 2024, arXiv:2405.05904, appendix I, which shuffles once.
"""

import numpy as np
from numpy.typing import NDArray

NUM_SHUFFLES = 201
"""An odd number, so that the median is the p-value of one shuffle."""


def median_p_value(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    num_chunks: int = 100,
    seed: int = 0,
    num_shuffles: int = NUM_SHUFFLES,
) -> float:
    """Median two-sided p-value of the paired t-test over chunks; 1.0 if the two never differ.

    Args:
        first: shape (N,), 1.0 for a correct answer, 0.0 for a wrong one, or the share of seeds with a correct one.
        second: shape (N,), the same N >= 2 questions in the same order.
        num_chunks: near-equal chunks per shuffle; one chunk per question if there are fewer questions.
        seed: of the shuffles.
        num_shuffles: number of shuffles.

    Raises:
        ValueError: the shapes differ, or there are fewer than two questions.

    >>> median_p_value(np.ones(4), np.ones(4)), median_p_value(np.ones(4), np.zeros(4))
    (1.0, 0.0)
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"a paired test needs at least two rows, as many of each model; got {len(first)} and {len(second)}"
        )
    from scipy.stats import t

    gaps_N = first - second
    if np.allclose(gaps_N, gaps_N[0]):
        return 1.0 if np.isclose(gaps_N[0], 0.0) else 0.0  # the same difference everywhere: t is infinite
    num = min(num_chunks, len(gaps_N))
    sizes_C = np.full(num, len(gaps_N) // num) + (np.arange(num) < len(gaps_N) % num)
    starts_C = np.concatenate([[0], np.cumsum(sizes_C)[:-1]])
    order_SN = np.random.default_rng(seed).permuted(np.tile(np.arange(len(gaps_N)), (num_shuffles, 1)), axis=1)
    means_SC = np.add.reduceat(gaps_N[order_SN], starts_C, axis=1) / sizes_C
    center_S, spread_S = means_SC.mean(axis=1), means_SC.std(axis=1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic_S = np.nan_to_num(np.abs(center_S) * np.sqrt(num) / spread_S, nan=0.0, posinf=np.inf)
    return float(np.median(2.0 * t.sf(statistic_S, num - 1)))
