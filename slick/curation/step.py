"""The curate step: label the rows of a fine-tuning file by what a model knows, and write an edited copy.

The rows that test knowledge become the questions of a study, which the annotate step labels. So labels, answers and
settings are those of any study, an interrupted run resumes, and a sweep can follow.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import pyarrow as pa

from slick.annotation.step import annotate
from slick.curation.actions import RowLabel, count_claims, label_rows, new_columns, row_edits, write_copy
from slick.curation.config import CurateConfig
from slick.curation.data import DataFile, MemoryData
from slick.curation.files import open_data
from slick.curation.judged_rows import skip_other_rows
from slick.curation.plan import CurationPlan, RowFilter, plan_curation
from slick.curation.selection import Decision
from slick.datasets.prepare import write_questions
from slick.errors import SettingsError
from slick.formatting import format_percent
from slick.locks import exclusive_lock
from slick.matching import JUDGE
from slick.storage import Folder, FolderLike, as_folder
from slick.study import Manifest, complete_step, fingerprint, needs_work
from slick.study_files import EXEMPLARS_FILE
from slick.types import Category

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

CURATE_FOLDER, ROWS_FILE = "curate", "rows.parquet"

ROWS_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("where", pa.string()),
        ("turn", pa.int32()),
        ("question_id", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""Schema of `curate/rows.parquet`: one row per question, with its question_id, or per row or turn without one, with the
reason."""

SENTENCE_FIELD = pa.field("sentence", pa.int32())
"""A further column with `--claims`: the place of a sentence in its target, from 1; null for a whole target."""


def curate_file(study: FolderLike, config: CurateConfig) -> Manifest:
    """Label every row of a file that tests knowledge, and write an edited copy if the settings name one.

    Args:
        study: folder of the study. It gets questions/, annotate/ and curate/, with a page curate/index.html.
        config: the settings.

    Returns:
        The manifest of curate/, with counts of categories and of the reasons why rows have no label.

    Raises:
        DataError: the file is damaged or of no known format, or no row can become a question.
        SettingsError: the settings contradict each other, or the copy would overwrite a file.
        ModelError: the model cannot be loaded.
        EngineError: an answer could not be generated. Answers are kept; the next run resumes.
        StudyError: the folder holds other questions, or labels with other settings.

    Example:
        config = slick.CurateConfig(data="data.jsonl", model="ID_OR_PATH", unknown="drop", to="cleaned.jsonl")
        slick.curate_file("studies/mine", config)
    """
    study = as_folder(study)
    if config.to is None and {config.unknown, config.weakly} != {"keep"}:
        raise SettingsError(
            f"--unknown {config.unknown} --weakly {config.weakly} changes rows, but no copy is written; give --to FILE"
        )
    if config.to is not None and not config.overwrite and Folder(config.to).exists():  # before any work
        raise SettingsError(f"{config.to} exists; give another name, or replace it with --overwrite")
    with exclusive_lock(study, "curate"):
        result = _curate(study, open_data(config.data), config)
        _write_page(study, result, config)
        return result.manifest


def curate(data: T, *, model: str, out: FolderLike | None = None, **settings: Any) -> T:
    """Label the rows of a data set in memory, and return an edited copy of the same type.

    Args:
        data: a list of dicts, a `pyarrow.Table`, or a `datasets.Dataset` or `DatasetDict`.
        model: a folder, a Hugging Face Hub id or a .gguf file.
        out: folder of the study, with which an interrupted run resumes; by default a temporary one.
        settings: of `CurateConfig`.

    Returns:
        The rows with the columns of `slick.curation.actions.NEW_COLUMNS`, and the changes that the settings ask for.

    Raises:
        SlickError: see `curate_file`.

    Example:
        cleaned = slick.curate(rows, model="ID_OR_PATH", unknown="drop")
    """
    source = open_data(data)
    if not isinstance(source, MemoryData):
        raise SettingsError(f"expected rows in memory, got {data!r:.80}; slick.curate_file reads files")
    config = CurateConfig(model=model, **settings)
    with ExitStack() as stack:
        study = as_folder(stack.enter_context(TemporaryDirectory(prefix="slick-curate-")) if out is None else out)
        stack.enter_context(exclusive_lock(study, "curate"))
        result = _curate(study, source, config)
        if out is not None:
            _write_page(study, result, config)
        return cast(
            T, source.edited(row_edits(source, result.plan.row_format, result.labels, config), new_columns(config))
        )


@dataclass(frozen=True, slots=True)
class _Result:
    """A finished curation."""

    manifest: Manifest
    plan: "CurationPlan"
    labels: Sequence[RowLabel]


