"""The questions step: reads a question set, validates and filters it, and writes the Parquet files of later steps.

Nothing is written before all rows are validated. A bad row stops the step, unless `--rejects` sets bad rows aside.
Repeated rows are bad rows of a table. In the layout of EntityQuestions they are kept, because upstream has 374 of them
and the totals of the paper include them.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from slick.datasets.filters import (
    FilterName,
    apply_filter,
    count_questions,
    format_summary,
    is_entity_questions,
    paper_audit,
    published_relations,
)
from slick.datasets.relations import Relation, load_relations
from slick.datasets.sources import QuestionSource, open_source, read_rows, world_questions_uri
from slick.datasets.validate import ValidationResult, ValidationRules, first_row_error, validate_rows
from slick.errors import DataError, SettingsError
from slick.locks import exclusive_lock
from slick.settings import check_settings, identity_settings, register_settings, setting
from slick.storage import Folder, FolderLike, as_folder
from slick.study import Manifest, complete_step, fingerprint, needs_work, read_manifest, require_manifest
from slick.study_files import ANSWER_START_FIELD, CONTEXT_FIELD, POPULARITY_FIELD, QUESTION_SCHEMA, read_question_rows
from slick.types import Question

_LOG = logging.getLogger(__name__)

SORT_KEYS = ("relation", "domain", "split", "question_id")


@register_settings("questions")
@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsConfig:
    """The questions of a study."""

    questions: str = setting("", "content", former_name="source")
    """EntityQuestions (zip or folder) or a question set (.parquet, .jsonl, .csv, or a folder or zip of them), by path
    or URI; empty for the world that the study built. The split of a row comes from its column `split`, else from the
    file name (`test.jsonl`, `val-00000-of-00002.parquet`). A column `popularity` (PopQA: `s_pop`) is kept."""
    filter: FilterName = "paper"
    """`paper`: the filter of the paper; `strict`: train, dev and test share nothing; `none`: every question."""
    relations: str | None = setting(None, "content")
    """JSON file of relations with template and domain (id, ood, dropped); by default those of the paper."""
    unknown_relations: Literal["error", "id"] = "error"
    """Treat rows of unlisted relations as errors, or as in distribution."""
    rejects: str | None = setting(None, "nothing")
    """JSONL file for bad rows, with the reason (the first 100,000); by default a bad row stops the step."""
    dev_share: float = setting(0.1, minimum=0, maximum=1)
    """Share of the rows without a split in column or file name that is assigned to dev, in [0, 1]."""
    test_share: float = setting(0.1, minimum=0, maximum=1)
    """Share of the rows without a split in column or file name that is assigned to test, in [0, 1]."""
    limit_per_relation: int | None = setting(None, minimum=1)
    """Maximum number of questions of each relation and split; those with the smallest ids are kept. By default all."""
    dev_limit_per_relation: int | None = setting(
        None, when=lambda values: values["dev_limit_per_relation"] is not None, minimum=1
    )
    """Maximum number of dev questions of each relation, which provide exemplars and are evaluated after every epoch.
    None: `limit_per_relation`."""
    audit: str | None = setting(None, "content")
    """EntityQuestions, to compare its counts with the paper's tables if `questions` is another set."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.dev_share + self.test_share > 1.0:
            raise SettingsError(f"dev_share and test_share add up to {self.dev_share + self.test_share:g}; at most 1")
        if self.rejects is not None and self.rejects in (self.questions, self.audit, self.relations):
            raise SettingsError(f"rejects would overwrite the input {self.rejects}; name another file")

    def identity(self) -> dict[str, object]:
        """The settings that change the rows. Files are fingerprinted by content instead."""
        return identity_settings(self)


