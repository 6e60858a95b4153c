"""Questions by relation and category beside the paper's, and what of both is equal. Pure.

Source: Gekhman et al. 2024, arXiv:2405.05904, tables 3 to 5. Its footnote 5 gives category shares of EntityQuestions
that none of its tables has: 24, 23, 17 and 36 %.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slick.report.data import Run, StudyData, Variant
from slick.report.findings.abstention import ANSWERED, ON_ANSWERED
from slick.report.measurements import ANY_KNOWN, InsufficientDataError
from slick.types import ALL_CATEGORIES, Category

PAPER_FOOTNOTE_5_PERCENT = {"HighlyKnown": 24.0, "MaybeKnown": 23.0, "WeaklyKnown": 17.0, "Unknown": 36.0}
"""Percent of EntityQuestions as the paper's text has it, against 24 / 25 / 17 / 34 in its table 3."""

PAPER_SPLITS = {"train": ("id", "train"), "test": ("id", "test"), "ood": ("ood", "test")}
"""The paper's tables 3, 4 and 5: domain and split."""

CategoryCounts = Mapping[str, int]
"""Category to number of questions, all four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationCounts:
    """One relation in one split, here and in the paper."""

    relation: str
    observed: CategoryCounts
    paper: CategoryCounts | None
    """None for a relation that the paper's table has not."""


def relation_counts(data: StudyData, split: str) -> list[RelationCounts]:
    """Every annotated relation of a split, by name.

    Args:
        data: the stored rows.
        split: one of `SPLITS`.

    Raises:
        NotTestable: nothing of that split was annotated.
    """
    paper = paper_category_counts()[split]
    found = [
        RelationCounts(relation=relation, observed=counts, paper=paper.get(relation))
        for (relation, *of), counts in sorted(data.counts.items())
        if tuple(of) == PAPER_SPLITS[split]
    ]
    if not found:
        domain, of_split = PAPER_SPLITS[split]
        raise InsufficientDataError(
            f"no {'out-of-distribution ' * (domain == 'ood')}{of_split} questions were annotated"
        )
    return found


def total_counts(rows: list[RelationCounts]) -> CategoryCounts:
    """Questions of each category over all relations."""
    return {str(category): sum(row.observed[category] for row in rows) for category in Category}


def dataset_size(rows: list[CategoryCounts]) -> int:
    """|D|: the sum of each relation's smallest category (paper: appendix E)."""
    return sum(min(row.values()) for row in rows)


def category_percentages(counts: CategoryCounts) -> dict[str, float]:
    """Percent of each category.

    Raises:
        NotTestable: there are no questions.
    """
    num = sum(counts.values())
    if not num:
        raise InsufficientDataError("there are no questions to take shares of")
    return {category: 100.0 * counts[category] / num for category in map(str, Category)}


def paper_category_counts() -> dict[str, dict[str, CategoryCounts]]:
    """Questions by category of each relation in the paper: train, test and ood."""
    value = json.loads(resources.files("slick").joinpath("data/paper_counts.json").read_text(encoding="utf-8"))
    return {
        split: {
            relation: {str(category): int(entry[category]) for category in Category}
            for relation, entry in value[split].items()
        }
        for split in PAPER_SPLITS
    }


def paper_category_totals(split: str) -> CategoryCounts:
    """Questions of each category in the paper, over all relations of a split."""
    rows = paper_category_counts()[split].values()
    return {str(category): sum(row[category] for row in rows) for category in Category}


class PaperFinding(NamedTuple):
    """One claim of the paper and the value it gives."""

    claim: str
    paper: object


def paper_findings() -> dict[str, PaperFinding]:
    """The paper's findings, E1 to E25 in order."""
    text = resources.files("slick").joinpath("data/paper_findings.json").read_text(encoding="utf-8")
    return {name: PaperFinding(entry["claim"], entry["paper"]) for name, entry in json.loads(text).items()}


