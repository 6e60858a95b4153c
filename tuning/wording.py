"""The wording step: labels of questions in a second wording, and fine-tuned models asked in that wording.

A fine-tuned model answers its training questions in a second wording, which it was not trained on. A fact that it
answers in both wordings was learned as a fact; one that it answers only in the first was learned with its question.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from slick.annotation.answering import annotate_tables
from slick.annotation.config import AnnotateConfig
from slick.annotation.prompting import PROMPT_GROUP, SUFFIX
from slick.annotation.set_aside import (
    check_set_aside_share,
    count_set_aside_by_store,
    drop_questions,
    set_questions_aside,
)
from slick.annotation.store import total_cost
from slick.annotation.wording import WORDING, WordingConfig, label_reworded, read_templates
from slick.annotation.worker import AnswerSetSpec, WorkerConfig
from slick.datasets import read_questions
from slick.datasets.rewordings import reword_questions
from slick.errors import StudyError
from slick.inference.base import PACKED_ENGINE, EngineConfig, SamplingConfig
from slick.locks import exclusive_lock
from slick.matching import nfc
from slick.models import load_tokenizer
from slick.prompts import closed_book_suffix
from slick.report.loading import finished_runs, select_run_per_seed
from slick.storage import Folder, FolderLike, as_folder
from slick.stored_files import MismatchError, convert
from slick.study import Manifest, begin_step, complete_step, fingerprint, read_manifest
from slick.study_files import CONTEXT_FIELD, QUESTION_SCHEMA, lookup_by_question
from tuning.config import TrainConfig
from tuning.data import QuestionRow, chat_rows, read_rows
from tuning.evaluate import chat_format
from tuning.runs import run_folder

_LOG = logging.getLogger(__name__)

ANSWERS: Final = "answers"
"""The folder of the answers of a fine-tuned model, in wording/trained/RUN_ID."""
TRAINED: Final = "trained"
"""The folder inside wording/ with a folder for each fine-tuned model."""
CHECKPOINT: Final = "checkpoint-last"
_RUN_FIELDS = ("question_id", "relation", "domain", "split", "answers")


def reword(study: FolderLike, config: WordingConfig) -> Manifest:
    """Ask a sample of the labelled questions, and what was trained, in a second wording; finished parts are kept.

    Args:
        study: with finished labels; its finished runs of `config.variants` are asked too, if they kept a checkpoint.
        config: the templates, the number of questions, and the variants.

    Returns:
        The manifest of the labels; see `slick.annotation.wording.label_reworded`.

    Raises:
        StudyError: the questions are not labelled, or the folder was written with other settings.
        DataError: no question has a second wording.
        EngineError: an answer could not be generated. Written files are kept; the next run resumes.
    """
    study = as_folder(study)
    with exclusive_lock(study, WORDING):
        manifest = label_reworded(study, config)
        for run_id in _runs(study, config):
            _ask_run(study, run_id)
    return manifest


def _runs(study: Folder, config: WordingConfig) -> list[str]:
    """The finished runs to ask: of each variant and seed that with the settings of the sweep, without overrides."""
    chosen = []
    for run_id, (variant, _) in select_run_per_seed(finished_runs(study)).items():
        if variant not in config.variants:
            continue
        if not run_folder(study, run_id).child(CHECKPOINT).exists("config.json"):
            _LOG.info("second wording: run %s kept no checkpoint of its last epoch, so it is not asked", run_id)
            continue
        chosen.append(run_id)
    return chosen


def _ask_run(study: Folder, run_id: str) -> None:
    """Write wording/trained/RUN_ID/: greedy answers to the training questions in the second wording."""
    started_at = time.monotonic()
    run, folder = read_manifest(run_folder(study, run_id)), study.child(WORDING, TRAINED, run_id)
    assert run is not None  # `_runs` selects finished runs
    templates = read_templates(study)
    inputs = {"run": run.fingerprint, "templates": fingerprint(templates)}
    identity = fingerprint(inputs)
    settings: dict[str, Any] = {}
    if not begin_step(folder, WORDING, identity, settings):
        return
    config = _train_config(study, run_id, run)
    checkpoint = run_folder(study, run_id).child(CHECKPOINT).uri
    rows = reworded_rows(study, config, templates, checkpoint)
    if not rows:
        _LOG.info("second wording: run %s has no training question with a second wording and a gold target", run_id)
    table = _table(study, rows)
    counts: dict[str, Any] = {"questions": len(rows)}
    if rows:
        worker_config = _worker_config(folder, rows, table, config, checkpoint)
        set_aside = set_questions_aside({ANSWERS: table}, worker_config)
        check_set_aside_share(set_aside[ANSWERS], table.num_rows, config.max_set_aside_share, folder, ANSWERS)
        annotate_tables(
            f"second wording, {run_id}",
            {ANSWERS: table},
            worker_config,
            AnnotateConfig(gpus_per_actor=config.gpus_per_worker, batch_questions=_BATCH_QUESTIONS),
            lambda _, cost, seconds: f"{cost['generations'] / seconds:,.0f} answers/s",
            set_aside,
        )
        _, runtime = total_cost(folder.child(ANSWERS))
        counts["questions"] = drop_questions(table, set_aside[ANSWERS]).num_rows
        counts |= {"set_aside": count_set_aside_by_store(set_aside), **runtime}
    complete_step(folder, WORDING, identity, settings=settings, inputs=inputs, counts=counts, started_at=started_at)


_BATCH_QUESTIONS = 256
"""Questions of one prefix that are answered together; each has a single short answer."""


def _train_config(study: Folder, run_id: str, run: Manifest) -> TrainConfig:
    try:
        config: TrainConfig = convert(run.settings, TrainConfig, "settings")
    except MismatchError as error:
        raise StudyError(
            f"{run_folder(study, run_id)}/manifest.json: {error}; train that run again with this version"
        ) from error
    return config


def reworded_rows(study: Folder, config: TrainConfig, templates: dict[str, str], model: str) -> list[QuestionRow]:
    """The training rows in their second wording; rows without one, without a gold target or of weight 0 are omitted.

    Args:
        study: its folder.
        config: settings of the training.
        templates: relation -> second template.
        model: folder of the trained model, whose tokenizer has the chat template.
    """
    questions = reword_questions(read_questions(study, [*QUESTION_SCHEMA.names, CONTEXT_FIELD.name]), templates)
    reworded = {row["question_id"]: row for row in questions.select(["question_id", "question", "answers"]).to_pylist()}
    rows = []
    for row in read_rows(study, config.variant)["train"]:
        question = reworded.get(row.question_id)
        if question is not None and row.weight > 0 and nfc(row.target) in map(nfc, question["answers"]):
            text = question["question"]
            rows.append(replace(row, question=text, suffix=closed_book_suffix(text)))
    if config.prompt_format == "chat" and rows:
        tokenizer = load_tokenizer(model, trust_remote_code=config.trust_remote_code)
        rows = chat_rows(rows, chat_format(rows, tokenizer, config))
    return rows


def _table(study: Folder, rows: Sequence[QuestionRow]) -> pa.Table:
    """The rows as questions with prompts, sorted by relation and question_id."""
    questions = read_questions(study, list(_RUN_FIELDS))
    position = lookup_by_question(questions, range(questions.num_rows), f"{study}/questions")
    table = questions.take(pa.array([position[row.question_id] for row in rows], pa.int64()))
    table = table.append_column(PROMPT_GROUP, table["relation"])
    table = table.append_column(SUFFIX, pa.array([row.suffix for row in rows], pa.string()))
    return table.sort_by([("relation", "ascending"), ("question_id", "ascending")])


def _worker_config(
    folder: Folder, rows: Sequence[QuestionRow], table: pa.Table, config: TrainConfig, model: str
) -> WorkerConfig:
    spec = AnswerSetSpec(
        prefixes={relation: [rows[0].prefix] for relation in table["relation"].unique().to_pylist()},
        sampling=SamplingConfig(num_samples=0, max_new_tokens=config.max_new_tokens),
        style=rows[0].style,
    )
    return WorkerConfig(
        engine=PACKED_ENGINE,
        engine_config=EngineConfig(
            model=model,
            dtype=config.dtype,
            batch_questions=_BATCH_QUESTIONS,
            trust_remote_code=config.trust_remote_code,
        ),
        mode="full",
        matcher=config.matcher,
        stores={ANSWERS: spec},
        folder=folder,
    )
