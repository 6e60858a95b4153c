"""P(True): prompt, thresholds, ties, comparison at an equal share, and finding E20."""

from dataclasses import replace

import numpy as np
import pytest

from slick.annotation import AnnotateConfig
from slick.annotation.p_true import p_true_settings
from slick.prompts import P_TRUE_CHOICES, P_TRUE_PREFIX, p_true_row, p_true_suffix
from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.findings.base import findings
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.sections.p_true import comparison_table, p_true_section, p_true_threshold_table, prefix_table
from slick.report.statistics.p_true import (
    MIN_UNKNOWN_QUESTIONS,
    PrefixLabels,
    PTrueScores,
    compare_at_equal_share,
    load_p_true,
    load_prefix_labels,
    p_true_auroc,
    p_true_scores,
    prefix_curve,
    slick_point,
    threshold_curve,
)
from slick.types import ALL_CATEGORIES

PROMPT = """Question: Where is Paris located?
Proposed Answer: France
Is the proposed answer:

(A) True
(B) False
The proposed answer is:"""


def test_prompt_equals_the_papers() -> None:
    assert P_TRUE_PREFIX + p_true_suffix("Where is Paris located?", "France") == PROMPT
    assert P_TRUE_CHOICES == ("(A", "(B")


def test_row_has_both_probabilities_and_their_ratio() -> None:
    row = p_true_row("q", float(np.log(0.03)), float(np.log(0.01)))
    assert (row["p_a"], row["p_b"], row["p_true"]) == pytest.approx((0.03, 0.01, 0.75))
    assert p_true_row("q", -1000.0, -1001.0)["p_true"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert p_true_row("q", -1001.0, -1000.0)["p_true"] == pytest.approx(1 / (1 + np.exp(1)))
    assert p_true_row("q", -2000.0, 0.0)["p_true"] == 0.0


def test_p_true_and_labels_have_independent_fingerprints() -> None:
    base = AnnotateConfig()
    assert replace(base, p_true=True, p_true_of="all").identity() == base.identity()
    assert p_true_settings(replace(base, seed=3, num_exemplar_sets=4, matcher="raw", mode="labels")) == p_true_settings(
        base
    )
    for changed in ({"dtype": "bfloat16"}, {"limit_per_relation": 3}, {"p_true_of": "all"}):
        assert p_true_settings(replace(base, **changed)) != p_true_settings(base)


def study(
    p_true: np.ndarray | None, hit: np.ndarray, unknown: np.ndarray, *, seeds: int = 1, late: np.ndarray | None = None
) -> StudyData:
    """D_Natural with the same answers for every seed; the first epoch is early stop, the second convergence."""
    ids = np.array([f"q{i:05d}" for i in range(len(hit))])
    categories = np.where(unknown, "Unknown", "MaybeKnown")

    def rows(result: np.ndarray) -> Predictions:
        return Predictions(question_ids=ids, categories=categories, hit=result)

    runs = tuple(
        Run(
            run_id=f"natural-seed{seed}",
            variant="natural",
            seed=seed,
            epochs=np.arange(1, 3),
            accuracy={("test", ALL_CATEGORIES): 100.0 * np.array([hit.mean()] * 2)},
            num={("test", ALL_CATEGORIES): len(hit)},
            early_epoch=1,
            predictions={(1, "test"): rows(hit), (2, "test"): rows(hit if late is None else late)},
        )
        for seed in range(seeds)
    )
    return StudyData(
        variants={"natural": Variant(name="natural", kind="natural", share=None, num=10)},
        runs=runs,
        loaded={load_p_true: None if p_true is None else PTrueScores(question_ids=ids, p_true=p_true)},
        durations=(1, 2),
    )


def test_threshold_curve_adds_ties_together() -> None:
    p_true = np.array([0.2, 0.5, 0.2, 0.9, 0.5, 0.5])
    hit = np.array([1, 1, 0, 1, 0, 0], dtype=bool)
    result = threshold_curve(study(p_true, hit, hit), EARLY_STOP)
    assert result.thresholds.tolist() == [0.5, 0.9, 1.0]
    assert result.share.tolist() == pytest.approx([100 * 2 / 6, 100 * 5 / 6, 100])
    assert result.accuracy.tolist() == pytest.approx([50, 40, 50])
    for threshold, share, accuracy in zip(result.thresholds, result.share, result.accuracy, strict=True):
        below = p_true < threshold
        assert (100 * below.mean(), 100 * hit[below].mean()) == pytest.approx((share, accuracy))
    assert (result.se > 0).all()


def test_ties_count_as_their_expectation() -> None:
    rng = np.random.default_rng(0)
    p_true = rng.integers(0, 4, 400) / 4.0
    hit, unknown = rng.random(400) < 0.2 + 0.5 * p_true, rng.random(400) < 0.4
    result = compare_at_equal_share(study(p_true, hit, unknown), EARLY_STOP)
    num = int(unknown.sum())
    assert (result.num, result.share) == (num, 100 * num / 400)
    assert result.slick.value == pytest.approx(100 * hit[unknown].mean())
    drawn = [100 * hit[np.lexsort((rng.random(400), p_true))[:num]].mean() for _ in range(4000)]
    # The mean of 4,000 draws: five standard errors, a false alarm once in two million runs, and the seed is fixed.
    assert abs(result.p_true.value - np.mean(drawn)) < 5 * np.std(drawn) / np.sqrt(4000)
    assert result.gap.value == pytest.approx(result.slick.value - result.p_true.value)
    assert result.threshold == np.sort(p_true)[num - 1]


def test_constant_scores_are_uninformative() -> None:
    rng = np.random.default_rng(1)
    hit, unknown = rng.random(300) < 0.3, rng.random(300) < 0.4
    alike = study(np.full(300, 0.5), hit, unknown)
    assert compare_at_equal_share(alike, EARLY_STOP).p_true.value == pytest.approx(100 * hit.mean())
    assert p_true_auroc(alike, EARLY_STOP) == 50
    assert len(threshold_curve(alike, EARLY_STOP).share) == 1


def test_error_of_the_gap_agrees_with_simulation() -> None:
    """The spread over 300 simulated studies has a relative error of 4 %, so 25 % is six standard errors."""

    def drawn(rng: np.random.Generator) -> StudyData:
        known = rng.random(800)
        return study(np.clip(known + rng.normal(0, 0.3, 800), 0, 1), rng.random(800) < known, known < 0.3)

    gaps = []
    for seed in range(300):
        data = drawn(np.random.default_rng(seed))
        hit, unknown = (
            data.runs[0].predictions[1, "test"].hit,
            data.runs[0].predictions[1, "test"].categories == "Unknown",
        )
        scores = p_true_scores(data)
        assert scores is not None
        lowest = np.argsort(scores.p_true, kind="stable")[: int(unknown.sum())]
        gaps.append(100 * (hit[unknown].mean() - hit[lowest].mean()))
    assert compare_at_equal_share(drawn(np.random.default_rng(7)), EARLY_STOP).gap.se == pytest.approx(
        np.std(gaps), rel=0.25
    )


def test_standard_error_is_at_least_that_over_seeds() -> None:
    data = worse_and_better(slick=0.05, other=0.3, seeds=3)
    hits = data.runs[0].predictions[1, "test"]
    none = replace(hits, hit=np.where(hits.categories == "Unknown", False, hits.hit))
    other = replace(data.runs[0], predictions={(1, "test"): none, (2, "test"): none})
    spread = replace(data, runs=(other, *data.runs[1:]))
    result = compare_at_equal_share(spread, EARLY_STOP)
    by_seed = [compare_at_equal_share(replace(spread, runs=(run,)), EARLY_STOP).gap.value for run in spread.runs]
    assert result.gap.value == pytest.approx(np.mean(by_seed))
    assert result.gap.se >= np.std(by_seed, ddof=1) / np.sqrt(3) > 0
    assert result.gap.num_seeds == 3


def worse_and_better(slick: float, other: float, *, seeds: int = 1, size: int = 2000) -> StudyData:
    """SliCK and P(True) label different questions Unknown, which are answered correctly at different rates."""
    rng = np.random.default_rng(0)
    place = np.arange(size)
    unknown, low = place < size // 4, (place >= size // 4) & (place < size // 2)
    hit = rng.random(size) < np.select([unknown, low], [slick, other], 0.9)
    return study(np.where(low, 0.1, 0.9) + 0.05 * rng.random(size), hit, unknown, seeds=seeds)


@pytest.mark.parametrize("seeds", [1, 3])
def test_e20_holds_if_slick_questions_are_answered_correctly_less_often(seeds: int) -> None:
    verdict = findings.get("E20").check(worse_and_better(0.02, 0.3, seeds=seeds))
    assert verdict.holds is True
    assert verdict.own["unknown_percent"] == 25
    assert verdict.own[EARLY_STOP][0] < 5 < 25 < verdict.own[EARLY_STOP][1]
    assert verdict.interval[CONVERGENCE][1] < 0
    assert "500 test questions" in verdict.why


@pytest.mark.parametrize(("slick", "other", "holds"), [(0.3, 0.02, False), (0.2, 0.2, None)])
def test_e20_fails_on_the_opposite_difference(slick: float, other: float, holds: bool | None) -> None:
    verdict = findings.get("E20").check(worse_and_better(slick, other))
    assert verdict.holds is holds
    assert "a difference of" in verdict.why


def test_e20_fails_if_it_holds_at_one_checkpoint_only() -> None:
    data = worse_and_better(0.02, 0.3)
    other = worse_and_better(0.3, 0.02).runs[0].predictions[1, "test"]
    run = replace(data.runs[0], predictions={(1, "test"): data.runs[0].predictions[1, "test"], (2, "test"): other})
    assert findings.get("E20").check(replace(data, runs=(run,))).holds is False


def test_p_true_that_is_not_informative_is_not_compared() -> None:
    data = worse_and_better(0.02, 0.3)
    scores = p_true_scores(data)
    assert scores is not None
    assert findings.get("E20").check(with_p_true(data, replace(scores, choice_mass=0.4))).holds
    little = with_p_true(data, replace(scores, choice_mass=1e-7))
    message = "the two choices have less than 0.01 % of the probability"
    with pytest.raises(InsufficientDataError, match=message):
        findings.get("E20").check(little)
    assert message in p_true_section(little).result
    random = replace(scores, p_true=np.random.default_rng(0).random(len(scores.p_true)))
    with pytest.raises(InsufficientDataError, match="does not predict which questions are answered correctly"):
        findings.get("E20").check(with_p_true(data, random))


def test_e20_is_not_testable_without_its_data() -> None:
    whole = worse_and_better(0.02, 0.3)
    scores = p_true_scores(whole)
    assert scores is not None
    some = PTrueScores(question_ids=scores.question_ids[5:], p_true=scores.p_true[5:])
    bare = tuple(replace(run, predictions={}) for run in whole.runs)
    for data, why in (
        (with_p_true(whole, None), "--p-true"),
        (with_p_true(whole, some), "5 of 2000 test questions have no"),
        (replace(whole, runs=()), "natural"),
        (replace(whole, runs=bare), "no stored predictions"),
        (
            worse_and_better(0.0, 0.3, size=4 * MIN_UNKNOWN_QUESTIONS - 4),
            f"{MIN_UNKNOWN_QUESTIONS - 1} test questions are Unknown",
        ),
    ):
        with pytest.raises(InsufficientDataError, match=why):
            findings.get("E20").check(data)


def test_questions_without_annotation_are_excluded() -> None:
    data = worse_and_better(0.02, 0.3)
    hits, extra = data.runs[0].predictions[1, "test"], 300
    more = Predictions(
        question_ids=np.append(hits.question_ids, [f"z{i}" for i in range(extra)]),
        categories=np.append(hits.categories, [""] * extra),
        hit=np.append(hits.hit, np.ones(extra, dtype=bool)),
    )
    run = replace(data.runs[0], predictions={(1, "test"): more, (2, "test"): more})
    assert compare_at_equal_share(replace(data, runs=(run,)), EARLY_STOP) == compare_at_equal_share(data, EARLY_STOP)


def with_p_true(data: StudyData, scores: PTrueScores | None) -> StudyData:
    return replace(data, loaded={**data.loaded, load_p_true: scores})


def with_prefixes(data: StudyData, *, unsure: bool = False) -> StudyData:
    """Labels under one, two and three exemplar sets, with fewer Unknown questions each."""
    hits = data.runs[0].predictions[1, "test"]
    final = hits.categories == "Unknown"
    place = np.arange(len(final))
    columns = [final | (place % 4 < 3 - n) for n in range(1, 3)] + [final]
    labels = PrefixLabels(
        question_ids=hits.question_ids[::-1],
        unknown_QN=np.stack(columns, axis=1)[::-1],
        undetermined_QN=np.full((len(final), 3), unsure),
    )
    return replace(data, loaded={**data.loaded, load_prefix_labels: labels})


def test_last_point_of_the_prefix_curve_uses_all_exemplar_sets() -> None:
    data = with_prefixes(worse_and_better(0.02, 0.3))
    for checkpoint in (EARLY_STOP, CONVERGENCE):
        curve = prefix_curve(data, checkpoint)
        assert [point.sets for point in curve] == [1, 2, 3]
        assert [point.share for point in curve] == sorted((point.share for point in curve), reverse=True)
        assert curve[-1]._replace(sets=None) == slick_point(data, checkpoint)
        result = compare_at_equal_share(data, checkpoint)
        assert (curve[-1].share, curve[-1].accuracy) == (result.share, result.slick)


def test_section_shows_all_exhibits() -> None:
    data = with_prefixes(worse_and_better(0.02, 0.3))
    result = p_true_section(data)
    assert not [exhibit.missing for exhibit in result.exhibits if exhibit.missing]
    assert "SliCK's are answered correctly less often than P(True)'s" in result.result
    figure = result.exhibits[0].figure
    assert figure is not None
    assert "P(True), by threshold" in figure.svg
    assert "SliCK, 1 to 3 exemplar sets" in figure.svg
    (early, late) = comparison_table(
        data, {checkpoint: compare_at_equal_share(data, checkpoint) for checkpoint in (EARLY_STOP, CONVERGENCE)}
    ).rows
    assert early[0] == "early stop"
    assert late[1] == 500
    assert len(prefix_table(data).rows) == 3
    shares = [row[1] for row in p_true_threshold_table(data).rows]
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_section_without_p_true_shows_slick_alone() -> None:
    result = p_true_section(with_p_true(with_prefixes(worse_and_better(0.02, 0.3)), None))
    figure = result.exhibits[0].figure
    assert figure is not None
    assert "by threshold" not in figure.svg
    missing = [exhibit.missing for exhibit in result.exhibits if exhibit.missing]
    assert len(missing) == 2
    assert all("--p-true" in str(why) for why in missing)


def test_section_in_labels_mode_has_no_prefix_curve() -> None:
    result = p_true_section(with_prefixes(worse_and_better(0.02, 0.3), unsure=True))
    figure = result.exhibits[0].figure
    assert figure is not None
    assert "exemplar sets" not in figure.svg
    assert ">SliCK</text>" in figure.svg
    assert any("labels mode" in str(exhibit.missing) for exhibit in result.exhibits)
    assert p_true_section(StudyData()).is_empty
