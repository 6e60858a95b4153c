"""Each finding on data on which it holds, fails, and is not testable."""

from dataclasses import replace

import numpy as np
import pytest

from slick.report.charts import render_figure
from slick.report.data import Run, StudyData, Variant
from slick.report.findings.abstention import measure_abstention
from slick.report.findings.base import (
    CheckResult,
    Condition,
    Verdict,
    contradiction_z,
    evaluate_findings,
    finding_rates,
    findings,
    judge,
    judge_finding,
    rates_at,
)
from slick.report.findings.knowledge import category_totals
from slick.report.loading import choose_durations
from slick.report.measurements import (
    CONVERGENCE,
    EARLY_STOP,
    InsufficientDataError,
    Measurement,
    confidence_interval,
    paired_se,
    round1,
)
from slick.report.sections.choice import policy_table, response_surface_figure
from slick.report.sections.share import accuracy_sentence
from slick.report.statistics import effects
from slick.report.statistics.p_true import first_hit_and_gap, prefix_curve
from tests.false_claims import BARELY_FALSE, changed
from tests.simulated_study import PAPER_SIZE, StudySize, paper_rates, simulate_linear
from tests.unit.outcome_studies import (
    FAILING_STUDIES,
    HOLDING_STUDIES,
    MEDIUM_SIZE,
    MISSING,
    SMALL_SIZE,
    TEST,
    UNDECIDED_STUDIES,
    idk_study,
    linear,
    prefix_study,
    rates_study,
    simulated,
    single_categories,
)
from tests.unit.paper_numbers import paper_study

ALL_FINDINGS = [f"E{i}" for i in range(1, 26)]

PAPER_CANNOT_TELL = {
    "E12": "2 epochs",  # one point per epoch; the paper prints the whole curves of one share only
    "E13": "ood",  # no accuracy out of distribution is printed
}
"""Findings that are not testable with the paper's numbers, and a part of the reason.

P(True), the labels under fewer exemplar sets, and the second learning rate, which the paper does not print either, are
assumed (`tests.simulated_study`).
"""

NAMES = {"unknown-000": 0.0, "unknown-100": 1.0}

EXACT = ["E1", "E2"]
"""Counts, which have no error."""


def check(name: str, data: StudyData) -> CheckResult:
    return findings.get(name).check(data)


@pytest.mark.parametrize("name", HOLDING_STUDIES)
def test_finding_holds(name: str) -> None:
    result = check(name, HOLDING_STUDIES[name]())
    assert result.holds, result.why


@pytest.mark.parametrize("name", FAILING_STUDIES)
def test_finding_fails(name: str) -> None:
    result = check(name, FAILING_STUDIES[name]())
    assert result.holds is False, result.why
    assert any(digit in result.why for digit in "0123456789"), "by how much?"


@pytest.mark.parametrize("name", UNDECIDED_STUDIES)
def test_finding_is_undecided(name: str) -> None:
    result = check(name, UNDECIDED_STUDIES[name]())
    assert result.holds is None, result.why
    assert "instead of" in result.needed or "too close" in result.needed


@pytest.mark.parametrize("name", MISSING)
def test_finding_is_not_testable_without_its_data(name: str) -> None:
    study, reason = MISSING[name]
    with pytest.raises(InsufficientDataError, match=reason):
        check(name, study())


@pytest.mark.parametrize("name", ALL_FINDINGS)
def test_every_finding_has_tests_of_all_verdicts(name: str) -> None:
    assert name in HOLDING_STUDIES, "no data in which it holds"
    assert name in FAILING_STUDIES, "no data in which it fails"
    assert name in UNDECIDED_STUDIES or name == "E1", "no data that leave it undecided"
    assert name in MISSING, "no data with which it is not testable"


