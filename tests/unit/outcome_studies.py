"""Constructed studies on which a finding holds, fails, and is not testable.

Most are the paper's numbers, with an answer to every question, or with changes of `tests.false_claims`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial

import numpy as np

from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.findings.learning_rate import load_learning_rate
from slick.report.findings.paper import paper_relation_totals
from slick.report.measurements import ANY_KNOWN
from slick.report.statistics.p_true import PrefixLabels, load_prefix_labels
from slick.types import ALL_CATEGORIES
from tests.false_claims import (
    BARELY_FALSE,
    CLEARLY_FALSE,
    VARIANTS_OF_FINDING,
    Change,
    changed,
    set_equal_p_true,
    set_random_p_true,
)
from tests.simulated_study import PAPER_SIZE, StudySize, paper_rates, simulate
from tests.unit.paper_numbers import PAPER_SHARES, paper_study

Curves = Mapping[tuple[str, str], Mapping[int, float]]


def without_runs(*names: str) -> StudyData:
    """The paper's study without some of its runs."""
    data = paper_study()
    return replace(data, runs=tuple(run for run in data.runs if run.variant not in names))


TEST, UNKNOWN_ROWS = ("test", ALL_CATEGORIES), ("train", "Unknown")
KNOWN_NAMES = [f"known-{round(100 * share):03d}" for share in PAPER_SHARES[1:-1]]

SWEEP = [f"unknown-{round(100 * share):03d}" for share in PAPER_SHARES]


def counts(unknown: int) -> StudyData:
    row = {"HighlyKnown": 300, "MaybeKnown": 300, "WeaklyKnown": 300, "Unknown": unknown}
    return StudyData(counts={("P17", "id", "train"): row, ("P17", "id", "test"): row})


def with_one_question_more() -> dict[str, dict[str, int]]:
    """The paper's counts with one more question in one relation."""
    exact = paper_relation_totals()
    return {**exact, "ood": {**exact["ood"], "P50": exact["ood"]["P50"] + 1}}


def linear(b_kn: float, b_unk: float, ood_scale: float) -> StudyData:
    rng = np.random.default_rng(0)
    epochs = np.arange(1, 21)
    runs, variants = [], {}
    for share in PAPER_SHARES:
        name = f"unknown-{round(100 * share):03d}"
        variants[name] = Variant(name=name, kind="unknown", share=share, num=1000)
        known, unknown = 1 - np.exp(-epochs / 2), 1 - np.exp(-epochs / 12)
        accuracy = {}
        for split, scale in (("test", 1.0), ("ood", ood_scale)):
            gain = scale * (b_kn * (1 - share) * known + b_unk * share * unknown)
            accuracy[split, ALL_CATEGORIES] = 40.0 + gain + rng.normal(0, 0.3, len(epochs))
        accuracy |= {("train", ANY_KNOWN): 100 * known, UNKNOWN_ROWS: 100 * unknown}
        num = {("test", ALL_CATEGORIES): 5000, ("ood", ALL_CATEGORIES): 5000, ("train", ALL_CATEGORIES): 1000}
        num |= {("train", ANY_KNOWN): round(1000 * (1 - share)), UNKNOWN_ROWS: round(1000 * share)}
        runs.append(
            Run(run_id=f"{name}-seed0", variant=name, seed=0, epochs=epochs, accuracy=accuracy, num=num, early_epoch=3)
        )
    return StudyData(variants=variants, runs=tuple(runs), durations=(10, 20))


def with_rows(name: str, rows: Mapping[tuple[int, str], Predictions], kind: str = "category") -> tuple[Variant, Run]:
    epochs = np.arange(1, 3)
    accuracy = {TEST: np.array([100 * rows[epoch, "test"].hit.mean() for epoch in (1, 2)])}
    num = {TEST: len(rows[1, "test"].hit)}
    share = 0.5 if kind == "idk" else 1.0 if name == "unknown-100" else None
    variant = Variant(name=name, kind=kind, share=share, num=100)
    run = Run(
        run_id=f"{name}-seed0",
        variant=name,
        seed=0,
        epochs=epochs,
        accuracy=accuracy,
        num=num,
        early_epoch=1,
        predictions=rows,
    )
    return variant, run


