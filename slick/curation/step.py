"""The curate step: label the rows of a fine-tuning file by what a model knows, and write an edited copy.

The rows that test knowledge become the questions of a study, which the annotate step asks. So labels, answers and
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

from slick.annotation.config import AnnotateConfig
from slick.annotation.prompting import write_context
from slick.annotation.step import annotate
from slick.curation.actions import RowLabel, label_rows, new_columns, row_edits, write_copy
from slick.curation.config import AUTO, CurateConfig
from slick.curation.data import DataFile, MemoryData
from slick.curation.exemplars import draw_own_exemplars, group_names
from slick.curation.files import open_data
from slick.curation.formats import RowFormat, detect_format
from slick.curation.selection import (
    PROMPT_REFUSED,
    Candidate,
    Decision,
    candidates_of,
    choose_matcher,
    count_reasons,
    read_decisions,
    skip_if,
    skip_long_targets,
)
from slick.datasets.prepare import write_questions
from slick.datasets.validate import assigned_split
from slick.errors import DataError, SettingsError
from slick.formatting import format_percent
from slick.locks import exclusive_lock
from slick.models import load_tokenizer
from slick.prompt_formats import ChatFormat, make_prompt_format
from slick.storage import Folder, FolderLike, as_folder
from slick.study import Manifest, complete_step, fingerprint, needs_work
from slick.study_files import Exemplars
from slick.types import Category, Question

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

CURATE_FOLDER, ROWS_FILE, EXEMPLARS_FILE = "curate", "rows.parquet", "exemplars.json"

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
"""Schema of `curate/rows.parquet`: one row per asked turn, with its question_id, or per row or turn that is not asked,
with the reason."""

_SEVERAL_LINES = "target of several lines"
_MIN_NEW_TOKENS, _MAX_NEW_TOKENS = 16, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationPlan:
    """What will be asked, and how; see `plan_curation`."""

    data: DataFile
    row_format: RowFormat
    decisions: Sequence[Decision]
    """One for each row, or for each turn that is considered."""
    questions: Sequence[Question]
    exemplars: Exemplars | None
    """Exemplar sets from the rows themselves; None if they are drawn from the dev questions."""
    annotation: AnnotateConfig
    notes: Sequence[str]
    """The choices that were made, and why, one sentence each."""


def curate_file(study: FolderLike, config: CurateConfig) -> Manifest:
    """Label every row of a file that tests knowledge, and write an edited copy if the settings name one.

    Args:
        study: folder of the study. It gets questions/, annotate/ and curate/.
        config: the settings.

    Returns:
        The manifest of curate/, with counts of categories and of the reasons why rows were not asked.

    Raises:
        DataError: the file is damaged or of no known format, or no row can be asked.
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
    with exclusive_lock(study, "curate"):
        return _curate(study, open_data(config.data), config).manifest


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
    plan = plan_curation(data, config)
    for note in plan.notes:
        _LOG.info("%s", note)
    questions = _write_questions(study, plan, config)
    folder = study.child(CURATE_FOLDER)
    annotation = plan.annotation
    if plan.exemplars is not None:
        folder.write_json(EXEMPLARS_FILE, plan.exemplars)
        annotation = replace(annotation, exemplars=folder.child(EXEMPLARS_FILE).uri)
    labels = annotate(study, annotation)
    folder.write_table(ROWS_FILE, _rows_table(plan.decisions))
    by_row = label_rows(study, plan.decisions)
    counts = _counts(plan, by_row)
    _log_summary(counts)
    if config.to is not None:
        counts["written"] = write_copy(plan.data, plan.row_format, by_row, config, counts, labels)
    inputs = {"questions": questions, "annotate": labels.fingerprint, "data": plan.data.fingerprint}
    identity = fingerprint(inputs, {name: str(value) for name, value in counts.items()})
    manifest = complete_step(
        folder, "curate", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
    )
    return _Result(manifest, plan, by_row)


