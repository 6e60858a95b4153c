"""Random numbers that depend on the row only."""

import math
import subprocess
import sys

import numpy as np

from slick.rng import derive_seed, row_key, uniforms


def keys(num: int, seed: int = 0) -> np.ndarray:
    return np.array([row_key(seed, f"q{i}", 0) for i in range(num)], dtype=np.uint64)


def uniform_matrix(num_keys: int, num_samples: int, step: int, seed: int = 0) -> np.ndarray:
    """Shape (num_keys, num_samples)."""
    pairs_keys = np.repeat(keys(num_keys, seed), num_samples)
    return uniforms(pairs_keys, np.tile(np.arange(num_samples), num_keys), step).reshape(num_keys, num_samples)


def test_keys_are_the_same_in_every_process() -> None:
    code = "from slick.rng import row_key; print(row_key(7, 'P17-é', 3))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed}
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert printed == {str(row_key(7, "P17-é", 3))}


def test_stored_values_do_not_change() -> None:
    # A later version must reproduce the labels of a finished study.
    assert int(row_key(0, "P17-a", 3)) == 13107417087504151218
    values = uniforms(np.array([row_key(0, "P17-a", 3)], dtype=np.uint64), np.array([5]), 2)
    assert values.tolist() == [0.05556280971969696]


def test_keys_depend_on_part_boundaries_and_order() -> None:
    all_keys = [row_key(0, "a", "b"), row_key(0, "ab"), row_key(0, "a", 1), row_key(0, "a", 11), row_key(0, "a", 1, 1)]
    all_keys += [row_key(1, "a", "b"), row_key(0, "b", "a"), row_key(0), row_key(1)]
    assert len(set(map(int, all_keys))) == len(all_keys)
    assert derive_seed(0, "a", "b") == int(all_keys[0])


def test_uniforms_do_not_depend_on_their_neighbours() -> None:
    values = uniform_matrix(6, 16, 3)
    shuffled = np.random.default_rng(0).permutation(6 * 16)
    flat_keys, samples = np.repeat(keys(6), 16)[shuffled], np.tile(np.arange(16), 6)[shuffled]
    assert np.array_equal(uniforms(flat_keys, samples, 3), values.ravel()[shuffled])
    assert uniforms(flat_keys[:1], samples[:1], 3)[0] == values.ravel()[shuffled[0]]
    assert uniforms(flat_keys[:0], samples[:0], 3).shape == (0,)


def test_uniforms_lie_in_the_unit_interval_and_do_not_repeat() -> None:
    values = np.concatenate([uniform_matrix(200, 16, step).ravel() for step in range(8)])
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert len(np.unique(values)) == len(values)  # 25,600 of 2**53 values: a chance repeat has odds of 4e-8


def test_uniforms_are_uniform_along_every_axis() -> None:
    # Chi-square over 20 bins (19 degrees of freedom): above 57.8 with odds of about 1e-5 for each of the 40 tests.
    # By key, by sample index, by step, and by seed: 4 x 10 tests, false alarm odds below 5e-4 in all.
    axes = [uniform_matrix(10, 20_000, 0), uniform_matrix(20_000, 10, 0).T]
    axes.append(np.stack([uniform_matrix(20_000, 1, step)[:, 0] for step in range(10)]))
    axes.append(np.stack([uniform_matrix(20_000, 1, 0, seed)[:, 0] for seed in range(10)]))
    for values in axes:
        for line in values:
            counts = np.histogram(line, bins=20, range=(0, 1))[0]
            assert ((counts - 1000) ** 2 / 1000).sum() < 57.8


def test_neighbouring_draws_are_uncorrelated() -> None:
    # Each correlation of 100,000 pairs has standard error 0.00316; 5 of them: odds of 6e-7 for each of the three.
    values = uniform_matrix(10_000, 11, 0)
    later = uniform_matrix(10_000, 11, 1)
    pairs = [(values[:, :-1], values[:, 1:]), (values[:-1, :10], values[1:, :10]), (values[:, :10], later[:, :10])]
    for left, right in pairs:
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 5 / math.sqrt(left.size)


def test_large_indices_do_not_warn_or_wrap() -> None:
    with np.errstate(all="raise"):
        values = uniforms(np.array([0, 2**64 - 1], dtype=np.uint64), np.array([2**62, 2**62]), 10**6)
    assert len(set(values.tolist())) == 2
