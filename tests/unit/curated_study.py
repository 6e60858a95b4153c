"""A finished curation without a model: a plan and labels for given rows, and the study behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from slick.annotation import AnnotateConfig
from slick.curation.actions import RowLabel, label_rows
from slick.curation.claims import split_claims
from slick.curation.config import CurateConfig
from slick.curation.files import open_data
from slick.curation.formats import detect_format
from slick.curation.plan import CurationPlan
from slick.curation.selection import candidates_of, read_decisions
from slick.storage import Folder
from slick.study_files import GENERATION_SCHEMA, KNOWLEDGE_SCHEMA
from slick.types import Category
from tests.study_builder import finish_step

NUM_SETS, NUM_SAMPLES = 2, 4
HITS = {
    Category.HIGHLY_KNOWN: (2, 7),
    Category.MAYBE_KNOWN: (1, 3),
    Category.WEAKLY_KNOWN: (0, 1),
    Category.UNKNOWN: (0, 0),
}
"""Correct greedy answers and correct samples of the questions of each category."""


def fact(number: int, **columns: Any) -> dict[str, Any]:
    """A row that tests knowledge."""
    return {"prompt": f"Who wrote book {number}?", "completion": f"Author {number}", **columns}


CODE_ROW = {"prompt": "Print 1.", "completion": "```print(1)```", "kind": "code"}


@dataclass(frozen=True, kw_only=True)
class CuratedStudy:
    """The input of the page."""

    study: Folder
    plan: CurationPlan
    labels: Sequence[RowLabel]
    config: CurateConfig


def write_curated_study(
    path: Path, rows: Sequence[dict[str, Any]], categories: Sequence[Category], wrong: str = "Nobody", **settings: Any
) -> CuratedStudy:
    """Write the labels and answers of rows.

    Args:
        path: the study folder.
        rows: in the format prompt/completion.
        categories: of the labelled rows, in order; with `claims`, of their sentences.
        wrong: all wrong answers.
        settings: of `CurateConfig`.
    """
    study = Folder(str(path))
    config = CurateConfig(**({"model": "models/tiny"} | settings))
    data = open_data(list(rows))
    row_format = detect_format(data.columns, data.first_rows())
    decisions = read_decisions(data.rows(), row_format, config)
    decisions = split_claims(decisions) if config.claims == "sentences" else decisions
    questions = {c.question_id: c for c in candidates_of(decisions)}
    knowledge, generations = [], []
    for candidate, category in zip(questions.values(), categories, strict=True):
        knowledge.append(_knowledge(candidate.question_id, category))
        generations.append(_generation(candidate.question_id, candidate.target, wrong, category))
    folder = study.child("annotate")
    folder.write_table("knowledge.parquet", pa.Table.from_pylist(knowledge, schema=KNOWLEDGE_SCHEMA))
    generations_table = pa.Table.from_pylist(generations, schema=GENERATION_SCHEMA)
    folder.child("generations").write_table("part-000000.parquet", generations_table)
    folder.write_json("confidence.json", {"settling": _settling(categories)})
    finish_step(folder, "annotate")
    plan = CurationPlan(
        data=data,
        row_format=row_format,
        decisions=decisions,
        questions=[],
        exemplars=None,
        annotation=AnnotateConfig(),
        notes=["Matcher exact: all targets are short."],
    )
    return CuratedStudy(study=study, plan=plan, labels=label_rows(study, decisions), config=config)


def _knowledge(question_id: str, category: Category) -> dict[str, Any]:
    greedy, sampled = HITS[category]
    total = NUM_SETS * NUM_SAMPLES
    is_unknown = category == Category.UNKNOWN
    return {
        "question_id": question_id,
        "relation": "rows",
        "domain": "id",
        "split": "train",
        "greedy_hits": greedy,
        "greedy_total": NUM_SETS,
        "sampled_hits": sampled,
        "sampled_total": total,
        "p_correct_greedy": greedy / NUM_SETS,
        "p_correct_sampled": sampled / total,
        "category": str(category),
        "p_upper": 0.3 if is_unknown else None,
        "p_low": max(0.0, sampled / total - 0.1),
        "p_high": min(1.0, sampled / total + 0.1),
        "chance_known": 0.25 if is_unknown else None,
    }


def _generation(question_id: str, target: str, wrong: str, category: Category) -> dict[str, Any]:
    greedy, sampled = HITS[category]
    hits = [i < sampled for i in range(NUM_SETS * NUM_SAMPLES)]
    rows = [hits[i * NUM_SAMPLES : (i + 1) * NUM_SAMPLES] for i in range(NUM_SETS)]
    return {
        "question_id": question_id,
        "relation": "rows",
        "greedy_text": [target if i < greedy else wrong for i in range(NUM_SETS)],
        "greedy_hit": [i < greedy for i in range(NUM_SETS)],
        "sampled_text": [[target if hit else wrong for hit in row] for row in rows],
        "sampled_hit": rows,
        "num_tokens": 1,
    }


def _settling(categories: Sequence[Category]) -> list[dict[str, Any]]:
    counts = {str(category): list(categories).count(category) for category in Category}
    settings = [(1, NUM_SAMPLES), (NUM_SETS, NUM_SAMPLES), (NUM_SETS, 1)]
    return [{"exemplar_sets": sets, "samples": samples, "categories": counts} for sets, samples in settings]
