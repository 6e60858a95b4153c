"""From stored answers to the knowledge table: one row a question, its P_Correct, its category, and how sure that is.

Answers are read file by file and leave a few numbers a question, so memory grows by some 100 bytes with each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.annotation.confidence import Hits, chance_known, chance_of_a_hit, fit_beta, intervals, settling
from slick.categories import p_upper
from slick.errors import EngineError
from slick.matching import Matcher, Target
from slick.storage import Folder
from slick.types import Category

KNOWLEDGE_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("relation", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),
        ("greedy_hits", pa.int32()),
        ("greedy_total", pa.int32()),
        ("sampled_hits", pa.int32()),
        ("sampled_total", pa.int32()),
        ("p_correct_greedy", pa.float64()),
        ("p_correct_sampled", pa.float64()),
        ("category", pa.string()),
        ("p_upper", pa.float64()),
        ("p_low", pa.float64()),
        ("p_high", pa.float64()),
        ("chance_known", pa.float64()),
    ]
)
"""Of `annotate/knowledge.parquet`. Null where it does not apply:

`sampled_hits`, `sampled_total`: draws and their hits; 0 where none was needed (labels mode, gold estimator).
`p_correct_sampled`, `p_low`, `p_high`: share of hits at the sampling temperature and its 95 % interval; null where not
all samples were drawn. From the gold estimator the share is exact, and the interval that point.
`p_upper`: upper bound of P_Correct where no answer hit.
`chance_known`: of an Unknown question, the chance that as many draws again would hit at least once, so that it is rare
rather than unknown; from the gold estimator, of any question without a greedy hit, the exact chance that the draws of
the study would hit at least once.
"""

EVIDENCE_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        *((name, pa.int32()) for name in ("greedy_hits", "greedy_total", "sampled_hits", "sampled_total")),
        *((name, pa.float64()) for name in ("p_correct_sampled", "p_low", "p_high", "chance_known")),
    ]
)
"""What the answers to a question leave behind."""


def read_knowledge(study: Folder) -> pa.Table:
    """The knowledge table of a study, sorted by (relation, domain, split, question_id); see `KNOWLEDGE_SCHEMA`.

    Raises:
        StudyError: the annotate step is not finished.
    """
    from slick.study import require

    folder = study.child("annotate")
    require(folder, "annotate")
    return folder.read_table("knowledge.parquet")


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
    settling: list[dict[str, Any]]
    """Categories with fewer exemplar sets and samples, see `slick.annotation.confidence.settling`; empty where not all
    samples were drawn."""


def gather(parts: Iterator[pa.Table], scoring: Scoring) -> Evidence:
    """The evidence of all part files of one store, be it generations or gold scores.

    Raises:
        EngineError: some answers of a question are missing.
    """
    tables: list[pa.Table] = []
    curve: dict[tuple[int, int], dict[str, int]] = {}
    whole = True
    for part in parts:
        if "gold_probability" in part.column_names:
            tables.append(_evidence_of_gold(part, scoring))
            whole = False
            continue
        greedy_QP, sampled_QPS = _hits(part, scoring)
        tables.append(_evidence(part["question_id"], greedy_QP, sampled_QPS))
        whole = whole and bool((sampled_QPS >= 0).all())
        for sets, samples, found in settling(greedy_QP, sampled_QPS) if whole else ():
            total = curve.setdefault((sets, samples), dict.fromkeys(found, 0))
            curve[sets, samples] = {category: total[category] + num for category, num in found.items()}
    steps = [{"exemplar_sets": sets, "samples": n, "categories": found} for (sets, n), found in curve.items()]
    return Evidence(pa.concat_tables(tables) if tables else EVIDENCE_SCHEMA.empty_table(), steps if whole else [])


def _evidence(question_id: pa.ChunkedArray, greedy_QP: Hits, sampled_QPS: Hits) -> pa.Table:
    drawn = sampled_QPS >= 0
    hits = (sampled_QPS > 0).sum(axis=(1, 2))
    whole = drawn.all(axis=(1, 2))
    low, high = np.zeros(len(hits)), np.ones(len(hits))
    if whole.any():
        low[whole], high[whole] = intervals(sampled_QPS[whole])
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


def _evidence_of_gold(part: pa.Table, scoring: Scoring) -> pa.Table:
    greedy_QP = _array(part["greedy_hit"], 1)[:, : scoring.num_exemplar_sets]
    gold_QP = _array(part["gold_probability"], 1)[:, : scoring.num_exemplar_sets].astype(np.float64)
    num, share = len(greedy_QP), pa.array(gold_QP.mean(axis=1))
    columns = [
        part["question_id"],
        pa.array(greedy_QP.sum(axis=1), pa.int32()),
        pa.array(np.full(num, greedy_QP.shape[1]), pa.int32()),
        *(pa.array(np.zeros(num), pa.int32()) for _ in range(2)),
        *(share for _ in range(3)),
        pa.array(chance_known(gold_QP, scoring.num_samples)),
    ]
    return pa.table(columns, schema=EVIDENCE_SCHEMA)


def _hits(part: pa.Table, scoring: Scoring) -> tuple[Hits, Hits]:
    """Greedy and sampled hits of a part, of as many exemplar sets and samples as are to count."""
    if scoring.gold is not None:
        part = _judged(part, scoring.gold, scoring.matcher)
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


def _judged(part: pa.Table, gold: Mapping[str, Sequence[str]], matcher: Matcher) -> pa.Table:
    """The part with its hits as this matcher sees its texts."""
    columns = (part[name].to_pylist() for name in ("question_id", "greedy_text", "sampled_text"))
    greedy, sampled = [], []
    for question_id, greedy_text, sampled_text in zip(*columns, strict=True):
        is_hit = Target(gold[question_id], matcher).is_hit
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


def knowledge_table(asked: pa.Table, evidence: pa.Table) -> pa.Table:
    """Sort every asked question into its category.

    Args:
        asked: question_id, relation, domain and split of the questions that were asked.
        evidence: as `EVIDENCE_SCHEMA`, one row for each.

    Returns:
        As `KNOWLEDGE_SCHEMA`, sorted by (relation, domain, split, question_id).

    Raises:
        EngineError: a question was not asked, or twice. That is not Unknown.
    """
    names = ["relation", "domain", "split", "question_id"]
    asked = asked.select(["question_id", "relation", "domain", "split"]).sort_by(
        [(name, "ascending") for name in names]
    )
    found = evidence["question_id"]
    rows = pc.index_in(asked["question_id"], value_set=found.combine_chunks())
    if rows.null_count or len(found) != asked.num_rows:
        missing = asked.filter(pc.is_null(rows))["question_id"].to_pylist()
        raise EngineError(
            f"{asked.num_rows} questions were to be asked once each; the generations hold {len(found)} rows, and none "
            f"for {len(missing)} questions such as {missing[:3]}; delete annotate/ and ask again"
        )
    evidence = evidence.take(rows)
    greedy_hits, greedy_total, hits, drawn = (
        evidence[name].to_numpy() for name in ("greedy_hits", "greedy_total", "sampled_hits", "sampled_total")
    )
    exact = evidence["chance_known"].to_numpy()
    by_gold = ~np.isnan(exact)
    no_greedy_hit = greedy_hits == 0
    if ((drawn == 0) & no_greedy_hit & ~by_gold).any():
        raise EngineError("a question without a greedy hit has no samples, so whether it is Unknown cannot be told")
    category = categories(greedy_hits, greedy_total, np.where(by_gold, exact >= 0.5, hits))
    unknown = no_greedy_hit & (hits == 0) & ~by_gold
    bound = np.array([p_upper(max(1, int(num))) for num in np.unique(drawn)])[np.searchsorted(np.unique(drawn), drawn)]
    chance = np.where(by_gold, exact, _rare(evidence, unknown))
    table = asked.select(asked.column_names)
    for name in ("greedy_hits", "greedy_total", "sampled_hits", "sampled_total"):
        table = table.append_column(name, evidence[name])
    columns = {
        "p_correct_greedy": pa.array(greedy_hits / greedy_total),
        "p_correct_sampled": evidence["p_correct_sampled"],
        "category": pa.array(category, pa.string()),
        "p_upper": pa.array(bound, mask=~unknown),
        "p_low": evidence["p_low"],
        "p_high": evidence["p_high"],
        "chance_known": pa.array(chance, mask=np.isnan(chance) | ~no_greedy_hit),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.cast(KNOWLEDGE_SCHEMA)


def _rare(evidence: pa.Table, unknown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The chance that an Unknown question is merely rare; not a number for other questions, or where it is not known.

    P_Correct is taken to follow a Beta distribution over the questions without a greedy hit, fitted to their draws.
    """
    chances = np.full(evidence.num_rows, np.nan)
    fitted = evidence.filter(pc.equal(evidence["greedy_hits"], 0))
    if not unknown.any() or fitted["p_correct_sampled"].null_count:
        return chances
    draws = int(fitted["sampled_total"][0].as_py())
    try:
        prior = fit_beta(fitted["sampled_hits"].to_numpy().astype(np.int64), draws)
    except ValueError:
        return chances
    chances[unknown] = chance_of_a_hit(prior, draws, draws)
    return chances


def categories(
    greedy_hits: NDArray[np.int64], greedy_total: NDArray[np.int64], sampled_hits: NDArray[Any]
) -> list[str]:
    """The categories of many questions at once; the rule is `slick.categories.categorize`, as a test makes sure."""
    found = np.select(
        [greedy_hits == greedy_total, greedy_hits > 0, sampled_hits > 0],
        [Category.HIGHLY_KNOWN.value, Category.MAYBE_KNOWN.value, Category.WEAKLY_KNOWN.value],
        Category.UNKNOWN.value,
    )
    return [str(category) for category in found]


def count_categories(knowledge: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """Relation to split to category to number of questions, every category named."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    grouped = knowledge.group_by(["relation", "split", "category"]).aggregate([("question_id", "count")])
    for row in grouped.sort_by([("relation", "ascending"), ("split", "ascending")]).to_pylist():
        of_split = counts.setdefault(row["relation"], {}).setdefault(row["split"], {str(c): 0 for c in Category})
        of_split[row["category"]] = row["question_id_count"]
    return counts
