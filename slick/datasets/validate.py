"""Raw rows to questions: each is checked, named by its content, and kept or set aside with a reason. Pure."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from slick import limits
from slick.datasets.columns import (
    SPLIT_NAMES,
    SPLIT_ORIGINS,
    RowError,
    SplitOrigin,
    explicit_split,
    parse_answers,
    parse_choice,
    parse_popularity,
    parse_text,
    validate_text,
)
from slick.datasets.relations import Relation, extract_subject
from slick.datasets.rows import RawRow
from slick.errors import DataError
from slick.matching import nfc
from slick.rng import row_key
from slick.types import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRules:
    """What a row is checked against."""

    relations: Mapping[str, Relation]
    unknown_relations: Literal["error", "id"] = "error"
    """`id` takes rows of a relation that is not listed, as in distribution and without a template."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Of the source itself, for questions that do not follow the listed template."""
    keep_duplicates: bool = False
    """Keep a row that repeats another one of its split, with an id of its own."""
    dev_share: float = 0.1
    """Of rows without a split, the share that goes to dev, in [0, 1]."""
    test_share: float = 0.1
    """Of rows without a split, the share that goes to test, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row that is no question, and why."""

    raw: RawRow
    kind: str
    """A few words, to count by."""
    reason: str
    """What was found, what was wanted, how to mend it."""

    def record(self) -> dict[str, object]:
        """As one line of a rejects file."""
        return {"file": self.raw.file, "row": self.raw.row, "reason": self.reason, "content": self.raw.content}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationResult:
    """All rows of a source, sorted into questions and bad rows."""

    questions: list[Question]
    """With domain `dropped` among them: the filter needs those rows."""
    rejected: list[RejectedRow]
    """The first ones, as many as `slick.limits` keeps."""
    reasons: Counter[str]
    """All bad rows, by kind."""
    repeats: int
    """Rows kept although they repeat another row of their split."""
    splits: Mapping[SplitOrigin, Counter[str]]
    """Questions by where their split comes from, and by split."""


class _RejectedRows:
    """The first bad rows, within limits of number and length, and counts of all."""

    def __init__(self) -> None:
        self.kept: list[RejectedRow] = []
        self.reasons: Counter[str] = Counter()
        self._chars = limits.MAX_REJECTED_CHARS

    def add(self, raw: RawRow, problem: RowError) -> None:
        self.reasons[problem.kind] += 1
        if len(self.kept) >= limits.MAX_REJECTED_ROWS or self._chars < 0:
            return
        text = json.dumps(raw.content, default=str)
        if len(text) > limits.MAX_REJECTED_ROW_CHARS:
            cut = f"{text[: limits.MAX_REJECTED_ROW_CHARS]}... ({len(text):,} characters in all)"
            raw = replace(raw, content=cut)
        self._chars -= min(len(text), limits.MAX_REJECTED_ROW_CHARS)
        self.kept.append(RejectedRow(raw=raw, kind=problem.kind, reason=str(problem)))


def validate_rows(rows: Iterable[RawRow], rules: ValidationRules) -> ValidationResult:
    """Check every row; bad ones are counted and the first kept, never dropped unseen.

    A question's id is its relation and a hash of split, question, answers and, for the second and later row with the
    same content, its number among them: the same in any order and any file.

    Args:
        rows: of one source.
        rules: what they are checked against.

    Raises:
        DataError: there is no row at all, or two different questions have the same id (chance 2**-48 a pair).
    """
    questions: list[Question] = []
    rejected = _RejectedRows()
    first: dict[str, str] = {}
    copies: Counter[str] = Counter()
    owner: dict[str, str] = {}
    splits: dict[SplitOrigin, Counter[str]] = {origin: Counter() for origin in SPLIT_ORIGINS}
    for raw in rows:
        try:
            question, origin = _validate_row(raw, rules)
            key = _content_key(question)
            copies[key] += 1
            if copies[key] > 1 and not rules.keep_duplicates:
                raise RowError("duplicate row", f"duplicate row: the same as {first[key]}; remove one of the two")
        except RowError as problem:
            rejected.add(raw, problem)
            continue
        first.setdefault(key, raw.where)
        question = _with_id(question, key, copies[key])
        if question.question_id in owner:
            raise DataError(
                f"{raw.where}: its id {question.question_id} is also that of {owner[question.question_id]}, "
                "by chance of hashing; leave one of the two rows out"
            )
        owner[question.question_id] = raw.where
        questions.append(question)
        splits[origin][question.split] += 1
    if not questions and not rejected.kept:
        raise DataError("the question source holds no row; name a question set with rows in it")
    return ValidationResult(
        questions=questions,
        rejected=rejected.kept,
        reasons=rejected.reasons,
        repeats=sum(copies.values()) - len(copies) if rules.keep_duplicates else 0,
        splits=splits,
    )


