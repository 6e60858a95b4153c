"""Validation of rows: each becomes a question with an id from its content, or is set aside with a reason. Pure."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from slick import limits
from slick.datasets.columns import (
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
    """The rules by which rows are validated."""

    relations: Mapping[str, Relation]
    unknown_relations: Literal["error", "id"] = "error"
    """`id`: rows of unlisted relations are in distribution and have no template."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Templates of the source itself, for questions that do not follow the listed template."""
    keep_duplicates: bool = False
    """Keep rows that repeat another row of their split, each with its own id."""
    dev_share: float = 0.1
    """Share of the rows without a split that is assigned to dev, in [0, 1]."""
    test_share: float = 0.1
    """Share of the rows without a split that is assigned to test, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row that cannot be used, and the reason."""

    raw: RawRow
    kind: str
    """A short label; rejected rows are counted by it."""
    reason: str
    """What was found, what was expected and how to fix it."""

    def record(self) -> dict[str, object]:
        """The row as one line of the file of `--rejects`."""
        return {"file": self.raw.file, "row": self.raw.row, "reason": self.reason, "content": self.raw.content}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationResult:
    """The questions of a source, and its rejected rows."""

    questions: list[Question]
    """Includes the domain `dropped`, which the filter needs."""
    rejected: list[RejectedRow]
    """The first rejected rows, up to the limit."""
    reasons: Counter[str]
    """Number of all rejected rows by kind."""
    repeats: int
    """Number of questions that repeat another row of their split."""
    splits: Mapping[SplitOrigin, Counter[str]]
    """Number of questions by origin of their split, and by split."""


class _RejectedRows:
    """The first rejected rows, up to limits of number and length, and counts of all."""

    def __init__(self) -> None:
        self.kept: list[RejectedRow] = []
        self.reasons: Counter[str] = Counter()
        self._chars = limits.MAX_REJECTED_CHARS

    def add(self, raw: RawRow, error: RowError) -> None:
        self.reasons[error.kind] += 1
        if len(self.kept) >= limits.MAX_REJECTED_ROWS or self._chars < 0:
            return
        text = json.dumps(raw.content, default=str)
        if len(text) > limits.MAX_REJECTED_ROW_CHARS:
            cut = f"{text[: limits.MAX_REJECTED_ROW_CHARS]}... ({len(text):,} characters in all)"
            raw = replace(raw, content=cut)
        self._chars -= min(len(text), limits.MAX_REJECTED_ROW_CHARS)
        self.kept.append(RejectedRow(raw=raw, kind=error.kind, reason=str(error)))


def validate_rows(rows: Iterable[RawRow], rules: ValidationRules) -> ValidationResult:
    """Validate every row. Bad rows are counted and the first are kept; none is dropped silently.

    A question's id consists of its relation and a hash of split, question and answers; for the second and later copy of
    a row, the hash includes the number of the copy. Ids do not depend on files or the order of rows.

    Args:
        rows: the rows of one source.
        rules: the rules to validate them by.

    Raises:
        DataError: there is no row, or two different questions have the same id (probability 2**-48 per pair).
    """
    questions: list[Question] = []
    rejected = _RejectedRows()
    first_rows: dict[str, str] = {}
    copies: Counter[str] = Counter()
    rows_by_id: dict[str, str] = {}
    splits: dict[SplitOrigin, Counter[str]] = {origin: Counter() for origin in SPLIT_ORIGINS}
    for raw in rows:
        try:
            question, origin = _validate_row(raw, rules)
            key = _content_key(question)
            copies[key] += 1
            if copies[key] > 1 and not rules.keep_duplicates:
                raise RowError("duplicate row", f"duplicate row: the same as {first_rows[key]}; remove one of the two")
        except RowError as error:
            rejected.add(raw, error)
            continue
        first_rows.setdefault(key, raw.where)
        name = question_id(question.relation, question.split, question.question, question.answers, copies[key])
        question = replace(question, question_id=name)
        if question.question_id in rows_by_id:
            raise DataError(
                f"{raw.where}: its id {question.question_id} is also that of {rows_by_id[question.question_id]} "
                "(a hash collision); leave one of the two rows out"
            )
        rows_by_id[question.question_id] = raw.where
        questions.append(question)
        splits[origin][question.split] += 1
    if not questions and not rejected.kept:
        raise DataError("the question source holds no row; name a question set that has rows")
    return ValidationResult(
        questions=questions,
        rejected=rejected.kept,
        reasons=rejected.reasons,
        repeats=sum(copies.values()) - len(copies) if rules.keep_duplicates else 0,
        splits=splits,
    )


