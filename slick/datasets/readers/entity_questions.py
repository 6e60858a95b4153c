"""EntityQuestions: `{train,dev,test}/RELATION.{train,dev,test}.json`, each a JSON list, and a file of templates."""

import json
import re
from collections.abc import Iterator

from slick import limits
from slick.datasets.rows import COLUMNS, RawRow, SourceFile, json_type, question_readers
from slick.errors import DataError
from slick.matching import nfc
from slick.strict_json import InvalidJsonError, RowParser, parse_user_json
from slick.user_files import decode

TEMPLATES_FILE = "relation_query_templates.json"

MEMBER_PATTERN = re.compile(r"(?P<top>.*?)(?P<name>(?P<split>train|dev|test)/(?P<relation>[^/]+)\.(?P=split)\.json)")
"""Path of a question file in a zip: the folders above the dataset, then the name below it."""

_EXPECTED = 'expected a JSON list of {"question": "...", "answers": ["..."]}'


@question_readers.register("entity_questions")
def read_entity_questions(file: SourceFile) -> Iterator[RawRow]:
    """The rows of one relation and split. The name of the file gives `relation` and the split.

    Raises:
        DataError: the file is not a JSON list, or is larger than the limit.
    """
    where = file.where
    split, _, name = file.name.partition("/")
    relation = name.removesuffix(f".{split}.json")
    text = decode(file.read(limits.MAX_DOCUMENT_BYTES, "write the questions as .jsonl, one a line"), where)
    start = len(text) - len(text.lstrip(" \t\r\n"))
    parser, number = RowParser(COLUMNS), 0
    try:
        if text[start] != "[":
            value, _ = parser.value(text, start)
            raise DataError(f"{where} holds a JSON {json_type(value)}; {_EXPECTED}")
        for number, content in enumerate(parser.items(text, start), 1):
            if isinstance(content, dict):
                content["relation"] = relation
                yield RawRow(file=where, row=number, content=content, named_splits=(split,))
            else:
                problem = f"found a JSON {json_type(content)}, expected an object"
                yield RawRow(file=where, row=number, content=content, problem=problem)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not whole JSON: {error.msg} at line {error.lineno}, column {error.colno} of {file.size:,} "
            f"bytes; {_EXPECTED}; download it again"
        ) from error
    except InvalidJsonError as error:
        raise DataError(f"{where}, row {number + 1}: {error}; {_EXPECTED}") from error


def parse_templates(data: bytes, where: str) -> dict[str, str]:
    """The question templates by relation; those without exactly one `[X]` are left out.

    Args:
        data: content of `relation_query_templates.json`.
        where: the file, for messages.

    Raises:
        DataError: it is not a JSON object of strings.
    """
    templates = parse_user_json(data, where, "fix it, or remove it to use the shipped templates")
    if not isinstance(templates, dict) or not all(isinstance(template, str) for template in templates.values()):
        raise DataError(
            f'{where} is not of the form {{"P17": "Which country is [X] located in?", ...}}; fix or remove it'
        )
    return {nfc(relation): template for relation, template in templates.items() if template.count("[X]") == 1}
