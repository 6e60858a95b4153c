"""Uncertainty of labels: confidence intervals of P_Correct, undetected rare knowledge, convergence. No Ray.

Stored answers are read file by file and reduced to a few numbers per question, about 100 bytes.

Array suffixes: Q questions, P exemplar sets, S samples per prompt.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.errors import EngineError
from slick.matching import make_matcher
from slick.types import Category, categories

FloatArray = NDArray[np.float64]
HitArray = NDArray[np.int8]
"""1 for a correct answer, 0 for a wrong one, -1 for one that was not generated."""


def confidence_intervals(hits_QPS: HitArray, confidence: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Confidence interval of P_Correct of each question, corrected for the correlation of answers to one prompt.

    Clopper-Pearson intervals with the effective sample size of Korn and Graubard (1998, Survey Methodology 24), which
    the variance between prompts determines. With only correct or only wrong answers, plain Clopper-Pearson intervals.

    Args:
        hits_QPS: shape (Q, P, S), all generated.
        confidence: the confidence level.

    Returns:
        Lower and upper bounds, shape (Q,) each.
    """
    from scipy.stats import beta, t

    num_prompts = hits_QPS.shape[1]
    num_samples = float(num_prompts * hits_QPS.shape[2])
    by_prompt_QP = hits_QPS.mean(axis=2)
    share = by_prompt_QP.mean(axis=1)
    effective = np.full(len(share), num_samples)
    if num_prompts > 1:
        variance = by_prompt_QP.var(axis=1, ddof=1) / num_prompts
        varies = variance > 0
        tail = (1 - confidence) / 2
        factor = (t.ppf(tail, num_samples - 1) / t.ppf(tail, num_prompts - 1)) ** 2
        effective[varies] = np.minimum(num_samples, share[varies] * (1 - share[varies]) / variance[varies] * factor)
    hits, misses, tail = share * effective, (1 - share) * effective, (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(share > 0, beta.ppf(tail, hits, misses + 1), 0.0)
        high = np.where(share < 1, beta.ppf(1 - tail, hits + 1, misses), 1.0)
    return np.asarray(low), np.asarray(high)


def fit_beta(
    hits_Q: NDArray[np.int64], num_samples: int, weights_Q: NDArray[np.int64] | None = None
) -> tuple[float, float]:
    """Maximum-likelihood Beta distribution of P_Correct over questions, from correct samples per question.

    Args:
        hits_Q: correct samples.
        num_samples: samples of each question.
        weights_Q: number of questions with these correct samples; one each by default.

    Raises:
        ValueError: there are no questions, or all samples of all questions are correct, or all are wrong.
    """
    from scipy.optimize import minimize
    from scipy.special import betaln

    if not len(hits_Q) or hits_Q.max() == 0 or hits_Q.min() == num_samples:
        raise ValueError("a Beta distribution needs correct and wrong samples")
    values, counts = np.unique(hits_Q, return_counts=True) if weights_Q is None else (hits_Q, weights_Q)

    def loss(log_ab: FloatArray) -> float:
        a, b = np.exp(log_ab)
        return -float((counts * (betaln(values + a, num_samples - values + b) - betaln(a, b))).sum())

    result = minimize(loss, np.log([0.3, 1.0]), method="Nelder-Mead", bounds=[(-9.0, 9.0)] * 2)
    a, b = np.exp(result.x)
    return float(a), float(b)


def posterior_hit_probability(prior: tuple[float, float], num_misses: int, num_samples: int) -> float:
    """Probability that one of `num_samples` further answers is correct, after `num_misses` wrong ones.

    >>> round(posterior_hit_probability((1.0, 1.0), 160, 160), 4)
    0.4984
    """
    from scipy.special import betaln

    a, b = prior
    return float(-np.expm1(betaln(a, b + num_misses + num_samples) - betaln(a, b + num_misses)))


def hit_probability(gold_QP: FloatArray, num_samples: int) -> FloatArray:
    """Exact probability that any of `num_samples` samples of each prompt is correct, shape (Q,).

    Args:
        gold_QP: probability of the gold answer under each prompt.
        num_samples: samples per prompt.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(num_samples * np.log1p(-np.minimum(gold_QP, 1.0)).sum(axis=1)))


def convergence_curve(greedy_QP: HitArray, sampled_QPS: HitArray) -> Iterator[tuple[int, int, dict[str, int]]]:
    """Number of questions per category with fewer exemplar sets, and with fewer samples.

    Yields:
        Number of exemplar sets, samples per prompt, and questions by category: for each number of sets with all
        samples, and for 1, 2, 4, ... samples with all sets.
    """
    num_sets, num_samples = sampled_QPS.shape[1:]
    fewer = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    for sets, samples in [*((k, num_samples) for k in range(1, num_sets + 1)), *((num_sets, n) for n in fewer)]:
        greedy_hits = (greedy_QP[:, :sets] > 0).sum(axis=1)
        sampled_hits = (sampled_QPS[:, :sets, :samples] > 0).sum(axis=(1, 2))
        counts = Counter(categories(greedy_hits, np.full_like(greedy_hits, sets), sampled_hits))
        yield sets, samples, {str(category): counts[category] for category in Category}


EVIDENCE_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        *((name, pa.int32()) for name in ("greedy_hits", "greedy_total", "sampled_hits", "sampled_total")),
        *((name, pa.float64()) for name in ("p_correct_sampled", "p_low", "p_high", "chance_known")),
    ]
)
"""Summary of the answers to one question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How stored answers are scored: the settings that rescoring may change."""

    matcher: str
    num_exemplar_sets: int
    num_samples: int
    gold: Mapping[str, Sequence[str]] | None = None
    """Gold answers by question_id, to match the stored texts again; None to use the stored hits."""
    judged: Callable[[str], Callable[[str], bool | None]] | None = None
    """With the matcher `judge`: from a question_id, a function that says whether an answer is correct, or None if its
    outcome is unparsable."""

    def is_hit_of(self, question_id: str) -> Callable[[str], bool | None]:
        """A function that says whether a stored text answers this question correctly."""
        if self.judged is not None:
            return self.judged(question_id)
        return make_matcher((self.gold or {})[question_id], self.matcher).is_hit


@dataclass(slots=True)
class Evidence:
    """Summary of all answers of one store."""

    rows: pa.Table
    """`EVIDENCE_SCHEMA`."""
    convergence_curve: list[dict[str, Any]]
    """Categories with fewer exemplar sets and samples; empty if not all samples were generated. With the matcher
    `judge`, over the questions whose answers all have an outcome."""
    undecided: list[str] = field(default_factory=list)
    """Questions whose category depends on answers with an unparsable outcome; they are not among the rows."""


def collect_evidence(parts: Iterator[pa.Table], scoring: Scoring) -> Evidence:
    """Summarize all part files of one store of generations or gold scores.

    Raises:
        EngineError: some answers to a question are missing.
    """
    tables: list[pa.Table] = []
    undecided: list[str] = []
    curve: dict[tuple[int, int], dict[str, int]] = {}
    is_complete = True
    for part in parts:
        if "gold_probability" in part.column_names:
            tables.append(_gold_evidence(part, scoring))
            is_complete = False
            continue
        greedy_QP, sampled_QPS = _hits(part, scoring)
        question_id = part["question_id"]
        if scoring.judged is not None:
            decided_Q = _is_decided(greedy_QP, sampled_QPS)
            undecided += question_id.filter(pa.array(~decided_Q)).to_pylist()
            question_id = question_id.filter(pa.array(decided_Q))
            greedy_QP, sampled_QPS = greedy_QP[decided_Q], sampled_QPS[decided_Q]
        tables.append(_evidence(question_id, greedy_QP, sampled_QPS))
        if scoring.judged is not None:
            complete_Q = (greedy_QP >= 0).all(axis=1) & (sampled_QPS >= 0).all(axis=(1, 2))
            greedy_QP, sampled_QPS = greedy_QP[complete_Q], sampled_QPS[complete_Q]
        is_complete = is_complete and bool((sampled_QPS >= 0).all())
        for sets, samples, counts in convergence_curve(greedy_QP, sampled_QPS) if is_complete else ():
            total = curve.setdefault((sets, samples), dict.fromkeys(counts, 0))
            curve[sets, samples] = {category: total[category] + num for category, num in counts.items()}
    steps = [{"exemplar_sets": sets, "samples": n, "categories": counts} for (sets, n), counts in curve.items()]
    rows = pa.concat_tables(tables) if tables else EVIDENCE_SCHEMA.empty_table()
    return Evidence(rows, steps if is_complete else [], undecided)


def _is_decided(greedy_QP: HitArray, sampled_QPS: HitArray) -> NDArray[np.bool_]:
    """Whether a question's category is the same whatever the answers without an outcome (-1) are; shape (Q,)."""

    def categories_if(hit: int) -> NDArray[np.str_]:
        greedy_Q, sampled_Q = (
            np.where(hits < 0, hit, hits).reshape(len(hits), -1).sum(axis=1) for hits in (greedy_QP, sampled_QPS)
        )
        return np.array(categories(greedy_Q, np.full_like(greedy_Q, greedy_QP.shape[1]), sampled_Q))

    # More hits never give a lower category, so the two extremes bound all cases.
    return np.asarray(categories_if(0) == categories_if(1))


def _evidence(question_id: pa.ChunkedArray, greedy_QP: HitArray, sampled_QPS: HitArray) -> pa.Table:
    is_generated = sampled_QPS >= 0
    hits = (sampled_QPS > 0).sum(axis=(1, 2))
    is_complete = is_generated.all(axis=(1, 2))
    num_samples = sampled_QPS.shape[1] * sampled_QPS.shape[2]
    low, high = np.zeros(len(hits)), np.ones(len(hits))
    if is_complete.any():
        low[is_complete], high[is_complete] = confidence_intervals(sampled_QPS[is_complete])
    columns = [
        question_id,
        pa.array((greedy_QP > 0).sum(axis=1), pa.int32()),
        pa.array((greedy_QP >= 0).sum(axis=1), pa.int32()),
        pa.array(hits, pa.int32()),
        pa.array(is_generated.sum(axis=(1, 2)), pa.int32()),
        *(pa.array(values, pa.float64(), mask=~is_complete) for values in (hits / num_samples, low, high)),
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
    """Greedy and sampled hits of a part file, for the exemplar sets and samples of `scoring`."""
    if scoring.judged is not None or scoring.gold is not None:
        part = _rescore_hits(part, scoring)
    greedy, sampled = (
        _array(part[name].combine_chunks(), depth) for name, depth in (("greedy_hit", 1), ("sampled_hit", 2))
    )
    sets, samples = scoring.num_exemplar_sets, scoring.num_samples
    if greedy.shape[1] < sets or sampled.shape[1] < sets or sampled.shape[2] < samples:
        raise EngineError(
            f"questions have greedy answers to {greedy.shape[1]} prompts and {sampled.shape[2]} samples of each of "
            f"{sampled.shape[1]}; expected {sets} prompts and {samples} samples; delete annotate/ and annotate again"
        )
    return greedy[:, :sets], sampled[:, :sets, :samples]


def _rescore_hits(part: pa.Table, scoring: Scoring) -> pa.Table:
    """Hits of the stored texts by the matcher of `scoring`; null for an unparsable outcome."""
    rows = [
        rescore_row(row, cache(scoring.is_hit_of(row["question_id"])))
        for row in part.select(["question_id", "greedy_text", "sampled_text"]).to_pylist()
    ]
    return pa.table(
        {
            "question_id": part["question_id"],
            "greedy_hit": pa.array([row["greedy_hit"] for row in rows], pa.list_(pa.bool_())),
            "sampled_hit": pa.array([row["sampled_hit"] for row in rows], pa.list_(pa.list_(pa.bool_()))),
        }
    )


def rescore_row(row: Mapping[str, Any], is_hit: Callable[[str], bool | None]) -> dict[str, Any]:
    """greedy_hit and sampled_hit of the texts of one question; None for a sample without text."""
    return {
        "greedy_hit": [is_hit(text) for text in row["greedy_text"]],
        "sampled_hit": [
            None if texts is None else [None if text is None else is_hit(text) for text in texts]
            for texts in row["sampled_text"]
        ],
    }


def _array(column: pa.ChunkedArray | pa.Array, depth: int) -> NDArray[Any]:
    """A column of nested lists as an array of `depth` + 1 dimensions; booleans as 1, 0, and -1 for null.

    Raises:
        EngineError: lists of one level differ in length, or are empty.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    shape = [len(array)]
    for _ in range(depth):
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) != 1 or not lengths[0]:
            raise EngineError(
                f"numbers of answers differ between questions: {lengths}; delete annotate/ and annotate again"
            )
        shape.append(lengths[0])
        array = array.flatten()
    if pa.types.is_boolean(array.type):
        array = pc.fill_null(pc.cast(array, pa.int8()), -1)
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)
