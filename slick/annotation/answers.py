"""The stored answers of a study, with the hits that its labels count. No Ray.

The part files hold the hits of the annotation. Rescoring leaves them as they are, and the outcomes of a judge are
stored apart, so hits are read through this module.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slick.annotation.config import GENERATIONS
from slick.annotation.judge import stored_judgements
from slick.annotation.uncertainty import rescore_row
from slick.datasets import read_questions
from slick.matching import make_matcher
from slick.storage import Folder
from slick.study import read_start_record, require_manifest
from slick.study_files import read_answer_part

IsHitOf = Callable[[str], Callable[[str], bool | None]]
"""From a question_id, a function that says whether an answer is correct; None for an unparsable outcome of a judge."""

_BATCH_ROWS = 64


def iter_answers(study: Folder, question_ids: pa.Array, *, texts: bool = True) -> Iterator[dict[str, Any]]:
    """The stored answers to some questions, scored and counted as by the labels of the study.

    Args:
        study: its folder, with a finished annotation.
        question_ids: which questions to read.
        texts: whether to read the texts as well as the hits.

    Yields:
        question_id, greedy_hit, sampled_hit and, with `texts`, greedy_text and sampled_text of one question, of the
        exemplar sets and samples that the labels use, as in `slick.study_files.GENERATIONS_SCHEMA`. A hit is also None
        where the judge's outcome is unparsable. Nothing if no answers are stored.

    Raises:
        StudyError: the annotation is not finished, or a file is invalid.
    """
    folder = study.child("annotate")
    settings = require_manifest(folder, "annotate").settings
    num_sets, num_samples = settings.get("num_exemplar_sets"), (settings.get("sampling") or {}).get("num_samples")
    is_hit_of = _changed_matcher(study, settings.get("matcher"))
    hits, text = ["greedy_hit", "sampled_hit"], ["greedy_text", "sampled_text"]
    columns = ["question_id", *hits, *(text if texts or is_hit_of else [])]
    store = folder.child(GENERATIONS)
    for name in store.names(".parquet"):
        part = read_answer_part(store, name, columns)
        part = part.filter(pc.is_in(part["question_id"], value_set=question_ids))
        for batch in part.to_batches(max_chunksize=_BATCH_ROWS):
            for row in batch.to_pylist():
                if is_hit_of is not None:
                    row |= rescore_row(row, cache(is_hit_of(row["question_id"])))
                yield {column: _cut(values, num_sets, num_samples) for column, values in row.items()}


def _changed_matcher(study: Folder, matcher: str | None) -> IsHitOf | None:
    """The matcher of the labels; None if the stored hits are its own."""
    judgements = stored_judgements(study)
    if judgements is not None:
        return judgements.matcher
    started = read_start_record(study.child("annotate"))
    if matcher is None or started is None or started.settings.get("matcher") == matcher:
        return None
    columns = read_questions(study, ["question_id", "answers"])
    gold = dict(zip(columns["question_id"].to_pylist(), columns["answers"].to_pylist(), strict=True))
    return lambda question_id: make_matcher(gold[question_id], matcher).is_hit


def _cut(values: Any, num_sets: int | None, num_samples: int | None) -> Any:
    """The first exemplar sets of a column's value, and their first samples."""
    if not isinstance(values, list):
        return values
    return [items[:num_samples] if isinstance(items, list) else items for items in values[:num_sets]]
