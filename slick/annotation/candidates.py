"""Which answers to a question are ranked: its distinct stored answers, its gold answer, and distractors. Pure.

Distractors are gold answers of other questions of the relation. They are what makes a rank interpretable: a model that
knows nothing about a question ranks its gold answer above a distractor half of the time, if the two are exchangeable.
Stored wrong answers are not exchangeable with the gold answer, because the model chose them.

Three rules make gold answer and distractor exchangeable for an absent fact:

- Both belong to the same relation, and to Unknown questions if the question is Unknown. So both are answers of the same
  kind, and equally frequent on average.
- Pairs are symmetric: if question j gives a distractor to question i, then i gives one to j. Which pairs are formed
  depends on the question_ids only.
- A pair of Unknown questions i, j counts only if no stored answer to i or to j matches one of the two gold answers.
  Unknown questions are selected for a gold answer that was never generated. Without this rule, a distractor might be a
  frequent guess, and would outrank the gold answer because of the selection.

Answers are matched by the matcher of the labels, and with the matcher `judge` by `exact`, because a judge has not
graded the pairs.

Source: Z. Gekhman et al. 2025, "Inside-Out: Hidden Factual Knowledge in LLMs", arXiv:2503.15299, for the ranking of
answers and for adding the gold answer; distractors and the rules above are of this project.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slick.matching import normalize
from slick.rng import row_key
from slick.types import Category

DISTRACTOR_NEIGHBORS = 4
"""A question gets the gold answers of this many neighbors on either side, in an order by a hash of the question_ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedQuestion:
    """A question whose answers are ranked."""

    question_id: str
    relation: str
    category: str
    gold: str
    """The first gold answer."""
    is_right: Callable[[str], bool]
    """Whether a text is one of its gold answers, by a matcher that needs no judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCounts:
    """The stored answers to one question, by normalized text."""

    right: Mapping[str, int] = field(default_factory=dict)
    wrong: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    """Normalized text -> the most frequent of its spellings; the first in alphabetical order of several."""
    num_undecided: int = 0
    """Answers without an outcome of the judge, which are neither right nor wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An answer to rank."""

    answer: str
    is_right: bool
    is_gold: bool = False
    """Whether it is the first gold answer, which is always ranked."""
    is_distractor: bool = False
    count: int = 0
    """Number of stored answers that are this text; 0 if it was never generated."""


def count_answers(row: Mapping[str, Any]) -> AnswerCounts:
    """The answers to one question.

    Args:
        row: greedy_text, greedy_hit, sampled_text and sampled_hit of `slick.annotation.answers.iter_answers`.
    """
    spellings: dict[str, Counter[str]] = {}
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    num_undecided = 0
    for text, hit in _flat_answers(row):
        normalized = normalize(text)
        spellings.setdefault(normalized, Counter())[text] += 1
        if hit is None:
            num_undecided += 1
        else:
            (right if hit else wrong)[normalized] += 1
    texts = {
        normalized: min(counts, key=lambda text: (-counts[text], text)) for normalized, counts in spellings.items()
    }
    return AnswerCounts(right=right, wrong=wrong, texts=texts, num_undecided=num_undecided)


def _flat_answers(row: Mapping[str, Any]) -> Iterator[tuple[str, bool | None]]:
    yield from zip(row["greedy_text"], row["greedy_hit"], strict=True)
    for texts, hits in zip(row["sampled_text"] or [], row["sampled_hit"] or [], strict=True):
        yield from zip(texts or [], hits or [], strict=True)


def distractor_pairs(
    questions: Sequence[RankedQuestion], answers: Mapping[str, AnswerCounts]
) -> dict[str, list[RankedQuestion]]:
    """question_id -> the questions whose gold answers are its distractors; see the rules in the module's docstring."""
    groups: dict[tuple[str, bool], list[RankedQuestion]] = {}
    for question in questions:
        groups.setdefault((question.relation, question.category == Category.UNKNOWN), []).append(question)
    pairs: dict[str, list[RankedQuestion]] = {question.question_id: [] for question in questions}
    for (_, is_unknown), group in groups.items():
        ring = sorted(group, key=lambda question: (int(row_key(0, "distractors", question.question_id))))
        for first, second in _neighbors(len(ring)):
            one, other = ring[first], ring[second]
            if _is_pair(one, other, answers, is_unknown=is_unknown):
                pairs[one.question_id].append(other)
                pairs[other.question_id].append(one)
    return pairs


def _neighbors(size: int) -> Iterator[tuple[int, int]]:
    """Pairs of positions on a ring that are at most `DISTRACTOR_NEIGHBORS` apart, each once."""
    pairs = {
        (min(start, end), max(start, end))
        for start in range(size)
        for step in range(1, DISTRACTOR_NEIGHBORS + 1)
        if (end := (start + step) % size) != start
    }
    yield from sorted(pairs)


def _is_pair(
    one: RankedQuestion, other: RankedQuestion, answers: Mapping[str, AnswerCounts], *, is_unknown: bool
) -> bool:
    gold = {normalize(one.gold), normalize(other.gold)}
    if len(gold) < 2 or "" in gold or one.is_right(other.gold) or other.is_right(one.gold):
        return False
    if not is_unknown:
        return True
    generated = [answers[question.question_id].texts for question in (one, other) if question.question_id in answers]
    if any(normalized in texts for texts in generated for normalized in gold):
        return False
    return not any(one.is_right(text) or other.is_right(text) for texts in generated for text in texts.values())


def candidates_of(
    question: RankedQuestion, answers: AnswerCounts, distractors: Iterable[RankedQuestion], max_answers: int
) -> list[Candidate]:
    """The answers to rank: gold answer, right and wrong stored answers, distractors, each normalized text once.

    Args:
        question: the question.
        answers: its stored answers. Empty ones are no candidates.
        distractors: questions whose gold answers are distractors.
        max_answers: at most this many right and this many wrong stored answers, the most frequent ones; ties are broken
            by alphabetical order.
    """
    gold = normalize(question.gold)
    chosen = {
        gold: Candidate(
            answer=question.gold, is_right=True, is_gold=True, count=answers.right.get(gold, answers.wrong.get(gold, 0))
        )
    }
    for counts, is_right in ((answers.right, True), (answers.wrong, False)):
        kept = [text for text in sorted(counts, key=lambda text: (-counts[text], text)) if text and text not in chosen]
        chosen |= {
            text: Candidate(answer=answers.texts[text], is_right=is_right, count=counts[text])
            for text in kept[:max_answers]
        }
    for other in distractors:
        text = normalize(other.gold)
        count = answers.wrong.get(text, 0)
        if text not in chosen or not chosen[text].is_right:
            chosen[text] = Candidate(answer=other.gold, is_right=False, is_distractor=True, count=count)
    return list(chosen.values())
