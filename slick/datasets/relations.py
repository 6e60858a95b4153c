"""The relations of a question set: their templates and domains.

The shipped list, `data/relations.json`, holds the relations of EntityQuestions as Gekhman et al. 2024 divide them
(arXiv:2405.05904, appendix A): 12 in distribution, 7 out of distribution, and 5 dropped because they are too similar to
one that is trained on. P30 has a template upstream but no questions. `--relations` replaces the list.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from slick import limits
from slick.errors import DataError
from slick.matching import nfc
from slick.storage import Folder
from slick.strict_json import parse_user_json
from slick.user_files import too_large_error

Domain = Literal["id", "ood", "dropped"]

_DATA = Path(__file__).parents[1] / "data"

_DOMAINS: dict[str, Domain] = {domain: domain for domain in get_args(Domain)}

PLACEHOLDERS = ("[X]", "[E]")
"""The subject in a template: EntityQuestions writes the first, the paper the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One relation of a question set."""

    relation: str
    """Its name, such as `P17`."""
    template: str | None
    """The question with `[X]` in place of the subject; None if questions of the relation follow no template."""
    domain: Domain
    """`id`: trained on and tested; `ood`: only tested; `dropped`: used by the overlap filter only."""

    def question(self, subject: str) -> str:
        """The question about a subject.

        >>> Relation(relation="P36", template="What is the capital of [X]?", domain="id").question("France")
        'What is the capital of France?'
        """
        if self.template is None:
            raise DataError(f"relation {self.relation} has no template; add one with [X] to the relations file")
        before, after = split_template(self.template)
        return before + subject + after

    def subject(self, question: str) -> str | None:
        """The subject of a question; None if the question does not follow the template.

        >>> Relation(relation="P36", template="What is the capital of [X]?", domain="id").subject("Who is it?") is None
        True
        """
        return None if self.template is None else extract_subject(self.template, question)


def split_template(template: str) -> tuple[str, str]:
    """The text before and after the placeholder.

    Raises:
        ValueError: there is not exactly one placeholder.
    """
    placeholders = [text for text in PLACEHOLDERS for _ in range(template.count(text))]
    if len(placeholders) != 1:
        raise ValueError(f"a template holds exactly one [X], found {len(placeholders)} in {template!r}")
    before, _, after = template.partition(placeholders[0])
    return before, after


def extract_subject(template: str, question: str) -> str | None:
    """The part of a question, in NFC, in place of `[X]`; None if it is empty or the question does not fit.

    >>> template = "Who is [X]'s child?"
    >>> extract_subject(template, "Who is Ada's child?"), extract_subject(template, "Who is she?")
    ('Ada', None)
    """
    before, after = split_template(nfc(template))
    question = nfc(question)
    fits = question.startswith(before) and question.endswith(after) and len(question) > len(before) + len(after)
    return question[len(before) : len(question) - len(after)] if fits else None


def load_relations(path: str | None = None) -> dict[str, Relation]:
    """The relations by name, in the order of the file.

    Args:
        path: a JSON file, local or by URI, `{"P17": {"template": "Which country is [X] located in?", "domain": "id"}}`,
            where `template` may be null; None for the shipped list.

    Raises:
        DataError: the file does not exist or is not of that shape.
    """
    if path is None:
        return _parse((_DATA / "relations.json").read_bytes(), "the shipped relations.json")
    file = Folder(path)
    if not file.parent.exists(file.name):
        raise DataError(f"relations file {path} does not exist; leave --relations out to use the shipped list")
    size, _ = file.parent.version(file.name)
    if size > limits.MAX_SETTINGS_BYTES:
        raise too_large_error(
            f"relations file {path}", size, limits.MAX_SETTINGS_BYTES, "leave out relations that are not used"
        )
    return _parse(file.parent.read_bytes(file.name), f"relations file {path}")


def _parse(data: bytes, where: str) -> dict[str, Relation]:
    expected = 'expected {"P17": {"template": "Which country is [X] located in?", "domain": "id"}, ...}'
    value = parse_user_json(data, where, expected)
    if not isinstance(value, dict) or not value:
        raise DataError(f"{where} holds {'nothing' if value in ({}, []) else type(value).__name__}; {expected}")
    return {nfc(name): _relation(nfc(name), entry, where, expected) for name, entry in value.items()}


def _relation(name: str, entry: Any, where: str, expected: str) -> Relation:
    if not name.strip() or not isinstance(entry, dict) or not entry.keys() <= {"template", "domain"}:
        raise DataError(f"{where}, relation {name!r}: found {json.dumps(entry)[:200]}; {expected}")
    template, domain = entry.get("template"), _DOMAINS.get(str(entry.get("domain")))
    if domain is None:
        raise DataError(
            f"{where}, relation {name!r}: domain is {entry.get('domain')!r}; expected one of id, ood, dropped"
        )
    if template is not None:
        if not isinstance(template, str):
            raise DataError(
                f"{where}, relation {name!r}: template is {template!r}; expected a string with [X], or null"
            )
        try:
            split_template(template)
        except ValueError as error:
            raise DataError(f"{where}, relation {name!r}: {error}; write [X] where the subject goes") from error
    return Relation(relation=name, template=template, domain=domain)
