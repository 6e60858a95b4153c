"""Confidence intervals, rare hits and convergence, compared with exact formulas and simulations."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import beta, binom

from slick.annotation.controls import control_questions
from slick.annotation.knowledge import category_flips, category_pairs, knowledge_table
from slick.annotation.uncertainty import (
    Scoring,
    collect_evidence,
    confidence_intervals,
    convergence_curve,
    fit_beta,
    hit_probability,
    posterior_hit_probability,
)
from slick.errors import EngineError
from slick.types import Category, categories


def test_interval_without_prompt_variance_is_clopper_pearson() -> None:
    no_hits, all_hits = np.zeros((1, 10, 16), np.int8), np.ones((1, 10, 16), np.int8)
    half_hits = np.tile(np.array([1, 0] * 8, np.int8), (1, 10, 1))
    for hits, k in ((no_hits, 0), (all_hits, 160), (half_hits, 80)):
        (low,), (high,) = confidence_intervals(hits)
        assert low == pytest.approx(beta.ppf(0.025, k, 161 - k) if k else 0.0)
        assert high == pytest.approx(beta.ppf(0.975, k + 1, 160 - k) if k < 160 else 1.0)


def test_intervals_cover_the_truth_when_prompts_differ() -> None:
    rng = np.random.default_rng(0)
    truth_QP = rng.beta(0.8, 1.2, size=(3000, 10)) * rng.uniform(0.2, 1, size=(3000, 1))
    mean = 0.4 * np.linspace(0.2, 1, 3000)
    truth_QP *= (mean / truth_QP.mean(axis=1))[:, None] * rng.uniform(0.9, 1.1, size=(3000, 10))
    truth_QP = np.clip(truth_QP, 0, 1)
    hits = (rng.random((3000, 10, 16)) < truth_QP[..., None]).astype(np.int8)
    low, high = confidence_intervals(hits)
    target = truth_QP.mean(axis=1)
    covered = ((low <= target) & (target <= high)).mean()
    assert covered > 0.95  # the intervals cover other prompts too, so they are wide for these ten
    narrow = binom.std(160, 0.5) / 160
    assert (high - low)[(target > 0.3) & (target < 0.7)].mean() > 2 * narrow


def test_fit_beta_recovers_the_distribution() -> None:
    rng = np.random.default_rng(1)
    hits = rng.binomial(160, rng.beta(0.3, 4.0, size=20_000))
    a, b = fit_beta(hits, 160)
    assert (a, b) == (pytest.approx(0.3, rel=0.1), pytest.approx(4.0, rel=0.1))
    unknown = hits == 0
    hit_later = rng.binomial(160, rng.beta(0.3, 4.0 + 160, size=200_000)) > 0
    assert posterior_hit_probability((0.3, 4.0), 160, 160) == pytest.approx(hit_later.mean(), abs=0.01)
    assert unknown.any()
    for extreme in (np.zeros(5, int), np.full(5, 160), np.array([], int)):
        with pytest.raises(ValueError, match="needs correct and wrong samples"):
            fit_beta(extreme, 160)


def test_hit_probability_of_independent_samples() -> None:
    gold = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.2], [0.01, 0.02]])
    expected = [0, 1 - 0.5**16, 1, 1 - 0.99**16 * 0.98**16]
    assert hit_probability(gold, 16) == pytest.approx(expected)


def test_convergence_curve_counts_categories_of_smaller_samples() -> None:
    rng = np.random.default_rng(2)
    greedy = (rng.random((200, 3)) < rng.random((200, 1)) ** 2).astype(np.int8)
    sampled = (rng.random((200, 3, 5)) < rng.random((200, 1, 1)) ** 4).astype(np.int8)
    curve = {(sets, samples): counts for sets, samples, counts in convergence_curve(greedy, sampled)}
    assert set(curve) == {(1, 5), (2, 5), (3, 5), (3, 1), (3, 2), (3, 4)}
    for (sets, samples), counts in curve.items():
        hits = greedy[:, :sets].sum(axis=1), np.full(len(greedy), sets), sampled[:, :sets, :samples].sum(axis=(1, 2))
        expected = categories(*hits)
        assert counts == {str(category): expected.count(str(category)) for category in Category}


QUESTIONS = pa.table(
    {name: [f"{name}{i}" for i in range(4)] for name in ("question_id", "relation", "domain", "split")}
)


def generations(greedy: list, sampled: list) -> pa.Table:
    return pa.table(
        {
            "question_id": QUESTIONS["question_id"],
            "greedy_hit": pa.array(greedy, pa.list_(pa.bool_())),
            "sampled_hit": pa.array(sampled, pa.list_(pa.list_(pa.bool_()))),
        }
    )


def test_samples_skipped_in_labels_mode_are_null() -> None:
    no, yes = [False, False], [True, False]
    part = generations([[True, True], yes, no, no], [[[None] * 2] * 2, [[None] * 2] * 2, [[True, None], no], [no, no]])
    evidence = collect_evidence(iter([part]), Scoring(matcher="exact", num_exemplar_sets=2, num_samples=2))
    rows = knowledge_table(QUESTIONS, evidence.rows).to_pylist()
    assert [row["category"] for row in rows] == [str(category) for category in Category]
    assert [row["p_correct_sampled"] for row in rows] == [None, None, None, 0.0]
    assert [row["sampled_total"] for row in rows] == [0, 0, 3, 4]
    assert [row["p_upper"] is None for row in rows] == [True, True, True, False]
    assert [row["p_high"] is None for row in rows] == [True, True, True, False]
    assert evidence.convergence_curve == []


def test_unknown_without_samples_is_an_error() -> None:
    part = generations([[False]] * 4, [[[None]]] * 4)
    evidence = collect_evidence(iter([part]), Scoring(matcher="exact", num_exemplar_sets=1, num_samples=1))
    with pytest.raises(EngineError, match="WeaklyKnown and Unknown cannot be separated"):
        knowledge_table(QUESTIONS, evidence.rows)


def test_gold_probabilities_determine_categories() -> None:
    part = pa.table(
        {
            "question_id": QUESTIONS["question_id"],
            "greedy_hit": [[True, True], [True, False], [False, False], [False, False]],
            "gold_probability": [[1.0, 0.9], [0.9, 0.1], [0.05, 0.05], [0.0, 0.01]],
        }
    )
    rows = knowledge_table(
        QUESTIONS, collect_evidence(iter([part]), Scoring(matcher="exact", num_exemplar_sets=2, num_samples=16)).rows
    ).to_pylist()
    assert [row["category"] for row in rows] == [str(category) for category in Category]
    assert [row["p_correct_sampled"] for row in rows] == pytest.approx([0.95, 0.5, 0.05, 0.005])
    assert [row["chance_known"] for row in rows] == [
        None,
        None,
        pytest.approx(1 - 0.95**32),
        pytest.approx(1 - 0.99**16),
    ]
    assert [row["sampled_total"] for row in rows] == [0] * 4


def test_controls_have_fictitious_subjects() -> None:
    rows = [
        {
            "question_id": f"q{i}",
            "relation": f"P{19 + i % 2}",
            "domain": "id",
            "split": "test",
            "subject": f"Ada {i}" if i != 7 else None,
            "question": f"Where was Ada {i} born?",
            "answers": ["x"],
        }
        for i in range(12)
    ]
    controls = control_questions(pa.Table.from_pylist(rows), 3, seed=0).to_pylist()
    assert len(controls) == 6
    assert len({row["subject"] for row in controls}) == 6
    for row in controls:
        assert row["question"] == f"Where was {row['subject']} born?"
        assert "Ada" not in row["question"]
        assert row["question_id"].startswith("control-q")
    assert control_questions(pa.Table.from_pylist(rows), 3, seed=0).to_pylist() == controls


def test_controls_find_the_subject_in_another_unicode_form() -> None:
    forms = [[unicodedata.normalize(form, "José") for form in pair] for pair in (("NFC", "NFD"), ("NFD", "NFC"))]
    rows = [
        {"question_id": f"q{i}", "relation": "P19", "subject": subject, "question": f"Where was {name} born?"}
        for i, (subject, name) in enumerate(forms)
    ]
    controls = control_questions(pa.Table.from_pylist(rows), 3, seed=0).to_pylist()
    assert len(controls) == 2
    assert all(row["question"] == f"Where was {row['subject']} born?" for row in controls)


def test_category_flips_are_counted_by_category() -> None:
    first = pa.table({"question_id": ["a", "b", "c"], "category": ["Unknown", "Unknown", "MaybeKnown"]})
    second = pa.table({"question_id": ["c", "a"], "category": ["MaybeKnown", "WeaklyKnown"]})
    flips = category_flips(category_pairs(first, second))
    assert (flips["questions"], flips["flipped"], flips["flip_rate"]) == (2, 1, 0.5)
    assert flips["from_to"]["Unknown"]["WeaklyKnown"] == 1
    assert flips["from_to"]["MaybeKnown"]["MaybeKnown"] == 1
