"""All stored answers to one question, each distinct text judged once. Pure.

Nearly all of the 170 answers to a question are copies of a few texts, so what is asked of a text is asked once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from slick.matching import make_matcher, token_f1_scorer

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
