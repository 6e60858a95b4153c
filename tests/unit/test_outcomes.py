"""Each of the paper's findings on data in which it holds, in which it fails, and on data that cannot tell."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from slick.analysis.data import Hits, PrefixLabels, Run, StudyData, Variant
from slick.analysis.load_labels import first_hit_and_gap
from slick.analysis.load_runs import choose_durations
from slick.analysis.outcomes import judge, judges
from slick.analysis.outcomes_data import paper_counts
from slick.analysis.outcomes_idk import abstention
from slick.analysis.p_true import prefix_curve
from slick.analysis.paper import FIXED_D, SHARES, paper_study
from slick.analysis.terms import EARLY, LAST, POOLED, NotTestable
from slick.analysis.verdict import Verdict, need_power
from slick.types import ALL

Curves = Mapping[tuple[str, str], Mapping[int, float]]

PAPER_HOLDS = ["E3", "E4", "E5", "E6", "E7", "E8", "E9", "E10", "E11", "E14", "E15", "E16", "E17", "E18", "E19", "E23"]


def edited(changes: Mapping[str, Curves]) -> StudyData:
    """The paper's study with some percentages changed: variant, (split, category), epoch."""
    data = paper_study()
    runs = []
    for run in data.runs:
        accuracy = {key: curve.copy() for key, curve in run.accuracy.items()}
        for key, points in changes.get(run.variant, {}).items():
            for epoch, value in points.items():
                accuracy[key][epoch - 1] = value
        runs.append(replace(run, accuracy=accuracy))
    return replace(data, runs=tuple(runs))


def without(data: StudyData, *names: str) -> StudyData:
    return replace(data, runs=tuple(run for run in data.runs if run.variant not in names))


TEST, UNKNOWN_ROWS = ("test", ALL), ("train", "Unknown")
KNOWN_NAMES = [f"known-{round(100 * share):03d}" for share in SHARES[1:-1]]

FAILING: dict[str, Mapping[str, Curves]] = {
    "E3": {"unknown-100": {TEST: {5: 50, 10: 50, 20: 50, 30: 50, 40: 50, 50: 50}}},
    "E4": {"unknown-000": {TEST: {50: 47}}},
    "E5": {"unknown-100": {TEST: {5: 25.8}}},
    "E6": {"known-090": {TEST: {9: 45}}},
    "E7": {name: {TEST: {50: FIXED_D[50][i + 1]}} for i, name in enumerate(KNOWN_NAMES)},
    "E8": {name: {TEST: {50: 30}} for name in KNOWN_NAMES},
    "E9": {"unknown-050": {UNKNOWN_ROWS: dict.fromkeys(range(1, 51), 90)}},
    "E10": {"unknown-050": {("dev", ALL): {50: 46}}},
    "E11": {"unknown-050": {UNKNOWN_ROWS: {9: 80}}},
    "E14": {"highlyknown": {TEST: {50: 50}}},
    "E15": {"maybeknown": {("test", "MaybeKnown"): {9: 60}}},
    "E16": {"natural": {TEST: {50: 20}}},
    "E17": {"weaklyknown": {("test", "HighlyKnown"): {50: 95}}},
    "E18": {"natural": {("test", "Unknown"): {50: 90}}},
    "E19": {"natural": {("test", "Unknown"): {50: 10}}},
    "E23": {"unknown-050": {TEST: {50: 43}}},
}


def one(name: str, data: StudyData) -> Verdict:
    return judges()[name](data)


@pytest.mark.parametrize("name", PAPER_HOLDS)
def test_the_papers_own_numbers_give_the_papers_findings(name: str) -> None:
    verdict = one(name, paper_study())
    assert verdict.holds, verdict.why


@pytest.mark.parametrize("name", PAPER_HOLDS)
def test_a_finding_fails_where_the_data_say_otherwise(name: str) -> None:
    verdict = one(name, edited(FAILING[name]))
    assert verdict.holds is False
    assert any(digit in verdict.why for digit in "0123456789"), "by how much?"


def test_nothing_holds_on_an_empty_study() -> None:
    outcomes = judge(StudyData())
    assert [outcome.id for outcome in outcomes] == [f"E{i}" for i in range(1, 26)]
    assert all(outcome.holds is None and outcome.own is None and outcome.why for outcome in outcomes)


