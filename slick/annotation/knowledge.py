"""The knowledge table: one row a question, its P_Correct, its category, and how sure that is."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.annotation.uncertainty import fit_beta, posterior_hit_probability
from slick.errors import EngineError
from slick.study_files import KNOWLEDGE_SCHEMA
from slick.types import Category, clopper_pearson_upper


def knowledge_table(asked: pa.Table, evidence: pa.Table) -> pa.Table:
    """Sort every asked question into its category.

    Args:
        asked: question_id, relation, domain and split of the questions that were asked.
        evidence: as `slick.annotation.uncertainty.EVIDENCE_SCHEMA`, one row for each.

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
    bound = np.array([clopper_pearson_upper(max(1, int(num))) for num in np.unique(drawn)])[
        np.searchsorted(np.unique(drawn), drawn)
    ]
    chance = np.where(by_gold, exact, _rare_knowledge_probability(evidence, unknown))
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


def _rare_knowledge_probability(evidence: pa.Table, unknown: NDArray[np.bool_]) -> NDArray[np.float64]:
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
    chances[unknown] = posterior_hit_probability(prior, draws, draws)
    return chances


def categories(
    greedy_hits: NDArray[np.int64], greedy_total: NDArray[np.int64], sampled_hits: NDArray[Any]
) -> list[str]:
    """The categories of many questions at once; the rule is `slick.types.categorize`, as a test makes sure."""
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