@pytest.mark.parametrize("name", ALL_FINDINGS)
def test_findings_hold_on_the_papers_numbers(name: str) -> None:
    outcome = judge_finding(findings.get(name), simulated())
    if name in PAPER_CANNOT_TELL:
        assert outcome.verdict == Verdict.NOT_TESTABLE
        assert PAPER_CANNOT_TELL[name] in outcome.why
    else:
        assert outcome.verdict == Verdict.HOLDS, outcome.why


@pytest.mark.parametrize(("name", "change"), [(name, what) for name in BARELY_FALSE for what in BARELY_FALSE[name]])
def test_finding_does_not_hold_if_a_part_is_false(name: str, change: str) -> None:
    """With exactly these accuracies, a part lies at its bound, so it cannot be shown."""
    if name in ("E12", "E13"):
        rates = changed(paper_rates(), BARELY_FALSE[name][change])
        studies = [simulate_linear(rates, PAPER_SIZE, np.random.default_rng(seed)) for seed in range(10)]
        assert sum(check(name, study).holds is True for study in studies) <= 2
        return
    size = MEDIUM_SIZE if name == "E20" else PAPER_SIZE  # E20 has a bootstrap
    result = judge_finding(findings.get(name), simulated(BARELY_FALSE[name][change], size, name))
    assert result.verdict != Verdict.HOLDS, result.why


@pytest.mark.parametrize("name", [name for name in HOLDING_STUDIES if name not in EXACT])
def test_estimates_have_intervals(name: str) -> None:
    for study in (HOLDING_STUDIES[name], FAILING_STUDIES[name]):
        ends = list(leaves(check(name, study()).interval))
        assert ends
        assert all(low <= high for low, high in ends)


@pytest.mark.parametrize("name", EXACT)
def test_counts_have_no_interval(name: str) -> None:
    assert check(name, HOLDING_STUDIES[name]()).interval is None


def leaves(value: object) -> list[tuple[float, float]]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    assert isinstance(value, list)
    return [tuple(value)]


def test_no_finding_holds_on_an_empty_study() -> None:
    outcomes = evaluate_findings(StudyData())
    assert [outcome.id for outcome in outcomes] == ALL_FINDINGS
    assert all(outcome.holds is None and outcome.own is None and outcome.why for outcome in outcomes)
    assert all(outcome.interval is None for outcome in outcomes)


def test_no_finding_holds_on_runs_without_measurements() -> None:
    data = replace(paper_study(), counts={}, filter_counts=None)
    blank = tuple(
        replace(run, accuracy={key: np.full(50, np.nan) for key in run.accuracy}, early_epoch=None) for run in data.runs
    )
    assert not [outcome.id for outcome in evaluate_findings(replace(data, runs=blank)) if outcome.holds]


def test_shown_difference_has_an_interval_without_0() -> None:
    data = simulated()
    loss = data.difference(("unknown-050", EARLY_STOP), ("unknown-050", CONVERGENCE))
    assert check("E23", data).interval == {"loss": confidence_interval(loss)}
    assert confidence_interval(loss)[0] > 0
    noise = check("E23", simulated(BARELY_FALSE["E23"]["no loss"], finding="E23"))
    low, high = noise.interval["loss"]
    assert noise.holds is None
    assert low < 0 < high


def test_intervals_of_the_linear_model_are_those_of_the_fit() -> None:
    intervals = check("E12", linear(7, -8, 0.4)).interval
    assert intervals["b_kn"][0] < 7 < intervals["b_kn"][1]
    assert intervals["b_unk"][0] < -8 < intervals["b_unk"][1]


def test_equality_needs_many_questions() -> None:
    assert check("E6", simulated()).holds
    few = check("E6", simulated(None, SMALL_SIZE))
    assert few.holds is None
    assert "test questions instead of 200" in few.needed


def test_equality_needs_power_to_detect_harm() -> None:
    """If Unknown rows are harmless at convergence too, "neutral at early stop" says nothing."""
    harmless = check("E6", simulated(BARELY_FALSE["E8"]["D loses as little as D_Known"], finding="E6"))
    assert harmless.holds is not True