def test_nothing_holds_on_runs_without_measurements() -> None:
    data = paper_study()
    blank = tuple(
        replace(run, accuracy={key: np.full(50, np.nan) for key in run.accuracy}, early_epoch=None) for run in data.runs
    )
    assert not [outcome.id for outcome in judge(replace(data, runs=blank)) if outcome.holds]


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("E3", [f"unknown-{round(100 * share):03d}" for share in SHARES[:-2]]),
        ("E6", KNOWN_NAMES),
        ("E7", KNOWN_NAMES[1:]),
        ("E8", KNOWN_NAMES),
        ("E9", ["unknown-050"]),
        ("E10", ["unknown-050"]),
        ("E14", ["natural"]),
        ("E15", ["highlyknown"]),
        ("E16", ["weaklyknown"]),
        ("E17", ["weaklyknown"]),
        ("E23", ["unknown-050"]),
        ("E25", ["maybeknown"]),
    ],
)
def test_a_missing_run_makes_it_not_testable(name: str, missing: list[str]) -> None:
    with pytest.raises(NotTestable):
        one(name, without(paper_study(), *missing))


def test_equality_is_not_claimed_from_data_that_could_not_show_a_difference() -> None:
    data = paper_study()
    few = tuple(replace(run, num=dict.fromkeys(run.num, 60)) for run in data.runs)
    with pytest.raises(NotTestable, match="more test rows"):
        one("E6", replace(data, runs=few))
    with pytest.raises(NotTestable):
        need_power([data.accuracy("natural", EARLY)._replace(se=9.0)])


# E1 and E2: counts


def test_e1_wants_every_count() -> None:
    exact = paper_counts()
    assert one("E1", StudyData(audit=exact)).holds
    off = {**exact, "ood": {**exact["ood"], "P50": exact["ood"]["P50"] + 1}}
    verdict = one("E1", StudyData(audit=off))
    assert verdict.holds is False
    assert "ood P50: 968, wanted 967" in verdict.why


def counts(unknown: int) -> StudyData:
    row = {"HighlyKnown": 300, "MaybeKnown": 300, "WeaklyKnown": 300, "Unknown": unknown}
    return StudyData(counts={("P17", "id", "train"): row, ("P17", "id", "test"): row})


def test_e2_wants_all_four_categories() -> None:
    assert one("E2", counts(100)).holds
    assert one("E2", counts(0)).holds is False
    with pytest.raises(NotTestable):
        one("E2", StudyData(counts={("P17", "ood", "test"): {"HighlyKnown": 5}}))


# E12 and E13: the linear model


def linear(b_kn: float, b_unk: float, ood_scale: float) -> StudyData:
    rng = np.random.default_rng(0)
    epochs = np.arange(1, 21)
    runs, variants = [], {}
    for share in SHARES:
        name = f"unknown-{round(100 * share):03d}"
        variants[name] = Variant(name=name, kind="unknown", share=share, num=1000)
        known, unknown = 1 - np.exp(-epochs / 2), 1 - np.exp(-epochs / 12)
        accuracy = {}
        for split, scale in (("test", 1.0), ("ood", ood_scale)):
            gain = scale * (b_kn * (1 - share) * known + b_unk * share * unknown)
            accuracy[split, ALL] = 40.0 + gain + rng.normal(0, 0.3, len(epochs))
        accuracy |= {("train", POOLED): 100 * known, UNKNOWN_ROWS: 100 * unknown}
        num = {("test", ALL): 5000, ("ood", ALL): 5000, ("train", ALL): 1000}
        num |= {("train", POOLED): round(1000 * (1 - share)), UNKNOWN_ROWS: round(1000 * share)}
        runs.append(
            Run(run_id=f"{name}-seed0", variant=name, seed=0, epochs=epochs, accuracy=accuracy, num=num, early_epoch=3)
        )
    return StudyData(variants=variants, runs=tuple(runs), durations=(10, 20))


def test_e12_and_e13_judge_the_linear_model() -> None:
    assert one("E12", linear(7, -8, 0.4)).holds
    assert one("E13", linear(7, -8, 0.4)).holds
    assert "b_unk" in one("E12", linear(7, 8, 0.4)).why
    assert one("E12", linear(7, 8, 0.4)).holds is False
    assert one("E13", linear(7, -8, 1.5)).holds is False
    with pytest.raises(NotTestable, match="ood"):
        one("E13", edited({}))


# E21, E22, E25: rows


def with_rows(name: str, rows: Mapping[tuple[int, str], Hits], kind: str = "category") -> tuple[Variant, Run]:
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
        hits=rows,
    )
    return variant, run


def hits(hit: np.ndarray, text: list[str] | None = None) -> Hits:
    ids = np.array([f"q{i:05d}" for i in range(len(hit))])
    categories = np.where(np.arange(len(hit)) % 2 == 0, "MaybeKnown", "Unknown")
    return Hits(
        question_ids=ids, categories=categories, hit=hit, text=None if text is None else np.array(text, dtype=object)
    )


def study_of(pairs: list[tuple[Variant, Run]]) -> StudyData:
    return StudyData(
        variants={variant.name: variant for variant, _ in pairs}, runs=tuple(run for _, run in pairs), durations=(1, 2)
    )


