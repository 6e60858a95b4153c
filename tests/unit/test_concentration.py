"""Unknown rows concentrated in a few relations: compared groups of questions, errors and text."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from slick.report.charts import render_figure
from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.findings.categories import e18
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError, is_significant
from slick.report.sections.concentration import (
    ALL_TEST,
    KNOWN_RELATIONS,
    OOD,
    QUESTION_GROUPS,
    UNKNOWN_RELATIONS,
    ConcentrationResult,
    compare_concentrated_sets,
    concentration_figure,
    concentration_numbers_table,
    concentration_section,
    concentration_table,
    load_test_ids,
    summary_text,
)
from slick.report.statistics.intervals import compare_on_questions
from slick.types import Category

RELATIONS = ("P1", "P2", "P3", "P4", "P5")
NUM = 200
"""Test questions of each relation."""
MIXES = {"P1": (0, 8), "P2": (0, 8), "P3": (4, 4), "P4": (8, 0), "P5": (8, 0)}
"""Known and Unknown rows of each relation in the concentrated set."""
Accuracy = Mapping[str, float]
"""Share right by relation; `ood` for questions out of distribution."""
IDS = np.array([f"{relation}-{i:03d}" for relation in RELATIONS for i in range(NUM)])


def hits(accuracy: Accuracy, split: str, rng: np.random.Generator) -> Predictions:
    ids = IDS if split == "test" else np.array([f"O-{i:03d}" for i in range(NUM)])
    chance = [accuracy["ood"] if split == "ood" else accuracy[i.split("-")[0]] for i in ids]
    categories = np.array([str(Category.MAYBE_KNOWN)] * len(ids))
    return Predictions(question_ids=ids, categories=categories, hit=rng.random(len(ids)) < np.array(chance))


def run(variant: str, seed: int, early: Accuracy, late: Accuracy) -> Run:
    rng = np.random.default_rng([seed, *variant.encode()])
    kept = {
        (epoch, split): hits(accuracy, split, rng)
        for epoch, accuracy in ((1, early), (2, late))
        for split in ("test", "ood")
    }
    accuracy = {
        (split, "all"): 100 * np.array([kept[epoch, split].hit.mean() for epoch in (1, 2)]) for split in ("test", "ood")
    }
    num = {(split, "all"): len(kept[1, split].hit) for split in ("test", "ood")}
    return Run(
        run_id=f"{variant}-seed{seed}",
        variant=variant,
        seed=seed,
        epochs=np.array([1, 2]),
        accuracy=accuracy,
        num=num,
        early_epoch=1,
        predictions=kept,
    )


def study(late: Accuracy, *, seeds: int = 1, mixes: Mapping[str, tuple[int, int]] = MIXES) -> StudyData:
    even = dict.fromkeys((*RELATIONS, "ood"), 0.5)
    variants = {
        "unknown-050": Variant(name="unknown-050", kind="unknown", share=0.5, num=40),
        "concentrated-050": Variant(
            name="concentrated-050",
            kind="concentrated",
            share=0.5,
            num=40,
            relations={r: {"HighlyKnown": k, "Unknown": u} for r, (k, u) in mixes.items()},
        ),
    }
    runs = tuple(
        run(name, seed, even, late if name == "concentrated-050" else even)
        for name in variants
        for seed in range(seeds)
    )
    test_ids = {r: IDS[np.char.startswith(IDS, f"{r}-")] for r in RELATIONS}
    return StudyData(variants=variants, runs=runs, loaded={load_test_ids: test_ids}, durations=(2,))


MOVED = {"P1": 0.1, "P2": 0.1, "P3": 0.5, "P4": 0.9, "P5": 0.9, "ood": 0.5}
"""Relations with only Unknown rows lose as much as the others gain."""


def value(result: ConcentrationResult, group: str, checkpoint: str = CONVERGENCE) -> float:
    comparison = result.comparison_for(group, checkpoint).comparison
    assert comparison is not None
    return comparison.change.value


# Compared questions


@pytest.mark.parametrize("seeds", [1, 3])
def test_opposite_changes_of_relations_cancel_in_the_total(seeds: int) -> None:
    (result,) = compare_concentrated_sets(study(MOVED, seeds=seeds))
    assert (result.unknown_relations, result.mixed_relations, result.known_relations) == (
        ("P1", "P2"),
        ("P3",),
        ("P4", "P5"),
    )
    assert value(result, UNKNOWN_RELATIONS) == pytest.approx(-40, abs=8)
    assert value(result, KNOWN_RELATIONS) == pytest.approx(40, abs=8)
    for group in (ALL_TEST, OOD):
        assert abs(value(result, group)) < 12
    for group in QUESTION_GROUPS:
        early, late = (result.comparison_for(group, checkpoint).comparison for checkpoint in (EARLY_STOP, CONVERGENCE))
        assert early is not None
        assert late is not None
        assert early.num == {ALL_TEST: 1000, UNKNOWN_RELATIONS: 400, KNOWN_RELATIONS: 400, OOD: 200}[group]
        assert late.change.num_seeds == seeds
        if group in (UNKNOWN_RELATIONS, KNOWN_RELATIONS):
            assert is_significant(late.change)


def test_difference_of_accuracies_has_a_paired_error() -> None:
    data = study(MOVED)
    ids = data.loaded[load_test_ids]["P1"]
    first, second, change, num = compare_on_questions(
        data, ("concentrated-050", CONVERGENCE), ("unknown-050", CONVERGENCE), "test", ids
    )
    assert num == len(ids) == NUM
    assert change.value == pytest.approx(first.value - second.value)
    a, b = (
        stored_run.predictions[2, "test"].hit[:NUM].astype(float)
        for stored_run in (data.runs_for("concentrated-050")[0], data.runs_for("unknown-050")[0])
    )
    assert change.se == pytest.approx(100 * (a - b).std(ddof=1) / NUM**0.5, rel=0.02)
    all_questions = compare_on_questions(
        data, ("concentrated-050", CONVERGENCE), ("unknown-050", CONVERGENCE), "test"
    ).change
    assert all_questions == pytest.approx(
        data.difference(("concentrated-050", CONVERGENCE), ("unknown-050", CONVERGENCE)), rel=0.01
    )


@pytest.mark.parametrize("num", [10, 1000])
def test_error_of_zero_change_depends_on_the_number_of_questions(num: int) -> None:
    data = study(MOVED)
    same = compare_on_questions(
        data, ("unknown-050", CONVERGENCE), ("unknown-050", CONVERGENCE), "test", IDS[:num]
    ).change
    assert same.value == 0.0
    assert same.se == pytest.approx(100 / (num + 2))
    assert not is_significant(same)


def test_spread_over_seeds_widens_the_interval() -> None:
    data = study(MOVED, seeds=3)
    runs = tuple(
        run(stored_run.variant, stored_run.seed, MOVED, {**MOVED, "P1": 0.05 + 0.45 * stored_run.seed})
        if stored_run.variant == "concentrated-050"
        else stored_run
        for stored_run in data.runs
    )
    steady = compare_on_questions(
        data, ("concentrated-050", CONVERGENCE), ("unknown-050", CONVERGENCE), "test", data.loaded[load_test_ids]["P1"]
    ).change
    wild = StudyData(variants=data.variants, runs=runs, loaded=data.loaded)
    assert compare_on_questions(
        wild, ("concentrated-050", CONVERGENCE), ("unknown-050", CONVERGENCE), "test", data.loaded[load_test_ids]["P1"]
    ).change.se > (3 * steady.se)


# Missing data


def test_missing_runs_are_reported() -> None:
    data = study(MOVED)
    only = StudyData(variants=data.variants, runs=data.runs_for("concentrated-050"), loaded=data.loaded)
    with pytest.raises(
        InsufficientDataError, match="needs finished runs of a set whose Unknown rows fill whole relations"
    ):
        compare_concentrated_sets(only)
    assert summary_text(only) == ""
    assert concentration_section(only).is_empty


def test_group_without_questions_has_a_reason_and_others_are_kept() -> None:
    data = study(MOVED, mixes={**MIXES, "P1": (1, 7), "P2": (7, 1)})
    (result,) = compare_concentrated_sets(data)
    assert result.comparison_for(UNKNOWN_RELATIONS, CONVERGENCE).comparison is None
    assert "needs 10 test questions or more" in result.comparison_for(UNKNOWN_RELATIONS, CONVERGENCE).missing_reason
    assert result.comparison_for(KNOWN_RELATIONS, CONVERGENCE).comparison is not None
    table = concentration_table([result])
    assert [row[3:8] for row in table.rows if row[1] == UNKNOWN_RELATIONS] == [(None,) * 5] * 2
    missing = [row for row in concentration_numbers_table([result]).rows if row[1] == UNKNOWN_RELATIONS]
    assert [row[3:6] for row in missing] == [(None,) * 3] * 2
    assert all("needs 10 test questions" in str(row[-1]) for row in missing)


def test_predictions_of_different_questions_are_refused() -> None:
    data = study(MOVED)
    first = data.runs[0]
    cut = {
        key: Predictions(question_ids=h.question_ids[1:], categories=h.categories[1:], hit=h.hit[1:])
        for key, h in first.predictions.items()
    }
    short = replace(first, predictions=cut)
    others = replace(
        first,
        predictions={
            k: replace(h, question_ids=np.char.add(h.question_ids, "x")) for k, h in first.predictions.items()
        },
    )
    with pytest.raises(InsufficientDataError, match="do not have the same test questions"):
        compare_on_questions(
            replace(data, runs=(others, *data.runs[1:])),
            ("concentrated-050", CONVERGENCE),
            ("unknown-050", CONVERGENCE),
            "test",
        )
    with pytest.raises(InsufficientDataError, match="do not have the same test questions"):
        compare_on_questions(
            StudyData(variants=data.variants, runs=(short, *data.runs[1:])),
            ("concentrated-050", CONVERGENCE),
            ("unknown-050", CONVERGENCE),
            "test",
        )


# Data of the paper's findings


def test_findings_of_the_paper_exclude_concentrated_sets() -> None:
    data = study(MOVED)
    assert data.sweep_variants("unknown") == [(0.5, "unknown-050")]
    (stored_run,) = data.runs_for("concentrated-050")
    backwards = {("test", str(c)): np.array([10.0, 10.0]) * place for place, c in enumerate(Category, 1)}
    all_questions = replace(stored_run, accuracy=backwards, num=dict.fromkeys(backwards, NUM))
    assert e18(StudyData(runs=(replace(all_questions, variant="natural"),))).holds is False
    only = StudyData(variants=data.variants, runs=(all_questions,))
    with pytest.raises(InsufficientDataError, match="needs runs with accuracy on all four categories"):
        e18(only)


# Text of the page


def test_summary_states_differences_by_group() -> None:
    text = summary_text(study(MOVED))
    assert text.startswith("If the same 50 % of Unknown rows fill 2 of 5 relations instead of being spread over all")
    assert re.search(
        r"-\d.* on questions of relations with only Unknown rows and \+\d.* of relations with only Known rows", text
    )
    assert "on all test questions (not significant). The change is -" in text
    for late in ({**MOVED, "P4": 0.4, "P5": 0.4}, {**MOVED, "P1": 0.6, "P2": 0.6}):
        assert "on all test questions (significant)." in summary_text(study(late))


def test_figure_and_table_show_every_group() -> None:
    (result,) = compare_concentrated_sets(study(MOVED))
    figure = render_figure("concentration", "alt", concentration_figure(result))
    table = concentration_table([result])
    assert [row[1] for row in table.rows[::2]] == list(QUESTION_GROUPS)
    for row in table.rows:
        assert str(row[6]).split(" ")[0] in figure.svg.replace("\u2212", "-")
    assert [row[6] for row in concentration_numbers_table([result]).rows[::2]] == [
        "P1 P2 P3 P4 P5",
        "P1 P2",
        "P4 P5",
        "",
    ]
    assert not concentration_section(study(MOVED)).is_empty
