"""Labels of questions in a second wording: a sample of the labelled questions, asked with another template.

Exemplars, samples and matcher are those of the study's labels, and the exemplars are reworded too. So a question whose
category changes is answered differently because of the wording, or because its labels are uncertain; repeated questions
(`--annotate.repeats-per-relation`) show how often the latter happens.
"""

import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from slick.annotation.answering import annotate_tables
from slick.annotation.config import GENERATIONS, AnnotateConfig
from slick.annotation.knowledge import knowledge_table
from slick.annotation.prompting import PromptBuilder, exemplar_texts
from slick.annotation.set_aside import (
    check_set_aside_share,
    count_set_aside_by_store,
    drop_questions,
    max_prompt_tokens,
    set_questions_aside,
)
from slick.annotation.step import resolve_prompt_format
from slick.annotation.store import read_parts, sample_by_hash, total_cost
from slick.annotation.uncertainty import Scoring, collect_evidence
from slick.annotation.worker import AnswerSetSpec, WorkerConfig, with_engine
from slick.datasets import read_questions
from slick.datasets.rewordings import load_rewordings, reword_questions
from slick.errors import DataError, StudyError
from slick.matching import JUDGE
from slick.models import model_fingerprint, resolve_model, resolve_study_model
from slick.settings import check_settings, identity_settings, register_settings, setting
from slick.storage import Folder
from slick.stored_files import MismatchError, convert
from slick.study import Manifest, begin_step, complete_step, fingerprint, require_manifest
from slick.study_files import CONTEXT_FIELD, QUESTION_SCHEMA, lookup_by_question, read_exemplars, read_knowledge

_LOG = logging.getLogger(__name__)

WORDING: Final = "wording"
"""The folder of the step in a study."""
TEMPLATES_FILE: Final = "templates.json"


@register_settings(WORDING)
@dataclass(frozen=True, slots=True, kw_only=True)
class WordingConfig:
    """Settings of the wording step."""

    questions_per_category: int = setting(10, "result", minimum=1)
    """Questions of each relation and category that are asked again in the second wording, chosen by a hash of their
    ids."""
    templates: str | None = setting(None, "content")
    """JSON file with the second template of each relation, such as {"P17": "In what country can [X] be found?"}; by
    default those that come with this program, for the relations of EntityQuestions."""
    variants: tuple[str, ...] = setting(("unknown-050",), "nothing")
    """Fine-tuning sets: the model that was trained on one answers its training questions in the second wording."""

    def __post_init__(self) -> None:
        check_settings(self)


def label_reworded(study: Folder, config: WordingConfig) -> Manifest:
    """Write wording/: a sample of the labelled questions in a second wording, its answers and labels.

    Does nothing if it is finished.

    Args:
        study: with finished labels.
        config: the number of questions, and the templates.

    Returns:
        The manifest, with the numbers of questions asked, and of those without a second wording.

    Raises:
        StudyError: the questions are not labelled, the labels come from stored probabilities or a judge, another model
            is in the place of the labelled one, or the folder was written with other settings.
        DataError: no question has a second wording, or too many are too long for the model's context.
        EngineError: an answer could not be generated. Written files are kept; the next run resumes.
    """
    started_at = time.monotonic()
    labels = require_manifest(study.child("annotate"), "annotate")
    annotate = _annotate_settings(study, labels)
    templates = load_rewordings(config.templates)
    inputs = {"labels": labels.fingerprint, "model": labels.input("model"), "templates": fingerprint(templates)}
    folder = study.child(WORDING)
    identity = fingerprint(inputs, identity_settings(config))
    if not begin_step(folder, WORDING, identity, config):
        return require_manifest(folder, WORDING)
    model = resolve_study_model(study, annotate.model)
    if (found := model_fingerprint(resolve_model(model))) != labels.input("model"):
        raise StudyError(
            f"{model} has fingerprint {found}, but the labels in {study.child('annotate').uri} are those of the model "
            f"with fingerprint {labels.input('model')}; restore that model"
        )
    selected, counts = _select(study, config, templates)
    builder, table = _with_prompts(study, annotate, model, selected, templates)
    worker_config = _worker_config(folder, builder, model, annotate)
    set_aside = set_questions_aside({GENERATIONS: table}, worker_config)
    too_long = set_aside[GENERATIONS]
    check_set_aside_share(too_long, table.num_rows, annotate.max_set_aside_share, folder, GENERATIONS)
    kept = drop_questions(table, too_long)
    longest = max_prompt_tokens(kept, worker_config.stores[GENERATIONS])
    folder.write_json(TEMPLATES_FILE, templates)
    annotate_tables(
        "second wording",
        {GENERATIONS: table},
        with_engine(worker_config, max_tokens=longest),
        annotate,
        lambda _, cost, seconds: f"{cost['generations'] / seconds:,.0f} generations/s",
        set_aside,
    )
    _write_labels(folder, kept, annotate)
    cost, runtime = total_cost(folder.child(GENERATIONS))
    counts |= {"questions": kept.num_rows, "generations": int(cost["generations"])}
    counts |= {"engine_seconds": round(cost["seconds"], 3), "set_aside": count_set_aside_by_store(set_aside), **runtime}
    return complete_step(
        folder, WORDING, identity, settings=config, inputs=inputs, counts=counts, started_at=started_at
    )


