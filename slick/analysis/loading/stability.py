"""annotate/confidence.json and the knowledge table, as how firm the labels are. What is not as written is an error."""

from dataclasses import replace
from typing import Annotated, NotRequired, TypedDict, TypeVar

import numpy as np

from slick.analysis.stability import LabelStability, SubsampledLabels
from slick.errors import StudyError
from slick.storage import Folder
from slick.stored_files import Count, Minimum, read_record
from slick.study import read_manifest
from slick.study_files import read_knowledge
from slick.types import Category

CONFIDENCE_FILE = "confidence.json"
T = TypeVar("T")


def load_stability(study: Folder) -> LabelStability | None:
    """What the annotation says of its own labels; None where it is not finished or has not said it.

    Raises:
        StudyError: confidence.json is broken, or was written by another version.
    """
    folder = study.child("annotate")
    if read_manifest(folder) is None or not folder.exists(CONFIDENCE_FILE):
        return None
    confidence = read_record(folder, CONFIDENCE_FILE, ConfidenceRecord, _REMEDY)
    try:
        stability = parse_confidence(confidence)
    except ValueError as error:
        raise StudyError(f"{folder}/{CONFIDENCE_FILE}: {error}; {_REMEDY}") from error
    chance, num = _mean_chance_known(study)
    return replace(stability, chance_known=chance, num_unknown=num)


_REMEDY = "annotate again with --rescore, which writes it anew from the stored answers"

CountsByCategory = dict[Category, Count]
"""Questions of each category."""


class SettlingRecord(TypedDict):
    """The labels by a part of the answers."""

    exemplar_sets: Annotated[int, Minimum(1)]
    samples: Annotated[int, Minimum(1)]
    categories: CountsByCategory


class RepeatsRecord(TypedDict):
    """Questions that were asked again."""

    questions: Count
    flipped: Count
    from_to: dict[Category, CountsByCategory]


class ControlsRecord(TypedDict):
    """Questions about invented subjects, by relation and split."""

    questions: Count
    categories: dict[str, dict[str, CountsByCategory]]


class ConfidenceRecord(TypedDict):
    """confidence.json."""

    settling: list[SettlingRecord]
    repeats: NotRequired[RepeatsRecord]
    controls: NotRequired[ControlsRecord]


def parse_confidence(confidence: ConfidenceRecord) -> LabelStability:
    """The content of confidence.json.

    Raises:
        ValueError: its numbers contradict each other.
    """
    steps = tuple(_parse_step(step, i) for i, step in enumerate(confidence["settling"]))
    totals = {sum(step.categories.values()) for step in steps}
    if len(totals) > 1:
        raise ValueError(f"settling has steps of {sorted(totals)} questions, wanted as many in each")
    if len({(step.exemplar_sets, step.samples) for step in steps}) < len(steps):
        raise ValueError("settling has two steps for the same exemplar sets and samples")
    return LabelStability(
        steps=steps,
        from_to=_parse_repeats(confidence["repeats"]) if "repeats" in confidence else None,
        controls=_parse_controls(confidence["controls"]) if "controls" in confidence else None,
    )


def _parse_step(step: SettlingRecord, place: int) -> SubsampledLabels:
    categories = _in_category_order(step["categories"], f"settling[{place}]")
    if not sum(categories.values()):
        raise ValueError(f"settling[{place}] has no questions")
    return SubsampledLabels(exemplar_sets=step["exemplar_sets"], samples=step["samples"], categories=categories)


def _parse_repeats(repeats: RepeatsRecord) -> dict[tuple[Category, Category], int]:
    rows = _in_category_order(repeats["from_to"], "repeats.from_to")
    pairs = {
        (one, other): num
        for one, row in rows.items()
        for other, num in _in_category_order(row, f"repeats.from_to.{one}").items()
    }
    flipped = sum(num for (one, other), num in pairs.items() if one != other)
    if repeats["questions"] != sum(pairs.values()):
        raise ValueError(f"repeats.questions is {repeats['questions']}, repeats.from_to has {sum(pairs.values())}")
    if repeats["flipped"] != flipped:
        raise ValueError(f"repeats.flipped is {repeats['flipped']}, repeats.from_to has {flipped}")
    return pairs


def _parse_controls(controls: ControlsRecord) -> dict[Category, int]:
    total = dict.fromkeys(Category, 0)
    for relation, of_split in controls["categories"].items():
        for split, counts in of_split.items():
            for category, num in _in_category_order(counts, f"controls.categories.{relation}.{split}").items():
                total[category] += num
    if controls["questions"] != sum(total.values()):
        raise ValueError(f"controls.questions is {controls['questions']}, its categories have {sum(total.values())}")
    return total


def _in_category_order(by_category: dict[Category, T], place: str) -> dict[Category, T]:
    """In the order of the categories."""
    if len(by_category) < len(Category):
        raise ValueError(f"{place} has {', '.join(by_category) or 'nothing'}, wanted {', '.join(Category)}")
    return {category: by_category[category] for category in Category}


def _mean_chance_known(study: Folder) -> tuple[float | None, int]:
    """Mean chance that an Unknown question is merely rare, and of how many; None where the table does not tell."""
    table = read_knowledge(study, ["category", "chance_known"])
    if "chance_known" not in table.column_names:
        return None, 0
    pairs = zip(table["category"].to_pylist(), table["chance_known"].to_pylist(), strict=True)
    chances = [chance for category, chance in pairs if category == Category.UNKNOWN and chance is not None]
    return (float(np.mean(chances)), len(chances)) if chances else (None, 0)
