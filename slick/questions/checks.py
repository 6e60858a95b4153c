"""Raw rows to questions: each is checked, named by its content, and kept or set aside with a reason. Pure."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from slick.draws import row_key
from slick.errors import DataError
from slick.questions.popularity import parse_popularity
from slick.questions.relations import Relation, subject_of
from slick.questions.rows import RawRow
from slick.questions.sources import SPLITS
from slick.types import Question

_SPLIT_NAMES = {**{split: split for split in SPLITS}, "validation": "dev", "valid": "dev", "val": "dev"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a row is checked against."""

    relations: Mapping[str, Relation]
    unknown_relations: Literal["error", "id"] = "error"
    """`id` takes rows of a relation that is not listed, as in distribution and without a template."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """Of the source itself, for questions that do not follow the listed template."""
    keep_repeats: bool = False
    """Keep a row that repeats another one of its split, with an id of its own."""
    dev_share: float = 0.1
    """Of rows without a split, the share that goes to dev, in [0, 1]."""
    test_share: float = 0.1
    """Of rows without a split, the share that goes to test, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
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
class Checked:
    """All rows of a source, sorted into questions and bad rows."""

    questions: list[Question]
    """With domain `dropped` among them: the filter needs those rows."""
    bad: list[BadRow]
    repeats: int
    """Rows kept although they repeat another row of their split."""
    assigned: int
    """Rows without a split of their own."""


