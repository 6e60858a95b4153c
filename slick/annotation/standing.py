"""How far an annotation is, store by store, by the settings it was begun with and the files that are there. No Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from slick.annotation.config import CONTROLS, GENERATIONS, GOLD, REPEATS, AnnotateConfig
from slick.annotation.controls import control_questions
from slick.annotation.generations import asked_questions, first_by_hash
from slick.annotation.score import P_TRUE, questions_to_score
from slick.annotation.set_aside import labelled_questions, read_set_aside
from slick.questions import read_questions
from slick.storage import Folder
from slick.study import STARTED

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
    if not folder.exists("exemplars.json") or not folder.exists(STARTED):
        return {}
    settings = folder.read_json(STARTED)["settings"]
    asked = asked_questions(
        read_questions(study),
        dev=settings["annotate_dev"],
        exemplars=folder.read_json("exemplars.json"),
        limit=settings["limit_per_relation"],
    )
    store = GOLD if settings.get("estimator") == "gold" else GENERATIONS
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
    if not folder.exists(STARTED):
        return None
    settings = folder.read_json(STARTED)["settings"]
    config = AnnotateConfig(
        limit_per_relation=settings["limit_per_relation"],
        p_true_of=settings["p_true_of"],
        annotate_dev=settings.get("annotate_dev", False),
    )
    return _asked(study.child("annotate"), P_TRUE, questions_to_score(study, config).num_rows)


def _checks(asked: pa.Table, settings: Mapping[str, Any]) -> dict[str, int]:
    """How many questions check the labels: asked again, and of subjects nobody knows."""
    again, unknown = settings.get("repeats_per_relation", 0), settings.get("controls_per_relation", 0)
    found = {}
    if again and settings.get("estimator", "sampled") == "sampled":
        found[REPEATS] = first_by_hash(asked, again, ("relation",)).num_rows
    if unknown:
        found[CONTROLS] = control_questions(asked, unknown, settings["seed"]).num_rows
    return found


def _rows(folder: Folder) -> int:
    return sum(folder.num_rows(name) for name in folder.names(".parquet"))
