"""Questions of any set, checked and filtered, as the Parquet rows that every later step reads."""

from dataclasses import dataclass

import pyarrow as pa

from slick.storage import Folder

QUESTION_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("relation", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),
        ("subject", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
    ]
)
"""Of `questions/part-*.parquet`; `subject` alone may be null."""

SORT_KEYS = ("relation", "domain", "split", "question_id")


def read_questions(study: Folder, columns: list[str] | None = None) -> pa.Table:
    """The questions of a study, sorted by (relation, domain, split, question_id).

    Args:
        columns: those of `QUESTION_SCHEMA` that are wanted, in that order; None for all.

    Raises:
        StudyError: the questions step is not finished.
    """
    from slick.study import require

    folder = study.child("questions")
    require(folder, "questions")
    wanted = list(QUESTION_SCHEMA.names) if columns is None else columns
    table = folder.read_tables(columns=[*dict.fromkeys([*wanted, *SORT_KEYS])])
    return table.sort_by([(key, "ascending") for key in SORT_KEYS]).select(wanted)
