"""The section with the recommended point of the sweep."""

import re
from dataclasses import replace

import numpy as np
import pytest

from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.recommendation import recommend
from slick.report.sections.choice import (
    axis_table,
    estimates_table,
    policy_table,
    recommendation_section,
    recommendation_table,
    stopping_table,
)


def sweep_of(seeds: tuple[int, ...], shares: tuple[float, ...] = (0.0, 0.5, 1.0), settings: str = "") -> StudyData:
    """A sweep in which Unknown rows cost up to 30 points and the second half of the training 10 points."""
    kinds = {f"unknown-{round(100 * share):03d}": ("unknown", share) for share in shares}
    kinds |= {f"known-{round(100 * share):03d}": ("known", share) for share in shares if 0 < share < 1}
    points = []
    for name, (kind, share) in kinds.items():
        for seed in seeds:
            level = 0.6 - (0.3 * share if kind == "unknown" else 0.2 * share) + 0.01 * seed
            for policy, stop, cost, fall in (
                ("fixed(4)", 4, 4, 0.02),
                ("fixed(8)", 8, 8, 0.1),
                ("best_dev", 3, 8, 0.0),
            ):
                right = level - fall - (0.001 * seed if fall else 0.0)
                points.append(
                    {"variant": name, "seed": seed, "epochs": 4 if stop == 4 else 8, "policy": policy}
                    | {"stop_epoch": stop, "cost_epochs": cost, "dev_all": right, "test_all": right}
                    | {"settings": settings}
                )
    variants = {name: Variant(name=name, kind=kind, share=share, num=80) for name, (kind, share) in kinds.items()}
    runs = tuple(
        Run(
            run_id=f"{name}-seed{seed}",
            variant=name,
            seed=seed,
            epochs=np.arange(1, 9),
            accuracy={},
            num={},
            early_epoch=3,
        )
        for name in variants
        for seed in seeds
    )
    return StudyData(variants=variants, runs=runs, points=tuple(points), durations=(4, 8))


def test_section_starts_with_the_recommended_point() -> None:
    text = recommendation_section(sweep_of((0, 1, 2))).result
    assert (
        "stop by best dev accuracy within 8 epochs: its dev accuracy, 46.0 %, is the best on average over all 3 shares"
        in text
    )
    assert "keeps epoch 3 of 8 trained epochs." in text
    assert "it takes as long and changes test accuracy by +10.1 (+9.9 to +10.3) points (significant)" in text
    assert "Filtering out the Unknown rows, averaged over the shares with both runs, changes" in text
    assert "+5.0 (+5.0 to +5.0) points at the same point (significant)." in text
    assert "one seed" not in text


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ((0.1, 0.1, 0.12), "significant"),
        ((-0.1, -0.1, -0.12), "significant"),
        ((-0.1, 0.0, 0.1), "not significant"),
        ((0.0,) * 3, "not significant"),
    ],
)
def test_difference_within_its_interval_is_not_significant(changes: tuple[float, ...], verdict: str) -> None:
    data = sweep_of((0, 1, 2), shares=(0.5,))
    level = {
        p["seed"]: p["test_all"] for p in data.points if (p["variant"], p["policy"]) == ("unknown-050", "best_dev")
    }
    moved = [
        {**p, "test_all": level[p["seed"]] + changes[p["seed"]]} if p["variant"] == "known-050" else p
        for p in data.points
    ]
    sentence = recommendation_section(replace(data, points=tuple(moved))).result.rsplit(". ", 1)[1]
    assert sentence.startswith("Filtering out the Unknown rows")
    assert sentence.endswith(f"points at the same point ({verdict}).")


def test_one_seed_has_no_intervals() -> None:
    section = recommendation_section(sweep_of((0,)))
    assert "interval" not in section.result
    assert section.result.count(". ") == 2
    assert not [exhibit.missing for exhibit in section.exhibits if exhibit.missing]
    assert " to " not in str(recommendation_table(recommend(sweep_of((0,)))).rows)


def test_surface_needs_several_shares() -> None:
    section = recommendation_section(sweep_of((0, 1), shares=(0.5,)))
    assert section.result.startswith("At 50 % Unknown rows, stop by best dev accuracy within 8 epochs")
    missing = [exhibit.missing for exhibit in section.exhibits if exhibit.missing]
    assert len(missing) == 2  # the figure and its numbers
    assert all("two shares of Unknown rows" in str(why) for why in missing)
    assert [row[0] for row in recommendation_table(recommend(sweep_of((0, 1), shares=(0.5,)))).rows] == ["50 %"]


def test_missing_estimates_have_reasons_and_are_not_zero() -> None:
    result = recommend(sweep_of((0, 1)))
    rows = {row[0]: row for row in recommendation_table(result).rows}
    assert rows["0 %"][-1] is None
    assert rows["100 %"][-1] is None
    assert rows["50 %"][-1] == rows["all"][-1] == "+5.0 (+5.0 to +5.0)"
    reasons = {(row[0], row[4]): row[-1] for row in estimates_table(result).rows if row[5] is None}
    assert reasons == {
        (0.0, "filtering"): "there are no Unknown rows to filter out",
        (100.0, "filtering"): "no rows would be left",
    }