def _write_labels(folder: Folder, questions: pa.Table, annotate: AnnotateConfig) -> None:
    """Write knowledge.parquet from the stored answers."""
    scoring = Scoring(
        matcher=annotate.matcher,
        num_exemplar_sets=annotate.num_exemplar_sets,
        num_samples=annotate.sampling.num_samples,
    )
    evidence = collect_evidence(read_parts(folder.child(GENERATIONS)), scoring)
    folder.write_table("knowledge.parquet", knowledge_table(questions, evidence.rows))


def read_templates(study: Folder) -> dict[str, str]:
    """The second templates of a finished wording step, by relation."""
    require_manifest(study.child(WORDING), WORDING)
    return load_rewordings(study.child(WORDING).child(TEMPLATES_FILE).uri)


def _annotate_settings(study: Folder, labels: Manifest) -> AnnotateConfig:
    """The settings of the labels.

    Raises:
        StudyError: they are unknown, or such labels cannot be repeated.
    """
    where = study.child("annotate").uri
    try:
        config: AnnotateConfig = convert(labels.settings, AnnotateConfig, "settings")
    except MismatchError as error:
        raise StudyError(f"{where}/manifest.json: {error}; annotate again with this version") from error
    if config.estimator == "gold" or config.matcher == JUDGE:
        reason = "the estimator gold" if config.estimator == "gold" else "a judge"
        raise StudyError(
            f"the labels in {where} are by {reason}, which the second wording does not support; use labels from "
            "sampled answers with another matcher"
        )
    return config


def _select(study: Folder, config: WordingConfig, templates: dict[str, str]) -> tuple[pa.Table, dict[str, Any]]:
    """The labelled questions to ask again, in their first wording, and how many have no second one, by reason."""
    questions = read_questions(study, [*QUESTION_SCHEMA.names, CONTEXT_FIELD.name])
    knowledge = read_knowledge(study, ["question_id", "category"])
    rows = lookup_by_question(questions, range(questions.num_rows), f"{study}/questions")
    labelled = questions.take([rows[question_id] for question_id in knowledge["question_id"].to_pylist()])
    labelled = labelled.append_column("category", knowledge["category"])
    known = read_exemplars(study.child("annotate"))
    reworded = set(reword_questions(questions, templates)["question_id"].to_pylist())
    usable = {
        relation for relation, sets in known.items() if {question_id for ids in sets for question_id in ids} <= reworded
    }
    is_usable = [
        question_id in reworded and relation in usable
        for question_id, relation in zip(
            labelled["question_id"].to_pylist(), labelled["relation"].to_pylist(), strict=True
        )
    ]
    left_out = Counter(labelled.filter(pa.array([not usable for usable in is_usable]))["relation"].to_pylist())
    labelled = labelled.filter(pa.array(is_usable, pa.bool_()))
    if not labelled.num_rows:
        raise DataError(
            f"no question of {study} has a second wording: a question needs its subject, and its relation a second "
            "template; name templates by --templates"
        )
    selected = sample_by_hash(labelled, config.questions_per_category, ("relation", "category"))
    if left_out:
        _LOG.info(
            "second wording: %s questions of %s have none, because their subject, or the template of their relation, "
            "is missing",
            f"{left_out.total():,}",
            ", ".join(sorted(left_out)[:5]) + (", ..." if len(left_out) > 5 else ""),
        )
    return selected, {"without_second_wording": dict(sorted(left_out.items()))}


def _with_prompts(
    study: Folder, annotate: AnnotateConfig, model: str, selected: pa.Table, templates: dict[str, str]
) -> tuple[PromptBuilder, pa.Table]:
    """The builder of the prompts, whose exemplars are reworded, and the selected questions, reworded, with prompts."""
    exemplars = read_exemplars(study.child("annotate"))
    relations = set(selected["relation"].to_pylist())
    exemplars = {
        relation: sets[: annotate.num_exemplar_sets] for relation, sets in exemplars.items() if relation in relations
    }
    questions = reword_questions(read_questions(study, [*QUESTION_SCHEMA.names, CONTEXT_FIELD.name]), templates)
    builder = PromptBuilder(
        exemplars,
        exemplar_texts(questions, exemplars, f"{study}/annotate/exemplars.json"),
        resolve_prompt_format(model, annotate),
        substitute=annotate.annotate_exemplars,
        seed=annotate.seed,
    )
    return builder, builder.add_prompts(reword_questions(selected, templates))


def _worker_config(folder: Folder, builder: PromptBuilder, model: str, annotate: AnnotateConfig) -> WorkerConfig:
    style = resolve_prompt_format(model, annotate).style
    answers = AnswerSetSpec(prefixes=builder.prefixes, sampling=annotate.sampling, style=style)
    return WorkerConfig(
        engine=annotate.engine,
        engine_config=annotate.engine_config(model),
        mode=annotate.mode,
        matcher=annotate.matcher,
        stores={GENERATIONS: answers},
        folder=folder,
    )