def single_categories(losing: Callable[[str], float]) -> StudyData:
    rng = np.random.default_rng(0)
    pairs = []
    for name in ("highlyknown", "maybeknown", "weaklyknown", "unknown-100", "natural"):
        early = rng.random(4000) < 0.45
        last = early & (rng.random(4000) >= losing(name))
        kind = "unknown" if name == "unknown-100" else "category"
        pairs.append(with_rows(name, {(1, "test"): hits(early), (2, "test"): hits(last)}, kind))
    return study_of(pairs)


def test_e25_tests_early_stop_against_convergence() -> None:
    assert one("E25", single_categories(lambda name: 0.0 if name == "maybeknown" else 0.2)).holds
    verdict = one("E25", single_categories(lambda name: 0.2))
    assert verdict.holds is False
    assert verdict.why.startswith("D_MaybeKnown differs")
    with pytest.raises(NotTestable, match="kept no predictions"):
        one("E25", paper_study())


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


def test_e22_judges_what_is_answered() -> None:
    assert one("E22", idk_study(0.0)).holds
    assert "falls by" in one("E22", idk_study(0.5)).why
    assert "no fewer than D" in one("E22", idk_study(0.0, abstains=False)).why
    with pytest.raises(NotTestable, match="relabelled"):
        one("E22", without(idk_study(0.0), "idk-050"))


def test_an_answer_abstains_by_the_variants_own_phrase() -> None:
    data = idk_study(0.0)
    at_all = abstention(data, "idk-050", LAST)
    assert at_all.answered.value < 80
    assert at_all.overall.value == pytest.approx(at_all.answered.value * at_all.on_answered.value / 100)
    assert abstention(replace(data, idk_phrase="No idea"), "idk-050", LAST).answered.value == 100


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
        unsure_QN=np.full_like(unknown, unsure),
    )
    natural = with_rows("natural", {(1, "test"): hits(hit), (2, "test"): hits(hit)}, "natural")
    return replace(study_of([natural]), prefix_labels=labels)


def test_e21_reads_smaller_numbers_of_sets_off_the_stored_answers() -> None:
    assert one("E21", prefix_study(useful=True)).holds
    assert one("E21", prefix_study(useful=False)).holds is False
    with pytest.raises(NotTestable, match="--mode full"):
        one("E21", prefix_study(useful=True, unsure=True))
    shares = [share for _, share, _ in prefix_curve(prefix_study(useful=True), EARLY)]
    assert shares == sorted(shares, reverse=True)


def test_labels_under_fewer_sets_tell_a_miss_from_a_sample_left_out() -> None:
    missed, hit = [False, False], [False, True]
    assert first_hit_and_gap([False, False, False], [missed, missed, missed]) == (3, 3, 3)
    assert first_hit_and_gap([False, False, False], [missed, hit, None]) == (1, 2, 3)
    assert first_hit_and_gap([False, False, True], None) == (2, 0, 3)
    assert first_hit_and_gap([False, False, False], [missed, [None, False], missed]) == (3, 1, 3)


# the shared arithmetic


def test_differences_are_paired_over_rows_where_both_sides_kept_them() -> None:
    data = single_categories(lambda name: 0.05)
    paired = data.difference(("natural", EARLY), ("natural", LAST))
    bare = replace(data, runs=tuple(replace(run, hits={}) for run in data.runs))
    unpaired = bare.difference(("natural", EARLY), ("natural", LAST))
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.se < unpaired.se / 2


def test_three_seeds_or_more_set_a_floor_under_the_error() -> None:
    data = single_categories(lambda name: 0.05)
    natural = data.runs_of("natural")[0]
    seeds = []
    for seed, shift in enumerate((-9.0, 0.0, 9.0)):
        curve = natural.accuracy[TEST] + np.array([shift, 0.0])
        seeds.append(replace(natural, run_id=f"natural-seed{seed}", seed=seed, accuracy={TEST: curve}))
    spread = replace(data, runs=tuple(seeds))
    assert spread.accuracy("natural", EARLY).se == pytest.approx(9 / np.sqrt(3))
    assert spread.difference(("natural", EARLY), ("natural", LAST)).se == pytest.approx(9 / np.sqrt(3))


def test_durations_come_from_the_grid_and_stay_few() -> None:
    points = [{"epochs": 20, "policy": f"fixed({n})"} for n in (1, 2, 3, 5, 8, 10, 12, 15)]
    chosen = choose_durations(points, [20, 20])
    assert chosen[-1] == 20
    assert len(chosen) == 6
    assert set(chosen) <= {1, 2, 3, 5, 8, 10, 12, 15, 20}
    assert choose_durations([], []) == ()
    assert choose_durations([], [2]) == (1, 2)
