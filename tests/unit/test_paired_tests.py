"""Paired comparison of two models: McNemar, bootstrap, Holm, and the tables."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from slick.report.data import StudyData
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.sections.categories import best_comparison_table, categories_section, early_vs_last_table
from slick.report.statistics.intervals import holm
from slick.report.statistics.paired_tests import (
    ModelAtCheckpoint,
    bootstrap_interval,
    combine_p_values,
    compare_early_to_last,
    compare_models,
    compare_to_best,
    mcnemar_p,
)
from tests.unit.outcome_studies import hits, single_categories, with_rows


def study_with_loss(loss: float) -> StudyData:
    return single_categories(lambda name: loss, 800)


def replace_runs(data: StudyData, name: str, losses: tuple[float, ...]) -> StudyData:
    """Replace the runs of a variant by one per share of correct answers lost until convergence."""
    runs = [run for run in data.runs if run.variant != name]
    rng = np.random.default_rng(1)
    for seed, loss in enumerate(losses):
        early = rng.random(1000) < 0.4
        last = early & (rng.random(1000) >= loss)
        run = with_rows(name, {(1, "test"): hits(early), (2, "test"): hits(last)})[1]
        runs.append(replace(run, run_id=f"{name}-seed{seed}", seed=seed))
    return replace(data, runs=tuple(runs))


def test_mcnemar_is_a_sign_test_of_discordant_questions() -> None:
    first = np.array([True] * 30 + [False] * 14 + [True] * 50)
    second = np.array([False] * 30 + [True] * 14 + [True] * 50)
    assert mcnemar_p(first, second) == pytest.approx(binomtest(14, 44).pvalue)
    assert mcnemar_p(first, first) == 1.0


def test_mcnemar_false_positive_rate() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(mcnemar_p(rng.random(400) < 0.4, rng.random(400) < 0.4) < 0.05 for _ in range(200))
    assert alarms <= 22  # at most 10 expected; more than 22 of 200 has probability under 0.001


def test_combined_p_values_are_valid_for_dependent_seeds() -> None:
    assert combine_p_values([0.2]) == 0.2
    assert combine_p_values([0.9, 0.8, 0.7]) == 1.0
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        base, other = rng.random(400) < 0.4, rng.random(400) < 0.4  # all three seeds share the hard questions
        flips = [(base ^ (rng.random(400) < 0.02), other ^ (rng.random(400) < 0.02)) for _ in range(3)]
        alarms += combine_p_values([mcnemar_p(a, b) for a, b in flips]) < 0.05
    assert alarms <= 22


def test_bootstrap_resamples_questions_in_pairs() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(2000) < 0.5).astype(float)
    second = np.where(rng.random(2000) < 0.1, 0.0, first)
    low, high = bootstrap_interval(first, second)
    gaps = 100 * (first - second)
    half_width = 1.96 * gaps.std(ddof=1) / np.sqrt(2000)
    assert low == pytest.approx(gaps.mean() - half_width, abs=0.3)
    assert high == pytest.approx(gaps.mean() + half_width, abs=0.3)
    assert bootstrap_interval(first, second) == (low, high), "the same seed gives the same interval"
    unpaired = rng.permutation(second)  # the interval of the unpaired difference is much wider
    assert np.ptp(bootstrap_interval(first, unpaired)) > 2 * (high - low)


def test_holm_p_values_are_larger_and_keep_their_order() -> None:
    raw = [0.001, 0.04, 0.012, 0.8]
    adjusted = holm(raw)
    assert adjusted == pytest.approx([0.004, 0.08, 0.036, 0.8])
    assert holm([]) == []


def test_comparison_uses_the_seeds_of_both_models() -> None:
    data = replace_runs(study_with_loss(0.0), "natural", (0.2, 0.25, 0.3))
    result = compare_models(data, ModelAtCheckpoint("natural", EARLY_STOP), ModelAtCheckpoint("natural", CONVERGENCE))
    assert result.num == 1000
    assert result.difference == pytest.approx(10, abs=2)
    assert result.low < result.difference < result.high
    assert result.seeds.num_seeds == result.num_same_sign == 3
    assert result.seeds.low is not None
    assert result.seeds.low < result.difference
    assert max(result.t_test_p, result.mcnemar_p) < 1e-6
    few = replace_runs(data, "maybeknown", (0.0,))
    assert (
        compare_models(
            few, ModelAtCheckpoint("natural", EARLY_STOP), ModelAtCheckpoint("maybeknown", EARLY_STOP)
        ).seeds.num_seeds
        == 1
    )


def test_identical_models_do_not_differ_significantly() -> None:
    result = compare_models(
        study_with_loss(0.0), ModelAtCheckpoint("natural", EARLY_STOP), ModelAtCheckpoint("natural", CONVERGENCE)
    )
    assert (result.difference, result.low, result.high) == (0.0, 0.0, 0.0)
    assert (result.t_test_p, result.mcnemar_p) == (1.0, 1.0)


def test_unpaired_predictions_are_refused() -> None:
    data = study_with_loss(0.1)
    bare = replace(data, runs=tuple(replace(run, predictions={}) for run in data.runs))
    with pytest.raises(InsufficientDataError, match="kept no predictions"):
        compare_models(bare, ModelAtCheckpoint("natural", EARLY_STOP), ModelAtCheckpoint("natural", CONVERGENCE))
    short = replace_runs(data, "natural", (0.1,))
    with pytest.raises(InsufficientDataError, match="do not have the same test questions"):
        compare_models(short, ModelAtCheckpoint("natural", EARLY_STOP), ModelAtCheckpoint("maybeknown", EARLY_STOP))
    apart = tuple(replace(run, seed=1) if run.variant == "natural" else run for run in data.runs)
    with pytest.raises(InsufficientDataError, match="no seed in common"):
        compare_models(
            replace(data, runs=apart),
            ModelAtCheckpoint("natural", EARLY_STOP),
            ModelAtCheckpoint("maybeknown", EARLY_STOP),
        )
    with pytest.raises(InsufficientDataError, match="two or more of"):
        compare_to_best(StudyData(), EARLY_STOP)
    with pytest.raises(InsufficientDataError, match="a finished run of one of"):
        compare_early_to_last(StudyData())


def with_categories(data: StudyData) -> StudyData:
    """Every second question MaybeKnown, the others split over the other three categories."""
    names = np.array(["MaybeKnown", "HighlyKnown", "MaybeKnown", "WeaklyKnown", "MaybeKnown", "Unknown"])
    runs = []
    for run in data.runs:
        rows = {
            key: replace(item, categories=names[np.arange(len(item.hit)) % 6]) for key, item in run.predictions.items()
        }
        accuracy, num = dict(run.accuracy), dict(run.num)
        for name in set(names.tolist()):
            masks = [rows[epoch, "test"].mask(name) for epoch in (1, 2)]
            accuracy["test", name] = np.array(
                [100 * rows[epoch, "test"].hit[mask].mean() for epoch, mask in zip((1, 2), masks, strict=True)]
            )
            num["test", name] = int(masks[0].sum())
        runs.append(replace(run, predictions=rows, accuracy=accuracy, num=num))
    return replace(data, runs=tuple(runs))


def test_tables_list_every_comparison_with_holm_correction() -> None:
    data = with_categories(single_categories(lambda name: 0.0 if name == "maybeknown" else 0.3, 600))
    table = best_comparison_table(
        [item for checkpoint in (EARLY_STOP, CONVERGENCE) for item in compare_to_best(data, checkpoint)]
    )
    assert len(table.rows) == 2 * 5 * 4
    raw, adjusted = table.columns.index("t-test p"), table.columns.index("Holm")
    assert all(row[adjusted] >= row[raw] for row in table.rows)  # type: ignore[operator]
    last = [row for row in table.rows if row[0] == "convergence" and row[1] == "Full"]
    assert {row[3] for row in last} == {"D_MaybeKnown"}
    stops = {row[0]: row for row in early_vs_last_table(data, 100, 0).rows}
    assert stops["D_MaybeKnown"][1] == 0.0
    assert stops["D_Natural"][-1] == "1 of 1"
    assert stops["D_Natural"][3] is None, "one seed gives no interval over seeds"


def test_section_reports_significant_comparisons_after_correction() -> None:
    data = with_categories(single_categories(lambda name: 0.0 if name == "maybeknown" else 0.3, 600))
    assert "Of 40 comparisons, " in categories_section(data).text
    assert all(exhibit.missing for exhibit in categories_section(StudyData()).exhibits)