def hits(hit: np.ndarray, text: list[str] | None = None) -> Predictions:
    ids = np.array([f"q{i:05d}" for i in range(len(hit))])
    categories = np.where(np.arange(len(hit)) % 2 == 0, "MaybeKnown", "Unknown")
    return Predictions(
        question_ids=ids, categories=categories, hit=hit, text=None if text is None else np.array(text, dtype=object)
    )


def study_of(pairs: list[tuple[Variant, Run]]) -> StudyData:
    return StudyData(
        variants={variant.name: variant for variant, _ in pairs}, runs=tuple(run for _, run in pairs), durations=(1, 2)
    )


def single_categories(losing: Callable[[str], float], num: int = 4000) -> StudyData:
    rng = np.random.default_rng(0)
    pairs = []
    for name in ("highlyknown", "maybeknown", "weaklyknown", "unknown-100", "natural"):
        early = rng.random(num) < 0.45
        last = early & (rng.random(num) >= losing(name))
        kind = "unknown" if name == "unknown-100" else "category"
        pairs.append(with_rows(name, {(1, "test"): hits(early), (2, "test"): hits(last)}, kind))
    return study_of(pairs)


def idk_study(last_loss: float, abstains: bool = True) -> StudyData:
    rng = np.random.default_rng(0)
    plain = rng.random(4000) < 0.4
    silent = (rng.random(4000) < 0.4) & ~plain if abstains else np.zeros(4000, dtype=bool)
    rows = {}
    for epoch, loss in ((1, 0.0), (2, last_loss)):
        hit = plain & (rng.random(4000) >= loss)
        text = ["I don't know." if quiet else "Paris" for quiet in silent]
        rows[epoch, "test"] = hits(hit, text)
    half = with_rows("unknown-050", {(1, "test"): hits(plain), (2, "test"): hits(plain)}, "unknown")
    half = (replace(half[0], share=0.5), half[1])
    return study_of([with_rows("idk-050", rows, "idk"), half])


def prefix_study(useful: bool, unsure: bool = False) -> StudyData:
    num = 2000
    order = np.arange(num)
    first_hit = order // 200  # exemplar set at which a question is first answered right; 10 is never
    hit = (np.random.default_rng(0).random(num) < (0.5 if useful else 0.1)) & ((first_hit < 5) | (not useful))
    asked = np.arange(1, 9)[None, :]
    unknown = first_hit[:, None] >= asked
    labels = PrefixLabels(
        question_ids=np.array([f"q{i:05d}" for i in order]),
        unknown_QN=unknown,
        undetermined_QN=np.full_like(unknown, unsure),
    )
    natural = with_rows("natural", {(1, "test"): hits(hit), (2, "test"): hits(hit)}, "natural")
    return replace(study_of([natural]), loaded={load_prefix_labels: labels})


def rates_study(
    fall: float = 15.0, early_gain: float = 4.0, rate: str = "1e-4", shares: tuple[float, ...] = PAPER_SHARES
) -> StudyData:
    """The sweep at two learning rates; at the other, test accuracy falls by `fall` with the share."""
    points = []
    for share in shares:
        for policy, stop, gain in (
            ("best_dev", 3, early_gain),
            ("fixed(5)", 5, early_gain / 2),
            ("fixed(10)", 10, 0.0),
        ):
            for settings, slope in (
                ("", 15.0),
                (f"learning_rate={rate}", fall),
                ("learning_rate=0.1;dropout=0.5", -9.0),
            ):
                points.append(
                    {"variant": f"unknown-{round(100 * share):03d}", "seed": 0, "epochs": 10, "policy": policy}
                    | {"stop_epoch": stop, "test_all": (45 + gain - slope * share) / 100, "settings": settings}
                )
    return replace(paper_study(), points=tuple(points), loaded={load_learning_rate: 1e-5})


@cache
def simulated(change: Change | None = None, size: StudySize = PAPER_SIZE, finding: str = "") -> StudyData:
    """The paper's study with an answer to every question and with exactly its accuracies, or with changed ones.

    With the runs of one finding, if it is named.
    """
    rates = paper_rates() if change is None else changed(paper_rates(), change)
    return simulate(rates, size, np.random.default_rng(0), exact=True, only=VARIANTS_OF_FINDING.get(finding))


