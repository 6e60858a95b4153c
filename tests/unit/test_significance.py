"""The paired t-test over chunks: repeatable, calibrated, and certain only where it can be."""

import numpy as np
import pytest

from slick.report.statistics.intervals import paired_p_value


def rows(share: float, seed: int, num: int = 10_000) -> np.ndarray:
    return (np.random.default_rng(seed).random(num) < share).astype(float)


def test_real_difference_is_significant_and_no_difference_is_not() -> None:
    same = rows(0.4, 0)
    assert paired_p_value(same, same) == 1.0
    assert paired_p_value(same, np.zeros_like(same)) < 1e-10
    worse = same * (np.random.default_rng(9).random(len(same)) > 0.05)
    assert paired_p_value(same, worse) < 0.01


def test_false_positive_rate_is_close_to_the_level() -> None:
    alarms = sum(paired_p_value(rows(0.4, 2 * i, 2000), rows(0.4, 2 * i + 1, 2000)) < 0.05 for i in range(200))
    assert alarms <= 22  # expected 10; more than 22 of 200 has probability under 0.001


def test_p_value_is_the_median_over_shuffles() -> None:
    first, second = rows(0.4, 0, 2000), rows(0.43, 1, 2000)
    single = [paired_p_value(first, second, seed=seed, num_shuffles=1) for seed in range(200)]
    assert max(single) > 2 * min(single), "one shuffle decides much"
    several = [paired_p_value(first, second, seed=seed) for seed in range(5)]
    assert max(several) < 1.3 * min(several)
    assert min(several) < np.median(single) < max(several) * 1.3


def test_one_difference_in_few_rows_is_not_significant() -> None:
    """The chunk test had p = 0 where all chunks differ by the same; the sign test has 2 / 2 ** 5."""
    assert paired_p_value(np.ones(5), np.zeros(5)) == pytest.approx(2 / 2**5)


def test_rows_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many of each model; got 3 and 4"):
        paired_p_value(np.ones(3), np.ones(4))
