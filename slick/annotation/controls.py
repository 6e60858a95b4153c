"""Control questions: about invented subjects, with the gold answers of a real one. A correct answer is a guess."""

from collections.abc import Callable, Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from slick.annotation.store import sample_by_hash
from slick.matching import nfc
from slick.rng import derive_seed
from slick.world.facts import NameGenerator, subject_kind

CONTROL_PREFIX = "control-"
"""Begins the question_id of a control question, before that of the question it was made of."""


def control_questions(questions: pa.Table, per_relation: int, seed: int) -> pa.Table:
    """Questions of each relation with an invented subject and unchanged gold answers.

    Questions without their subject in the text are not used.
    """
    return invent_subjects(
        draw_controls(questions, per_relation), seed, lambda names: find_names(questions["question"], names)
    )


def draw_controls(questions: pa.Table, per_relation: int) -> pa.Table:
    """The questions of each relation that become control questions, by a hash of their ids, with their new ids."""
    texts = (questions[name].to_pylist() for name in ("subject", "question"))
    has_subject = [bool(subject) and nfc(subject) in nfc(question) for subject, question in zip(*texts, strict=True)]
    drawn = sample_by_hash(questions.filter(pa.array(has_subject, pa.bool_())), per_relation, ("relation",))
    ids = pa.array([f"{CONTROL_PREFIX}{question_id}" for question_id in drawn["question_id"].to_pylist()], pa.string())
    return drawn.set_column(drawn.column_names.index("question_id"), drawn.schema.field("question_id"), ids)


def invent_subjects(controls: pa.Table, seed: int, find_used: Callable[[Sequence[str]], Collection[str]]) -> pa.Table:
    """Control questions with an invented subject in the place of the real one.

    Args:
        controls: drawn questions of all relations.
        seed: random seed of the names.
        find_used: returns those of the names that occur in a question of the study; they are replaced.
    """
    rows = controls.to_pylist()
    used: set[str] = set()
    checked: set[str] = set()
    while True:
        generator = NameGenerator(derive_seed(seed, "controls"))
        names = []
        for row in rows:
            name = generator.draw(subject_kind(row["relation"]))
            while name in used:
                name = generator.draw(subject_kind(row["relation"]))
            names.append(name)
        found = find_used([name for name in names if name not in checked])
        if not found:
            break
        checked.update(names)
        used.update(found)
    for row, name in zip(rows, names, strict=True):
        row["question"] = nfc(row["question"]).replace(nfc(row["subject"]), name)
        row["subject"] = name
    return pa.Table.from_pylist(rows, schema=controls.schema)


def find_names(questions: pa.ChunkedArray, names: Sequence[str]) -> list[str]:
    """The names that occur in one of the texts."""
    return [name for name in names if pc.any(pc.match_substring(questions, name), min_count=0).as_py()]
