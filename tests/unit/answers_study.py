"""A small annotated study with chosen answers: what the tests of wrong answers read."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from slick.annotation import AnnotateConfig
from slick.annotation.worker import Mode
from slick.report.answers import QuestionAnswers, match_answers
from slick.storage import Folder
from slick.study import begin_step, complete_step, fingerprint
from slick.study_files import GENERATION_SCHEMA, QUESTION_SCHEMA


@dataclass(frozen=True, kw_only=True)
class AnsweredQuestion:
    """A question, and what the model said."""

    question_id: str
    gold: tuple[str, ...]
    greedy: tuple[str | None, ...]
    sampled: tuple[tuple[str | None, ...], ...]
    category: str = "Unknown"
    relation: str = "P19"
    split: str = "test"

    @property
    def row(self) -> QuestionAnswers:
        """As the analysis takes it."""
        return match_answers(
            question_id=self.question_id,
            relation=self.relation,
            category=self.category,
            question=f"Where was {self.question_id} born?",
            gold=self.gold,
            greedy=self.greedy,
            sampled=self.sampled,
        )


def write_manifest(folder: Folder, step: str, settings: Mapping[str, object]) -> None:
    identity = fingerprint(step, dict(settings))
    begin_step(folder, step, identity, {})
    complete_step(folder, step, identity, settings=dict(settings), inputs={}, counts={}, started_at=time.monotonic())


def write_questions(study: Folder, asked: Sequence[AnsweredQuestion]) -> None:
    rows = [
        {
            "question_id": one.question_id,
            "relation": one.relation,
            "domain": "id",
            "split": one.split,
            "subject": one.question_id,
            "question": one.row.question,
            "answers": list(one.gold),
        }
        for one in asked
    ]
    folder = study.child("questions")
    folder.write_table("part-P19.parquet", pa.Table.from_pylist(rows, schema=QUESTION_SCHEMA))
    write_manifest(folder, "questions", {})


def write_study(root: Path, asked: Sequence[AnsweredQuestion], *, per_file: int = 1000, mode: Mode = "full") -> Folder:
    """Questions and a finished annotation, its answers in files of that many questions."""
    study = Folder(str(root))
    write_questions(study, asked)
    folder = study.child("annotate")
    known = [
        {"question_id": one.question_id, "relation": one.relation, "domain": "id", "split": one.split}
        | {"category": one.category, "p_correct_greedy": 0.0, "p_correct_sampled": 0.0}
        for one in asked
    ]
    folder.write_table("knowledge.parquet", pa.Table.from_pylist(known))
    for start in range(0, len(asked), per_file):
        rows = [
            {
                "question_id": one.question_id,
                "relation": one.relation,
                "greedy_text": list(one.greedy),
                "greedy_hit": [False for _ in one.greedy],
                "sampled_text": [list(texts) for texts in one.sampled],
                "sampled_hit": [[None if text is None else False for text in texts] for texts in one.sampled],
                "num_tokens": 1,
            }
            for one in asked[start : start + per_file]
        ]
        table = pa.Table.from_pylist(rows, schema=GENERATION_SCHEMA)
        folder.child("generations").write_table(f"part-{start:06d}.parquet", table)
    write_manifest(folder, "annotate", asdict(AnnotateConfig(mode=mode)))
    return study
