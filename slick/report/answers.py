"""All stored answers to one question, each distinct text judged once. Pure.

Nearly all of the 170 answers to a question are copies of a few texts, so what is asked of a text is asked once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol

import pyarrow as pa

from slick.datasets import read_questions
from slick.matching import make_matcher, token_f1_scorer
from slick.report.data import StudyData
from slick.storage import Folder
from slick.study import Manifest, read_manifest
from slick.study_files import lookup_by_question, read_answer_part, read_knowledge

DecodingMode = Literal["greedy", "sampled"]
DECODING_MODES: tuple[DecodingMode, ...] = ("greedy", "sampled")
"""How an answer was made: at temperature 0, or drawn at the study's sampling temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchResult:
    """What one text is worth, whatever matcher the study labels with."""

    exact: bool
    """Exact match after SQuAD's normalisation."""
    f1: float
    """F1 of its words with those of the nearest gold answer, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAnswers:
    """One annotated question with every answer that was stored."""

    question_id: str
    relation: str
    category: str
    question: str
    gold: tuple[str, ...]
    texts: Mapping[DecodingMode, tuple[str | None, ...]]
    """Greedy: one an exemplar set. Sampled: `num_samples` of the first set, then of the second, and so on. None where
    a sample was not made, or not kept whole."""
    num_samples: int
    """Samples of one exemplar set."""
    match_results: Mapping[str, MatchResult]
    """Every text among the answers."""

    def wrong_answers(self, way: DecodingMode) -> Counter[str]:
        """The texts that miss, as they were answered, with how often."""
        return Counter(text for text in self.texts[way] if text is not None and not self.match_results[text].exact)


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
    """Judge every distinct text of a question.

    Args:
        question_id: as in the knowledge table, like relation and category.
        relation: of the question.
        category: of the question.
        question: its text.
        gold: its gold answers.
        greedy: one text an exemplar set.
        sampled: texts of each exemplar set; None, or a text that is None, where none was needed.
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
    """Computes something from every stored answer of a study."""

    def add(self, one: QuestionAnswers) -> None:
        """Take one question into account."""
        ...

    def result(self) -> Any:
        """What was computed, after the last question."""
        ...


MakeCollector = Callable[[StudyData, Manifest], AnswerCollector]
_COLLECTORS: list[MakeCollector] = []


def answer_collector(make: MakeCollector) -> MakeCollector:
    """A decorator for functions that make a collector: all collectors share one pass over the stored answers.

    The function is given the study's data and the manifest of its annotation.
    """
    _COLLECTORS.append(make)
    return make


def collected(data: StudyData, make: MakeCollector) -> Any:
    """The result of one collector; None where the annotation stored no texts, or the questions are missing.

    The first call reads the answers for all collectors, one part file at a time: a study of the paper's size has 16.7
    million answers.

    Raises:
        StudyError: a part file is broken.
    """
    if make in data.parts:
        return data.parts[make]
    return data.part(_collect_all, {}, data).get(make)


def _collect_all(study: Folder, data: StudyData) -> dict[MakeCollector, Any]:
    manifest = read_manifest(study.child("annotate"))
    texts = study.child("annotate", "generations").names(".parquet")
    if manifest is None or not texts or read_manifest(study.child("questions")) is None:
        return {}
    collectors = {make: make(data, manifest) for make in _COLLECTORS}
    for one in iter_question_answers(study):
        for collector in collectors.values():
            collector.add(one)
    return {make: collector.result() for make, collector in collectors.items()}


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
