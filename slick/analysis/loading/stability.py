"""annotate/confidence.json and the knowledge table, as how firm the labels are. What is not as written is an error."""

from dataclasses import replace
from typing import Annotated, NotRequired, TypedDict, TypeVar

import numpy as np

from slick.analysis.stability import Stability, Step
from slick.errors import StudyError
from slick.storage import Folder
from slick.stored_files import Count, Minimum, read_record
from slick.study import read_manifest
from slick.study_files import read_knowledge
from slick.types import Category

FILE = "confidence.json"
T = TypeVar("T")


def load_stability(study: Folder) -> Stability | None:
    """What the annotation says of its own labels; None where it is not finished or has not said it.

    Raises:
        StudyError: confidence.json is broken, or was written by another version.
    """
    folder = study.child("annotate")
    if read_manifest(folder) is None or not folder.exists(FILE):
        return None
    confidence = read_record(folder, FILE, Confidence, _REMEDY)
    try:
        stability = parse(confidence)
    except ValueError as error:
        raise StudyError(f"{folder}/{FILE}: {error}; {_REMEDY}") from error
    chance, num = _chance_known(study)
    return replace(stability, chance_known=chance, num_unknown=num)


_REMEDY = "annotate again with --rescore, which writes it anew from the stored answers"

ByCategory = dict[Category, Count]
"""Questions of each category."""


class SettlingStep(TypedDict):
    """The labels by a part of the answers."""

    exemplar_sets: Annotated[int, Minimum(1)]
    samples: Annotated[int, Minimum(1)]
    categories: ByCategory


class Repeats(TypedDict):
    """Questions that were asked again."""

    questions: Count
    flipped: Count
    from_to: dict[Category, ByCategory]


class Controls(TypedDict):
    """Questions about invented subjects, by relation and split."""

    questions: Count
    categories: dict[str, dict[str, ByCategory]]


class Confidence(TypedDict):
    """confidence.json."""

    settling: list[SettlingStep]
    repeats: NotRequired[Repeats]
    controls: NotRequired[Controls]


def parse(confidence: Confidence) -> Stability:
    """The content of confidence.json.

    Raises:
        ValueError: its numbers contradict each other.
    """
    steps = tuple(_step(step, i) for i, step in enumerate(confidence["settling"]))
    totals = {sum(step.categories.values()) for step in steps}
    if len(totals) > 1:
        raise ValueError(f"settling has steps of {sorted(totals)} questions, wanted as many in each")
    if len({(step.exemplar_sets, step.samples) for step in steps}) < len(steps):
        raise ValueError("settling has two steps for the same exemplar sets and samples")
    return Stability(
        steps=steps,
        from_to=_repeats(confidence["repeats"]) if "repeats" in confidence else None,
        controls=_controls(confidence["controls"]) if "controls" in confidence else None,
    )


def _step(step: SettlingStep, place: int) -> Step:
    categories = _all_four(step["categories"], f"settling[{place}]")
    if not sum(categories.values()):
        raise ValueError(f"settling[{place}] has no questions")
    return Step(exemplar_sets=step["exemplar_sets"], samples=step["samples"], categories=categories)


def _repeats(repeats: Repeats) -> dict[tuple[Category, Category], int]:
    rows = _all_four(repeats["from_to"], "repeats.from_to")
    pairs = {
        (one, other): num
        for one, row in rows.items()
        for other, num in _all_four(row, f"repeats.from_to.{one}").items()
    }
    flipped = sum(num for (one, other), num in pairs.items() if one != other)
    if repeats["questions"] != sum(pairs.values()):
        raise ValueError(f"repeats.questions is {repeats['questions']}, repeats.from_to has {sum(pairs.values())}")
    if repeats["flipped"] != flipped:
        raise ValueError(f"repeats.flipped is {repeats['flipped']}, repeats.from_to has {flipped}")
    return pairs


def _controls(controls: Controls) -> dict[Category, int]:
    total = dict.fromkeys(Category, 0)
    for relation, of_split in controls["categories"].items():
        for split, counts in of_split.items():
            for category, num in _all_four(counts, f"controls.categories.{relation}.{split}").items():
                total[category] += num
    if controls["questions"] != sum(total.values()):
        raise ValueError(f"controls.questions is {controls['questions']}, its categories have {sum(total.values())}")
    return total


def _all_four(by_category: dict[Category, T], place: str) -> dict[Category, T]:
    """In the order of the categories."""
    if len(by_category) < len(Category):
        raise ValueError(f"{place} has {', '.join(by_category) or 'nothing'}, wanted {', '.join(Category)}")
    return {category: by_category[category] for category in Category}


def _chance_known(study: Folder) -> tuple[float | None, int]:
    """Mean chance that an Unknown question is merely rare, and of how many; None where the table does not tell."""
    table = read_knowledge(study, ["category", "chance_known"])
    if "chance_known" not in table.column_names:
        return None, 0
    pairs = zip(table["category"].to_pylist(), table["chance_known"].to_pylist(), strict=True)
    chances = [chance for category, chance in pairs if category == Category.UNKNOWN and chance is not None]
    return (float(np.mean(chances)), len(chances)) if chances else (None, 0)
