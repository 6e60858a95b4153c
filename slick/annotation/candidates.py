"""Which answers to a question are ranked: its distinct stored answers, its gold answer, and distractors. No Ray.

Distractors are gold answers of other questions of the relation. They are what makes a rank interpretable: a model that
knows nothing about a question ranks its gold answer above a distractor half of the time, if the two are exchangeable.
Stored wrong answers are not exchangeable with the gold answer, because the model chose them.

Three rules make the gold answer and a distractor exchangeable for an absent fact, so that over all pairs, the gold
answer has the higher score half of the time:

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
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slick.annotation.answers import iter_answers
from slick.annotation.config import AnnotateConfig
from slick.annotation.prompting import PROMPT_GROUP, SUFFIX
from slick.annotation.store import sample_by_hash
from slick.datasets import read_questions
from slick.matching import JUDGE, make_matcher, normalize
from slick.rng import row_key
from slick.storage import Folder
from slick.study_files import ANSWER_START_FIELD, CONTEXT_FIELD, QUESTION_SCHEMA, read_knowledge
from slick.types import Category

KNOWN_SHARE = 0.25
"""Questions of each other category, for each Unknown one."""

CANDIDATE_KEY = "key"
"""Column with a unique name of each question and answer."""

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
    num_distractors: int = 0
    """Number of questions whose gold answer it is among the distractors of this question. A frequent gold answer counts
    as often as it is one: otherwise pairs would not be symmetric."""
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
        ring = sorted(group, key=lambda question: int(row_key(0, "distractors", question.question_id)))
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
    num_distractors = Counter(normalize(other.gold) for other in distractors)
    for other in distractors:
        text = normalize(other.gold)
        if text not in chosen or not chosen[text].is_right:
            chosen[text] = Candidate(
                answer=other.gold,
                is_right=False,
                num_distractors=num_distractors[text],
                count=answers.wrong.get(text, 0),
            )
    return list(chosen.values())


def questions_to_rank(study: Folder, limit: int) -> pa.Table:
    """Labelled questions to rank the answers of, with their category.

    Args:
        study: with finished labels.
        limit: at most this many Unknown ones of each relation, and `KNOWN_SHARE` as many of each other category,
            chosen by a hash of their ids.
    """
    knowledge = read_knowledge(study, ["question_id", "category"])
    labels = dict(zip(knowledge["question_id"].to_pylist(), knowledge["category"].to_pylist(), strict=True))
    questions = read_questions(study, [*QUESTION_SCHEMA.names, CONTEXT_FIELD.name, ANSWER_START_FIELD.name])
    questions = questions.filter(pc.is_in(questions["question_id"], value_set=pa.array(labels, pa.string())))
    questions = questions.sort_by([("relation", "ascending"), ("question_id", "ascending")])
    categories = [labels[question_id] for question_id in questions["question_id"].to_pylist()]
    questions = questions.append_column("category", pa.array(categories, pa.string()))
    is_unknown = pc.equal(questions["category"], str(Category.UNKNOWN))
    parts = [
        sample_by_hash(questions.filter(mask), num, ("relation", "category"))
        for mask, num in ((is_unknown, limit), (pc.invert(is_unknown), max(1, round(KNOWN_SHARE * limit))))
    ]
    return pa.concat_tables(parts).sort_by([("relation", "ascending"), ("question_id", "ascending")])


def build_candidates(study: Folder, questions: pa.Table, config: AnnotateConfig, matcher: str) -> pa.Table:
    """The candidates of all questions, with the columns of their prompts, in the order of the questions.

    Args:
        study: with stored answers.
        questions: with category and prompts.
        config: number of stored answers to rank.
        matcher: of the labels; gold answers of other questions are compared by `exact` if that is `judge`.
    """
    rows = questions.to_pylist()
    answers = {
        row["question_id"]: count_answers(row) for row in iter_answers(study, questions["question_id"].combine_chunks())
    }
    is_right_by = "exact" if matcher == JUDGE else matcher
    ranked = [
        RankedQuestion(
            question_id=row["question_id"],
            relation=row["relation"],
            category=row["category"],
            gold=row["answers"][0],
            is_right=cache(make_matcher(row["answers"], is_right_by).is_hit),
        )
        for row in rows
    ]
    pairs = distractor_pairs(ranked, answers)
    return _candidate_table(
        rows,
        [
            candidates_of(
                question,
                answers.get(question.question_id, AnswerCounts()),
                pairs[question.question_id],
                config.hidden_answers,
            )
            for question in ranked
        ],
    )


def _candidate_table(rows: Sequence[Mapping[str, Any]], candidates: Sequence[Sequence[Candidate]]) -> pa.Table:
    copied = ("question_id", "relation", "domain", "split", "question", PROMPT_GROUP, SUFFIX)
    return pa.Table.from_pylist(
        [
            {name: row[name] for name in copied}
            | {
                CANDIDATE_KEY: f"{row['question_id']}\n{number}",
                "answer": candidate.answer,
                "is_right": candidate.is_right,
                "is_gold": candidate.is_gold,
                "num_distractors": candidate.num_distractors,
                "count": candidate.count,
            }
            for row, of_question in zip(rows, candidates, strict=True)
            for number, candidate in enumerate(of_question)
        ]
    )
