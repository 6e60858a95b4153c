"""The stored answers of a study, matched against the gold answers and passed once to all collectors.

Nearly all of the 170 answers to a question are copies of a few texts, so each distinct text is matched once. One part
file is in memory at a time: a study of the paper's size has 16.7 million answers.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol

import pyarrow as pa

from slick.annotation.set_aside import drop_questions, read_undecided
from slick.datasets import read_questions
from slick.matching import make_matcher, token_f1_scorer
from slick.report.data import StudyData
from slick.storage import Folder
from slick.study import Manifest, read_manifest
from slick.study_files import lookup_by_question, read_answer_part, read_knowledge

DecodingMode = Literal["greedy", "sampled"]
DECODING_MODES: tuple[DecodingMode, ...] = ("greedy", "sampled")
"""How an answer was decoded: greedily, or sampled at the study's temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchResult:
    """The match of one text with the gold answers, independent of the matcher of the labels."""

    exact: bool
    """Exact match after SQuAD's normalization."""
    f1: float
    """The highest token F1 with a gold answer, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAnswers:
    """One annotated question with all its stored answers."""

    question_id: str
    relation: str
    category: str
    question: str
    gold: tuple[str, ...]
    texts: Mapping[DecodingMode, tuple[str | None, ...]]
    """Greedy: one per exemplar set. Sampled: `num_samples` of the first set, then of the second, and so on. None for
    samples that were not generated or not stored completely."""
    num_samples: int
    """Samples per exemplar set."""
    match_results: Mapping[str, MatchResult]
    """By text, for all answers."""

    def wrong_answers(self, decoding: DecodingMode) -> Counter[str]:
        """The wrong texts with their frequencies."""
        return Counter(text for text in self.texts[decoding] if text is not None and not self.match_results[text].exact)


def match_answers(
    *,
    question_id: str,
    relation: str,
    category: str,
    question: str,
    gold: Sequence[str],
    greedy: Sequence[str | None],
    sampled: Sequence[Sequence[str | None] | None],
) -> QuestionAnswers:
    """Match every distinct text of a question with its gold answers.

    Args:
        question_id: as in the knowledge table.
        relation: as in the knowledge table.
        category: as in the knowledge table.
        question: its text.
        gold: its gold answers.
        greedy: one text per exemplar set.
        sampled: the texts of each exemplar set; None for those that were not generated.
    """
    num_samples = max((len(texts) for texts in sampled if texts), default=0)
    rows = [list(texts or [None] * num_samples) for texts in sampled]
    flat = tuple(text for texts in rows for text in texts)
    target, f1 = make_matcher(gold), token_f1_scorer(gold)
    match_results = {}
    for text in {*greedy, *flat} - {None}:
        assert text is not None
        exact = target.is_hit(text)
        match_results[text] = MatchResult(exact=exact, f1=1.0 if exact else f1(text))
    return QuestionAnswers(
        question_id=question_id,
        relation=relation,
        category=category,
        question=question,
        gold=tuple(gold),
        texts={"greedy": tuple(greedy), "sampled": flat},
        num_samples=num_samples,
        match_results=match_results,
    )


ROWS_PER_BATCH = 64
STORED_ANSWER_COLUMNS = ["question_id", "greedy_text", "sampled_text"]


class AnswerCollector(Protocol):
    """Computes a result from all stored answers of a study."""

    def add(self, answers: QuestionAnswers, /) -> None:
        """Add one question."""
        ...

    def result(self) -> Any:
        """The result, after the last question."""
        ...


MakeCollector = Callable[[StudyData, Manifest], AnswerCollector]
_COLLECTORS: list[MakeCollector] = []


def answer_collector(make: MakeCollector) -> MakeCollector:
    """A decorator that registers a collector, so that all collectors share one pass over the stored answers.

    The decorated function makes the collector from the study's data and the manifest of its annotate step.
    """
    _COLLECTORS.append(make)
    return make


def collected(data: StudyData, make: MakeCollector) -> Any:
    """The result of one collector; None if the study has no stored answers or no questions.

    The first call reads the answers for all collectors.

    Raises:
        StudyError: a part file is corrupt.
    """
    if make in data.loaded:
        return data.loaded[make]
    return data.load_cached(_collect_all, {}, data).get(make)


def _collect_all(study: Folder, data: StudyData) -> dict[MakeCollector, Any]:
    manifest = read_manifest(study.child("annotate"))
    texts = study.child("annotate", "generations").names(".parquet")
    if manifest is None or not texts or read_manifest(study.child("questions")) is None:
        return {}
    collectors = {make: make(data, manifest) for make in _COLLECTORS}
    for answers in iter_question_answers(study):
        for collector in collectors.values():
            collector.add(answers)
    return {make: collector.result() for make, collector in collectors.items()}


def iter_question_answers(study: Folder) -> Iterator[QuestionAnswers]:
    """All labelled questions with their stored answers, in the order of the part files."""
    known = read_knowledge(study, ["question_id", "relation", "category"])
    columns = (known[name].to_pylist() for name in ("relation", "category"))
    labels = lookup_by_question(known, zip(*columns, strict=True), f"{study}/annotate/knowledge.parquet")
    questions = read_questions(study, ["question_id", "question", "answers"])
    indices = lookup_by_question(questions, range(questions.num_rows), f"{study}/questions")
    folder = study.child("annotate", "generations")
    undecided = read_undecided(study.child("annotate"), "generations")
    for name in folder.names(".parquet"):
        part = drop_questions(read_answer_part(folder, name, STORED_ANSWER_COLUMNS), undecided)
        rows = pa.array([indices[question_id] for question_id in part["question_id"].to_pylist()], pa.int64())
        part_questions = questions.take(rows)
        # Converted in small batches, because Python strings take several times the memory of Arrow's.
        batches = (
            zip(*(table.slice(i, ROWS_PER_BATCH).to_pylist() for table in (part, part_questions)), strict=True)
            for i in range(0, part.num_rows, ROWS_PER_BATCH)
        )
        for row, question in chain.from_iterable(batches):
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