class _Problem(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def check_rows(rows: Iterable[RawRow], rules: Rules) -> Checked:
    """Check every row; bad ones are collected, never dropped unseen.

    A question's id is its relation and a hash of split, question, answers and, for the second and later row with the
    same content, its number among them: the same in any order and any file.

    Args:
        rows: of one source.
        rules: what they are checked against.

    Raises:
        DataError: there is no row at all, or two different questions have the same id (chance 2**-48 a pair).
    """
    questions: list[Question] = []
    bad: list[BadRow] = []
    first: dict[str, str] = {}
    copies: Counter[str] = Counter()
    owner: dict[str, str] = {}
    assigned = 0
    for raw in rows:
        try:
            question, was_assigned = _check(raw, rules)
            key = _content_key(question)
            copies[key] += 1
            if copies[key] > 1 and not rules.keep_repeats:
                raise _Problem("duplicate row", f"duplicate row: the same as {first[key]}; remove one of the two")
        except _Problem as problem:
            bad.append(BadRow(raw=raw, kind=problem.kind, reason=str(problem)))
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
        assigned += was_assigned
    if not questions and not bad:
        raise DataError("the question source holds no row; name a question set with rows in it")
    return Checked(
        questions=questions,
        bad=bad,
        repeats=sum(copies.values()) - len(copies) if rules.keep_repeats else 0,
        assigned=assigned,
    )


def first_bad_row(bad: Sequence[BadRow]) -> DataError:
    """The error that stops a run: the first bad row in full, the rest as counts."""
    kinds = Counter(row.kind for row in bad)
    rest = ", ".join(f"{num} x {kind}" for kind, num in kinds.most_common(6))
    more = f" In all {len(bad):,} rows are bad: {rest}." if len(bad) > 1 else ""
    return DataError(
        f"{bad[0].raw.where}: {bad[0].reason}.{more} Mend the file, or set bad rows aside with --rejects FILE."
    )


def question_id(relation: str, split: str, question: str, answers: Sequence[str], copy: int = 1) -> str:
    """The stable id of a question.

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
    digest = hashlib.blake2b(json.dumps(content, ensure_ascii=False).encode(), digest_size=6)
    return f"{relation}-{digest.hexdigest()}"


def _content_key(question: Question) -> str:
    return json.dumps([question.relation, question.split, question.question, question.answers], ensure_ascii=False)


def _with_id(question: Question, key: str, copy: int) -> Question:
    name = question_id(question.relation, question.split, question.question, question.answers, copy)
    return replace(question, question_id=name)


def _check(raw: RawRow, rules: Rules) -> tuple[Question, bool]:
    """The question without its id, and whether its split was assigned here."""
    if raw.problem is not None:
        raise _Problem("not a row", f"{raw.problem}; mend or remove it")
    row: dict[str, Any] = raw.content
    name = _text(row, "relation")
    question = _text(row, "question")
    answers = _answers(row)
    relation = rules.relations.get(name)
    if relation is None:
        if rules.unknown_relations == "error":
            raise _Problem(
                "unknown relation",
                f"unknown relation {name!r}, wanted one of {_some(rules.relations)}; add it to a file for --relations, "
                "or take all with --unknown-relations id",
            )
        relation = Relation(relation=name, template=None, domain="id")
    domain = _choice(row, "domain", {"id": "id", "ood": "ood"}) or relation.domain
    split = _choice(row, "split", _SPLIT_NAMES)
    subject = _subject(row, relation, rules.templates.get(name), question)
    try:
        popularity = parse_popularity(row)
    except ValueError as error:
        raise _Problem("no popularity", str(error)) from error
    return Question(
        question_id="",
        relation=name,
        domain=domain,
        split=split or _assigned_split(name, question, answers, domain, rules),
        subject=subject,
        question=question,
        answers=answers,
        popularity=popularity,
    ), split is None


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        raise _Problem(f"no {column}", f"no {column}, wanted a string; fill it in or remove the row")
    return _clean(value, column)


def _clean(value: object, what: str) -> str:
    """A string that can be asked and matched: not empty, on one line, storable as UTF-8."""
    if not isinstance(value, str):
        raise _Problem(
            "wrong type", f"{what} is {value!r:.80} ({type(value).__name__}), wanted a string; put it in quotes"
        )
    text = value.strip()
    if not text:
        raise _Problem(f"empty {what}", f"empty {what} ({value!r:.40}), wanted text; fill it in or remove the row")
    if "\n" in text or "\r" in text:
        raise _Problem(
            "line break", f"{what} {text!r:.80} holds a line break, wanted one line; answers end at a line's end"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Problem(
            "wrong encoding",
            f"{what} {text!r:.80} holds half a surrogate pair at character {error.start + 1}, wanted valid Unicode; "
            "write the character itself",
        ) from error
    return text


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = row.get("answers")
    if value is None or value == "":
        single = row.get("answer")
        value = None if single in (None, "") else [single]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = row.get("answers")
    if value is None or value == []:
        raise _Problem("no answer", "no answer, wanted at least one gold answer; add one or remove the row")
    if not isinstance(value, list):
        raise _Problem(
            "wrong type",
            f'answers is {value!r:.80} ({type(value).__name__}), wanted a list of strings such as ["Paris"]; '
            "a single answer may stand in a column `answer`",
        )
    return tuple(_clean(answer, "answer") for answer in value)


def _choice(row: Mapping[str, Any], column: str, names: Mapping[str, str]) -> str | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or value.strip().lower() not in names:
        raise _Problem(f"unknown {column}", f"{column} is {value!r:.80}, wanted one of {', '.join(names)}; correct it")
    return names[value.strip().lower()]


def _subject(row: Mapping[str, Any], relation: Relation, template: str | None, question: str) -> str | None:
    given = row.get("subject")
    if given not in (None, ""):
        return _clean(given, "subject")
    found = relation.subject(question)
    return subject_of(template, question) if found is None and template else found


def _assigned_split(relation: str, question: str, answers: Sequence[str], domain: str, rules: Rules) -> str:
    """By a hash of the content; a relation that is only tested gets no train rows."""
    draw = int(row_key(0, "split", relation, question, *answers)) / 2.0**64
    if draw < rules.dev_share:
        return "dev"
    return "test" if draw < rules.dev_share + rules.test_share or domain == "ood" else "train"


def _some(relations: Mapping[str, Relation]) -> str:
    names: Iterator[str] = iter(relations)
    shown = [name for name, _ in zip(names, range(30), strict=False)]
    return ", ".join(shown) + (f" and {len(relations) - 30} more" if len(relations) > 30 else "")
