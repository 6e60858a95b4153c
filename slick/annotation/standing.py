"""How far an annotation is, store by store, by the settings it was begun with and the files that are there. No Ray."""

from dataclasses import dataclass

import pyarrow as pa

from slick.annotation.config import CONTROLS, GENERATIONS, GOLD, REPEATS, AnnotateConfig, Estimator, Scope
from slick.annotation.controls import control_questions
from slick.annotation.generations import asked_questions, first_by_hash
from slick.annotation.score import P_TRUE, questions_to_score
from slick.annotation.set_aside import labelled_questions, read_set_aside
from slick.errors import StudyError
from slick.questions import read_questions
from slick.storage import Folder
from slick.stored_files import MismatchError, convert
from slick.study import STARTED, read_started
from slick.study_files import read_exemplars

MAIN = "main"
"""Stands for the store of the labels, whichever the estimator writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Questions of one store."""

    num: int
    """That were asked."""
    wanted: int
    """In all, without those that are set aside."""
    set_aside: int = 0
    """With a prompt that is too long for the model, so that they are not asked."""


def asked_so_far(study: Folder) -> dict[str, Asked]:
    """Questions asked of each store of the labels: `MAIN`, and `repeats` and `controls` where there are any.

    Args:
        study: its folder; nothing is found before the exemplars are drawn.

    Raises:
        StudyError: the questions step is not finished.
    """
    folder = study.child("annotate")
    settings = _begun_with(folder)
    if settings is None or not folder.exists("exemplars.json"):
        return {}
    asked = asked_questions(
        read_questions(study),
        dev=settings.annotate_dev,
        exemplars=read_exemplars(folder),
        limit=settings.limit_per_relation,
    )
    store = GOLD if settings.estimator == "gold" else GENERATIONS
    found = {MAIN: _asked(folder, store, asked.num_rows)}
    for name, wanted in _checks(labelled_questions(folder, asked), settings).items():
        if wanted:
            found[name] = _asked(folder, name, wanted)
    return found


def _asked(folder: Folder, store: str, num_questions: int) -> Asked:
    set_aside = read_set_aside(folder, store).num_rows
    return Asked(num=_rows(folder.child(store)), wanted=num_questions - set_aside, set_aside=set_aside)


def scored_so_far(study: Folder) -> Asked | None:
    """Questions that P(True) was asked of; None where it was not begun.

    Args:
        study: with finished labels, since P(True) comes after them.
    """
    folder = study.child("annotate", P_TRUE)
    settings = _begun_with(folder)
    if settings is None:
        return None
    config = AnnotateConfig(
        limit_per_relation=settings.limit_per_relation,
        p_true_of=settings.p_true_of,
        annotate_dev=settings.annotate_dev,
    )
    return _asked(study.child("annotate"), P_TRUE, questions_to_score(study, config).num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _BegunWith:
    """The settings of an annotation, or of P(True), that say which questions are asked."""

    annotate_dev: bool = False
    limit_per_relation: int | None = None
    estimator: Estimator = "sampled"
    repeats_per_relation: int = 0
    controls_per_relation: int = 0
    seed: int = 0
    p_true_of: Scope = "test"


def _begun_with(folder: Folder) -> _BegunWith | None:
    """The settings in started.json; None if the folder was not begun.

    Raises:
        StudyError: one of them is of another type.
    """
    started = read_started(folder)
    if started is None:
        return None
    try:
        settings: _BegunWith = convert(started.settings, _BegunWith, "settings")
    except MismatchError as error:
        raise StudyError(
            f"{folder}/{STARTED}: {error}; it was changed: restore it, or delete that folder and run `slick annotate` "
            "again"
        ) from error
    return settings


def _checks(asked: pa.Table, settings: _BegunWith) -> dict[str, int]:
    """How many questions check the labels: asked again, and of subjects nobody knows."""
    again, unknown = settings.repeats_per_relation, settings.controls_per_relation
    found = {}
    if again and settings.estimator == "sampled":
        found[REPEATS] = first_by_hash(asked, again, ("relation",)).num_rows
    if unknown:
        found[CONTROLS] = control_questions(asked, unknown, settings.seed).num_rows
    return found


def _rows(folder: Folder) -> int:
    return sum(folder.num_rows(name) for name in folder.names(".parquet"))
