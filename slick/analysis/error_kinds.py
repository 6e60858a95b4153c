"""What a model says to questions it does not know: always the same, one of two, anything, or nothing. Pure.

After the error types of Orgad et al. 2024 (arXiv:2410.02707), who ask for half of the answers, drawn at temperature 1.
Here answers are drawn at a lower temperature, so that they agree more, and the wrong ones alone are sorted: the limit
is four fifths, which leaves no room for a rival with more than a fifth. `sensitivity` shows what other limits give.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.analysis.answers import DecodingMode, QuestionAnswers
from slick.matching import normalize
from slick.rng import row_key
from slick.types import ALL_CATEGORIES, Category

DOMINANCE_THRESHOLD = 0.8
"""Share of the wrong answers that one text, or two together, must have; a rival has at least what this leaves."""
MAJORITY_THRESHOLD = 0.5
"""From this share of refusals, or of empty answers, on a question counts as refused, or as empty: what most answers
do is what the model does."""
MIN_WRONG_ANSWERS = 5
"""Wrong answers that a question must have: with four, a single one would be a rival."""
SENSITIVITY_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Limits to compare, beside `ALWAYS`."""

SINGLE_ANSWER, TWO_ANSWERS, SCATTERED, REFUSED, EMPTY, TOO_FEW = ERROR_KINDS = (
    "one answer",
    "two rivals",
    "scattered",
    "refused",
    "empty",
    "too few",
)
CLASSIFIED_CATEGORIES = (Category.WEAKLY_KNOWN, Category.UNKNOWN)
"""The categories without a greedy hit."""
MAX_EXAMPLE_ANSWERS = 4
"""Answers shown of an example."""

REFUSAL_PHRASES = (
    *("I don't know", "I do not know", "I don't have", "I do not have", "I'm not sure", "I am not sure", "not sure"),
    *("I am unsure", "I'm unsure", "no idea", "cannot answer", "can't answer", "unable to answer", "not known"),
    *("cannot be determined", "no information", "not enough information", "it is unclear", "not available"),
)
"""An answer with one of these in it, as whole words, refuses."""
REFUSAL_ANSWERS = ("unknown", "unsure", "unclear", "uncertain", "none", "nobody knows", "n/a", "no answer")
"""An answer that is one of these, and no more, refuses: as a part of an answer they may be a name."""