def test_settings_column_only_if_the_sweep_varies_settings() -> None:
    own, other = sweep_of((0, 1)), sweep_of((0, 1), settings="dropout=0.1")
    assert "settings" not in recommendation_table(recommend(own)).columns
    assert "settings" not in policy_table(own).columns
    worse = tuple({**point, "dev_all": point["dev_all"] - 0.1} for point in own.points)
    both = replace(own, points=worse + other.points)
    assert "best dev accuracy within 8 epochs with dropout 0.1" in recommendation_section(both).result
    table = recommendation_table(recommend(both))
    assert {row[table.columns.index("settings")] for row in table.rows} == {"dropout=0.1"}
    policies = policy_table(both)
    assert policies.columns[-1] == "settings"
    assert len(policies.rows) == 2 * len(policy_table(own).rows)


def test_axis_table_is_sorted_and_caption_states_balance() -> None:
    whole = sweep_of((0, 1))
    balanced = tuple(point for point in whole.points if point["epochs"] == 8)
    caption = [exhibit.caption for exhibit in recommendation_section(replace(whole, points=balanced)).exhibits]
    assert any("the grid is balanced" in text for text in caption)
    caption = [exhibit.caption for exhibit in recommendation_section(whole).exhibits]
    assert any("the grid is not balanced" in text for text in caption)
    rows = axis_table(replace(whole, points=balanced)).rows
    assert rows[0][0] == "share of Unknown rows"
    assert rows[-1][0] == "how they act together, and chance"
    assert next(row for row in rows if row[0] == "epoch budget")[2:] == (None, None, "it has one level only")


def test_stopping_policies_with_the_same_result_share_a_row() -> None:
    data = sweep_of((0,))
    copies = [
        {**point, "epochs": budget, "cost_epochs": budget}
        for point in data.points
        if point["policy"] == "best_dev"
        for budget in (6, 10)
    ]
    patient = [{**point, "policy": "patience(3)", "epochs": 8, "cost_epochs": 6} for point in copies]
    table = stopping_table(replace(data, points=(*data.points, *copies, *patient)))
    # D at 0, 50 and 100 % has 60, 45 and 30 % at its best epoch, 2 points less after 4 epochs and 10 less after 8.
    assert table.rows == (
        ("best dev accuracy or dev accuracy with patience 3", "6 to 10", 45.0, 3.0, 6.0),
        ("after 4 epochs", "4", 43.0, 4.0, 4.0),
        ("after 8 epochs", "8", 35.0, 8.0, 8.0),
    )


def test_one_seed_gets_intervals_paired_over_questions() -> None:
    """D has 60 % at epoch 1 and 30 % at epoch 2, D_Known 60 % at both."""
    hits = {"unknown-050": (240, 120), "known-050": (240, 240)}
    ids = np.array([f"q{i:03d}" for i in range(400)])
    runs, points = [], []
    for name, correct in hits.items():
        predictions = {
            (epoch, "test"): Predictions(question_ids=ids, categories=np.full(400, "Unknown"), hit=np.arange(400) < num)
            for epoch, num in enumerate(correct, start=1)
        }
        accuracy = {("test", "all"): np.array(correct) / 4}
        run = Run(run_id=f"{name}-seed0", variant=name, seed=0, epochs=np.array([1, 2]), accuracy=accuracy,
                  num={("test", "all"): 400}, early_epoch=1, predictions=predictions)  # fmt: skip
        runs.append(run)
        for policy, stop in (("best_dev", 1), ("fixed(2)", 2)):
            points.append(
                {"variant": name, "seed": 0, "epochs": 2, "policy": policy, "stop_epoch": stop, "cost_epochs": 2}
                | {"dev_all": 0.9 - stop / 10, "test_all": correct[stop - 1] / 400, "settings": ""}
            )
    variants = {name: Variant(name=name, kind=name[:-4], share=0.5, num=80) for name in hits}
    data = StudyData(variants=variants, runs=tuple(runs), points=tuple(points), durations=(1, 2))
    text = recommendation_section(data).result
    gain = re.search(r"changes test accuracy by \+30\.0 \(\+(\S+) to \+(\S+)\) points \(significant\)", text)
    assert gain is not None, text
    # 120 of 400 questions change by 1: the error is about 100 * sqrt(0.3 * 0.7 / 400) = 2.3 points.
    assert 25.0 < float(gain[1]) < 25.9 < 34.1 < float(gain[2]) < 35.0
    assert re.search(r"changes test accuracy by \+?0\.0 \(-\S+ to \+\S+\) points at the same point \(not sig", text)
