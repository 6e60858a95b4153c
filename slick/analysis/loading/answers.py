"""The stored answers of a finished annotation, question by question, to what the analysis keeps of them.

One part file is in memory at a time, and of each question what its collectors keep: a paper's study has 16.7 million
answers.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import NamedTuple

import pyarrow as pa

from slick.analysis.answers import DecodingMode, QuestionAnswers, match_answers
from slick.analysis.audit_sheet import GradingSheet, apply_grades, apply_partial_grades
from slick.analysis.error_audit import AuditCollector, AuditPlan, ErrorAudit
from slick.analysis.error_kinds import ErrorKindCollector, ErrorKinds
from slick.datasets import read_questions
from slick.storage import Folder
from slick.study import Manifest, read_manifest
from slick.study_files import lookup_by_question, read_answer_part, read_knowledge

ROWS_PER_BATCH = 64
STORED_ANSWER_COLUMNS = ["question_id", "greedy_text", "sampled_text"]


class WrongAnswerAnalyses(NamedTuple):
    """What the stored answers say of how the model errs; None where no answers were stored."""

    audit: ErrorAudit | None = None
    kinds: ErrorKinds | None = None


class GradingSheets(NamedTuple):
    """Sheets of the error audit that a person has worked on."""

    graded: GradingSheet | None = None
    """The one whose shares are to be shown."""
    in_progress: GradingSheet | None = None
    """The one that lies in the report."""


def load_wrong_answers(study: Folder, plan: AuditPlan, sheets: GradingSheets, idk_phrase: str) -> WrongAnswerAnalyses:
    """Go once through all stored answers.

    Args:
        study: its folder.
        plan: which answers are drawn for the error audit.
        sheets: what was graded of an earlier one.
        idk_phrase: the study's own way to refuse.

    Returns:
        Both None where the annotation stored no texts, or the questions are not there.

    Raises:
        StudyError: a part file is broken, or the graded sheet is of another study.
        DataError: the graded sheet is not graded to the end, or otherwise than it should be.
    """
    manifest = read_manifest(study.child("annotate"))
    texts = study.child("annotate", "generations").names(".parquet")
    if manifest is None or not texts or read_manifest(study.child("questions")) is None:
        return WrongAnswerAnalyses()
    draw = AuditCollector(plan)
    tally = ErrorKindCollector("greedy" if manifest.settings.get("mode") == "labels" else "sampled", [idk_phrase])
    for one in iter_question_answers(study):
        draw.add(one)
        tally.add(one)
    audit = draw.result(_temperatures(manifest))
    if sheets.graded is not None:
        audit = apply_grades(audit, sheets.graded)
    elif sheets.in_progress is not None:
        audit = apply_partial_grades(audit, sheets.in_progress)
    return WrongAnswerAnalyses(audit, tally.result())


def iter_question_answers(study: Folder) -> Iterator[QuestionAnswers]:
    """Every annotated question with its stored answers, in the order of the part files."""
    known = read_knowledge(study, ["question_id", "relation", "category"])
    columns = (known[name].to_pylist() for name in ("relation", "category"))
    labels = lookup_by_question(known, zip(*columns, strict=True), f"{study}/annotate/knowledge.parquet")
    questions = read_questions(study, ["question_id", "question", "answers"])
    place = lookup_by_question(questions, range(questions.num_rows), f"{study}/questions")
    folder = study.child("annotate", "generations")
    for name in folder.names(".parquet"):
        part = read_answer_part(folder, name, STORED_ANSWER_COLUMNS)
        places = pa.array([place[question_id] for question_id in part["question_id"].to_pylist()], pa.int64())
        asked = questions.take(places)
        # Few rows at a time: as Python objects, texts take many times their room.
        few = (
            zip(part.slice(i, ROWS_PER_BATCH).to_pylist(), asked.slice(i, ROWS_PER_BATCH).to_pylist(), strict=True)
            for i in range(0, part.num_rows, ROWS_PER_BATCH)
        )
        for row, question in chain.from_iterable(few):
            relation, category = labels[row["question_id"]]
            yield match_answers(
                question_id=row["question_id"],
                relation=relation,
                category=category,
                question=question["question"],
                gold=question["answers"],
                greedy=row["greedy_text"],
                sampled=row["sampled_text"],
            )


def _temperatures(manifest: Manifest) -> Mapping[DecodingMode, float]:
    return {"greedy": 0.0, "sampled": float(manifest.settings.get("sampling", {}).get("temperature", 0.5))}
