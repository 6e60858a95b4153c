"""The relations of a question set: how each is asked, and whether it is trained on or only tested.

The shipped list, `data/relations.json`, is that of EntityQuestions in the division of Gekhman et al. 2024
(arXiv:2405.05904, appendix A): 12 relations in distribution, 7 out of distribution, 5 dropped as too close to one that
is trained on; P30 has a template upstream but no questions. Another list of the same shape can take its place.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from slick import limits
from slick.errors import DataError
from slick.matching import nfc
from slick.storage import Folder
from slick.user_files import parse_user_json, too_large_error

Domain = Literal["id", "ood", "dropped"]

_DATA = Path(__file__).parents[1] / "data"

_DOMAINS: dict[str, Domain] = {domain: domain for domain in get_args(Domain)}

PLACEHOLDERS = ("[X]", "[E]")
"""Where the subject goes in a template: EntityQuestions writes the first, the paper the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One relation of a question set."""

    relation: str
    """Its name, such as `P17`."""
    template: str | None
    """The question with `[X]` in place of the subject; None when questions of the relation follow no template."""
    domain: Domain
    """`id`: trained on and tested; `ood`: only tested; `dropped`: read for the overlap filter, then left out."""

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
        """The subject of a question; None when the question does not follow the template.

        >>> Relation(relation="P36", template="What is the capital of [X]?", domain="id").subject("Who is it?") is None
        True
        """
        return None if self.template is None else extract_subject(self.template, question)


def split_template(template: str) -> tuple[str, str]:
    """What stands before and after the one placeholder.

    Raises:
        ValueError: there is no placeholder, or more than one.
    """
    found = [placeholder for placeholder in PLACEHOLDERS for _ in range(template.count(placeholder))]
    if len(found) != 1:
        raise ValueError(f"a template holds exactly one [X], found {len(found)} in {template!r}")
    before, _, after = template.partition(found[0])
    return before, after


def extract_subject(template: str, question: str) -> str | None:
    """The part of a question, in NFC, that stands in the place of `[X]`; None if the rest differs or nothing is there.

    >>> subject_of("Who is [X]'s child?", "Who is Ada's child?"), subject_of("Who is [X]'s child?", "Who is she?")
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
        DataError: the file is not there or not of that shape.
    """
    if path is None:
        return _parse((_DATA / "relations.json").read_bytes(), "the shipped relations.json")
    file = Folder(path)
    if not file.parent.exists(file.name):
        raise DataError(f"relations file {path} is not there; leave --relations out to use the shipped list")
    size, _ = file.parent.version(file.name)
    if size > limits.MAX_SETTINGS_BYTES:
        raise too_large_error(
            f"relations file {path}", size, limits.MAX_SETTINGS_BYTES, "leave out relations that are not used"
        )
    return _parse(file.parent.read_bytes(file.name), f"relations file {path}")


def load_paper_counts() -> dict[str, dict[str, dict[str, int]]]:
    """Questions by table, relation and category in the paper; each relation also has its `total`.

    Returns:
        `{"train" | "test" | "ood": {"P131": {"HighlyKnown": 553, ..., "total": 7646}, ...}}`.

    Source: Gekhman et al. 2024, arXiv:2405.05904, tables 3, 4 and 5.

    >>> {table: sum(counts["total"] for counts in relations.values()) for table, relations in paper_counts().items()}
    {'train': 81700, 'test': 10481, 'ood': 5848}
    """
    counts: dict[str, dict[str, dict[str, int]]] = json.loads((_DATA / "paper_counts.json").read_bytes())
    return counts


def _parse(data: bytes, where: str) -> dict[str, Relation]:
    wanted = 'wanted {"P17": {"template": "Which country is [X] located in?", "domain": "id"}, ...}'
    value = parse_user_json(data, where, wanted)
    if not isinstance(value, dict) or not value:
        raise DataError(f"{where} holds {'nothing' if value in ({}, []) else type(value).__name__}; {wanted}")
    return {nfc(name): _relation(nfc(name), entry, where, wanted) for name, entry in value.items()}


def _relation(name: str, entry: Any, where: str, wanted: str) -> Relation:
    if not name.strip() or not isinstance(entry, dict) or not entry.keys() <= {"template", "domain"}:
        raise DataError(f"{where}, relation {name!r}: found {json.dumps(entry)[:200]}; {wanted}")
    template, domain = entry.get("template"), _DOMAINS.get(str(entry.get("domain")))
    if domain is None:
        raise DataError(
            f"{where}, relation {name!r}: domain is {entry.get('domain')!r}; wanted one of id, ood, dropped"
        )
    if template is not None:
        if not isinstance(template, str):
            raise DataError(f"{where}, relation {name!r}: template is {template!r}; wanted a string with [X], or null")
        try:
            split_template(template)
        except ValueError as error:
            raise DataError(f"{where}, relation {name!r}: {error}; write [X] where the subject goes") from error
    return Relation(relation=name, template=template, domain=domain)
