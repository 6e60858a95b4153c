"""How far the labels can be trusted: intervals of P_Correct, rare knowledge, and how labels settle. No Ray.

Legend of array suffixes: Q questions, P exemplar sets, S samples of one prompt.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from slick.types import Category

FloatArray = NDArray[np.float64]
HitArray = NDArray[np.int8]
"""1 for a hit, 0 for none, -1 for an answer that was not drawn."""


def confidence_intervals(hits_QPS: HitArray, confidence: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Interval of P_Correct of each question; answers to one prompt are alike, so they count for fewer.

    The exact interval with the effective number of draws (Korn and Graubard 1998, Survey Methodology 24): the spread
    between prompts says what a draw is worth. Without any hit, or any miss, it is the plain Clopper-Pearson interval.

    Args:
        hits_QPS: shape (Q, P, S), all drawn.

    Returns:
        Lower and upper bounds, shape (Q,) each.
    """
    from scipy.stats import beta, t

    num_prompts = hits_QPS.shape[1]
    draws = float(num_prompts * hits_QPS.shape[2])
    by_prompt_QP = hits_QPS.mean(axis=2)
    share = by_prompt_QP.mean(axis=1)
    effective = np.full(len(share), draws)
    if num_prompts > 1:
        variance = by_prompt_QP.var(axis=1, ddof=1) / num_prompts
        spread = variance > 0
        worth = (t.ppf((1 - confidence) / 2, draws - 1) / t.ppf((1 - confidence) / 2, num_prompts - 1)) ** 2
        effective[spread] = np.minimum(draws, share[spread] * (1 - share[spread]) / variance[spread] * worth)
    hits, misses, tail = share * effective, (1 - share) * effective, (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(share > 0, beta.ppf(tail, hits, misses + 1), 0.0)
        high = np.where(share < 1, beta.ppf(1 - tail, hits + 1, misses), 1.0)
    return np.asarray(low), np.asarray(high)


def fit_beta(hits_Q: NDArray[np.int64], draws: int) -> tuple[float, float]:
    """The Beta distribution of P_Correct over questions that makes these hits likeliest (a beta-binomial fit).

    Raises:
        ValueError: no question, or all with the same share of hits 0 or 1, from which nothing can be learned.
    """
    from scipy.optimize import minimize
    from scipy.special import betaln

    if not len(hits_Q) or hits_Q.max() == 0 or hits_Q.min() == draws:
        raise ValueError("questions without any hit, or without any miss, tell nothing of how P_Correct is spread")
    values, counts = np.unique(hits_Q, return_counts=True)

    def loss(log_ab: FloatArray) -> float:
        a, b = np.exp(log_ab)
        return -float((counts * (betaln(values + a, draws - values + b) - betaln(a, b))).sum())

    found = minimize(loss, np.log([0.3, 1.0]), method="Nelder-Mead", bounds=[(-9.0, 9.0)] * 2)
    a, b = np.exp(found.x)
    return float(a), float(b)


def posterior_hit_probability(prior: tuple[float, float], misses: int, draws: int) -> float:
    """The chance that one of `draws` further answers hits, after `misses` answers without a hit.

    >>> round(chance_of_a_hit((1.0, 1.0), 160, 160), 4)
    0.4984
    """
    from scipy.special import betaln

    a, b = prior
    return float(-np.expm1(betaln(a, b + misses + draws) - betaln(a, b + misses)))


def hit_probability(gold_QP: FloatArray, num_samples: int) -> FloatArray:
    """The exact chance that one of `num_samples` draws from each prompt hits, shape (Q,).

    Args:
        gold_QP: chance of the gold answer under each prompt.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(num_samples * np.log1p(-np.minimum(gold_QP, 1.0)).sum(axis=1)))


def convergence_curve(greedy_QP: HitArray, sampled_QPS: HitArray) -> Iterator[tuple[int, int, dict[str, int]]]:
    """How many questions fall into each category with fewer exemplar sets, and with fewer samples.

    Yields:
        Exemplar sets, samples of each prompt, and questions by category: for each number of sets with all samples, and
        with all sets for 1, 2, 4, ... samples.
    """
    num_sets, num_samples = sampled_QPS.shape[1:]
    fewer = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    for sets, samples in [*((k, num_samples) for k in range(1, num_sets + 1)), *((num_sets, n) for n in fewer)]:
        greedy = greedy_QP[:, :sets] > 0
        sampled = (sampled_QPS[:, :sets, :samples] > 0).any(axis=(1, 2))
        high, some = greedy.all(axis=1), greedy.any(axis=1)
        yield (
            sets,
            samples,
            {
                Category.HIGHLY_KNOWN.value: int(high.sum()),
                Category.MAYBE_KNOWN.value: int((some & ~high).sum()),
                Category.WEAKLY_KNOWN.value: int((sampled & ~some).sum()),
                Category.UNKNOWN.value: int((~sampled & ~some).sum()),
            },
        )