def first_row_error(checked: ValidationResult) -> DataError:
    """The error that stops the step: the first bad row in full, the others as counts."""
    rejected, num = checked.rejected, checked.reasons.total()
    rest = ", ".join(f"{num} x {kind}" for kind, num in checked.reasons.most_common(6))
    summary = f" In all {num:,} rows are bad: {rest}." if num > 1 else ""
    return DataError(
        f"{rejected[0].raw.where}: {rejected[0].reason}.{summary} Fix the file, or set bad rows aside with "
        "--rejects FILE."
    )


def question_id(relation: str, split: str, question: str, answers: Sequence[str], copy: int = 1) -> str:
    """The stable id of a question. It does not depend on the Unicode form of the texts.

    Args:
        relation: the readable part of the id.
        split: train, dev or test.
        question: its text.
        answers: all gold answers, in order.
        copy: number of this row among rows with the same content, from 1.

    >>> question_id("P36", "test", "What is the capital of France?", ["Paris"])
    'P36-d8428db61233'
    """
    content = [split, question, list(answers), *([copy] if copy > 1 else [])]
    digest = hashlib.blake2b(nfc(json.dumps(content, ensure_ascii=False)).encode(), digest_size=6)
    return f"{relation}-{digest.hexdigest()}"


def _content_key(question: Question) -> str:
    content = [question.relation, question.split, question.question, question.answers]
    return nfc(json.dumps(content, ensure_ascii=False))


def _validate_row(raw: RawRow, rules: ValidationRules) -> tuple[Question, SplitOrigin]:
    """The question without its id, and the origin of its split."""
    if raw.problem is not None:
        raise RowError("not a row", f"{raw.problem}; fix or remove it")
    row: dict[str, Any] = raw.content
    name = nfc(parse_text(row, "relation"))
    question = parse_text(row, "question")
    answers = parse_answers(row)
    relation = rules.relations.get(name)
    if relation is None:
        if rules.unknown_relations == "error":
            raise RowError(
                "unknown relation",
                f"unknown relation {name!r:.80}, expected one of {_list_relations(rules.relations)}; add it to "
                "a file for --relations, or take all with --unknown-relations id",
            )
        relation = Relation(relation=name, template=None, domain="id")
    domain = parse_choice(row, "domain", {"id": "id", "ood": "ood"}) or relation.domain
    explicit = explicit_split(row, raw.named_splits)
    shares = {"dev_share": rules.dev_share, "test_share": rules.test_share}
    split, origin = explicit or (assigned_split(name, question, answers, domain, **shares), "share")
    subject = _subject(row, relation, rules.templates.get(name), question)
    return Question(
        question_id="",
        relation=name,
        domain=domain,
        split=split,
        subject=subject,
        question=question,
        answers=answers,
        popularity=parse_popularity(row),
    ), origin


def _subject(row: Mapping[str, Any], relation: Relation, template: str | None, question: str) -> str | None:
    """The subject from its column, else from the relation's template, else from the source's own template."""
    column = row.get("subject")
    if column not in (None, ""):
        return validate_text(column, "subject")
    subject = relation.subject(question)
    return extract_subject(template, question) if subject is None and template else subject


def assigned_split(
    relation: str, question: str, answers: Sequence[str], domain: str, *, dev_share: float, test_share: float
) -> str:
    """A split by a hash of the content. Out-of-distribution relations get no train rows.

    Args:
        relation: of the question.
        question: its text.
        answers: all gold answers.
        domain: `id` or `ood`.
        dev_share: share of the questions that are assigned to dev, in [0, 1].
        test_share: share that is assigned to test.
    """
    draw = int(row_key(0, "split", *map(nfc, (relation, question, *answers)))) / 2.0**64
    if draw < dev_share:
        return "dev"
    return "test" if draw < dev_share + test_share or domain == "ood" else "train"


def _list_relations(relations: Mapping[str, Relation]) -> str:
    return ", ".join([*relations][:30]) + (f" and {len(relations) - 30} more" if len(relations) > 30 else "")