def plan_curation(data: DataFile, config: CurateConfig) -> CurationPlan:
    """Read the rows and decide what to ask; writes nothing.

    Raises:
        DataError: the file is damaged or of no known format, or no row can be asked.
        SettingsError: a setting does not fit the file.
        ModelError: the tokenizer cannot be loaded, or lacks a chat template that is needed.
    """
    if not config.model:
        raise SettingsError("no model is given; name a folder, a Hugging Face id or a .gguf file with --model")
    row_format = detect_format(data.columns, data.first_rows(), name=config.format or "", names=config.column_names)
    config = replace(config, id_column=_id_column(data, config))
    decisions = read_decisions(data.rows(), row_format, config)
    matcher, reason = choose_matcher(candidates_of(decisions), config)
    decisions = skip_long_targets(decisions, matcher, config)
    is_conversation = _holds_conversations(data, row_format, candidates_of(decisions))
    decisions, prompt_format, answer_end, prompt_note = _choose_prompts(decisions, config, is_conversation)
    candidates = candidates_of(decisions)
    if not candidates:
        reasons = ", ".join(f"{num:,} x {reason}" for reason, num in count_reasons(decisions).items())
        raise DataError(
            f"{data.name} has no row to ask: {reasons}; see --format, --ask, --max-target-words and --max-prompt-words"
        )
    annotation = config.annotation(
        prompt_format=prompt_format,
        answer_end=answer_end,
        matcher=matcher,
        max_new_tokens=config.max_new_tokens or _answer_tokens(candidates, config),
    )
    questions, exemplars, annotation = _questions(candidates, config, annotation)
    return CurationPlan(
        data=data,
        row_format=row_format,
        decisions=decisions,
        questions=questions,
        exemplars=exemplars,
        annotation=annotation,
        notes=[
            f"{data.name}: {data.num_rows:,} rows ({data.container}), format {row_format.name}.",
            f"Matcher {matcher}: {reason}.",
            prompt_note,
        ],
    )


def _id_column(data: DataFile, config: CurateConfig) -> str | None:
    """The column of ids: the one that is named, or else `question_id` if the data has it."""
    columns = data.columns
    for flag, name in (("--id-column", config.id_column), ("--group-by", config.group_by)):
        if name and name not in columns:
            raise DataError(f"{data.name} has no column {name!r}, which {flag} names; it has {', '.join(columns)}")
    for flag, texts in (("--ask", config.ask), ("--skip", config.skip)):
        for name in (text.partition("=")[0] for text in texts):
            if name not in columns:
                raise DataError(f"{data.name} has no column {name!r}, which {flag} names; it has {', '.join(columns)}")
    if config.id_column is not None:
        return config.id_column or None
    return "question_id" if "question_id" in columns else None


def _choose_prompts(
    decisions: Sequence[Decision], config: CurateConfig, is_conversation: bool
) -> tuple[list[Decision], str, str, str]:
    """The decisions without rows that cannot be asked, the prompt format, where answers end, and a sentence on both."""
    candidates = candidates_of(decisions)
    chat: ChatFormat | None = None
    multi_line = any(len(candidate.target.splitlines()) > 1 for candidate in candidates)
    answer_end: Any = "turn" if multi_line else "line"
    reason = "given by --prompt-format"
    if config.prompt_format == "chat" or (config.prompt_format == AUTO and is_conversation):
        tokenizer = load_tokenizer(config.model, trust_remote_code=config.annotate.trust_remote_code)
        made = make_prompt_format(
            config.prompt_format,
            tokenizer,
            answer_end=answer_end,
            template_arguments=config.annotate.parsed_template_arguments(),
        )
        chat = made if isinstance(made, ChatFormat) else None
        if config.prompt_format == AUTO:
            reason = (
                "the data holds conversations and the model has a chat template"
                if chat
                else "the model has no chat template"
            )
    elif config.prompt_format == AUTO:
        reason = "the data holds no conversations"
    if chat is None:
        kept = skip_if(decisions, lambda c: _SEVERAL_LINES if len(c.target.splitlines()) > 1 else None)
        return kept, "qa", "line", f"Prompts are lines of questions and answers (qa): {reason}."
    kept = skip_if(decisions, _refusals(chat))
    end = "at the end of the turn" if multi_line else "at the first newline"
    return kept, "chat", answer_end, f"Prompts follow the model's chat template (chat): {reason}. Answers end {end}."


def _holds_conversations(data: DataFile, row_format: RowFormat, candidates: Sequence[Candidate]) -> bool:
    """Whether rows are lists of messages, or have a system message or earlier turns."""
    is_list = any(isinstance(row.get(column), list) for row in data.first_rows() for column in row_format.required)
    return is_list or any(candidate.context for candidate in candidates)


def _refusals(chat: ChatFormat) -> Any:
    """Why a chat template cannot express a question; None if it can."""
    prefixes: dict[tuple[str, ...], str] = {}

    def reason_of(candidate: Candidate) -> str | None:
        key = tuple(chat.shared_context(candidate.context))
        try:
            if key not in prefixes:
                prefixes[key] = chat.prefix(candidate.context, [])
            chat.suffix(prefixes[key], [], candidate.context, candidate.question)
        except DataError as error:
            return f"{PROMPT_REFUSED}: {error}"
        return None

    return reason_of


