"""The annotate step: answer every question under every exemplar set, and label each with one of four categories.

Ray Data streams units of work (a few batches of one relation) through a pool of actors with one engine each. Actors
write whole files of answers and return only counts to the driver. So an interrupted run resumes with the batches that
no file holds, and labels depend neither on the number of actors nor on the size of files.

Rescoring makes new labels from the stored answers, with another matcher or fewer exemplar sets or samples.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from slick.annotation.config import CONTROLS, REPEATS, AnnotateConfig, Estimator, main_store
from slick.annotation.labels import format_category_shares, label, prefix_reuse_share, questions_by_store
from slick.annotation.p_true import P_TRUE_FOLDER, check_same_model, score_p_true
from slick.annotation.set_aside import check_set_aside_share, drop_questions, max_prompt_tokens, set_questions_aside
from slick.annotation.store import select_questions
from slick.annotation.uncertainty import Scoring
from slick.annotation.worker import AnswerKind, AnswerSetSpec, WorkerConfig, annotate_missing, with_engine
from slick.cluster import detect_device
from slick.datasets import read_questions
from slick.errors import SettingsError, StudyError
from slick.formatting import format_percent
from slick.inference.base import EngineConfig
from slick.locks import exclusive_lock
from slick.matching import MATCHERS
from slick.models import (
    ignored_model_settings,
    log_ignored_settings,
    model_fingerprint,
    resolve_model,
    resolve_study_model,
)
from slick.precision import StoredDtype, read_stored_dtype, resolve_step_dtype
from slick.prompts import draw_exemplar_sets, few_shot_prefix
from slick.settings import check_settings, setting
from slick.storage import Folder, FolderLike, as_folder
from slick.stored_files import MismatchError, convert
from slick.study import (
    MANIFEST,
    STARTED,
    Manifest,
    begin_step,
    complete_step,
    fingerprint,
    read_start_record,
    require_manifest,
)
from slick.study_files import Exemplars, read_exemplars

_ANSWER_KINDS: dict[Estimator, AnswerKind] = {"sampled": "answers", "gold": "gold"}


def annotate(study: FolderLike, config: AnnotateConfig) -> Manifest:
    """Write annotate/exemplars.json, generations/, knowledge.parquet and the manifest, and p_true/ if configured.

    Returns:
        The manifest of the labels, with counts of categories by relation and split, generations and tokens.

    Raises:
        StudyError: the questions step is not finished, or the folder holds an annotation by another model or with other
            settings.
        DataError: a relation has too few dev questions for its exemplar sets, or too many questions are too long for
            the model's context.
        ModelError: the model cannot be loaded or is not valid.
        EngineError: an answer could not be generated. Files that are written stay, and the next run resumes.

    Example:
        slick.annotate("s3://bucket/study", slick.AnnotateConfig(model="ID_OR_PATH", mode="labels"))
    """
    study = as_folder(study)
    with exclusive_lock(study, "annotate"):
        return _annotate_with_p_true(study, config)


def _annotate_with_p_true(study: Folder, config: AnnotateConfig) -> Manifest:
    model = resolve_study_model(study, config.model)
    inputs = {
        "questions": require_manifest(study.child("questions"), "questions").fingerprint,
        "model": model_fingerprint(resolve_model(model)),
    }
    if config.p_true:
        check_same_model(study, inputs["model"])
    # Before any fingerprint is computed, so that answers in two dtypes never have the same one.
    labels = _resolved("annotate", config, read_stored_dtype([study.child("annotate")]))
    manifest = _annotate(study, labels, model, inputs)
    if config.p_true:
        score_p_true(study, _resolved("P(True)", config, _stored_p_true_dtype(study, labels.dtype)), inputs)
    return manifest


def _resolved(step: str, config: AnnotateConfig, stored: StoredDtype) -> AnnotateConfig:
    """The settings with `auto` replaced by a dtype."""
    dtype: Any = resolve_step_dtype(step, config.dtype, stored, lambda: detect_device(config.gpus_per_actor))
    return replace(config, dtype=dtype)


def _stored_p_true_dtype(study: Folder, labels: str) -> StoredDtype:
    """The dtype of stored P(True) scores; if there are none, that of the labels they are compared with."""
    stored = read_stored_dtype([study.child("annotate", P_TRUE_FOLDER)])
    return stored if stored.dtype else StoredDtype(dtype=labels, is_finished=False)


def _annotate(study: Folder, config: AnnotateConfig, model: str, inputs: dict[str, str]) -> Manifest:
    started_at = time.monotonic()
    folder = study.child("annotate")
    identity = fingerprint(inputs, config.identity())
    if not begin_step(folder, "annotate", identity, config):
        return require_manifest(folder, "annotate")
    log_ignored_settings(model)
    questions = read_questions(study)
    exemplars = _exemplars(folder, questions, config)
    selected = select_questions(
        questions, dev=config.annotate_dev, exemplars=exemplars, limit=config.limit_per_relation
    )
    worker_config = _worker_config(folder, questions, exemplars, model, config)
    tables, set_aside = _split_set_aside(selected, worker_config, config)
    kept = {store: drop_questions(table, set_aside[store]) for store, table in tables.items()}
    longest = max(max_prompt_tokens(table, worker_config.stores[store]) for store, table in kept.items())
    worker_config = with_engine(worker_config, max_tokens=longest)
    annotate_missing("annotate", tables, worker_config, config, _progress_note, set_aside)
    counts = label(study, selected, config)
    if ignored := ignored_model_settings(model):
        counts["ignored_of_model"] = ignored
    return complete_step(
        folder, "annotate", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
    )


def _split_set_aside(
    questions: pa.Table, worker_config: WorkerConfig, config: AnnotateConfig
) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
    """The questions of each store, and those of them that are too long for the model's context."""
    main = main_store(config)
    set_aside = set_questions_aside({main: questions}, worker_config)
    check_set_aside_share(set_aside[main], questions.num_rows, config.max_set_aside_share, worker_config.folder, main)
    tables = questions_by_store(drop_questions(questions, set_aside[main]), config)
    checks = {store: table for store, table in tables.items() if store != main}
    return {main: questions, **checks}, set_aside | set_questions_aside(checks, worker_config)


