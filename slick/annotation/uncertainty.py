"""Uncertainty of the labels: intervals of P_Correct, undetected rare knowledge, stability of the labels. No Ray.

Stored answers are read file by file and reduced to a few numbers a question, some 100 bytes each.

Legend of array suffixes: Q questions, P exemplar sets, S samples of one prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.errors import EngineError
from slick.matching import make_matcher
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

    >>> round(posterior_hit_probability((1.0, 1.0), 160, 160), 4)
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


EVIDENCE_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        *((name, pa.int32()) for name in ("greedy_hits", "greedy_total", "sampled_hits", "sampled_total")),
        *((name, pa.float64()) for name in ("p_correct_sampled", "p_low", "p_high", "chance_known")),
    ]
)
"""What the answers to a question leave behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How stored answers are judged: the settings that a rescoring may change."""

    matcher: str
    num_exemplar_sets: int
    num_samples: int
    gold: Mapping[str, Sequence[str]] | None = None
    """Answers by question_id, to judge the stored texts anew; None to take the hits as they were stored."""


@dataclass(slots=True)
class Evidence:
    """What all answers of a study leave behind."""

    rows: pa.Table
    """As `EVIDENCE_SCHEMA`."""
    convergence_curve: list[dict[str, Any]]
    """Categories with fewer exemplar sets and samples, see `slick.annotation.uncertainty.settling`; empty where not all
    samples were drawn."""


def collect_evidence(parts: Iterator[pa.Table], scoring: Scoring) -> Evidence:
    """The evidence of all part files of one store, be it generations or gold scores.

    Raises:
        EngineError: some answers of a question are missing.
    """
    tables: list[pa.Table] = []
    curve: dict[tuple[int, int], dict[str, int]] = {}
    whole = True
    for part in parts:
        if "gold_probability" in part.column_names:
            tables.append(_gold_evidence(part, scoring))
            whole = False
            continue
        greedy_QP, sampled_QPS = _hits(part, scoring)
        tables.append(_evidence(part["question_id"], greedy_QP, sampled_QPS))
        whole = whole and bool((sampled_QPS >= 0).all())
        for sets, samples, found in convergence_curve(greedy_QP, sampled_QPS) if whole else ():
            total = curve.setdefault((sets, samples), dict.fromkeys(found, 0))
            curve[sets, samples] = {category: total[category] + num for category, num in found.items()}
    steps = [{"exemplar_sets": sets, "samples": n, "categories": found} for (sets, n), found in curve.items()]
    return Evidence(pa.concat_tables(tables) if tables else EVIDENCE_SCHEMA.empty_table(), steps if whole else [])


def _evidence(question_id: pa.ChunkedArray, greedy_QP: HitArray, sampled_QPS: HitArray) -> pa.Table:
    drawn = sampled_QPS >= 0
    hits = (sampled_QPS > 0).sum(axis=(1, 2))
    whole = drawn.all(axis=(1, 2))
    low, high = np.zeros(len(hits)), np.ones(len(hits))
    if whole.any():
        low[whole], high[whole] = confidence_intervals(sampled_QPS[whole])
    columns = [
        question_id,
        pa.array((greedy_QP > 0).sum(axis=1), pa.int32()),
        pa.array(np.full(len(hits), greedy_QP.shape[1]), pa.int32()),
        pa.array(hits, pa.int32()),
        pa.array(drawn.sum(axis=(1, 2)), pa.int32()),
        *(pa.array(values, pa.float64(), mask=~whole) for values in (hits / sampled_QPS[0].size, low, high)),
        pa.nulls(len(hits), pa.float64()),
    ]
    return pa.table(columns, schema=EVIDENCE_SCHEMA)


def _gold_evidence(part: pa.Table, scoring: Scoring) -> pa.Table:
    greedy_QP = _array(part["greedy_hit"], 1)[:, : scoring.num_exemplar_sets]
    gold_QP = _array(part["gold_probability"], 1)[:, : scoring.num_exemplar_sets].astype(np.float64)
    num, share = len(greedy_QP), pa.array(gold_QP.mean(axis=1))
    columns = [
        part["question_id"],
        pa.array(greedy_QP.sum(axis=1), pa.int32()),
        pa.array(np.full(num, greedy_QP.shape[1]), pa.int32()),
        *(pa.array(np.zeros(num), pa.int32()) for _ in range(2)),
        *(share for _ in range(3)),
        pa.array(hit_probability(gold_QP, scoring.num_samples)),
    ]
    return pa.table(columns, schema=EVIDENCE_SCHEMA)


def _hits(part: pa.Table, scoring: Scoring) -> tuple[HitArray, HitArray]:
    """Greedy and sampled hits of a part, of as many exemplar sets and samples as are to count."""
    if scoring.gold is not None:
        part = _rescore_hits(part, scoring.gold, scoring.matcher)
    greedy, sampled = (
        _array(part[name].combine_chunks(), depth) for name, depth in (("greedy_hit", 1), ("sampled_hit", 2))
    )
    sets, samples = scoring.num_exemplar_sets, scoring.num_samples
    if greedy.shape[1] < sets or sampled.shape[1] < sets or sampled.shape[2] < samples:
        raise EngineError(
            f"questions have answers to {greedy.shape[1]} and {sampled.shape[1]} prompts, {sampled.shape[2]} samples "
            f"each; wanted {sets} prompts and {samples} samples; delete annotate/ and ask again"
        )
    return greedy[:, :sets], sampled[:, :sets, :samples]


def _rescore_hits(part: pa.Table, gold: Mapping[str, Sequence[str]], matcher: str) -> pa.Table:
    """The part with its hits as this matcher sees its texts."""
    columns = (part[name].to_pylist() for name in ("question_id", "greedy_text", "sampled_text"))
    greedy, sampled = [], []
    for question_id, greedy_text, sampled_text in zip(*columns, strict=True):
        is_hit = make_matcher(gold[question_id], matcher).is_hit
        greedy.append([is_hit(text) for text in greedy_text])
        sampled.append([[None if text is None else is_hit(text) for text in texts] for texts in sampled_text])
    return pa.table(
        {
            "question_id": part["question_id"],
            "greedy_hit": pa.array(greedy, pa.list_(pa.bool_())),
            "sampled_hit": pa.array(sampled, pa.list_(pa.list_(pa.bool_()))),
        }
    )


def _array(column: pa.ChunkedArray | pa.Array, depth: int) -> NDArray[Any]:
    """Lists `depth` deep, all of one length, as an array of depth + 1 dimensions; flags as 1, 0, and -1 for null.

    Raises:
        EngineError: lists differ in length, or are empty.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    shape = [len(array)]
    for _ in range(depth):
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) != 1 or not lengths[0]:
            raise EngineError(
                f"questions have {lengths} answers, and must all have as many; delete annotate/ and ask again"
            )
        shape.append(lengths[0])
        array = array.flatten()
    if pa.types.is_boolean(array.type):
        array = pc.fill_null(pc.cast(array, pa.int8()), -1)
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)
