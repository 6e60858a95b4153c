"""Filters of question sets: the paper's, a stricter one, or none. Pure.

`paper` is the filter of Gekhman et al. 2024 (arXiv:2405.05904, appendix A), as reconstructed from their counts: (1) it
keeps only questions with one answer; (2) it drops train questions whose subject is also the subject of a test question
of any relation, including dropped relations and questions with several answers. Subjects are compared as written.
Overlaps of objects stay, although the paper's text says otherwise: only this reproduces every total of its tables 3 to
5. `strict` also removes every subject, object and reversed pair that train, dev and test share. It drops many questions
of relations with few objects, such as countries.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from slick.matching import nfc
from slick.types import Question

FilterName = Literal["paper", "strict", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterStep:
    """The questions that one rule dropped."""

    rule: str
    dropped: Counter[tuple[str, str]]
    """Number of questions by (relation, split)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """The questions that are kept, and those that each rule dropped, in the order of the rules."""

    kept: list[Question]
    steps: list[FilterStep]


def apply_filter(questions: Sequence[Question], name: FilterName) -> FilterResult:
    """Filter a whole question set.

    Every filter drops the dropped relations, and the train questions of out-of-distribution relations.

    Args:
        questions: all, including dropped relations, because the paper's rule compares their subjects.
        name: `paper`, `strict` or `none`.

    Returns:
        The questions that are kept, in the order of `questions`.
    """
    test_subjects = {subject_key(q) for q in questions if q.split == "test"}
    kept, steps = list(questions), list[FilterStep]()

    def drop(rule: str, condition: Callable[[Question], bool]) -> None:
        nonlocal kept
        matches = [condition(q) for q in kept]
        steps.append(
            FilterStep(
                rule=rule,
                dropped=Counter((q.relation, q.split) for q, match in zip(kept, matches, strict=True) if match),
            )
        )
        kept = [q for q, match in zip(kept, matches, strict=True) if not match]

    drop("not used", lambda q: q.domain == "dropped" or (q.domain == "ood" and q.split == "train"))
    if name == "none":
        return FilterResult(kept=kept, steps=steps)
    drop("several answers", lambda q: len(q.answers) > 1)
    drop("subject in test", lambda q: q.split == "train" and subject_key(q) in test_subjects)
    if name == "strict":
        drop("repeated row", _is_duplicate())
        normalized = {_normalize(subject) for subject in test_subjects}
        for split, other in (("dev", "test"), ("train", "test"), ("train", "dev")):
            facts = _FactIndex((q for q in kept if q.split == other), normalized if other == "test" else set())
            drop(f"{split}: subject in {other}", _in_split(split, facts.has_subject))
            drop(f"{split}: object in {other}", _in_split(split, facts.has_object))
            drop(f"{split}: reversed in {other}", _in_split(split, facts.has_reverse))
    return FilterResult(kept=kept, steps=steps)


def subject_key(question: Question) -> str:
    """The text that is compared for overlaps, in NFC: the subject, or the whole question if no subject is known."""
    return nfc(question.question if question.subject is None else question.subject)


class _FactIndex:
    """Subjects, objects and (subject, object) pairs of questions; case, white space and Unicode form are ignored."""

    def __init__(self, questions: Iterable[Question], more_subjects: set[str]) -> None:
        self._subjects = set(more_subjects)
        self._objects: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()
        for question in questions:
            subject = _normalize(subject_key(question))
            self._subjects.add(subject)
            for answer in question.answers:
                self._objects.add(_normalize(answer))
                self._pairs.add((subject, _normalize(answer)))

    def has_subject(self, question: Question) -> bool:
        return _normalize(subject_key(question)) in self._subjects

    def has_object(self, question: Question) -> bool:
        return any(_normalize(answer) in self._objects for answer in question.answers)

    def has_reverse(self, question: Question) -> bool:
        subject = _normalize(subject_key(question))
        return any((_normalize(answer), subject) in self._pairs for answer in question.answers)


def _in_split(split: str, test: Callable[[Question], bool]) -> Callable[[Question], bool]:
    return lambda question: question.split == split and test(question)


def _is_duplicate() -> Callable[[Question], bool]:
    seen: set[tuple[str, str, str, tuple[str, ...]]] = set()

    def is_repeated(question: Question) -> bool:
        key = (question.relation, question.split, nfc(question.question), tuple(map(nfc, question.answers)))
        is_seen = key in seen
        seen.add(key)
        return is_seen

    return is_repeated


def _normalize(text: str) -> str:
    return " ".join(nfc(text).casefold().split())