def _exemplars(folder: Folder, questions: pa.Table, config: AnnotateConfig) -> Exemplars:
    """The exemplar sets of every relation, drawn once and stored in exemplars.json."""
    if folder.exists("exemplars.json"):
        return read_exemplars(folder)
    exemplars = _draw_exemplars(questions, config, config.seed)
    folder.write_json("exemplars.json", exemplars)
    return exemplars


def _draw_exemplars(questions: pa.Table, config: AnnotateConfig, seed: int) -> Exemplars:
    dev_ids: dict[str, list[str]] = {relation: [] for relation in questions["relation"].unique().to_pylist()}
    columns = (questions[name].to_pylist() for name in ("relation", "split", "question_id"))
    for relation, split, question_id in zip(*columns, strict=True):
        if split == "dev":
            dev_ids[relation].append(question_id)
    return draw_exemplar_sets(dev_ids, num_sets=config.num_exemplar_sets, num_shots=config.num_shots, seed=seed)


def _worker_config(
    folder: Folder, questions: pa.Table, exemplars: Exemplars, model: str, config: AnnotateConfig
) -> WorkerConfig:
    columns = (questions[name].to_pylist() for name in ("question_id", "question", "answers"))
    shots = {question_id: (question, answers[0]) for question_id, question, answers in zip(*columns, strict=True)}
    missing = [i for sets in exemplars.values() for ids in sets for i in ids if i not in shots]
    if missing:
        raise StudyError(
            f"{folder}/exemplars.json names questions that the study lacks, such as {missing[:3]}; delete {folder.uri} "
            "to annotate again"
        )

    def prefixes(sets: Exemplars) -> dict[str, list[str]]:
        return {
            relation: [few_shot_prefix([shots[i] for i in ids]) for ids in exemplar_sets]
            for relation, exemplar_sets in sets.items()
        }

    main = AnswerSetSpec(prefixes=prefixes(exemplars), sampling=config.sampling, kind=_ANSWER_KINDS[config.estimator])
    stores = {main_store(config): main, CONTROLS: main}
    if config.repeats_per_relation:
        stores[REPEATS] = AnswerSetSpec(
            prefixes=prefixes(_draw_exemplars(questions, config, config.seed + 1)),
            sampling=replace(config.sampling, seed=config.sampling.seed + 1),
        )
    return WorkerConfig(
        engine=config.engine,
        engine_config=EngineConfig(
            model=model,
            dtype=config.dtype,
            batch_questions=config.batch_questions,
            trust_remote_code=config.trust_remote_code,
        ),
        mode=config.mode,
        matcher=config.matcher,
        stores=stores,
        folder=folder,
    )