def prepare_questions(study: FolderLike, config: QuestionsConfig) -> Manifest:
    """Read, validate and filter a question set into `questions/`, one Parquet file per relation.

    Args:
        study: its folder.
        config: the settings.

    Returns:
        The manifest. Its counts hold the rows read, dropped by each rule and kept, by relation and split. `audit` holds
        the totals of EntityQuestions under the paper's filter, or None if EntityQuestions was not given.

    Raises:
        DataError: the source is damaged, or holds a bad row and `rejects` is None.
        StudyError: the folder holds questions of other settings.

    Example:
        slick.prepare_questions("studies/mine", slick.QuestionsConfig(questions="facts.jsonl", filter="none"))
    """
    study = as_folder(study)
    with exclusive_lock(study, "questions"):
        return _prepare_questions(study, config)


def _prepare_questions(study: Folder, config: QuestionsConfig) -> Manifest:
    started_at = time.monotonic()
    folder = study.child("questions")
    relations = load_relations(config.relations)
    source = open_source(config.questions or world_questions_uri(study))
    audit = open_source(config.audit) if config.audit else None
    inputs = {"source": source.fingerprint, **({"audit": audit.fingerprint} if audit else {})}
    content = {name: asdict(relation) for name, relation in relations.items()}
    identity = fingerprint(inputs, config.identity(), content)
    manifest = read_manifest(folder)
    if manifest is not None and manifest.fingerprint == identity:
        return manifest
    checked = _validate(source, relations, config)
    filtered = apply_filter(checked.questions, config.filter)
    kept = _limit_questions(filtered.kept, config)
    if not kept:
        raise DataError(
            f"question source {source.name} has no question left: {len(checked.questions):,} were read, and filter "
            f"{config.filter} dropped {', '.join(f'{s.dropped.total():,} ({s.rule})' for s in filtered.steps)}; "
            "try --filter none, or check the domains in the relations file"
        )
    counts = {**count_questions(checked, filtered, kept), "audit": _audit_counts(checked, source, audit, config)}
    popular = counts["with_popularity"] > 0
    needs_work(folder, "questions", identity, config)
    with folder.atomic_replace() as new:
        write_questions(new, kept, popularity=popular)
        manifest = complete_step(
            new,
            "questions",
            identity,
            settings=config,
            inputs=inputs,
            counts=counts,
            started_at=started_at,
            contents={"relations": fingerprint(content)},
        )
    heading = f"Questions from {source.name}, {counts['rows']:,} rows, filter {config.filter}:"
    _LOG.info("%s\n%s", heading, format_summary(counts))
    return manifest


def read_questions(study: FolderLike, columns: list[str] | None = None) -> pa.Table:
    """The questions of a study, sorted by (relation, domain, split, question_id).

    Args:
        study: its folder.
        columns: names of `QUESTION_SCHEMA`, `popularity` if the source has it, or `context` and `answer_start`, which
            are left out if the source has none; None for all of the schema.

    Raises:
        StudyError: the questions step is not finished, or has no such column.
    """
    study = as_folder(study)
    folder = study.child("questions")
    require_manifest(folder, "questions")
    columns = list(QUESTION_SCHEMA.names) if columns is None else columns
    table = read_question_rows(folder, [*dict.fromkeys([*columns, *SORT_KEYS])])
    kept = [name for name in columns if name in table.column_names]
    return table.sort_by([(key, "ascending") for key in SORT_KEYS]).select(kept)


def questions_table(questions: Sequence[Question], *further: pa.Field) -> pa.Table:
    """Questions as a sorted table of `QUESTION_SCHEMA` and of further columns, such as `POPULARITY_FIELD`."""
    schema = pa.schema([*QUESTION_SCHEMA, *further])
    ordered = sorted(questions, key=lambda q: (q.relation, q.domain, q.split, q.question_id))
    columns = {name: [getattr(question, name) for question in ordered] for name in schema.names}
    return pa.table(columns, schema=schema)


