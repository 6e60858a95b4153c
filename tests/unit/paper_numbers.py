"""The paper's accuracies as a `StudyData`, on which its findings must hold.

Source: Gekhman et al. 2024, arXiv:2405.05904. Tables 2 to 5 and 8 are printed. The curves of figures 1, 3 and 4 are
read off the figures, with an error of about 0.1 points in figure 3 and of 0.5 to 1 point in figures 1 and 4. Section 4
says that all training rows are fitted at convergence. The paper prints no predictions, no accuracies out of
distribution, and none at a second learning rate.
"""

import numpy as np
from numpy.typing import NDArray

from slick.report.data import Run, StudyData, Variant
from slick.report.findings.abstention import ANSWERED, ON_ANSWERED
from slick.report.findings.paper import PAPER_SPLITS, paper_category_counts, paper_relation_totals
from slick.report.measurements import ANY_KNOWN
from slick.types import ALL_CATEGORIES, Category

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
"""D_IDK at early stop, then at convergence: percentage answered, and accuracy on these questions."""

_EARLY_EPOCH = 9
_EARLY_EPOCH_UNKNOWN = 5
"""Not printed. Accuracy of D_Unknown at 10 epochs is 5.7 points below early stop, so early stop is well before it."""


def paper_study() -> StudyData:
    """The paper's numbers as a study of one seed, without predictions and without what the paper does not print."""
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
    counts = {
        (relation, *PAPER_SPLITS[split]): row
        for split, relations in paper_category_counts().items()
        for relation, row in relations.items()
    }
    return StudyData(
        counts=counts,
        filter_counts=paper_relation_totals(),
        variants=variants,
        runs=tuple(_paper_run(name, variants[name], curve) for name, curve in curves.items()),
        durations=DURATIONS,
    )


def _add_figure_1(curves: dict[tuple[str, str], dict[int, float]]) -> None:
    """Add the curves of figure 1. The values of figure 4, which differ slightly, stay at the early-stopping epoch."""
    for part, values in ((ANY_KNOWN, FIGURE_1_KNOWN), (str(Category.UNKNOWN), FIGURE_1_UNKNOWN)):
        curves["train", part] = dict(zip(FIGURE_1_EPOCHS, map(float, values), strict=True)) | curves["train", part]
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