def _progress_note(categories: Mapping[str, int], cost: Mapping[str, float], seconds: float) -> str:
    speeds = [f"{cost[name] / seconds:,.0f} {name.replace('_', ' ')}/s" for name in ("generations", "answer_tokens")]
    reused = f"{format_percent(prefix_reuse_share(cost))} of prompt tokens reused"
    return ", ".join([*speeds, reused, *([format_category_shares(categories)] if categories else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class RescoreConfig:
    """Settings of the new labels; None keeps the setting of the annotation."""

    matcher: str | None = setting(None, registry=MATCHERS)
    """When an answer is correct; see `slick.matching`."""
    num_exemplar_sets: int | None = None
    """Use the answers to this many first exemplar sets."""
    num_samples: int | None = None
    """Use this many first samples of each prompt."""

    def __post_init__(self) -> None:
        check_settings(self)


def rescore(study: FolderLike, config: RescoreConfig) -> Manifest:
    """Replace knowledge.parquet, confidence.json and the manifest, as if annotated with these settings.

    The stored answers do not change, so another rescoring can restore the labels.

    Raises:
        StudyError: the annotation is not finished, or did not keep all answers.
        SettingsError: there are fewer exemplar sets or samples than requested.

    Example:
        slick.rescore("studies/mine", slick.RescoreConfig(matcher="contains"))
    """
    study = as_folder(study)
    with exclusive_lock(study, "annotate"):
        return _rescore(study, config)


def _original_config(folder: Folder) -> AnnotateConfig:
    """The settings of the stored answers.

    Raises:
        StudyError: started.json is missing or invalid.
    """
    fix = f"restore the file, or delete {folder} and run `slick annotate` again"
    started = read_start_record(folder)
    if started is None:
        raise StudyError(f"{folder}/{STARTED}, which records the settings of the answers, is missing; {fix}")
    try:
        config: AnnotateConfig = convert(started.settings, AnnotateConfig, "settings", exact=True)
    except MismatchError as error:
        raise StudyError(f"{folder}/{STARTED}: {error}; {fix}") from error
    return config


def _rescore(study: Folder, config: RescoreConfig) -> Manifest:
    started_at = time.monotonic()
    folder = study.child("annotate")
    manifest = require_manifest(folder, "annotate")
    original = _original_config(folder)
    if original.estimator == "gold" or original.mode == "labels":
        raise StudyError(
            f"{folder.uri} was annotated with --estimator {original.estimator} --mode {original.mode}, which does not "
            "keep all answers; to rescore, annotate with --estimator sampled --mode full"
        )
    sets, samples = original.num_exemplar_sets, original.sampling.num_samples
    num_sets, num_samples = config.num_exemplar_sets or sets, config.num_samples or samples
    if not (1 <= num_sets <= sets and 1 <= num_samples <= samples):
        raise SettingsError(
            f"{folder.uri} holds answers for {sets} exemplar sets with {samples} samples each; rescoring can use "
            f"fewer, but not {num_sets} exemplar sets and {num_samples} samples"
        )
    scored = replace(
        original,
        matcher=config.matcher or original.matcher,
        num_exemplar_sets=num_sets,
        sampling=replace(original.sampling, num_samples=num_samples),
    )
    questions = read_questions(study)
    selected = select_questions(
        questions, dev=original.annotate_dev, exemplars=read_exemplars(folder), limit=original.limit_per_relation
    )
    gold = dict(zip(questions["question_id"].to_pylist(), questions["answers"].to_pylist(), strict=True))
    gold |= {f"control-{question_id}": answers for question_id, answers in gold.items()}
    scoring = Scoring(
        matcher=scored.matcher,
        num_exemplar_sets=num_sets,
        num_samples=num_samples,
        gold=gold if scored.matcher != original.matcher else None,
    )
    folder.delete(MANIFEST)  # until it is replaced, `slick annotate` would restore the original labels
    counts = label(study, selected, scored, scoring)
    identity = fingerprint(manifest.inputs, scored.identity())
    return complete_step(
        folder, "annotate", identity, settings=scored, inputs=manifest.inputs, counts=counts, started_at=started_at
    )