# how conditions are combined


def condition(value: float, se: float, **changes: object) -> Condition:
    return Condition(**{"text": f"{value} ± {se}", "value": Measurement(value, se, 1), "num": 400} | changes)


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        ([(3.0, 1.0)], True),
        ([(1.0, 1.0)], None),
        ([(-3.0, 1.0)], False),
        ([(3.0, 1.0), (1.0, 1.0)], None),
        ([(3.0, 1.0), (-3.0, 1.0)], False),
        ([(-2.1, 1.0)], False),
        ([(3.0, 1.0), (-2.1, 1.0)], None),  # Bonferroni: 2.1 standard errors are not surprising in two conditions
    ],
)
def test_finding_holds_if_all_conditions_are_shown(conditions: list[tuple[float, float]], holds: bool | None) -> None:
    assert judge([condition(*pair) for pair in conditions], None, "").holds is holds


def test_no_change_is_shown_within_the_margin_and_contradicted_beyond_the_claim() -> None:
    verdicts = {
        value: judge([condition(value, 0.5, above=False, shown=1.5, claimed=0.0)], None, "").holds
        for value in (-3.0, 0.4, 0.8, 1.2)
    }
    assert verdicts == {-3.0: True, 0.4: True, 0.8: None, 1.2: False}


def test_needed_questions_give_a_decision() -> None:
    """At one standard error from the bound, 1.96 squared times as many questions decide."""
    result = judge([condition(1.0, 1.0)], None, "")
    assert result.needed == ("about 1,500 test questions instead of 400 would decide it, if the values stayed the same")
    enough = condition(1.0, 1.0 * (400 / 1540) ** 0.5)
    assert judge([enough], None, "").holds
    assert "too close" in judge([condition(0.0, 1.0)], None, "").needed


def test_intervals_of_proportions_are_never_a_point() -> None:
    whole = condition(100.0, 0.0, num=20, num_successes=20, shown=50.0, claimed=50.0)
    low, high = whole.interval(1.96)
    assert (round(low, 1), high) == (83.9, 100.0)


def test_contradiction_level_is_corrected_for_the_number_of_conditions() -> None:
    assert contradiction_z(1) == pytest.approx(1.96, abs=0.001)
    rng = np.random.default_rng(0)
    alarms = (rng.standard_normal((4000, 50)).max(axis=1) > contradiction_z(50)).mean()
    assert alarms <= 0.035  # 0.025 is promised; more than 0.035 of 4000 has probability under 0.001


def test_few_unchanged_questions_have_a_wide_interval() -> None:
    """Two MaybeKnown questions that are both answered right had an error of 0."""
    same = np.ones(2)
    assert paired_se(same - same) > 20
    data = simulated(None, StudySize(num_test=40, num_dev=40, num_train=40))
    with pytest.raises(InsufficientDataError, match="needs 20 MaybeKnown test questions or more, there are 10"):
        check("E15", data)


def test_power_depends_on_the_number_of_questions() -> None:
    small, large = rates_at("E6", 1200), rates_at("E6", 10481)
    assert small[0] < large[0]
    assert rates_at("E6", 10) == small
    assert small[0] < rates_at("E6", 4000)[0] < large[0]
    assert rates_at("a finding of a user", 1200) == (None, None)


def test_simulated_rates_are_complete_with_few_false_positives() -> None:
    """The rates that `python -m tests.benchmarks.verdicts` wrote: 200 studies, so 5 % of them are 10."""
    rates = finding_rates()
    assert set(rates) == {name for name in ALL_FINDINGS if name != "E1"}
    for name, rows in rates.items():
        assert [row["questions"] for row in rows] == [1200, 10481], name
        assert all(row["false_alarm"] <= 0.05 for row in rows), name
        assert all(0 <= row["power"] <= 1 for row in rows), name


# E12 and E13, E22, E24, E25: by what they fail