def first_row_error(checked: ValidationResult) -> DataError:
    """The error that stops a run: the first bad row in full, the rest as counts."""
    rejected, num = checked.rejected, checked.reasons.total()
    rest = ", ".join(f"{num} x {kind}" for kind, num in checked.reasons.most_common(6))
    more = f" In all {num:,} rows are bad: {rest}." if num > 1 else ""
    return DataError(
        f"{rejected[0].raw.where}: {rejected[0].reason}.{more} Mend the file, or set bad rows aside with --rejects "
        f"FILE."
    )


def question_id(relation: str, split: str, question: str, answers: Sequence[str], copy: int = 1) -> str:
    """The stable id of a question; the same in every Unicode form of its texts.

    Args:
        relation: becomes readable part of the id.
        split: train, dev or test.
        question: its text.
        answers: all gold answers, in order.
        copy: 1, or the number of this row among rows with the same content.

    >>> question_id("P36", "test", "What is the capital of France?", ["Paris"])
    'P36-d8428db61233'
    """
    content = [split, question, list(answers), *([copy] if copy > 1 else [])]
    digest = hashlib.blake2b(nfc(json.dumps(content, ensure_ascii=False)).encode(), digest_size=6)
    return f"{relation}-{digest.hexdigest()}"


def _content_key(question: Question) -> str:
    content = [question.relation, question.split, question.question, question.answers]
    return nfc(json.dumps(content, ensure_ascii=False))


def _with_id(question: Question, key: str, copy: int) -> Question:
    name = question_id(question.relation, question.split, question.question, question.answers, copy)
    return replace(question, question_id=name)


def _validate_row(raw: RawRow, rules: ValidationRules) -> tuple[Question, SplitOrigin]:
    """The question without its id, and where its split comes from."""
    if raw.problem is not None:
        raise RowError("not a row", f"{raw.problem}; mend or remove it")
    row: dict[str, Any] = raw.content
    name = nfc(parse_text(row, "relation"))
    question = parse_text(row, "question")
    answers = parse_answers(row)
    relation = rules.relations.get(name)
    if relation is None:
        if rules.unknown_relations == "error":
            raise RowError(
                "unknown relation",
                f"unknown relation {name!r:.80}, wanted one of {_list_relations(rules.relations)}; add it to a file "
                f"for "
                "--relations, or take all with --unknown-relations id",
            )
        relation = Relation(relation=name, template=None, domain="id")
    domain = parse_choice(row, "domain", {"id": "id", "ood": "ood"}) or relation.domain
    column = parse_choice(row, "split", SPLIT_NAMES)
    try:
        stated = explicit_split(column, raw.named_splits)
    except ValueError as error:
        raise RowError("split contradicts file name" if column else "ambiguous file name", str(error)) from error
    split, origin = stated or (_assigned_split(name, question, answers, domain, rules), "share")
    subject = _subject(row, relation, rules.templates.get(name), question)
    try:
        popularity = parse_popularity(row)
    except ValueError as error:
        raise RowError("no popularity", str(error)) from error
    return Question(
        question_id="",
        relation=name,
        domain=domain,
        split=split,
        subject=subject,
        question=question,
        answers=answers,
        popularity=popularity,
    ), origin


def _subject(row: Mapping[str, Any], relation: Relation, template: str | None, question: str) -> str | None:
    given = row.get("subject")
    if given not in (None, ""):
        return validate_text(given, "subject")
    found = relation.subject(question)
    return extract_subject(template, question) if found is None and template else found


def _assigned_split(relation: str, question: str, answers: Sequence[str], domain: str, rules: ValidationRules) -> str:
    """By a hash of the content; a relation that is only tested gets no train rows."""
    draw = int(row_key(0, "split", *map(nfc, (relation, question, *answers)))) / 2.0**64
    if draw < rules.dev_share:
        return "dev"
    return "test" if draw < rules.dev_share + rules.test_share or domain == "ood" else "train"


def _list_relations(relations: Mapping[str, Relation]) -> str:
    names: Iterator[str] = iter(relations)
    shown = [name for name, _ in zip(names, range(30), strict=False)]
    return ", ".join(shown) + (f" and {len(relations) - 30} more" if len(relations) > 30 else "")