def _curate(study: Folder, data: DataFile, config: CurateConfig) -> _Result:
    started_at = time.monotonic()
    folder = study.child(CURATE_FOLDER)
    plan = plan_curation(data, config, _row_filter(folder, config))
    for note in plan.notes:
        _LOG.info("%s", note)
    questions = _write_questions(study, plan, config)
    annotation = plan.annotation
    if plan.exemplars is not None:
        folder.write_json(EXEMPLARS_FILE, plan.exemplars)
        annotation = replace(annotation, exemplars=folder.child(EXEMPLARS_FILE).uri)
    labels = annotate(study, annotation)
    folder.write_table(ROWS_FILE, _rows_table(plan.decisions))
    by_row = label_rows(study, plan.decisions)
    counts = _counts(plan, by_row)
    if config.claims != "none":
        counts["claims"] = count_claims(by_row)
    _log_summary(counts)
    if config.to is not None:
        counts["written"] = write_copy(plan.data, plan.row_format, by_row, config, counts, labels)
    inputs = {"questions": questions, "annotate": labels.fingerprint, "data": plan.data.fingerprint}
    identity = fingerprint(inputs, {name: str(value) for name, value in counts.items()})
    manifest = complete_step(
        folder, "curate", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
    )
    return _Result(manifest, plan, by_row)


def _row_filter(folder: Folder, config: CurateConfig) -> RowFilter | None:
    """The judge's decisions about rows, if there is a judge and the settings ask for them."""
    if config.matcher != JUDGE or not config.judge_rows:
        return None
    settings = replace(config.annotate, matcher=JUDGE, judge=config.judge, model=config.model)
    return lambda decisions: skip_other_rows(folder, decisions, settings)


def _write_page(study: Folder, result: _Result, config: CurateConfig) -> None:
    from slick.curation.page import write_page  # loads the charts, which --help does not need

    _LOG.info("Page: %s", write_page(study, result.plan, result.labels, config))


def _write_questions(study: Folder, plan: CurationPlan, config: CurateConfig) -> str:
    """Write questions/ of the study, unless it has these questions; returns their fingerprint."""
    started_at = time.monotonic()
    folder = study.child("questions")
    content = [
        [q.question_id, q.relation, q.split, q.question, q.context, list(q.answers)]
        + ([q.answer_start] if q.answer_start is not None else [])
        for q in sorted(plan.questions, key=lambda q: q.question_id)
    ]
    identity = fingerprint(content)
    if not needs_work(folder, "questions", identity, config):
        return identity
    kept: dict[str, dict[str, int]] = {}
    for question in plan.questions:
        by_split = kept.setdefault(question.relation, {})
        by_split[question.split] = by_split.get(question.split, 0) + 1
    counts = {
        "rows": plan.data.num_rows,
        "rejected": 0,
        "reasons": {},
        "with_popularity": 0,
        "without_subject": len(plan.questions),
        "kept": kept,
        "audit": None,
    }
    with folder.atomic_replace() as new:
        write_questions(new, plan.questions)
        complete_step(
            new,
            "questions",
            identity,
            settings=config,
            inputs={"source": plan.data.fingerprint},
            counts=counts,
            started_at=started_at,
        )
    return identity


def _rows_table(decisions: Sequence[Decision]) -> pa.Table:
    has_sentences = any(decision.sentence is not None for decision in decisions)
    return pa.Table.from_pylist(
        [
            {
                "row": decision.row,
                "where": decision.where,
                "turn": decision.turn,
                "question_id": getattr(decision, "question_id", None),
                "reason": getattr(decision, "reason", None),
                "detail": getattr(decision, "detail", None),
                "sentence": decision.sentence,
            }
            for decision in decisions
        ],
        schema=ROWS_SCHEMA.append(SENTENCE_FIELD) if has_sentences else ROWS_SCHEMA,
    )


def _counts(plan: CurationPlan, by_row: Sequence[RowLabel]) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for label in by_row:
        if label.reason is not None:
            reasons[label.reason] = reasons.get(label.reason, 0) + 1
    return {
        "rows": len(by_row),
        "asked": sum(label.category is not None for label in by_row),
        "categories": {str(c): sum(label.category == c for label in by_row) for c in Category},
        "not_asked": dict(sorted(reasons.items(), key=lambda item: -item[1])),
        "questions": len(plan.questions),
        "format": plan.row_format.name,
        "container": plan.data.container,
        "fingerprint": plan.data.fingerprint,
        "matcher": plan.annotation.matcher,
        "prompt_format": plan.annotation.prompt_format,
    }


def _log_summary(counts: Mapping[str, Any]) -> None:
    labelled = counts["asked"]
    shares = ", ".join(f"{name} {format_percent(num / max(1, labelled))}" for name, num in counts["categories"].items())
    _LOG.info("%s of %s rows test knowledge: %s.", f"{labelled:,}", f"{counts['rows']:,}", shares)
    for reason, num in counts["not_asked"].items():
        _LOG.info("  not labelled: %s x %s", f"{num:,}", reason)
    if claims := counts.get("claims"):
        share = format_percent(claims["unknown"] / max(1, claims["asked"]))
        _LOG.info(
            "%s sentences of %s rows were labelled: Unknown %s.", f"{claims['asked']:,}", f"{claims['rows']:,}", share
        )