def test_e1_names_the_count_that_differs() -> None:
    assert "ood P50: 968, expected 967" in check("E1", FAILING_STUDIES["E1"]()).why


def test_e12_and_e13_name_the_coefficient() -> None:
    assert "b_unk" in check("E12", linear(7, 8, 0.4)).why
    assert "in distribution" in check("E13", linear(7, -8, 1.5)).why


def test_e25_names_the_variant() -> None:
    assert check("E25", FAILING_STUDIES["E25"]()).why.startswith("D_MaybeKnown loses 5.6")


def test_e22_tests_answered_questions() -> None:
    assert check("E22", idk_study(0.0)).holds
    assert "falls by" in check("E22", idk_study(0.5)).why
    assert check("E22", idk_study(0.0, abstains=False)).holds is not True
    at_random = check("E22", simulated(BARELY_FALSE["E22"]["it abstains at random"], finding="E22"))
    assert at_random.holds is not True


def test_e24_tests_each_distant_learning_rate() -> None:
    result = check("E24", rates_study())
    assert result.own == {"1e-4": {"early_stop": [49.0, 34.0], "convergence": [45.0, 30.0]}}
    assert check("E24", rates_study(fall=-15.0)).holds is False
    assert check("E24", rates_study(fall=0.5)).holds is None
    assert "from early stop to convergence" in check("E24", rates_study(early_gain=-4.0)).why
    with pytest.raises(InsufficientDataError, match="differ ten times"):
        check("E24", rates_study(rate="2e-5"))


def test_e24_needs_a_complete_sweep_at_the_other_rate() -> None:
    with pytest.raises(InsufficientDataError, match=r"at learning rate 1e-4, .* 3 or more shares"):
        check("E24", rates_study(shares=(0.0, 1.0)))
    late = [point for point in rates_study().points if point["policy"] != "best_dev"]
    with pytest.raises(InsufficientDataError, match="points of best_dev"):
        check("E24", replace(rates_study(), points=tuple(late)))
    both = (*rates_study().points, *rates_study(rate="0.001", shares=(0.0, 1.0)).points)
    assert list(check("E24", replace(rates_study(), points=both)).own) == ["1e-4"], (
        "a rate that is not complete is left out"
    )
    nameless = replace(rates_study(), runs=(), counts={})
    with pytest.raises(InsufficientDataError, match="number of test questions"):
        check("E24", nameless)


def test_abstentions_are_detected_by_the_phrase_of_the_variant() -> None:
    data = idk_study(0.0)
    at_all = measure_abstention(data, "idk-050", CONVERGENCE)
    assert at_all.answered.value < 80
    assert at_all.overall.value == pytest.approx(at_all.answered.value * at_all.on_answered.value / 100)
    assert measure_abstention(replace(data, idk_phrase="No idea"), "idk-050", CONVERGENCE).answered.value == 100


def test_e21_uses_prefixes_of_the_stored_exemplar_sets() -> None:
    shares = [share for _, share, _ in prefix_curve(prefix_study(useful=True), EARLY_STOP)]
    assert shares == sorted(shares, reverse=True)


def test_labels_of_fewer_sets_distinguish_misses_from_skipped_samples() -> None:
    missed, hit = [False, False], [False, True]
    assert first_hit_and_gap([False, False, False], [missed, missed, missed]) == (3, 3, 3)
    assert first_hit_and_gap([False, False, False], [missed, hit, None]) == (1, 2, 3)
    assert first_hit_and_gap([False, False, True], None) == (2, 0, 3)
    assert first_hit_and_gap([False, False, False], [missed, [None, False], missed]) == (3, 1, 3)


# the shared arithmetic


def test_differences_are_paired_if_both_runs_kept_predictions() -> None:
    data = single_categories(lambda name: 0.05)
    paired = data.difference(("natural", EARLY_STOP), ("natural", CONVERGENCE))
    bare = replace(data, runs=tuple(replace(run, predictions={}) for run in data.runs))
    unpaired = bare.difference(("natural", EARLY_STOP), ("natural", CONVERGENCE))
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.se < unpaired.se / 2


