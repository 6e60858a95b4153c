"""The knowledge table: one row per question with P_Correct, its category and their uncertainty."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from slick.annotation.uncertainty import fit_beta, posterior_hit_probability
from slick.errors import EngineError
from slick.study_files import KNOWLEDGE_SCHEMA
from slick.types import Category, clopper_pearson_upper


def knowledge_table(questions: pa.Table, evidence: pa.Table) -> pa.Table:
    """Label every question with its category.

    Args:
        questions: question_id, relation, domain and split of the questions to label.
        evidence: `slick.annotation.uncertainty.EVIDENCE_SCHEMA`, one row per question.

    Returns:
        `KNOWLEDGE_SCHEMA`, sorted by (relation, domain, split, question_id).

    Raises:
        EngineError: a question has no answers, or has them twice. That is not Unknown.
    """
    names = ["relation", "domain", "split", "question_id"]
    questions = questions.select(["question_id", "relation", "domain", "split"]).sort_by(
        [(name, "ascending") for name in names]
    )
    rows = pc.index_in(questions["question_id"], value_set=evidence["question_id"].combine_chunks())
    if rows.null_count or evidence.num_rows != questions.num_rows:
        missing = questions.filter(pc.is_null(rows))["question_id"].to_pylist()
        raise EngineError(
            f"expected answers to {questions.num_rows} questions, one row each; annotate/ holds {evidence.num_rows} "
            f"rows, and none for {len(missing)} questions such as {missing[:3]}; delete annotate/ and annotate again"
        )
    evidence = evidence.take(rows)
    greedy_hits, greedy_total, hits, num_samples = (
        evidence[name].to_numpy() for name in ("greedy_hits", "greedy_total", "sampled_hits", "sampled_total")
    )
    exact = evidence["chance_known"].to_numpy()
    by_gold = ~np.isnan(exact)
    no_greedy_hit = greedy_hits == 0
    if ((num_samples == 0) & no_greedy_hit & ~by_gold).any():
        raise EngineError(
            "a question without a correct greedy answer has no samples, so WeaklyKnown and Unknown cannot be "
            "separated; delete annotate/ and annotate again"
        )
    category = categories(greedy_hits, greedy_total, np.where(by_gold, exact >= 0.5, hits))
    unknown = no_greedy_hit & (hits == 0) & ~by_gold
    distinct, inverse = np.unique(num_samples, return_inverse=True)
    bound = np.array([clopper_pearson_upper(max(1, int(num))) for num in distinct])[inverse]
    probability = np.where(by_gold, exact, _rare_knowledge_probability(evidence, unknown))
    table = questions
    for name in ("greedy_hits", "greedy_total", "sampled_hits", "sampled_total"):
        table = table.append_column(name, evidence[name])
    columns = {
        "p_correct_greedy": pa.array(greedy_hits / greedy_total),
        "p_correct_sampled": evidence["p_correct_sampled"],
        "category": pa.array(category, pa.string()),
        "p_upper": pa.array(bound, mask=~unknown),
        "p_low": evidence["p_low"],
        "p_high": evidence["p_high"],
        "chance_known": pa.array(probability, mask=np.isnan(probability) | ~no_greedy_hit),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.cast(KNOWLEDGE_SCHEMA)


def _rare_knowledge_probability(evidence: pa.Table, unknown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Probability that an Unknown question is rarely known: as many samples again would contain a correct one.

    P_Correct of the questions without a correct greedy answer is modelled by a Beta distribution, fitted to their
    samples. NaN for other questions, and if the distribution cannot be fitted.
    """
    probabilities = np.full(evidence.num_rows, np.nan)
    fitted = evidence.filter(pc.equal(evidence["greedy_hits"], 0))
    if not unknown.any() or fitted["p_correct_sampled"].null_count:
        return probabilities
    num_samples = int(fitted["sampled_total"][0].as_py())
    try:
        prior = fit_beta(fitted["sampled_hits"].to_numpy().astype(np.int64), num_samples)
    except ValueError:
        return probabilities
    probabilities[unknown] = posterior_hit_probability(prior, num_samples, num_samples)
    return probabilities


def categories(
    greedy_hits: NDArray[np.int64], greedy_total: NDArray[np.int64], sampled_hits: NDArray[Any]
) -> list[str]:
    """`slick.types.categorize` for many questions at once."""
    names = np.select(
        [greedy_hits == greedy_total, greedy_hits > 0, sampled_hits > 0],
        [Category.HIGHLY_KNOWN.value, Category.MAYBE_KNOWN.value, Category.WEAKLY_KNOWN.value],
        Category.UNKNOWN.value,
    )
    return [str(category) for category in names]


def count_categories(knowledge: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """Number of questions by relation, split and category, zeros included."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    grouped = knowledge.group_by(["relation", "split", "category"]).aggregate([("question_id", "count")])
    for row in grouped.sort_by([("relation", "ascending"), ("split", "ascending")]).to_pylist():
        of_split = counts.setdefault(row["relation"], {}).setdefault(row["split"], {str(c): 0 for c in Category})
        of_split[row["category"]] = row["question_id_count"]
    return counts
