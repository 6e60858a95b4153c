"""The knowledge table: one category per question, from a summary of its answers. No Ray."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slick.annotation.uncertainty import fit_beta, posterior_hit_probability
from slick.errors import EngineError
from slick.study_files import KNOWLEDGE_SCHEMA
from slick.types import Category, categories, clopper_pearson_upper


def knowledge_table(questions: pa.Table, evidence: pa.Table, *, is_judged: bool = False) -> pa.Table:
    """Label every question with its category.

    Args:
        questions: question_id, relation, domain and split of the questions to label.
        evidence: `slick.annotation.uncertainty.EVIDENCE_SCHEMA`, one row per question.
        is_judged: answers without an outcome are unparsable, not omitted because they would not change a category.

    Returns:
        `KNOWLEDGE_SCHEMA`, sorted by (relation, domain, split, question_id).

    Raises:
        EngineError: a question has no answers, or has them twice. That is not Unknown.
    """
    table = label_questions(questions, evidence)
    samples = SampleCounts()
    samples.add(table, is_judged=is_judged)
    return add_rare_knowledge(table, samples.rare_knowledge_probability())


def label_questions(questions: pa.Table, evidence: pa.Table) -> pa.Table:
    """`knowledge_table` without `chance_known` of Unknown questions, which depends on all questions."""
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
        "chance_known": pa.array(exact, mask=~by_gold | ~no_greedy_hit),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.cast(KNOWLEDGE_SCHEMA)


@dataclass(slots=True)
class SampleCounts:
    """Correct samples of the questions without a correct greedy answer, from any number of knowledge tables."""

    questions: Counter[int] = field(default_factory=Counter)
    """Correct samples -> number of questions."""
    num_samples: int = 0
    """Samples per question."""
    is_complete: bool = True
    """Whether all samples of these questions were generated."""
    num_unknown: int = 0

    def add(self, knowledge: pa.Table, *, is_judged: bool) -> None:
        """Count the questions of a table; with a judge, only those whose samples all have an outcome."""
        fitted = knowledge.filter(pc.equal(knowledge["greedy_hits"], 0))
        self.num_unknown += len(fitted) - fitted["p_upper"].null_count
        if is_judged:
            fitted = fitted.filter(pc.is_valid(fitted["p_correct_sampled"]))
        self.is_complete = self.is_complete and not fitted["p_correct_sampled"].null_count
        if fitted.num_rows:
            self.num_samples = self.num_samples or int(fitted["sampled_total"][0].as_py())
        self.questions.update(fitted["sampled_hits"].to_pylist())

    def merge(self, other: Self) -> None:
        """Add the counts of further tables."""
        self.questions.update(other.questions)
        self.num_samples = self.num_samples or other.num_samples
        self.is_complete = self.is_complete and other.is_complete
        self.num_unknown += other.num_unknown

    def rare_knowledge_probability(self) -> float | None:
        """Probability that an Unknown question is rarely known: as many samples again would contain a correct one.

        P_Correct of the questions without a correct greedy answer is modelled by a Beta distribution, fitted to their
        samples. The few questions with an unparsable outcome do not count.

        Returns:
            None if there are no Unknown questions, or the distribution cannot be fitted.
        """
        if not self.num_unknown or not self.is_complete:
            return None
        values = np.array(sorted(self.questions), np.int64)
        try:
            prior = fit_beta(values, self.num_samples, np.array([self.questions[int(value)] for value in values]))
        except ValueError:
            return None
        return posterior_hit_probability(prior, self.num_samples, self.num_samples)


def add_rare_knowledge(knowledge: pa.Table, probability: float | None) -> pa.Table:
    """The table with this `chance_known` of Unknown questions."""
    if probability is None:
        return knowledge
    column = pc.if_else(pc.is_valid(knowledge["p_upper"]), probability, knowledge["chance_known"])
    return knowledge.set_column(
        knowledge.column_names.index("chance_known"), KNOWLEDGE_SCHEMA.field("chance_known"), column
    )


def count_categories(knowledge: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """Number of questions by relation, split and category, zeros included."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    grouped = knowledge.group_by(["relation", "split", "category"]).aggregate([("question_id", "count")])
    for row in grouped.sort_by([("relation", "ascending"), ("split", "ascending")]).to_pylist():
        of_split = counts.setdefault(row["relation"], {}).setdefault(row["split"], {str(c): 0 for c in Category})
        of_split[row["category"]] = row["question_id_count"]
    return counts


def category_pairs(first: pa.Table, again: pa.Table) -> Counter[tuple[str, str]]:
    """Number of questions by their categories in two knowledge tables; the first has all questions of the second."""
    categories_of = dict(zip(first["question_id"].to_pylist(), first["category"].to_pylist(), strict=True))
    return Counter(
        (categories_of[question_id], category)
        for question_id, category in zip(again["question_id"].to_pylist(), again["category"].to_pylist(), strict=True)
    )


def category_flips(pairs: Counter[tuple[str, str]]) -> dict[str, Any]:
    """How many questions have another category the second time, by their first one; from `category_pairs`."""
    flipped = sum(num for (before, after), num in pairs.items() if before != after)
    return {
        "questions": pairs.total(),
        "flipped": flipped,
        "flip_rate": round(flipped / pairs.total(), 4),
        "from_to": {
            str(before): {str(after): pairs[str(before), str(after)] for after in Category} for before in Category
        },
    }