def _answer_tokens(candidates: Sequence[Candidate], config: CurateConfig) -> int:
    """Enough tokens for the longest target, with a fifth more."""
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.annotate.trust_remote_code)
    targets = list({candidate.target for candidate in candidates})
    lengths = [len(ids) for ids in tokenizer(targets, add_special_tokens=False)["input_ids"]]
    return min(_MAX_NEW_TOKENS, max(_MIN_NEW_TOKENS, max(lengths) * 6 // 5 + 2))


def _questions(
    candidates: Sequence[Candidate], config: CurateConfig, annotation: AnnotateConfig
) -> tuple[list[Question], Exemplars | None, AnnotateConfig]:
    """The questions of the study, their exemplar sets, and the settings by which exemplars are asked too."""
    if config.exemplars is not None:
        return _with_given_exemplars(candidates, config, annotation)
    names = group_names(candidates, annotation.num_shots + 2)
    by_relation: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_relation.setdefault(names[candidate.group], []).append(candidate)
    exemplars = draw_own_exemplars(
        by_relation, num_sets=annotation.num_exemplar_sets, num_shots=annotation.num_shots, seed=config.seed
    )
    questions = [
        _question(candidate, relation, None, config)
        for relation, members in by_relation.items()
        for candidate in members
    ]
    return _unique(questions), exemplars, replace(annotation, annotate_exemplars=True)


def _with_given_exemplars(
    candidates: Sequence[Candidate], config: CurateConfig, annotation: AnnotateConfig
) -> tuple[list[Question], Exemplars | None, AnnotateConfig]:
    """Exemplars from another file are dev questions of the study, and all dev questions are exemplars."""
    given = _read_exemplars(config)
    relations = {candidate.group for candidate in given}
    fallback = None if config.group_by else next(iter(relations))
    missing = sorted({candidate.group for candidate in candidates} - relations) if fallback is None else []
    if missing:
        raise DataError(
            f"{config.exemplars} has no exemplars of {config.group_by} {missing[0]!r}; add at least 5 of each"
        )
    ids = {candidate.question_id for candidate in given}
    questions = [_question(candidate, candidate.group, "dev", config) for candidate in given]
    no_dev = replace(config, dev_share=0.0)
    questions += [
        _question(candidate, fallback or candidate.group, None, no_dev)
        for candidate in candidates
        if candidate.question_id not in ids
    ]
    overlaps = any(candidate.question_id in ids for candidate in candidates)
    return _unique(questions), None, replace(annotation, annotate_exemplars=overlaps, annotate_dev=overlaps)


def _read_exemplars(config: CurateConfig) -> list[Candidate]:
    assert config.exemplars is not None
    data = open_data(config.exemplars)
    own = replace(config, data=config.exemplars, ask=(), skip=())
    row_format = detect_format(data.columns, data.first_rows(), name=config.format or "", names=config.column_names)
    own = replace(own, id_column=_id_column(data, own))
    decisions = read_decisions(data.rows(), row_format, own)
    candidates = candidates_of(decisions)
    if not candidates:
        reasons = ", ".join(f"{num:,} x {reason}" for reason, num in count_reasons(decisions).items())
        raise DataError(f"{config.exemplars} has no row that can be an exemplar: {reasons}")
    return candidates


def _question(candidate: Candidate, relation: str, split: str | None, config: CurateConfig) -> Question:
    if split is None:
        split = assigned_split(
            relation,
            candidate.question,
            candidate.accepted,
            "id",
            dev_share=config.dev_share,
            test_share=config.test_share,
        )
    return Question(
        question_id=candidate.question_id,
        relation=relation,
        domain="id",
        split=split,
        subject=None,
        question=candidate.question,
        answers=candidate.accepted,
        context=write_context(candidate.context),
    )


def _unique(questions: Sequence[Question]) -> list[Question]:
    return list({question.question_id: question for question in questions}.values())


def _write_questions(study: Folder, plan: CurationPlan, config: CurateConfig) -> str:
    """Write questions/ of the study, unless it has these questions; returns their fingerprint."""
    started_at = time.monotonic()
    folder = study.child("questions")
    content = [
        [q.question_id, q.relation, q.split, q.question, q.context, list(q.answers)]
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
    return pa.Table.from_pylist(
        [
            {
                "row": decision.row,
                "where": decision.where,
                "turn": decision.turn,
                "question_id": getattr(decision, "question_id", None),
                "reason": getattr(decision, "reason", None),
                "detail": getattr(decision, "detail", None),
            }
            for decision in decisions
        ],
        schema=ROWS_SCHEMA,
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
    asked = counts["asked"]
    shares = ", ".join(f"{name} {format_percent(num / max(1, asked))}" for name, num in counts["categories"].items())
    _LOG.info("%s of %s rows test knowledge: %s.", f"{asked:,}", f"{counts['rows']:,}", shares)
    for reason, num in counts["not_asked"].items():
        _LOG.info("  not asked: %s x %s", f"{num:,}", reason)
