"""How far an annotation is, store by store, by the settings it was begun with and the files that are there. No Ray."""

from dataclasses import dataclass

import pyarrow as pa

from slick.annotation.config import CONTROLS, GENERATIONS, GOLD, REPEATS, AnnotateConfig, Estimator, PTrueScope
from slick.annotation.labels import control_questions
from slick.annotation.p_true import P_TRUE_FOLDER, questions_to_score
from slick.annotation.set_aside import labelled_questions, read_set_aside
from slick.annotation.store import sample_by_hash, select_questions
from slick.datasets import read_questions
from slick.errors import StudyError
from slick.storage import Folder
from slick.stored_files import MismatchError, convert
from slick.study import STARTED, read_start_record
from slick.study_files import read_exemplars

MAIN_ANSWERS = "main"
"""Stands for the store of the labels, whichever the estimator writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerProgress:
    """Questions of one store."""

    num: int
    """That were asked."""
    expected: int
    """In all, without those that are set aside."""
    set_aside: int = 0
    """With a prompt that is too long for the model, so that they are not asked."""


def annotation_progress(study: Folder) -> dict[str, AnswerProgress]:
    """Questions asked of each store of the labels: `MAIN_ANSWERS`, and `repeats` and `controls` where there are any.

    Args:
        study: its folder; nothing is found before the exemplars are drawn.

    Raises:
        StudyError: the questions step is not finished.
    """
    folder = study.child("annotate")
    settings = _read_started_settings(folder)
    if settings is None or not folder.exists("exemplars.json"):
        return {}
    asked = select_questions(
        read_questions(study),
        dev=settings.annotate_dev,
        exemplars=read_exemplars(folder),
        limit=settings.limit_per_relation,
    )
    store = GOLD if settings.estimator == "gold" else GENERATIONS
    found = {MAIN_ANSWERS: _answer_progress(folder, store, asked.num_rows)}
    for name, expected in _count_check_questions(labelled_questions(folder, asked), settings).items():
        if expected:
            found[name] = _answer_progress(folder, name, expected)
    return found


def _answer_progress(folder: Folder, store: str, num_questions: int) -> AnswerProgress:
    set_aside = read_set_aside(folder, store).num_rows
    return AnswerProgress(num=_count_rows(folder.child(store)), expected=num_questions - set_aside, set_aside=set_aside)


def p_true_progress(study: Folder) -> AnswerProgress | None:
    """Questions that P(True) was asked of; None where it was not begun.

    Args:
        study: with finished labels, since P(True) comes after them.
    """
    folder = study.child("annotate", P_TRUE_FOLDER)
    settings = _read_started_settings(folder)
    if settings is None:
        return None
    config = AnnotateConfig(
        limit_per_relation=settings.limit_per_relation,
        p_true_of=settings.p_true_of,
        annotate_dev=settings.annotate_dev,
    )
    return _answer_progress(study.child("annotate"), P_TRUE_FOLDER, questions_to_score(study, config).num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StartedSettings:
    """The settings of an annotation, or of P(True), that say which questions are asked."""

    annotate_dev: bool = False
    limit_per_relation: int | None = None
    estimator: Estimator = "sampled"
    repeats_per_relation: int = 0
    controls_per_relation: int = 0
    seed: int = 0
    p_true_of: PTrueScope = "test"


def _read_started_settings(folder: Folder) -> _StartedSettings | None:
    """The settings in started.json; None if the folder was not begun.

    Raises:
        StudyError: one of them is of another type.
    """
    started = read_start_record(folder)
    if started is None:
        return None
    try:
        settings: _StartedSettings = convert(started.settings, _StartedSettings, "settings")
    except MismatchError as error:
        raise StudyError(
            f"{folder}/{STARTED}: {error}; it was changed: restore it, or delete that folder and run `slick annotate` "
            "again"
        ) from error
    return settings


def _count_check_questions(asked: pa.Table, settings: _StartedSettings) -> dict[str, int]:
    """How many questions check the labels: asked again, and of subjects nobody knows."""
    again, unknown = settings.repeats_per_relation, settings.controls_per_relation
    found = {}
    if again and settings.estimator == "sampled":
        found[REPEATS] = sample_by_hash(asked, again, ("relation",)).num_rows
    if unknown:
        found[CONTROLS] = control_questions(asked, unknown, settings.seed).num_rows
    return found


def _count_rows(folder: Folder) -> int:
    return sum(folder.num_rows(name) for name in folder.names(".parquet"))
