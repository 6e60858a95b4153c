"""Hits of all generations to the knowledge table: one row a question, its P_Correct and its category."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.categories import p_upper
from slick.errors import EngineError
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
    ]
)
"""Of `annotate/knowledge.parquet`; `p_upper` is null where any answer hit."""


def read_knowledge(study: Folder) -> pa.Table:
    """The knowledge table of a study, sorted by (relation, domain, split, question_id); see `KNOWLEDGE_SCHEMA`.

    Raises:
        StudyError: the annotate step is not finished.
    """
    from slick.study import require

    folder = study.child("annotate")
    require(folder, "annotate")
    return folder.read_table("knowledge.parquet")


def knowledge_table(asked: pa.Table, generations: pa.Table) -> pa.Table:
    """Sort every asked question into its category.

    Args:
        asked: question_id, relation, domain and split of the questions that were asked.
        generations: question_id, greedy_hit and sampled_hit of each; see `GENERATION_SCHEMA`.

    Returns:
        As `KNOWLEDGE_SCHEMA`, sorted by (relation, domain, split, question_id).

    Raises:
        EngineError: a question was not asked, or twice, or some of its answers are missing. None of that is Unknown.
    """
    names = ["relation", "domain", "split", "question_id"]
    asked = asked.select(["question_id", "relation", "domain", "split"]).sort_by(
        [(name, "ascending") for name in names]
    )
    found = generations["question_id"]
    rows = pc.index_in(asked["question_id"], value_set=found.combine_chunks())
    if rows.null_count or len(found) != asked.num_rows:
        missing = asked.filter(pc.is_null(rows))["question_id"].to_pylist()
        raise EngineError(
            f"{asked.num_rows} questions were to be asked once each; the generations hold {len(found)} rows, and none "
            f"for {len(missing)} questions such as {missing[:3]}; delete annotate/ and ask again"
        )
    generations = generations.take(rows)
    greedy_hits, greedy_total = _hits(generations["greedy_hit"], 1)
    sampled_hits, sampled_total = _hits(generations["sampled_hit"], 2)
    some_hit = greedy_hits + sampled_hits > 0
    bound = np.full(len(greedy_hits), p_upper(sampled_total))
    columns = [
        *(asked[name] for name in asked.column_names),
        pa.array(greedy_hits, pa.int32()),
        pa.array(np.full_like(greedy_hits, greedy_total), pa.int32()),
        pa.array(sampled_hits, pa.int32()),
        pa.array(np.full_like(sampled_hits, sampled_total), pa.int32()),
        pa.array(greedy_hits / greedy_total),
        pa.array(sampled_hits / sampled_total),
        pa.array(categories(greedy_hits, greedy_total, sampled_hits), pa.string()),
        pa.array(bound, mask=some_hit),
    ]
    return pa.table(columns, schema=KNOWLEDGE_SCHEMA)


def categories(greedy_hits: NDArray[np.int64], greedy_total: int, sampled_hits: NDArray[np.int64]) -> list[str]:
    """The categories of many questions at once; the rule is `slick.categories.categorize`, as a test makes sure."""
    rules = [greedy_hits == greedy_total, greedy_hits > 0, sampled_hits > 0]
    names = [str(category) for category in Category]
    return [str(name) for name in np.select(rules, names[:3], names[3])]


def count_categories(knowledge: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """Questions by relation, split and category, every category named."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    grouped = knowledge.group_by(["relation", "split", "category"]).aggregate([("question_id", "count")])
    for row in grouped.sort_by([("relation", "ascending"), ("split", "ascending")]).to_pylist():
        of_split = counts.setdefault(row["relation"], {}).setdefault(row["split"], {str(c): 0 for c in Category})
        of_split[row["category"]] = row["question_id_count"]
    return counts


def _hits(column: pa.ChunkedArray, depth: int) -> tuple[NDArray[np.int64], int]:
    """Hits of each question and its number of answers, from lists `depth` deep that all have the same length."""
    array = column.combine_chunks()
    num_questions = len(array)
    for _ in range(depth):
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) != 1 or not lengths[0]:
            raise EngineError(
                f"questions have {lengths} answers, and must all have as many; delete annotate/ and ask again"
            )
        array = array.flatten()
    hits = np.asarray(array.to_numpy(zero_copy_only=False), dtype=bool).reshape(num_questions, -1)
    return hits.sum(axis=1), hits.shape[1]
