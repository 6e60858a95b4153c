"""The annotate step: answer every question under every exemplar set, and label each with one of four categories.

Ray Data streams units of work (a few batches of one relation) through a pool of actors with one engine each. Actors
write whole files of answers and return only counts to the driver. So an interrupted run resumes with the batches that
no file holds, and labels depend neither on the number of actors nor on the size of files.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pyarrow as pa

from slick.annotation.answering import annotate_missing
from slick.annotation.config import CONTROLS, REPEATS, AnnotateConfig, Estimator, main_store
from slick.annotation.hidden import HIDDEN_FOLDER, AnswerPrompts, score_candidates
from slick.annotation.labels import format_category_shares, judge_inputs, label, prefix_reuse_share
from slick.annotation.p_true import (
    P_TRUE_FOLDER,
    check_same_model,
    resolve_p_true_engine,
    score_p_true,
)
from slick.annotation.plan import temporary_files
from slick.annotation.planning import PlanJob, StudyExemplars, find_exemplars, plan_questions
from slick.annotation.prompting import (
    PROMPT_GROUP,
    SUFFIX,
    PromptBuilder,
    check_exemplars,
    exemplar_texts,
    prompts_fingerprint,
)
from slick.annotation.selection import is_large, labelled_questions, questions_by_store, select
from slick.annotation.store import select_questions
from slick.annotation.worker import AnswerKind, AnswerSetSpec, WorkerConfig, with_engine
from slick.cluster import detect_device, device_without_ray
from slick.datasets import read_questions
from slick.datasets.by_relation import StoredRelation, list_relations
from slick.errors import DataError, SettingsError, StudyError
from slick.formatting import format_percent
from slick.inference.selection import AUTO_ENGINE, choose_engine, describe_rule, read_stored_engine
from slick.locks import exclusive_lock
from slick.matching import JUDGE
from slick.models import (
    context_length,
    ignored_model_settings,
    load_tokenizer,
    log_ignored_settings,
    model_fingerprint,
    resolve_model,
    resolve_study_model,
)
from slick.precision import ASSUMED_GPU, Device, StoredDtype, read_stored_dtype, resolve_dtype, resolve_step_dtype
from slick.prompt_formats import ChatFormat, PromptFormat, QaFormat, make_prompt_format, parse_template_arguments
from slick.prompts import draw_exemplar_sets
from slick.storage import Folder, FolderLike, as_folder
from slick.stored_files import MismatchError, convert
from slick.strict_json import parse_json
from slick.study import Manifest, begin_step, complete_step, fingerprint, require_manifest
from slick.study_files import (
    ANSWER_START_FIELD,
    CONTEXT_FIELD,
    EXEMPLARS_FILE,
    QUESTION_SCHEMA,
    Exemplars,
    read_exemplars,
)

_LOG = logging.getLogger(__name__)

PROMPTS_FILE = "prompts.json"
"""An example of a prompt and a hash of all prefixes, of chat prompts only."""

_ANSWER_KINDS: dict[Estimator, AnswerKind] = {"sampled": "answers", "gold": "gold"}

_EARLIER_RESULTS = "earlier results in this folder are by this engine"


def annotate(study: FolderLike, config: AnnotateConfig) -> Manifest:
    """Write annotate/exemplars.json, generations/, knowledge.parquet and the manifest; p_true/, hidden/ if configured.

    Returns:
        The manifest of the labels, with counts of categories by relation and split, generations and tokens.

    Raises:
        StudyError: the questions step is not finished, or the folder holds an annotation by another model or with other
            settings.
        DataError: a relation has too few dev questions for its exemplar sets, or too many questions are too long for
            the model's context.
        ModelError: the model cannot be loaded or is not valid.
        EngineError: an answer could not be generated. Written files are kept; the next run resumes.

    Example:
        slick.annotate("s3://bucket/study", slick.AnnotateConfig(model="ID_OR_PATH", mode="labels"))
    """
    study = as_folder(study)
    with exclusive_lock(study, "annotate"):
        return _annotate_with_scores(study, config)


def _annotate_with_scores(study: Folder, config: AnnotateConfig) -> Manifest:
    model = resolve_study_model(study, config.model)
    inputs = {
        "questions": require_manifest(study.child("questions"), "questions").fingerprint,
        "model": model_fingerprint(resolve_model(model)),
    }
    if config.p_true or config.hidden:
        check_same_model(study, inputs["model"])
    # Before any fingerprint is computed, so that answers of two engines or dtypes never have the same one.
    device = cache(lambda: detect_device(config.gpus_per_actor))
    labels = _resolve_dtype("annotate", config, read_stored_dtype([study.child("annotate")]), device)
    labels, choice = _resolve_engine(study, labels, model, device)
    manifest = _annotate(study, labels, model, inputs | judge_inputs(labels), choice)
    if config.p_true:
        scores = _resolve_dtype("P(True)", config, _stored_dtype(study, P_TRUE_FOLDER, labels.dtype), device)
        score_p_true(study, resolve_p_true_engine(study, scores, labels), inputs)
    if config.hidden:
        stored = _stored_dtype(study, HIDDEN_FOLDER, labels.dtype)
        _score_candidates(study, _resolve_dtype("hidden", config, stored, device), model, inputs)
    return manifest


def _score_candidates(study: Folder, config: AnnotateConfig, model: str, inputs: dict[str, str]) -> None:
    """Score the answers in annotate/hidden/ under the prompts of the labels."""
    folder = study.child("annotate")
    prompt_format = resolve_prompt_format(model, config)
    config = replace(config, prompt_format="chat" if isinstance(prompt_format, ChatFormat) else "qa")
    questions = read_questions(study, [*QUESTION_SCHEMA.names, CONTEXT_FIELD.name, ANSWER_START_FIELD.name])
    exemplars = read_exemplars(folder)
    builder = PromptBuilder(
        exemplars,
        exemplar_texts(questions, exemplars, f"{folder}/{EXEMPLARS_FILE}"),
        prompt_format,
        substitute=config.annotate_exemplars,
        seed=config.seed,
    )
    if config.prompt_format == "chat":
        selected = select_questions(
            questions,
            dev=config.annotate_dev,
            exemplars=exemplars,
            limit=config.limit_per_relation,
            with_exemplars=config.annotate_exemplars,
        )
        prompts = builder.add_prompts(selected)
        tables = questions_by_store(labelled_questions(folder, selected), config)
        if CONTROLS in tables:
            builder.add_prompts(tables[CONTROLS])  # as in StudyPlan.compared_prefixes
        _check_same_prompts(folder, builder.prefixes, prompts.slice(0, 1).to_pylist()[0], config)
    if config.gpus_per_actor is not None and config.gpus_per_actor > 1:
        config = replace(config, gpus_per_actor=1.0)  # the packed engine takes one
    score_candidates(study, config, model, inputs, AnswerPrompts(builder=builder, style=prompt_format.style))


def _resolve_dtype(
    step: str, config: AnnotateConfig, stored: StoredDtype, device: Callable[[], Device]
) -> AnnotateConfig:
    """The settings with the dtype `auto` replaced."""
    dtype: Any = resolve_step_dtype(step, config.dtype, stored, device)
    return replace(config, dtype=dtype)


def _resolve_engine(
    study: Folder, config: AnnotateConfig, model: str, device: Callable[[], Device]
) -> tuple[AnnotateConfig, str]:
    """The settings with the engine `auto` replaced, and why by this one; empty if the user named it.

    Raises:
        SettingsError: no engine can take the model with these settings.
    """
    if config.engine != AUTO_ENGINE:
        return config, ""
    if stored := read_stored_engine(study.child("annotate"), config.gpus_per_actor):
        return replace(config, **stored), _EARLIER_RESULTS
    choice = choose_engine(config.engine_request(model), device())
    if choice.gpus_per_actor != config.gpus_per_actor:
        detect_device(choice.gpus_per_actor)  # raises if this machine has too few
    _LOG.info("annotate: %s", choice)
    return replace(config, engine=choice.engine, gpus_per_actor=choice.gpus_per_actor), choice.reason


def forecast_engine(study: Folder | None, config: AnnotateConfig, model: str) -> str:
    """The engine that an annotation will use, or the rule if that depends on GPUs that only Ray knows. Without Ray.

    Args:
        study: its folder, which may hold earlier results.
        config: as the user set it.
        model: a folder, a Hugging Face Hub id or a .gguf file; empty if its files are not at hand.

    Raises:
        SettingsError: no engine can take the model with these settings.
    """
    if config.engine != AUTO_ENGINE:
        return f"engine {config.engine}"
    if study is not None and (stored := read_stored_engine(study.child("annotate"), None)):
        return f"engine {stored['engine']}, because {_EARLIER_RESULTS}"
    device = device_without_ray(config.gpus_per_actor)
    request = replace(
        config.engine_request(model), dtype=resolve_dtype(config.dtype, ASSUMED_GPU if device is None else device)
    )
    return describe_rule(request) if device is None else str(choose_engine(request, device))


def _stored_dtype(study: Folder, part: str, labels: str) -> StoredDtype:
    """The dtype of stored scores; if there are none, that of the labels they are compared with."""
    stored = read_stored_dtype([study.child("annotate", part)])
    return stored if stored.dtype else StoredDtype(dtype=labels, is_finished=False)


def _annotate(study: Folder, config: AnnotateConfig, model: str, inputs: dict[str, str], choice: str) -> Manifest:
    """Write the labels.

    Args:
        study: its folder.
        config: with a resolved dtype and engine.
        model: a folder, a Hugging Face Hub id or a .gguf file.
        inputs: fingerprints by name.
        choice: why `--engine auto` chose this engine; empty if the user named it.
    """
    started_at = time.monotonic()
    folder = study.child("annotate")
    prompt_format = resolve_prompt_format(model, config)
    config = replace(config, prompt_format="chat" if isinstance(prompt_format, ChatFormat) else "qa")
    if config.exemplars:
        inputs = inputs | {"exemplars": fingerprint(_given_exemplars(config.exemplars))}
    identity = fingerprint(inputs, config.identity())
    if not begin_step(folder, "annotate", identity, config):
        return require_manifest(folder, "annotate")
    log_ignored_settings(model)
    relations = list_relations(study)
    large = is_large(relations)
    if large:
        num = sum(relation.num_questions for relation in relations)
        _LOG.info("annotate: planning %s questions of %s relations", f"{num:,}", len(relations))
    exemplars = _exemplars(study, relations, config, parallel=large)
    with temporary_files(folder):
        job = PlanJob(
            selection=select(study, config, exemplars.main),
            config=config,
            exemplars=exemplars,
            prompt_format=prompt_format,
            worker_config=_worker_config(folder, model, config, prompt_format),
            context=context_length(model, trust_remote_code=config.trust_remote_code),
        )
        plan = plan_questions(job, relations, parallel=large)
        _check_same_prompts(folder, plan.compared_prefixes(main_store(config)), plan.first, config)
        specs = job.worker_config.stores.items()
        stores = {store: replace(spec, prefixes=plan.prefixes[store]) for store, spec in specs}
        worker_config = with_engine(replace(job.worker_config, stores=stores), max_tokens=plan.max_tokens)
        annotate_missing("annotate", plan.plans, worker_config, config, _progress_note, parallel=large)
    counts = label(job.selection, config, judge=inputs.get(JUDGE, ""))
    if choice:
        counts["engine_choice"] = choice
    if config.prompt_format == "chat":
        counts["prompt_format"] = "chat"
    if ignored := ignored_model_settings(model):
        counts["ignored_of_model"] = ignored
    return complete_step(
        folder, "annotate", identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
    )


def resolve_prompt_format(model: str, config: AnnotateConfig) -> PromptFormat:
    """The prompt format of the settings; `auto` is decided, and the decision logged."""
    if config.prompt_format == "qa":
        return QaFormat()
    prompt_format = make_prompt_format(
        config.prompt_format,
        load_tokenizer(model, trust_remote_code=config.trust_remote_code),
        answer_end=config.answer_end,
        template_arguments=parse_template_arguments(config.template_arguments),
    )
    if isinstance(prompt_format, ChatFormat):
        if config.prompt_format == "auto":
            _LOG.info("Prompts follow the chat template of the model (--prompt-format chat).")
    elif config.answer_end != "line" or config.template_arguments:
        raise SettingsError(
            "answer_end and template_arguments are for chat prompts, but the tokenizer has no chat template; leave "
            "them out"
        )
    else:
        _LOG.info("Prompts are lines of questions and answers (--prompt-format qa): the model has no chat template.")
    return prompt_format


def _exemplars(
    study: Folder, relations: Sequence[StoredRelation], config: AnnotateConfig, *, parallel: bool
) -> StudyExemplars:
    """The exemplar sets of every relation, drawn or given once and stored in exemplars.json."""
    folder = study.child("annotate")
    is_stored = folder.exists(EXEMPLARS_FILE)
    given = read_exemplars(folder) if is_stored else None
    if not is_stored and config.exemplars:
        given = _given_exemplars(config.exemplars)
        if missing := sorted({relation.relation for relation in relations} - set(given)):
            raise DataError(f"{config.exemplars} has no exemplar sets of relation {', '.join(missing[:5])}; add them")
    exemplars = find_exemplars(study, relations, config, given, parallel=parallel)
    if not is_stored:
        folder.write_json(EXEMPLARS_FILE, exemplars.main)
    check_exemplars(exemplars.main, exemplars.texts, f"{folder}/{EXEMPLARS_FILE}")
    return exemplars


def _given_exemplars(path: str) -> Exemplars:
    """The exemplar sets in a file of the user; see `AnnotateConfig.exemplars`.

    Raises:
        DataError: it does not exist, or has another form.
    """
    file = Folder(path)
    try:
        exemplars: Exemplars = convert(parse_json(file.parent.read_bytes(file.name)), Exemplars, "exemplars")
    except (StudyError, MismatchError, ValueError) as error:
        raise DataError(
            f"the exemplars in {path} cannot be read: {error}; expected "
            '{"RELATION": [["QUESTION_ID", ...], ...]}, as in the annotate/exemplars.json of a study'
        ) from error
    sizes = {len(ids) for sets in exemplars.values() for ids in sets}
    if not exemplars or 0 in sizes or not all(exemplars.values()):
        raise DataError(f"{path} has a relation without exemplars; give each at least one set of one question_id")
    if len({len(sets) for sets in exemplars.values()}) > 1:
        raise DataError(f"{path} has relations with different numbers of exemplar sets; give all the same number")
    return exemplars


def draw_study_exemplars(questions: pa.Table, config: AnnotateConfig, seed: int) -> Exemplars:
    """The exemplar sets of every relation, from its dev questions.

    Raises:
        DataError: a relation has too few.
    """
    dev_ids: dict[str, list[str]] = {relation: [] for relation in questions["relation"].unique().to_pylist()}
    columns = (questions[name].to_pylist() for name in ("relation", "split", "question_id"))
    for relation, split, question_id in zip(*columns, strict=True):
        if split == "dev":
            dev_ids[relation].append(question_id)
    return draw_exemplar_sets(dev_ids, num_sets=config.num_exemplar_sets, num_shots=config.num_shots, seed=seed)


def _worker_config(folder: Folder, model: str, config: AnnotateConfig, prompt_format: PromptFormat) -> WorkerConfig:
    """The configuration of the actors, without the prefixes of the stores."""
    main = AnswerSetSpec(
        prefixes={}, sampling=config.sampling, kind=_ANSWER_KINDS[config.estimator], style=prompt_format.style
    )
    stores = {main_store(config): main, CONTROLS: main}
    if config.repeats_per_relation:
        sampling = replace(config.sampling, seed=config.sampling.seed + 1)
        stores[REPEATS] = replace(main, sampling=sampling, kind="answers")
    return WorkerConfig(
        engine=config.engine,
        engine_config=config.engine_config(model),
        mode=config.mode,
        matcher="exact" if config.matcher == JUDGE else config.matcher,  # the judge follows when all answers are stored
        stores=stores,
        folder=folder,
    )


def _check_same_prompts(
    folder: Folder, prefixes: Mapping[str, Sequence[str]], first: Mapping[str, Any] | None, config: AnnotateConfig
) -> None:
    """Write an example of a chat prompt and a hash of all prefixes; on resuming, compare the hash.

    A chat template may contain the date, so prompts may change overnight.

    Raises:
        StudyError: the hash differs.
    """
    if config.prompt_format != "chat" or first is None:
        return
    prompts = prompts_fingerprint(prefixes)
    if not folder.exists(PROMPTS_FILE):
        example = prefixes[first[PROMPT_GROUP]][0] + first[SUFFIX]
        folder.write_json(
            PROMPTS_FILE, {"fingerprint": prompts, "question_id": first["question_id"], "prompt": example}
        )
        return
    stored = parse_json(folder.read_bytes(PROMPTS_FILE))
    if stored != {**stored, "fingerprint": prompts}:
        raise StudyError(
            f"{folder}/{PROMPTS_FILE}: the chat template gives other prompts than when this annotation began; it may "
            'contain the date: set that by --template-arguments, such as \'{"date_string": "1 Jan 2026"}\', or '
            f"delete {folder.uri} to annotate again"
        )


def _progress_note(categories: Mapping[str, int], cost: Mapping[str, float], seconds: float) -> str:
    speeds = [f"{cost[name] / seconds:,.0f} {name.replace('_', ' ')}/s" for name in ("generations", "answer_tokens")]
    reused = f"{format_percent(prefix_reuse_share(cost))} of prompt tokens reused"
    return ", ".join([*speeds, reused, *([format_category_shares(categories)] if categories else [])])