class WrongAnswerCounts(NamedTuple):
    """The wrong answers to one question."""

    first: int
    """How many are the most frequent text."""
    second: int
    total: int
    refused: int
    empty: int
    distinct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorExample:
    """A question of one kind."""

    kind: str
    category: str
    relation: str
    question: str
    gold: tuple[str, ...]
    answers: tuple[tuple[str, int], ...]
    """The most frequent wrong answers, with how often."""
    total: int
    """All wrong answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorKinds:
    """Every WeaklyKnown and Unknown question by its wrong answers; Q questions."""

    decoding: DecodingMode
    """Which answers were looked at: the sampled ones, or the greedy ones where no others were kept whole."""
    question_ids: NDArray[np.str_]
    """Shape (Q,), ascending."""
    categories: NDArray[np.str_]
    """Shape (Q,)."""
    relations: NDArray[np.str_]
    """Shape (Q,)."""
    counts_Q6: NDArray[np.int32]
    """Columns as in `Tally`."""
    num_questions: Mapping[tuple[str, str], int]
    """(relation, category) to all annotated questions, Known ones too."""
    examples: tuple[ErrorExample, ...]

    def kinds(self, threshold: float = DOMINANCE_THRESHOLD) -> NDArray[np.str_]:
        """The kind of each question, shape (Q,)."""
        return classify_errors(self.counts_Q6, threshold)

    def mask(self, category: str, relation: str = ALL_CATEGORIES) -> NDArray[np.bool_]:
        """True for the questions of a category and relation, each of which may be `ALL_CATEGORIES`."""
        return np.isin(self.categories, [category] if category != ALL_CATEGORIES else CLASSIFIED_CATEGORIES) & (
            np.isin(self.relations, [relation]) | (relation == ALL_CATEGORIES)
        )


class ErrorKindCollector:
    """Goes through all questions, one at a time."""

    def __init__(
        self, decoding: DecodingMode, phrases: Iterable[str] = (), *, seed: int = 0, num_examples: int = 3
    ) -> None:
        """Prepare.

        Args:
            way: which answers to look at.
            phrases: further ones that refuse, such as the study's own.
            seed: of the examples.
            num_examples: of each kind and category.
        """
        self._way, self._seed, self._num_examples = decoding, seed, num_examples
        self._refuses = make_refusal_detector(phrases)
        self._rows: list[tuple[str, str, str, WrongAnswerCounts]] = []
        self._num: Counter[tuple[str, str]] = Counter()
        self._examples: defaultdict[tuple[str, str], list[tuple[int, str, ErrorExample]]] = defaultdict(list)

    def add(self, one: QuestionAnswers) -> None:
        """Take one question into account."""
        self._num[one.relation, one.category] += 1
        if one.category not in CLASSIFIED_CATEGORIES:
            return
        said: Counter[str] = Counter()
        spelt: dict[str, str] = {}
        for text, num in one.wrong_answers(self._way).most_common():
            said[normalize(text)] += num
            spelt.setdefault(normalize(text), text)
        tally = count_wrong_answers(said, [key for key, text in spelt.items() if self._refuses(text)])
        self._rows.append((one.question_id, one.category, one.relation, tally))
        kind = str(classify_errors(np.array([tally]))[0])
        example = ErrorExample(
            kind=kind,
            category=one.category,
            relation=one.relation,
            question=one.question,
            gold=one.gold,
            answers=tuple((spelt[key], num) for key, num in said.most_common(MAX_EXAMPLE_ANSWERS)),
            total=tally.total,
        )
        kept = self._examples[one.category, kind]
        item = (-int(row_key(self._seed, "error kinds", one.question_id)), one.question_id, example)
        (heapq.heappush if len(kept) < self._num_examples else heapq.heappushpop)(kept, item)

    def result(self) -> ErrorKinds:
        """What was found of all questions seen, whatever their order."""
        rows = sorted(self._rows, key=lambda row: row[0])
        order = [(str(category), kind) for category in CLASSIFIED_CATEGORIES for kind in ERROR_KINDS]
        return ErrorKinds(
            decoding=self._way,
            question_ids=np.array([row[0] for row in rows], dtype=str),
            categories=np.array([row[1] for row in rows], dtype=str),
            relations=np.array([row[2] for row in rows], dtype=str),
            counts_Q6=np.array([row[3] for row in rows], dtype=np.int32).reshape(-1, 6),
            num_questions=dict(self._num),
            examples=tuple(one for key in order for _, _, one in sorted(self._examples[key], reverse=True)),
        )


def classify_errors(counts_Q6: NDArray[np.int32], threshold: float = DOMINANCE_THRESHOLD) -> NDArray[np.str_]:
    """The kind of each question, shape (Q,); columns as in `Tally`.

    >>> tallies = np.array([(9, 1, 10, 0, 0, 2), (6, 3, 10, 0, 0, 3), (4, 3, 10, 0, 0, 4)])
    >>> [str(kind) for kind in classify_errors(tallies)]
    ['one answer', 'two rivals', 'scattered']
    """
    first, second, total, refused, empty, _ = counts_Q6.T
    almost = 1e-9  # four fifths of ten is 8, and a fifth of ten less than 2, in floating point
    fits = [
        total < MIN_WRONG_ANSWERS,
        empty >= MAJORITY_THRESHOLD * total,
        refused >= MAJORITY_THRESHOLD * total,
        first >= threshold * total - almost,
        (first + second >= threshold * total - almost) & (second >= (1 - threshold) * total - almost),
    ]
    return np.select(fits, [TOO_FEW, EMPTY, REFUSED, SINGLE_ANSWER, TWO_ANSWERS], SCATTERED)


def count_wrong_answers(said: Mapping[str, int], refusing: Iterable[str] = ()) -> WrongAnswerCounts:
    """Sum up the wrong answers to one question.

    Args:
        said: normalised text to how often; one that normalises to nothing is an empty answer.
        refusing: those of the texts that refuse.

    >>> count_wrong_answers({"oslo": 6, "bergen": 3, "": 1})
    WrongAnswerCounts(first=6, second=3, total=10, refused=0, empty=1, distinct=2)
    """
    named = sorted((num for text, num in said.items() if text), reverse=True)
    first, second = (*named, 0, 0)[:2]
    refused = sum(said.get(text, 0) for text in refusing if text)
    return WrongAnswerCounts(first, second, sum(said.values()), refused, said.get("", 0), len(named))


def make_refusal_detector(phrases: Iterable[str] = ()) -> Callable[[str], bool]:
    """A test whether an answer refuses, by `PHRASES`, `WHOLE` and further phrases.

    >>> refuses = make_refusal_detector(["No clue"])
    >>> [refuses(text) for text in ("I don’t know.", "Unknown", "Unknown Pleasures", "no clue", "Oslo")]
    [True, True, False, True, False]
    """
    inside = [
        f" {_normalize_apostrophes(phrase)} "
        for phrase in (*REFUSAL_PHRASES, *phrases)
        if _normalize_apostrophes(phrase)
    ]
    whole = {_normalize_apostrophes(phrase) for phrase in REFUSAL_ANSWERS}

    @cache
    def refuses(text: str) -> bool:
        plain = _normalize_apostrophes(text)
        return plain in whole or any(phrase in f" {plain} " for phrase in inside)

    return refuses


def _normalize_apostrophes(text: str) -> str:
    return normalize(text.replace("\u2019", "'"))


def threshold_sensitivity(found: ErrorKinds) -> dict[float, dict[str, int]]:
    """Limit, in place of `ALWAYS`, to kind to number of questions."""
    return {
        limit: {kind: int((found.kinds(limit) == kind).sum()) for kind in ERROR_KINDS}
        for limit in SENSITIVITY_THRESHOLDS
    }