PAPER_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
DURATIONS = (10, 20, 30, 40, 50)
NUM_TEST = {
    ALL_CATEGORIES: 10481,
    "HighlyKnown": 2464,
    "MaybeKnown": 2699,
    "WeaklyKnown": 1856,
    "Unknown": 3462,
    ANY_KNOWN: 7019,
}
DATASET_SIZE = 6142
EARLY_STOP_ACCURACY = (43.9, 43.8, 43.9, 43.0, 42.0, 39.7, 37.5)
FIXED_LENGTH_ACCURACY = {
    10: (43.9, 44.0, 43.9, 43.1, 41.1, 35.9, 31.8),
    20: (43.5, 43.4, 43.3, 42.1, 39.4, 34.5, 28.8),
    30: (43.3, 42.6, 42.1, 40.5, 38.1, 32.5, 27.7),
    40: (42.8, 42.2, 41.5, 38.8, 36.6, 32.2, 26.2),
    50: (42.6, 42.2, 41.2, 38.8, 36.5, 31.7, 25.8),
}
EARLY_STOP_ACCURACY_KNOWN_ONLY = (43.8, 43.2, 43.0, 42.0, 40.5)
CONVERGENCE_ACCURACY_KNOWN_ONLY = (42.4, 42.3, 41.5, 40.7, 39.6)
FITTED_KNOWN = (91.0, 86.0, 81.0, 78.0, 72.0, 59.0, None)
FITTED_UNKNOWN = (None, 24.0, 16.0, 18.0, 10.0, 3.0, 1.0)
FIGURE_1_EPOCHS = (1, 2, 3, 5, 7, 9, 11, 15, 20, 25, 30, 35, 40, 45, 50)
FIGURE_1_KNOWN = (58, 63, 67, 73, 77, 82, 84, 89, 93, 95, 97.5, 99, 99.4, 100, 100)
FIGURE_1_UNKNOWN = (0, 1, 2, 4, 7, 12, 18, 32, 54, 66, 79, 89, 96, 99, 100)
FIGURE_1_DEV = (None, 40.3, 42.0, 42.8, 43.3, 43.2, 43.3, 43.0, 42.0, 41.6, 41.0, 40.7, 40.1, 39.9, 39.8)
TABLE_2_ACCURACY = {
    "highlyknown": ((40.5, 98.7, 60.1, 9.0, 0.6), (40.0, 98.4, 58.8, 8.5, 0.7)),
    "maybeknown": ((43.6, 98.4, 69.9, 12.1, 1.0), (43.2, 97.5, 68.2, 12.9, 1.3)),
    "weaklyknown": ((39.2, 95.0, 59.2, 8.6, 0.4), (35.4, 73.5, 55.8, 17.2, 2.2)),
    "unknown-100": ((37.5, 95.6, 52.9, 6.5, 0.6), (25.8, 55.8, 36.6, 12.2, 3.2)),
    "natural": ((43.5, 98.0, 67.6, 14.1, 1.8), (41.8, 95.5, 61.7, 14.8, 2.5)),
}
"""Early stop, then convergence: Full, HighlyKnown, MaybeKnown, WeaklyKnown, Unknown."""
TABLE_8 = ((58.7, 61.8), (55.6, 61.8))
"""D_IDK at early stop, then at convergence: percent answered, accuracy on what is answered."""

_EARLY_EPOCH = 9
_EARLY_EPOCH_UNKNOWN = 5
"""D_Unknown at 10 epochs is 5.7 points below its early stop, which so lies well before; the epoch is not printed."""


