"""Checks of the labels themselves: questions asked again, and questions about subjects that nobody knows. No Ray."""

from collections import Counter
from typing import Any

import pyarrow as pa

from slick.annotation.generations import sample_by_hash
from slick.draws import derive_seed
from slick.matching import nfc
from slick.types import Category
from slick.world.facts import subject_kind
from slick.world.names import NameGenerator


def control_questions(asked: pa.Table, per_relation: int, seed: int) -> pa.Table:
    """Questions of each relation with an invented subject in place of the real one, and the gold answers they had.

    What a model answers right here it has guessed. Questions without a subject in their text serve no control.
    """
    names = NameGenerator(derive_seed(seed, "controls"))
    known = " ".join(asked["question"].to_pylist())
    has_subject = [
        bool(subject) and nfc(subject) in nfc(question)
        for subject, question in zip(asked["subject"].to_pylist(), asked["question"].to_pylist(), strict=True)
    ]
    rows = sample_by_hash(asked.filter(pa.array(has_subject, pa.bool_())), per_relation, ("relation",)).to_pylist()
    for row in rows:
        name = names.draw(subject_kind(row["relation"]))
        while name in known:
            name = names.draw(subject_kind(row["relation"]))
        row["question"] = nfc(row["question"]).replace(nfc(row["subject"]), name)
        row["subject"] = name
        row["question_id"] = f"control-{row['question_id']}"
    return pa.Table.from_pylist(rows, schema=asked.schema)


def category_flips(first: pa.Table, again: pa.Table) -> dict[str, Any]:
    """How many questions have another category in the second knowledge table, by their category in the first."""
    categories = dict(zip(first["question_id"].to_pylist(), first["category"].to_pylist(), strict=True))
    pairs = Counter(
        (categories[question_id], category)
        for question_id, category in zip(again["question_id"].to_pylist(), again["category"].to_pylist(), strict=True)
    )
    flipped = sum(num for (one, other), num in pairs.items() if one != other)
    return {
        "questions": again.num_rows,
        "flipped": flipped,
        "flip_rate": round(flipped / again.num_rows, 4),
        "from_to": {str(one): {str(other): pairs[str(one), str(other)] for other in Category} for one in Category},
    }
