"""annotate/confidence.json and the knowledge table, as how firm the labels are. What is not as written is an error."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from slick.analysis.stability import Stability, Step
from slick.errors import StudyError
from slick.storage import Folder
from slick.study import read_manifest
from slick.types import Category

FILE = "confidence.json"


def load_stability(study: Folder) -> Stability | None:
    """What the annotation says of its own labels; None where it is not finished or has not said it.

    Raises:
        StudyError: confidence.json is broken, or was written by another version.
    """
    folder = study.child("annotate")
    if read_manifest(folder) is None or not folder.exists(FILE):
        return None
    found = folder.read_json(FILE)
    try:
        stability = parse(found)
    except (TypeError, ValueError) as error:
        raise StudyError(
            f"{folder.uri}/{FILE} is not what the annotation writes: {error}; wanted settling, and where they were "
            f"asked repeats and controls, each with questions by category; annotate again with --rescore, which "
            "writes it anew from the stored answers"
        ) from error
    chance, num = _chance_known(folder)
    return replace(stability, chance_known=chance, num_unknown=num)


def parse(found: Any) -> Stability:
    """The content of confidence.json.

    Raises:
        TypeError: a part is of another kind.
        ValueError: a part is missing, or holds numbers that cannot be.
    """
    whole = _mapping(found, "the file")
    steps = tuple(_step(one) for one in _list(_get(whole, "settling"), "settling"))
    totals = {sum(step.categories.values()) for step in steps}
    if len(totals) > 1:
        raise ValueError(f"settling has steps of {sorted(totals)} questions, wanted as many in each")
    if len({(step.exemplar_sets, step.samples) for step in steps}) < len(steps):
        raise ValueError("settling has two steps for the same exemplar sets and samples")
    return Stability(
        steps=steps,
        from_to=_repeats(whole["repeats"]) if "repeats" in whole else None,
        controls=_controls(whole["controls"]) if "controls" in whole else None,
    )


def _step(found: Any) -> Step:
    step = _mapping(found, "a step of settling")
    sets, samples = (_count(_get(step, name), name) for name in ("exemplar_sets", "samples"))
    if min(sets, samples) < 1:
        raise ValueError(f"a step of settling has {sets} exemplar sets and {samples} samples")
    categories = _categories(_get(step, "categories"), "a step of settling")
    if not sum(categories.values()):
        raise ValueError("a step of settling has no questions")
    return Step(exemplar_sets=sets, samples=samples, categories=categories)


def _repeats(found: Any) -> dict[tuple[Category, Category], int]:
    repeats = _mapping(found, "repeats")
    rows = _mapping(_get(repeats, "from_to"), "from_to")
    _see_categories(rows, "from_to")
    pairs = {
        (one, other): num for one in Category for other, num in _categories(rows[str(one)], f"from_to of {one}").items()
    }
    flipped = sum(num for (one, other), num in pairs.items() if one != other)
    for name, counted in (("questions", sum(pairs.values())), ("flipped", flipped)):
        told = _count(_get(repeats, name), name)
        if told != counted:
            raise ValueError(f"repeats tells of {told} {name}, from_to of {counted}")
    return pairs


def _controls(found: Any) -> dict[Category, int]:
    controls = _mapping(found, "controls")
    total = dict.fromkeys(Category, 0)
    for relation, of_split in _mapping(_get(controls, "categories"), "categories of controls").items():
        for split, counts in _mapping(of_split, f"controls of {relation}").items():
            for category, num in _categories(counts, f"controls of {relation} {split}").items():
                total[category] += num
    told = _count(_get(controls, "questions"), "questions")
    if told != sum(total.values()):
        raise ValueError(f"controls tells of {told} questions, its categories of {sum(total.values())}")
    return total


def _chance_known(folder: Folder) -> tuple[float | None, int]:
    """Mean chance that an Unknown question is merely rare, and of how many; None where the table does not tell."""
    table = folder.read_table("knowledge.parquet")
    if "chance_known" not in table.column_names:
        return None, 0
    pairs = zip(table["category"].to_pylist(), table["chance_known"].to_pylist(), strict=True)
    chances = [chance for category, chance in pairs if category == Category.UNKNOWN and chance is not None]
    return (float(np.mean(chances)), len(chances)) if chances else (None, 0)


def _categories(found: Any, what: str) -> dict[Category, int]:
    """Questions by category, each of the four named."""
    counts = _mapping(found, what)
    _see_categories(counts, what)
    return {category: _count(counts[str(category)], f"{category} of {what}") for category in Category}


def _see_categories(found: Mapping[str, Any], what: str) -> None:
    if set(found) != set(map(str, Category)):
        raise ValueError(f"{what} names {sorted(found)}, wanted {', '.join(Category)}")


def _get(found: Mapping[str, Any], name: str) -> Any:
    if name not in found:
        raise ValueError(f"no {name}")
    return found[name]


def _mapping(found: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise TypeError(f"{what} is {type(found).__name__}, wanted an object")
    return found


def _list(found: Any, what: str) -> list[Any]:
    if not isinstance(found, list):
        raise TypeError(f"{what} is {type(found).__name__}, wanted a list")
    return found


def _count(found: Any, what: str) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise ValueError(f"{what} is {found!r}, wanted a number of questions")
    return found