def paper_study() -> StudyData:
    """The paper's own numbers as a study of one seed, without rows; what the paper does not print is left out."""
    curves: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    variants: dict[str, Variant] = {}
    for i, share in enumerate(PAPER_SHARES):
        name = f"unknown-{round(100 * share):03d}"
        variants[name] = Variant(name=name, kind="unknown", share=share, num=DATASET_SIZE)
        curve = {_early_epoch(name): EARLY_STOP_ACCURACY[i]} | {
            epoch: FIXED_LENGTH_ACCURACY[epoch][i] for epoch in DURATIONS
        }
        curves[name] = {("test", ALL_CATEGORIES): curve}
        for part, fitted in ((ANY_KNOWN, FITTED_KNOWN[i]), (str(Category.UNKNOWN), FITTED_UNKNOWN[i])):
            if fitted is not None:
                curves[name]["train", part] = {_early_epoch(name): fitted, DURATIONS[-1]: 100.0}
    for i, share in enumerate(PAPER_SHARES[1:-1]):
        name = f"known-{round(100 * share):03d}"
        variants[name] = Variant(name=name, kind="known", share=share, num=round(DATASET_SIZE * (1 - share)))
        curves[name] = {
            ("test", ALL_CATEGORIES): {
                _EARLY_EPOCH: EARLY_STOP_ACCURACY_KNOWN_ONLY[i],
                50: CONVERGENCE_ACCURACY_KNOWN_ONLY[i],
            }
        }
    for name, (early, last) in TABLE_2_ACCURACY.items():
        kind = "natural" if name == "natural" else "category"
        variants.setdefault(name, Variant(name=name, kind=kind, share=None, num=DATASET_SIZE))
        for category, at_early, at_last in zip((ALL_CATEGORIES, *map(str, Category)), early, last, strict=True):
            curve = curves.setdefault(name, {}).setdefault(("test", category), {})
            curve |= {_early_epoch(name): at_early, 50: at_last}
    _add_figure_1(curves["unknown-050"])
    variants["idk-050"] = Variant(name="idk-050", kind="idk", share=0.5, num=DATASET_SIZE)
    curves["idk-050"] = {
        ("test", category): {_EARLY_EPOCH: TABLE_8[0][i], DURATIONS[-1]: TABLE_8[1][i]}
        for i, category in enumerate((ANSWERED, ON_ANSWERED))
    }
    runs = tuple(_paper_run(name, variants[name], curve) for name, curve in curves.items())
    audit = {
        table: {relation: sum(row.values()) for relation, row in relations.items()}
        for table, relations in paper_category_counts().items()
    }
    return StudyData(counts=_counts(), filter_counts=audit, variants=variants, runs=runs, durations=DURATIONS)


def _counts() -> dict[tuple[str, str, str], dict[str, int]]:
    """Questions by relation and category (tables 3 to 5)."""
    places = {"train": ("id", "train"), "test": ("id", "test"), "ood": ("ood", "test")}
    return {
        (relation, *places[table]): dict(row)
        for table, relations in paper_category_counts().items()
        for relation, row in relations.items()
    }


def _add_figure_1(curves: dict[tuple[str, str], dict[int, float]]) -> None:
    """The fit curves; at the early-stopping epoch figure 4, which differs a little, is kept."""
    early_known, early_unknown = curves["train", ANY_KNOWN], curves["train", str(Category.UNKNOWN)]
    curves["train", ANY_KNOWN] = dict(zip(FIGURE_1_EPOCHS, map(float, FIGURE_1_KNOWN), strict=True)) | early_known
    curves["train", str(Category.UNKNOWN)] = (
        dict(zip(FIGURE_1_EPOCHS, map(float, FIGURE_1_UNKNOWN), strict=True)) | early_unknown
    )
    curves["dev", ALL_CATEGORIES] = {e: v for e, v in zip(FIGURE_1_EPOCHS, FIGURE_1_DEV, strict=True) if v is not None}


def _early_epoch(name: str) -> int:
    return _EARLY_EPOCH_UNKNOWN if name == "unknown-100" else _EARLY_EPOCH


def _paper_run(name: str, variant: Variant, curves: dict[tuple[str, str], dict[int, float]]) -> Run:
    share = variant.share if variant.kind == "unknown" and variant.share is not None else 0.0
    num = {("test", category): rows for category, rows in NUM_TEST.items()} | {("dev", ALL_CATEGORIES): 10461}
    num |= {
        ("test", ANSWERED): NUM_TEST[ALL_CATEGORIES],
        ("test", ON_ANSWERED): round(TABLE_8[1][0] / 100 * NUM_TEST[ALL_CATEGORIES]),
    }
    num |= {
        ("train", ANY_KNOWN): round(DATASET_SIZE * (1 - share)),
        ("train", "Unknown"): round(DATASET_SIZE * share),
        ("train", ALL_CATEGORIES): DATASET_SIZE,
    }
    accuracy = {key: _dense_curve(points) for key, points in curves.items()}
    return Run(
        run_id=f"{name}-seed0",
        variant=name,
        seed=0,
        epochs=np.arange(1, 51),
        accuracy=accuracy,
        num={key: num[key] for key in accuracy} | {("train", ALL_CATEGORIES): DATASET_SIZE},
        early_epoch=_early_epoch(name),
    )


def _dense_curve(points: dict[int, float]) -> NDArray[np.float64]:
    curve = np.full(50, np.nan)
    for epoch, value in points.items():
        curve[epoch - 1] = value
    return curve