def test_with_three_seeds_the_error_includes_the_variance_between_seeds() -> None:
    data = single_categories(lambda name: 0.05)
    natural = data.runs_for("natural")[0]
    seeds = []
    for seed, shift in enumerate((-9.0, 0.0, 9.0)):
        curve = natural.accuracy[TEST] + np.array([shift, 0.0])
        seeds.append(replace(natural, run_id=f"natural-seed{seed}", seed=seed, accuracy={TEST: curve}))
    spread = replace(data, runs=tuple(seeds))
    widened = 4.3027 / 1.96  # the quantile of Student's t with 2 degrees of freedom
    for measured in (
        spread.accuracy("natural", EARLY_STOP),
        spread.difference(("natural", EARLY_STOP), ("natural", CONVERGENCE)),
    ):
        assert measured.se == pytest.approx(widened * 9 / np.sqrt(3), rel=1e-4)


def test_training_lengths_are_a_few_of_the_grid() -> None:
    points = [{"epochs": 20, "policy": f"fixed({n})"} for n in (1, 2, 3, 5, 8, 10, 12, 15)]
    chosen = choose_durations(points, [20, 20])
    assert chosen[-1] == 20
    assert len(chosen) == 6
    assert set(chosen) <= {1, 2, 3, 5, 8, 10, 12, 15, 20}
    assert choose_durations([], []) == ()
    assert choose_durations([], [2]) == (1, 2)


def test_displayed_percentages_are_rounded_consistently() -> None:
    """100 * 0.2725 and 27.25 are both displayed as 27.3."""
    assert 100 * 0.2725 != 27.25
    assert round1(100 * 0.2725) == round1(27.25) == 27.3
    assert str(round1(-0.04)) == "0.0"
    assert round1(float("inf")) == float("inf")


def test_sentence_heat_map_and_tables_show_the_same_number() -> None:
    variants = {name: Variant(name=name, kind="unknown", share=share, num=9) for name, share in NAMES.items()}
    runs = tuple(
        Run(
            run_id=f"{name}-seed0",
            variant=name,
            seed=0,
            epochs=np.array([1, 2]),
            accuracy={TEST: np.array([40.0, 27.25])},
            num={TEST: 400},
            early_epoch=1,
        )
        for name in NAMES
    )
    points = tuple(
        {"variant": name, "seed": 0, "epochs": 2, "policy": f"fixed({n})", "stop_epoch": n, "cost_epochs": n}
        | {"settings": "", "dev_all": 0.4, "test_all": 0.4 if n == 1 else 109 / 400}
        for name in NAMES
        for n in (1, 2)
    )
    data = StudyData(variants=variants, runs=runs, points=points, durations=(1, 2))
    assert "from 27.3 to 27.3 % at convergence" in accuracy_sentence(data)
    svg = render_figure("map", "", response_surface_figure(data, effects.response_surface(data))).svg
    assert svg.count(">27.3</text>") == 2
    assert 27.3 in policy_table(data).rows[-1]


def test_paper_study_has_the_point_of_figure_5() -> None:
    """D_Natural on the 33.0 % of test questions that are Unknown under all ten exemplar sets."""
    data = paper_study()
    totals = category_totals(data, "id", "test")
    assert round1(100 * totals["Unknown"] / sum(totals.values())) == 33.0
    assert [
        data.accuracy("natural", checkpoint, category="Unknown").value for checkpoint in (EARLY_STOP, CONVERGENCE)
    ] == [1.8, 2.5]


def test_paper_study_reproduces_table_8() -> None:
    own = check("E22", paper_study()).own
    assert own == {"accuracy": [61.8, 61.8], "answered": [58.7, 55.6], "over_all": [36.3, 34.4]}
