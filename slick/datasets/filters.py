"""Which questions of a set are used: the paper's filter, a stricter one, or none. Pure.

`paper` is what Gekhman et al. 2024 (arXiv:2405.05904, appendix A) did, as their counts show it: (1) questions with one
answer only; (2) no train question whose subject is the subject of a test question of any relation, dropped relations
and questions with several answers included, compared as written. Objects stay, although their text says otherwise:
this alone gives every total of their tables 3 to 5. `strict` goes on from there until train, dev and test share no
subject, no object and no reversed pair; much is lost where a relation has few objects, such as countries.
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
    """What one rule took away."""

    rule: str
    dropped: Counter[tuple[str, str]]
    """Questions by (relation, split)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterResult:
    """The questions that are left, and what each rule took, in the order of the rules."""

    kept: list[Question]
    steps: list[FilterStep]


def apply_filter(questions: Sequence[Question], name: FilterName) -> FilterResult:
    """Filter a whole question set.

    Every filter leaves out dropped relations, and the train questions of relations that are only tested.

    Args:
        questions: all of them, dropped relations included, since the paper's rule looks at their subjects.
        name: `paper`, `strict` or `none`.

    Returns:
        What is left, in the order given.
    """
    test_subjects = {subject_key(q) for q in questions if q.split == "test"}
    kept, steps = list(questions), list[FilterStep]()

    def drop(rule: str, unwanted: Callable[[Question], bool]) -> None:
        nonlocal kept
        gone = [unwanted(q) for q in kept]
        steps.append(
            FilterStep(
                rule=rule, dropped=Counter((q.relation, q.split) for q, out in zip(kept, gone, strict=True) if out)
            )
        )
        kept = [q for q, out in zip(kept, gone, strict=True) if not out]

    drop("not used", lambda q: q.domain == "dropped" or (q.domain == "ood" and q.split == "train"))
    if name == "none":
        return FilterResult(kept=kept, steps=steps)
    drop("several answers", lambda q: len(q.answers) > 1)
    drop("subject in test", lambda q: q.split == "train" and subject_key(q) in test_subjects)
    if name == "strict":
        drop("repeated row", _is_duplicate())
        folded = {_normalize(subject) for subject in test_subjects}
        for split, other in (("dev", "test"), ("train", "test"), ("train", "dev")):
            facts = _FactIndex((q for q in kept if q.split == other), folded if other == "test" else set())
            drop(f"{split}: subject in {other}", _in_split(split, facts.has_subject))
            drop(f"{split}: object in {other}", _in_split(split, facts.has_object))
            drop(f"{split}: reversed in {other}", _in_split(split, facts.has_reverse))
    return FilterResult(kept=kept, steps=steps)


def subject_key(question: Question) -> str:
    """The text that is compared for overlaps: the subject in NFC, or the whole question if no subject is known."""
    return nfc(question.question if question.subject is None else question.subject)


class _FactIndex:
    """Subjects, objects and (subject, object) pairs of some questions, letter case, spacing and Unicode form aside."""

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

    def repeat(question: Question) -> bool:
        key = (question.relation, question.split, nfc(question.question), tuple(map(nfc, question.answers)))
        found = key in seen
        seen.add(key)
        return found

    return repeat


def _normalize(text: str) -> str:
    return " ".join(nfc(text).casefold().split())
