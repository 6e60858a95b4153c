"""Counter-based random numbers: keyed by row, independent of workers.

Each number is a pure function of (seed, question, prompt, sample, step), so it does not depend on the number of actors,
the order of questions or retries. SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2660193.2660195) mixes one
part of the key at a time.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_key(seed: int, *parts: str | int) -> np.uint64:
    """A 64-bit key from a seed and names such as a question id; unlike `hash`, it is the same in every process.

    >>> int(row_key(0, "P17-a", 3)) == int(row_key(0, "P17-a", 3)), int(row_key(0, "x")) == int(row_key(1, "x"))
    (True, False)
    """
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed for `numpy.random.default_rng`; see `row_key`."""
    return int(row_key(seed, *parts))


def uniforms(keys: NDArray[np.uint64], samples: NDArray[np.int64], step: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one per (key, sample) pair, for one decoding step.

    Args:
        keys: shape (N,), `row_key(seed, question_id, prompt_index)`.
        samples: shape (N,), index of the sample within its prompt.
        step: position of the token in the answer, from 0.

    Returns:
        Shape (N,), multiples of 2**-53.
    """
    mixed = _mix(keys ^ _mix(samples.astype(np.uint64)))
    mixed = _mix(mixed ^ _mix(np.full_like(mixed, step + 1)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = value + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
