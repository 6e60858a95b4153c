"""Rewordings: a second template for the questions of a relation, which asks for the same fact in other words.

The shipped list, `data/rewordings.json`, has one for each relation of EntityQuestions that Gekhman et al. 2024
(arXiv:2405.05904) train on or test. `--templates` replaces the list.
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from slick import limits
from slick.datasets.relations import split_template
from slick.errors import DataError
from slick.matching import nfc
from slick.storage import Folder
from slick.strict_json import parse_user_json
from slick.user_files import too_large_error

_SHIPPED = Path(__file__).parents[1] / "data" / "rewordings.json"
_EXPECTED = 'expected {"P17": "In what country can [X] be found?", ...}'


def load_rewordings(path: str | None = None) -> dict[str, str]:
    """The second template of each relation.

    Args:
        path: a JSON file, local or by URI, `{"P17": "In what country can [X] be found?"}`; None for the shipped list.

    Raises:
        DataError: the file does not exist or is not of that shape.
    """
    if path is None:
        return _parse(_SHIPPED.read_bytes(), "the shipped rewordings.json")
    file = Folder(path)
    if not file.parent.exists(file.name):
        raise DataError(f"the templates {path} do not exist; leave --templates out to use the shipped list")
    size, _ = file.parent.version(file.name)
    if size > limits.MAX_SETTINGS_BYTES:
        raise too_large_error(f"the templates {path}", size, limits.MAX_SETTINGS_BYTES, "leave out unused relations")
    return _parse(file.parent.read_bytes(file.name), f"the templates {path}")


def _parse(data: bytes, where: str) -> dict[str, str]:
    value = parse_user_json(data, where, _EXPECTED)
    if not isinstance(value, dict) or not value:
        raise DataError(f"{where}: found {'nothing' if value in ({}, []) else type(value).__name__}; {_EXPECTED}")
    templates = {}
    for relation, template in value.items():
        if not relation.strip() or not isinstance(template, str) or "\n" in template:
            raise DataError(f"{where}, relation {relation!r}: found {str(template)[:200]!r}; {_EXPECTED}")
        try:
            split_template(template)
        except ValueError as error:
            raise DataError(f"{where}, relation {relation!r}: {error}; {_EXPECTED}") from error
        templates[nfc(relation)] = nfc(template)
    return templates


def reword_questions(questions: pa.Table, templates: Mapping[str, str]) -> pa.Table:
    """The questions in their second wording; questions without a subject or without a template are omitted.

    Args:
        questions: `slick.study_files.QUESTION_SCHEMA`.
        templates: relation -> its second template.

    Raises:
        DataError: the second wording of a question is its first one.
    """
    columns = (questions[name].to_pylist() for name in ("relation", "subject", "question"))
    reworded: list[str | None] = []
    for relation, subject, question in zip(*columns, strict=True):
        if not subject or relation not in templates:
            reworded.append(None)
            continue
        before, after = split_template(templates[relation])
        text = nfc(before + subject + after)
        if text == nfc(question):
            raise DataError(
                f"the second wording of relation {relation} is its first one: {text!r}; give another template by "
                "--templates"
            )
        reworded.append(text)
    position = questions.schema.get_field_index("question")
    table = questions.set_column(position, "question", pa.array(reworded, pa.string()))
    return table.filter(pc.is_valid(table["question"]))
