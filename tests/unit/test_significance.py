"""The paired t-test over chunks: repeatable, calibrated, and certain only where it can be."""

import numpy as np
import pytest

from slick.report.statistics.intervals import chunk_accuracies, paired_p_value


def rows(share: float, seed: int, num: int = 10_000) -> np.ndarray:
    return (np.random.default_rng(seed).random(num) < share).astype(float)


def test_chunks_are_near_equal_and_keep_the_mean() -> None:
    chunks = chunk_accuracies(rows(0.4, 0))
    assert len(chunks) == 100
    assert chunks.mean() == pytest.approx(rows(0.4, 0).mean())
    assert len(chunk_accuracies(rows(0.4, 0, 30))) == 30
    assert np.array_equal(chunks, chunk_accuracies(rows(0.4, 0)))
    assert not np.array_equal(chunks, chunk_accuracies(rows(0.4, 0), seed=1))


def test_a_real_difference_is_found_and_none_is_invented() -> None:
    same = rows(0.4, 0)
    assert paired_p_value(same, same) == 1.0
    assert paired_p_value(same, np.zeros_like(same)) < 1e-10
    assert paired_p_value(np.ones(200), np.zeros(200)) == 0.0
    worse = same * (np.random.default_rng(9).random(len(same)) > 0.05)
    assert paired_p_value(same, worse) < 0.01


def test_false_alarms_are_about_as_rare_as_promised() -> None:
    alarms = sum(paired_p_value(rows(0.4, 2 * i, 2000), rows(0.4, 2 * i + 1, 2000)) < 0.05 for i in range(200))
    assert alarms <= 22  # expected 10; more than 22 of 200 has probability under 0.001


def test_rows_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="as many of each model; got 3 and 4"):
        paired_p_value(np.ones(3), np.ones(4))