MEDIUM_SIZE = StudySize(num_test=1500, num_dev=1500, num_train=900)
SMALL_SIZE = StudySize(num_test=200, num_dev=200, num_train=120)

HOLDING_STUDIES: dict[str, Callable[[], StudyData]] = {
    **dict.fromkeys(CLEARLY_FALSE, simulated),
    **dict.fromkeys(["E1", "E2"], paper_study),
    "E12": lambda: linear(7, -8, 0.4),
    "E13": lambda: linear(7, -8, 0.4),
    "E20": partial(simulated, None, MEDIUM_SIZE),
}

FAILING_STUDIES: dict[str, Callable[[], StudyData]] = {
    **{name: partial(simulated, change, finding=name) for name, change in CLEARLY_FALSE.items()},
    "E1": lambda: replace(paper_study(), filter_counts=with_one_question_more()),
    "E2": lambda: counts(0),
    "E12": lambda: linear(7, 8, 0.4),
    "E13": lambda: linear(7, -8, 1.5),
    "E20": partial(simulated, CLEARLY_FALSE["E20"], MEDIUM_SIZE),
}

STRONG = ("E3", "E5", "E7", "E9", "E11", "E23")
"""Findings whose effects in the paper are so large that a small study decides them."""

UNDECIDED_STUDIES: dict[str, Callable[[], StudyData]] = {
    **dict.fromkeys(CLEARLY_FALSE, partial(simulated, None, SMALL_SIZE)),
    **{name: partial(simulated, next(iter(BARELY_FALSE[name].values())), finding=name) for name in STRONG},
    "E20": partial(simulated, set_equal_p_true, MEDIUM_SIZE),
    "E2": lambda: counts(9),
    "E12": lambda: linear(7, -0.05, 0.4),
    "E13": lambda: linear(7, -8, 0.99),
}
"""Studies that are too small, or differences too near to the bound."""

MISSING: dict[str, tuple[Callable[[], StudyData], str]] = {
    "E1": (lambda: replace(paper_study(), filter_counts=None), "full EntityQuestions archive"),
    "E2": (lambda: StudyData(counts={("P17", "ood", "test"): {"HighlyKnown": 5}}), "knowledge table"),
    "E3": (lambda: without_runs(*SWEEP[:-2]), "3 or more shares"),
    "E4": (lambda: without_runs(*SWEEP[1:]), "2 or more shares"),
    "E5": (lambda: without_runs(*SWEEP[2:]), "3 or more shares"),
    "E6": (lambda: without_runs(*KNOWN_NAMES), "kind known"),
    "E7": (lambda: without_runs(*KNOWN_NAMES[2:]), "3 or more shares"),
    "E8": (lambda: without_runs(*KNOWN_NAMES), "kind known"),
    "E9": (lambda: without_runs("unknown-050"), "50 % Unknown"),
    "E10": (lambda: without_runs("unknown-050"), "50 % Unknown"),
    "E11": (lambda: without_runs(*SWEEP[:-1]), "2 or more shares"),
    "E12": (paper_study, "has 2 epochs"),
    "E13": (paper_study, "train and ood accuracy"),
    "E14": (lambda: without_runs("natural"), "finished runs of natural"),
    "E15": (lambda: without_runs("highlyknown"), "finished runs of highlyknown"),
    "E16": (lambda: without_runs("weaklyknown"), "finished runs of weaklyknown"),
    "E17": (lambda: without_runs("weaklyknown"), "finished runs of weaklyknown"),
    "E18": (
        lambda: without_runs("highlyknown", "maybeknown", "weaklyknown", "unknown-100", "natural"),
        "all four categories",
    ),
    "E19": (
        lambda: without_runs("highlyknown", "maybeknown", "weaklyknown", "unknown-100", "natural"),
        "a finished run of one",
    ),
    "E21": (lambda: prefix_study(useful=True, unsure=True), "--mode full"),
    "E22": (lambda: without_runs("idk-050"), "relabeled"),
    "E23": (lambda: without_runs("unknown-050"), "50 % Unknown"),
    "E20": (partial(simulated, set_random_p_true, MEDIUM_SIZE), "P\\(True\\) does not predict"),
    "E24": (paper_study, "one learning rate; add a second"),
    "E25": (paper_study, "kept no predictions"),
}
