"""The paired t-test over chunks, as the median over shuffles."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from slick.report.statistics.intervals import paired_p_value
from slick.report.statistics.shuffles import NUM_SHUFFLES, median_p_value


def pair(num: int = 1_000) -> tuple[np.ndarray, np.ndarray]:
    """Two models: the first alone answers 32 questions, the second alone 17, and both answer 400."""
    first, second = np.zeros(num), np.zeros(num)
    first[:432], second[32:449] = 1.0, 1.0
    return first, second


def test_one_shuffle_equals_scipys_paired_t_test() -> None:
    first, second = pair(1_003)
    order = np.random.default_rng(5).permuted(np.arange(1_003)[None], axis=1)[0]
    chunks = [np.array([part.mean() for part in np.array_split(rows[order], 100)]) for rows in (first, second)]
    assert median_p_value(first, second, seed=5, num_shuffles=1) == pytest.approx(ttest_rel(*chunks).pvalue)


def test_the_median_hardly_depends_on_the_seed_unlike_one_shuffle() -> None:
    assert NUM_SHUFFLES >= 200
    first, second = pair()
    medians = [median_p_value(first, second, seed=seed) for seed in range(10)]
    single = [paired_p_value(first, second, seed=seed) for seed in range(40)]
    assert np.ptp(medians) < 0.2 * np.ptp(single)
    assert min(single) < 0.025 < np.median(medians) < 0.05 < max(single)
    assert median_p_value(first, second, seed=3) == medians[3]


def test_equal_and_constantly_different_answers() -> None:
    ones = np.ones(50)
    assert median_p_value(ones, ones) == 1.0
    assert median_p_value(ones, np.zeros(50)) == 0.0
    with pytest.raises(ValueError, match="at least two rows"):
        median_p_value(np.ones(1), np.ones(1))
