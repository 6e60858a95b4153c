"""The P(True) part of the annotate step: scored beside the labels, also of a study annotated long ago.

It has a folder and a manifest of its own inside annotate/, so that it changes nothing of what the labels are.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slick.annotation.config import AnnotateConfig
from slick.annotation.dispatch import annotate_missing
from slick.annotation.set_aside import (
    check_set_aside_share,
    count_set_aside_by_store,
    drop_questions,
    labelled_questions,
    set_questions_aside,
)
from slick.annotation.store import select_questions, total_cost
from slick.annotation.worker import AnswerSetSpec, WorkerConfig
from slick.datasets import read_questions
from slick.errors import StudyError
from slick.formatting import format_percent
from slick.inference.base import DEFAULT_ENGINE, EngineConfig, SamplingConfig
from slick.prompts import P_TRUE_CHOICES, P_TRUE_PREFIX, p_true_suffix
from slick.settings import P_TRUE_IDENTITY, identity_settings
from slick.storage import Folder, FolderLike, as_folder
from slick.study import Manifest, begin_step, complete_step, fingerprint, read_manifest, require_manifest
from slick.study_files import read_exemplars, read_p_true_rows

P_TRUE_FOLDER: Final = "p_true"
"""The folder inside annotate/."""


def check_same_model(study: Folder, fingerprint_now: str) -> None:
    """Refuse to score with another model than the one whose labels the study holds.

    Raises:
        StudyError: the two differ.
    """
    labelled = read_manifest(study.child("annotate"))
    if labelled is not None and labelled.input("model") != fingerprint_now:
        raise StudyError(
            f"{study.child('annotate').uri} holds labels of the model with fingerprint {labelled.inputs['model']}; "
            f"P(True) is wanted of the one with {fingerprint_now}, and would say nothing about those labels: give the "
            "same --model, or another --out"
        )


def score_p_true(study: Folder, config: AnnotateConfig, inputs: Mapping[str, str]) -> Manifest:
    """Write annotate/p_true/ from the same model and questions as the labels; nothing if it is there.

    Args:
        study: with finished labels.
        config: which questions, and how the work is spread; the model is driven by transformers, whatever the engine.
        inputs: fingerprints of model and questions, as the labels have them.

    Returns:
        Its manifest, with what was spent and how P(True) is distributed.

    Raises:
        StudyError: the folder holds P(True) of other settings.
        DataError: too many questions are too long for the model's context.
        EngineError: a question could not be scored. What was written stays, and a further run goes on from there.
    """
    from slick.models import resolve_study_model

    started_at = time.monotonic()
    folder = study.child("annotate", P_TRUE_FOLDER)
    settings = identity(config)
    mark = fingerprint(dict(inputs), settings)
    if not begin_step(folder, "P(True)", mark, settings):
        return require_manifest(folder, "annotate")
    table = questions_to_score(study, config)
    asker = _worker_config(study.child("annotate"), table, resolve_study_model(study, config.model), config)
    set_aside = set_questions_aside({P_TRUE_FOLDER: table}, asker)
    check_set_aside_share(
        set_aside[P_TRUE_FOLDER], table.num_rows, config.max_set_aside_share, asker.folder, P_TRUE_FOLDER
    )
    annotate_missing(
        "P(True)",
        {P_TRUE_FOLDER: table},
        asker,
        config,
        lambda _, spent, seconds: f"{spent['prompt_tokens'] / seconds:,.0f} prompt tokens/s",
        set_aside,
    )
    counts = _counts(folder, drop_questions(table, set_aside[P_TRUE_FOLDER])) | {
        "set_aside": count_set_aside_by_store(set_aside)
    }
    _print_summary(counts)
    return complete_step(
        folder, P_TRUE_FOLDER, mark, settings=settings, inputs=dict(inputs), counts=counts, started_at=started_at
    )


def identity(config: AnnotateConfig) -> dict[str, Any]:
    """The settings that change what is scored; none of them those of the labels alone."""
    settings = identity_settings(config, P_TRUE_IDENTITY)
    if config.p_true_of == "all":
        settings["annotate_dev"] = config.annotate_dev
    return {
        **settings,
        "prompt": P_TRUE_PREFIX + p_true_suffix("[question]", "[gold answer]"),
        "choices": list(P_TRUE_CHOICES),
    }


def questions_to_score(study: Folder, config: AnnotateConfig) -> pa.Table:
    """Those of the labelled questions that P(True) is wanted of."""
    asked = select_questions(
        read_questions(study),
        dev=config.annotate_dev,
        exemplars=read_exemplars(study.child("annotate")),
        limit=config.limit_per_relation,
    )
    asked = labelled_questions(study.child("annotate"), asked)
    if config.p_true_of == "all":
        return asked
    return asked.filter(pc.and_(pc.equal(asked["domain"], "id"), pc.equal(asked["split"], "test")))


def read_p_true(study: FolderLike) -> pa.Table:
    """All rows, sorted by question_id; see `slick.prompts.P_TRUE_SCHEMA`.

    Raises:
        StudyError: nothing was scored yet.
    """
    return read_p_true_rows(as_folder(study).child("annotate", P_TRUE_FOLDER)).sort_by("question_id")


def _worker_config(folder: Folder, table: pa.Table, model: str, config: AnnotateConfig) -> WorkerConfig:
    prefixes = {relation: [P_TRUE_PREFIX] for relation in table["relation"].unique().to_pylist()}
    answer = SamplingConfig(num_samples=0, max_new_tokens=max(len(f" {choice}".encode()) for choice in P_TRUE_CHOICES))
    return WorkerConfig(
        engine=DEFAULT_ENGINE,
        engine_config=EngineConfig(
            model=model,
            dtype=config.dtype,
            batch_questions=config.batch_questions,
            trust_remote_code=config.trust_remote_code,
        ),
        mode="full",
        matcher="exact",
        stores={P_TRUE_FOLDER: AnswerSetSpec(prefixes=prefixes, sampling=answer, kind=P_TRUE_FOLDER)},
        folder=folder,
    )


def _counts(folder: Folder, table: pa.Table) -> dict[str, Any]:
    rows = read_p_true_rows(folder)
    scored, wanted = Counter(rows["question_id"].to_pylist()), Counter(table["question_id"].to_pylist())
    if scored != wanted:
        raise StudyError(
            f"{folder} holds scores of {scored.total():,} questions, of which {(scored - wanted).total():,} are not to "
            f"be scored or are there twice, and lacks {(wanted - scored).total():,} of {wanted.total():,}; delete "
            f"{folder} and run `slick annotate --p-true` again"
        )
    spent, runtime = total_cost(folder)
    counts: dict[str, Any] = {"questions": rows.num_rows}
    counts |= {name: int(spent[name]) for name in ("prompt_tokens", "prefilled_tokens", "decoded_tokens")}
    counts |= {"engine_seconds": round(spent["seconds"], 3), **runtime}
    if rows.num_rows:
        p_true, p_a, p_b = (rows[name].to_numpy() for name in ("p_true", "p_a", "p_b"))
        tenths = (0, 10, 25, 50, 75, 90, 100)
        counts["percentiles"] = dict(
            zip(map(str, tenths), np.percentile(p_true, tenths).round(4).tolist(), strict=True)
        )
        counts["mean_of_both_choices"] = float(f"{(p_a + p_b).mean():.3g}")
    return counts


def _print_summary(counts: Mapping[str, Any]) -> None:
    if not counts["questions"]:
        print("P(True): there are no ID test questions to score", flush=True)
        return
    of = counts["percentiles"]
    print(
        f"P(True) of {counts['questions']:,} gold answers: median {of['50']:.3f}, {of['10']:.3f} to {of['90']:.3f} for "
        f"the middle 80 %; (A) and (B) together have {format_percent(counts['mean_of_both_choices'], '.2g')} of the "
        "probability.",
        flush=True,
    )
