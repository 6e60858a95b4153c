"""What stored answers leave behind: a few numbers a question, read file by file, by one matcher or another.

So memory grows by some 100 bytes with each question.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.annotation.confidence import HitArray, confidence_intervals, convergence_curve, hit_probability
from slick.errors import EngineError
from slick.matching import GoldMatcher, Matcher

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

    matcher: Matcher
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
    """Categories with fewer exemplar sets and samples, see `slick.annotation.confidence.settling`; empty where not all
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


def _rescore_hits(part: pa.Table, gold: Mapping[str, Sequence[str]], matcher: Matcher) -> pa.Table:
    """The part with its hits as this matcher sees its texts."""
    columns = (part[name].to_pylist() for name in ("question_id", "greedy_text", "sampled_text"))
    greedy, sampled = [], []
    for question_id, greedy_text, sampled_text in zip(*columns, strict=True):
        is_hit = GoldMatcher(gold[question_id], matcher).is_hit
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
