"""The progress of an annotation and of P(True), from their settings and part files. No Ray."""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from slick.annotation.config import (
    CONTROLS,
    GENERATIONS,
    GOLD,
    REPEATS,
    AnnotateConfig,
    Estimator,
    PTrueScope,
)
from slick.annotation.controls import draw_controls
from slick.annotation.p_true import P_TRUE_FOLDER, questions_to_score
from slick.annotation.selection import Selection, labelled_questions
from slick.annotation.set_aside import read_set_aside
from slick.annotation.store import sample_by_hash
from slick.errors import StudyError
from slick.storage import Folder
from slick.stored_files import MismatchError, convert
from slick.study import STARTED, read_start_record
from slick.study_files import EXEMPLARS_FILE, read_exemplars

MAIN_ANSWERS = "main"
"""Name of the store behind the labels, for either estimator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerProgress:
    """Numbers of questions of one store."""

    num: int
    """Questions with answers."""
    expected: int
    """All questions, without those that are set aside."""
    set_aside: int = 0
    """Questions that are not annotated, because a prompt exceeds the model's context."""


def annotation_progress(study: Folder) -> dict[str, AnswerProgress]:
    """Progress by store: `MAIN_ANSWERS`, and `repeats` and `controls` if there are any.

    Args:
        study: its folder; the result is empty until the exemplars are drawn.

    Raises:
        StudyError: the questions step is not finished.
    """
    folder = study.child("annotate")
    settings = _read_started_settings(folder)
    if settings is None or not folder.exists(EXEMPLARS_FILE):
        return {}
    expected: Counter[str] = Counter()
    selection = Selection(
        study=study,
        exemplars=read_exemplars(folder),
        annotate_dev=settings.annotate_dev,
        annotate_exemplars=settings.annotate_exemplars,
        limit_per_relation=settings.limit_per_relation,
    )
    for relation in selection.relations():
        questions = selection.questions(relation)
        expected[MAIN_ANSWERS] += questions.num_rows
        expected.update(_count_check_questions(labelled_questions(folder, questions), settings))
    store = GOLD if settings.estimator == "gold" else GENERATIONS
    return {
        name: _answer_progress(folder, store if name == MAIN_ANSWERS else name, num)
        for name, num in expected.items()
        if num or name == MAIN_ANSWERS
    }


def _answer_progress(folder: Folder, store: str, num_questions: int) -> AnswerProgress:
    set_aside = read_set_aside(folder, store).num_rows
    return AnswerProgress(num=_count_rows(folder.child(store)), expected=num_questions - set_aside, set_aside=set_aside)


def p_true_progress(study: Folder) -> AnswerProgress | None:
    """Progress of P(True); None if it is not started.

    Args:
        study: with finished labels, which P(True) follows.
    """
    folder = study.child("annotate", P_TRUE_FOLDER)
    settings = _read_started_settings(folder)
    if settings is None:
        return None
    config = AnnotateConfig(
        limit_per_relation=settings.limit_per_relation,
        p_true_of=settings.p_true_of,
        annotate_dev=settings.annotate_dev,
        annotate_exemplars=settings.annotate_exemplars,
    )
    return _answer_progress(study.child("annotate"), P_TRUE_FOLDER, questions_to_score(study, config).num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StartedSettings:
    """Settings of an annotation, or of P(True), that determine its questions."""

    annotate_dev: bool = False
    annotate_exemplars: bool = False
    limit_per_relation: int | None = None
    estimator: Estimator = "sampled"
    repeats_per_relation: int = 0
    controls_per_relation: int = 0
    seed: int = 0
    p_true_of: PTrueScope = "test"


def _read_started_settings(folder: Folder) -> _StartedSettings | None:
    """The settings in started.json; None if there is no such file.

    Raises:
        StudyError: one of them has another type.
    """
    started = read_start_record(folder)
    if started is None:
        return None
    try:
        settings: _StartedSettings = convert(started.settings, _StartedSettings, "settings")
    except MismatchError as error:
        raise StudyError(
            f"{folder}/{STARTED}: {error}; the file was edited: restore it, or delete that folder and run `slick "
            "annotate` again"
        ) from error
    return settings


def _count_check_questions(questions: pa.Table, settings: _StartedSettings) -> dict[str, int]:
    """Number of questions per store that checks the labels."""
    counts = {}
    if settings.repeats_per_relation and settings.estimator == "sampled":
        counts[REPEATS] = sample_by_hash(questions, settings.repeats_per_relation, ("relation",)).num_rows
    if settings.controls_per_relation:
        counts[CONTROLS] = draw_controls(questions, settings.controls_per_relation).num_rows
    return counts


def _count_rows(folder: Folder) -> int:
    return sum(folder.num_rows(name) for name in folder.names(".parquet"))