def conversation_fields(questions: Sequence[Question]) -> list[pa.Field]:
    """The columns `context` and `answer_start`, each only if a question has one."""
    has_context = any(question.context for question in questions)
    has_start = any(question.answer_start is not None for question in questions)
    return [*([CONTEXT_FIELD] if has_context else []), *([ANSWER_START_FIELD] if has_start else [])]


def write_questions(folder: Folder, questions: Sequence[Question], *, popularity: bool = False) -> None:
    """Write one Parquet file per relation; see `questions_table`."""
    parts: dict[str, list[Question]] = {}
    for question in questions:
        parts.setdefault(question.relation, []).append(question)
    fields = [*([POPULARITY_FIELD] if popularity else []), *conversation_fields(questions)]
    for relation, rows in sorted(parts.items()):
        folder.write_table(part_name(relation), questions_table(rows, *fields))


def part_name(relation: str) -> str:
    """The file of a relation's questions. Unsafe characters are replaced, and a hash keeps such names distinct.

    >>> part_name("P17"), part_name("place of birth")
    ('part-P17.parquet', 'part-place_of_birth-cf095a45.parquet')
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", relation)[:80]
    if safe != relation:
        safe += "-" + hashlib.blake2b(relation.encode(), digest_size=4).hexdigest()
    return f"part-{safe}.parquet"


def _validate(source: QuestionSource, relations: dict[str, Relation], config: QuestionsConfig) -> ValidationResult:
    checked = validate_rows(
        read_rows(source),
        ValidationRules(
            relations=relations,
            unknown_relations=config.unknown_relations,
            templates=source.templates,
            keep_duplicates=source.layout == "entity_questions",
            dev_share=config.dev_share,
            test_share=config.test_share,
        ),
    )
    if config.rejects is not None:
        _write_rejects(config.rejects, checked)
    elif checked.rejected:
        raise first_row_error(checked)
    return checked


def _write_rejects(path: str, checked: ValidationResult) -> None:
    file = Folder(path)
    lines = [json.dumps(row.record(), default=str) + "\n" for row in checked.rejected]
    file.parent.write_bytes(file.name, "".join(lines).encode())
    if len(checked.rejected) < (num := checked.reasons.total()):
        _LOG.info(
            "%s holds the first %s of %s bad rows, which is the limit.", path, f"{len(checked.rejected):,}", f"{num:,}"
        )


def _limit_questions(questions: Sequence[Question], config: QuestionsConfig) -> list[Question]:
    dev_limit = config.dev_limit_per_relation or config.limit_per_relation
    if config.limit_per_relation is None and dev_limit is None:
        return list(questions)
    groups: dict[tuple[str, str, str], list[Question]] = {}
    for question in sorted(questions, key=lambda q: q.question_id):
        groups.setdefault((question.relation, question.domain, question.split), []).append(question)
    return [
        question
        for (_, _, split), group in groups.items()
        for question in group[: dev_limit if split == "dev" else config.limit_per_relation]
    ]


def _audit_counts(
    checked: ValidationResult, source: QuestionSource, audit: QuestionSource | None, config: QuestionsConfig
) -> dict[str, Any] | None:
    """Counts of EntityQuestions: of `audit`, else of the source if that is EntityQuestions itself."""
    if audit is None:
        upstream = (
            bool(config.questions) and source.layout == "entity_questions" and is_entity_questions(checked.questions)
        )
        return paper_audit(checked.questions, source.name) if upstream else None
    rules = ValidationRules(relations=load_relations(), templates=audit.templates, keep_duplicates=True)
    rows = validate_rows(read_rows(audit), rules)
    if rows.rejected:
        raise first_row_error(rows)
    if not is_entity_questions(rows.questions):
        missing = sorted(published_relations() - {question.relation for question in rows.questions})
        raise DataError(
            f"audit source {audit.name} lacks relation {', '.join(missing)}; expected all 24 relations of "
            "EntityQuestions, because the filter compares the subjects of all; download it again or leave --audit out"
        )
    return paper_audit(rows.questions, audit.name)
