"""The P(True) part of the annotate step, which can also follow an earlier annotation.

It has its own folder and manifest inside annotate/, so that it does not change the labels.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slick.annotation.answering import annotate_tables
from slick.annotation.config import AnnotateConfig
from slick.annotation.prompting import PROMPT_GROUP, SUFFIX
from slick.annotation.selection import labelled_questions
from slick.annotation.set_aside import (
    check_set_aside_share,
    count_set_aside_by_store,
    drop_questions,
    set_questions_aside,
)
from slick.annotation.store import select_questions, total_cost
from slick.annotation.worker import AnswerSetSpec, WorkerConfig
from slick.datasets import read_questions
from slick.errors import StudyError
from slick.formatting import format_percent
from slick.inference.base import ENGINES, PACKED_ENGINE, SamplingConfig
from slick.inference.selection import AUTO_ENGINE, read_stored_engine
from slick.prompts import P_TRUE_CHOICES, P_TRUE_PREFIX, p_true_suffix
from slick.settings import P_TRUE_IDENTITY, identity_settings
from slick.storage import Folder, FolderLike, as_folder
from slick.study import Manifest, begin_step, complete_step, fingerprint, read_manifest, require_manifest
from slick.study_files import read_exemplars, read_p_true_rows

_LOG = logging.getLogger(__name__)

P_TRUE_FOLDER: Final = "p_true"
"""The folder inside annotate/."""


def check_same_model(study: Folder, fingerprint_now: str) -> None:
    """Refuse to score another model than the one that the study's labels describe.

    Raises:
        StudyError: the two differ.
    """
    labelled = read_manifest(study.child("annotate"))
    if labelled is not None and labelled.input("model") != fingerprint_now:
        raise StudyError(
            f"{study.child('annotate').uri} holds labels of the model with fingerprint {labelled.inputs['model']}, but "
            f"--model has fingerprint {fingerprint_now}: P(True) is compared with labels of the same model; give the "
            "same --model, or another --out"
        )


def score_p_true(study: Folder, config: AnnotateConfig, inputs: Mapping[str, str]) -> Manifest:
    """Write annotate/p_true/ with the model and questions of the labels; do nothing if it is finished.

    Args:
        study: with finished labels.
        config: selects the questions and sizes the pool, with a resolved dtype and engine.
        inputs: fingerprints of model and questions, as in the manifest of the labels.

    Returns:
        Its manifest, with the cost and the distribution of P(True).

    Raises:
        StudyError: the folder holds P(True) with other settings.
        DataError: too many questions are too long for the model's context.
        EngineError: a question could not be scored. Written files are kept; the next run resumes.
    """
    from slick.models import resolve_study_model

    started_at = time.monotonic()
    folder = study.child("annotate", P_TRUE_FOLDER)
    settings = p_true_settings(config)
    identity = fingerprint(dict(inputs), settings)
    if not begin_step(folder, "P(True)", identity, settings):
        return require_manifest(folder, "annotate")
    table = _with_prompts(questions_to_score(study, config))
    worker_config = _worker_config(study.child("annotate"), table, resolve_study_model(study, config.model), config)
    set_aside = set_questions_aside({P_TRUE_FOLDER: table}, worker_config)
    check_set_aside_share(
        set_aside[P_TRUE_FOLDER], table.num_rows, config.max_set_aside_share, worker_config.folder, P_TRUE_FOLDER
    )
    annotate_tables(
        "P(True)",
        {P_TRUE_FOLDER: table},
        worker_config,
        config,
        lambda _, cost, seconds: f"{cost['prompt_tokens'] / seconds:,.0f} prompt tokens/s",
        set_aside,
    )
    counts = _counts(folder, drop_questions(table, set_aside[P_TRUE_FOLDER])) | {
        "set_aside": count_set_aside_by_store(set_aside)
    }
    _log_summary(counts)
    return complete_step(
        folder, P_TRUE_FOLDER, identity, settings=settings, inputs=dict(inputs), counts=counts, started_at=started_at
    )


def resolve_p_true_engine(study: Folder, config: AnnotateConfig, labels: AnnotateConfig) -> AnnotateConfig:
    """The settings with the engine that scores P(True): that of earlier scores, otherwise that of the labels.

    An engine without log-probabilities is replaced by the packed engine.

    Args:
        study: its folder.
        config: settings of P(True), with any engine.
        labels: settings of the labels, with a resolved engine.
    """
    stored = read_stored_engine(study.child("annotate", P_TRUE_FOLDER), labels.gpus_per_actor)
    engine = stored.get("engine", labels.engine)
    if "log_probabilities" not in ENGINES.get(engine).capabilities:
        engine = PACKED_ENGINE
    gpus_per_actor = labels.gpus_per_actor
    if gpus_per_actor is not None and "tensor_parallel" not in ENGINES.get(engine).capabilities:
        gpus_per_actor = min(1.0, gpus_per_actor)
    return replace(config, engine=engine, gpus_per_actor=gpus_per_actor)


def p_true_settings(config: AnnotateConfig) -> dict[str, Any]:
    """The settings that P(True) depends on.

    Those by the packed engine name no engine: earlier versions had no other one.
    """
    settings = identity_settings(config, P_TRUE_IDENTITY)
    if config.engine not in (PACKED_ENGINE, AUTO_ENGINE):
        settings["engine"] = config.engine
    if config.p_true_of == "all":
        settings["annotate_dev"] = config.annotate_dev
        if config.annotate_exemplars:
            settings["annotate_exemplars"] = True
    return {
        **settings,
        "prompt": P_TRUE_PREFIX + p_true_suffix("[question]", "[gold answer]"),
        "choices": list(P_TRUE_CHOICES),
    }


def questions_to_score(study: Folder, config: AnnotateConfig) -> pa.Table:
    """The labelled questions to score."""
    questions = select_questions(
        read_questions(study),
        dev=config.annotate_dev,
        exemplars=read_exemplars(study.child("annotate")),
        limit=config.limit_per_relation,
        with_exemplars=config.annotate_exemplars,
    )
    questions = labelled_questions(study.child("annotate"), questions)
    if config.p_true_of == "all":
        return questions
    return questions.filter(pc.and_(pc.equal(questions["domain"], "id"), pc.equal(questions["split"], "test")))


def read_p_true(study: FolderLike) -> pa.Table:
    """All scores, sorted by question_id; see `slick.study_files.P_TRUE_SCHEMA`.

    Raises:
        StudyError: there are none yet.
    """
    return read_p_true_rows(as_folder(study).child("annotate", P_TRUE_FOLDER)).sort_by("question_id")


def _with_prompts(questions: pa.Table) -> pa.Table:
    columns = (questions[name].to_pylist() for name in ("question", "answers"))
    suffixes = [p_true_suffix(question, answers[0]) for question, answers in zip(*columns, strict=True)]
    questions = questions.append_column(PROMPT_GROUP, questions["relation"])
    return questions.append_column(SUFFIX, pa.array(suffixes, pa.string()))


def _worker_config(folder: Folder, table: pa.Table, model: str, config: AnnotateConfig) -> WorkerConfig:
    prefixes = {relation: [P_TRUE_PREFIX] for relation in table["relation"].unique().to_pylist()}
    answer = SamplingConfig(num_samples=0, max_new_tokens=max(len(f" {choice}".encode()) for choice in P_TRUE_CHOICES))
    return WorkerConfig(
        engine=config.engine,
        engine_config=config.engine_config(model),
        mode="full",
        matcher="exact",
        stores={P_TRUE_FOLDER: AnswerSetSpec(prefixes=prefixes, sampling=answer, kind=P_TRUE_FOLDER)},
        folder=folder,
    )


def _counts(folder: Folder, table: pa.Table) -> dict[str, Any]:
    rows = read_p_true_rows(folder)
    scored, expected = Counter(rows["question_id"].to_pylist()), Counter(table["question_id"].to_pylist())
    if scored != expected:
        raise StudyError(
            f"{folder} holds scores of {scored.total():,} questions, of which {(scored - expected).total():,} are "
            f"unexpected or duplicates, and lacks {(expected - scored).total():,} of {expected.total():,}; delete "
            f"{folder} and run `slick annotate --p-true` again"
        )
    cost, runtime = total_cost(folder)
    counts: dict[str, Any] = {"questions": rows.num_rows}
    counts |= {name: int(cost[name]) for name in ("prompt_tokens", "prefilled_tokens", "decoded_tokens")}
    counts |= {"engine_seconds": round(cost["seconds"], 3), **runtime}
    if rows.num_rows:
        p_true, p_a, p_b = (rows[name].to_numpy() for name in ("p_true", "p_a", "p_b"))
        percents = (0, 10, 25, 50, 75, 90, 100)
        counts["percentiles"] = dict(
            zip(map(str, percents), np.percentile(p_true, percents).round(4).tolist(), strict=True)
        )
        counts["mean_of_both_choices"] = float(f"{(p_a + p_b).mean():.3g}")
    return counts


def _log_summary(counts: Mapping[str, Any]) -> None:
    if not counts["questions"]:
        _LOG.info("P(True): there are no ID test questions to score")
        return
    _LOG.info(
        "P(True) of %s gold answers: median %.3f, %.3f to %.3f for the middle 80 %%; (A) and (B) together have %s of "
        "the probability.",
        f"{counts['questions']:,}",
        *(counts["percentiles"][percent] for percent in ("50", "10", "90")),
        format_percent(counts["mean_of_both_choices"], ".2g"),
    )
