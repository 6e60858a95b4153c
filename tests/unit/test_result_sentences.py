"""The sentence of result of each section, on studies with known results."""

from pathlib import Path

import numpy as np
import pytest

from slick.report.data import Run, StudyData, Variant
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError
from slick.report.sections.categories import best_variants_sentence, famous_rivals_text, load_famous_rivals
from slick.report.sections.counts import counts_sentence
from slick.report.sections.error_audit import graded_sentence
from slick.report.sections.fitting import fitting_sentence
from slick.report.sections.linear_model import coefficient_sentences
from slick.report.statistics.paired_tests import compare_to_best
from slick.storage import Folder
from tests.study_builder import finish_step
from tests.unit.outcome_studies import linear, single_categories
from tests.unit.test_paired_tests import with_categories


def test_coefficients_are_compared_with_the_papers_sign() -> None:
    test, ood = coefficient_sentences(linear(7.0, -8.0, ood_scale=-0.5))
    assert test.startswith("In distribution, b_unk is -7.9 points")
    assert " points (p < 0.001): as in the paper, which has -8.3; b_kn is +" in test
    assert ood.startswith("Out of distribution, b_unk is +")
    assert " points (p < 0.001): the opposite of the paper, which has -3.0; b_kn is -3." in ood


def test_effect_within_noise_is_not_reported() -> None:
    _, ood = coefficient_sentences(linear(7.0, -8.0, ood_scale=0.0))
    assert "): no significant effect, which has" not in ood
    assert "): no significant effect; the paper has -3.0; b_kn is " in ood


def test_sentence_of_fitted_rows() -> None:
    curves = {"Known": (40.0, 60.0, 90.0), "Unknown": (5.0, 10.0, 30.0)}
    run = Run(
        run_id="unknown-050-seed0",
        variant="unknown-050",
        seed=0,
        epochs=np.arange(1, 4),
        accuracy={("train", part): np.array(values) for part, values in curves.items()},
        num={("train", part): 100 for part in curves},
        early_epoch=2,
    )
    variants = {"unknown-050": Variant(name="unknown-050", kind="unknown", share=0.5, num=200)}
    assert fitting_sentence(StudyData(variants=variants, runs=(run,))) == (
        "If 50 % of D is Unknown, half of the Known rows are fitted at epoch 2 and half of the Unknown rows in no "
        "epoch; at early stop, 60 % of the Known and 10 % of the Unknown rows are fitted."
    )
    assert fitting_sentence(StudyData()) == ""


def test_best_variant_is_named_with_those_not_below_it() -> None:
    """At convergence, all variants but D_MaybeKnown lose 30 % of their correct answers."""
    data = with_categories(single_categories(lambda name: 0.0 if name == "maybeknown" else 0.3, 600))
    sentence = best_variants_sentence(
        data, lambda: [item for checkpoint in (EARLY_STOP, CONVERGENCE) for item in compare_to_best(data, checkpoint)]
    )
    early, late = sentence.split(" At convergence, ")
    assert early.startswith("At early stop, D_")
    assert ", not significantly above D_" in early
    accuracy = data.accuracy("maybeknown", CONVERGENCE).value
    assert late == (f"D_MaybeKnown has the highest test accuracy, {accuracy:.1f} %, significantly above all others.")


def test_without_comparisons_there_is_no_sentence() -> None:
    def missing() -> list:
        raise InsufficientDataError("needs predictions")

    assert best_variants_sentence(StudyData(), missing) == ""


@pytest.mark.parametrize(
    ("settings", "share"), [({"famous_rivals": 0.75}, 0.75), ({"famous_rivals": 0}, 0.0), ({}, 0.0)]
)
def test_famous_rivals_are_explained_if_the_world_has_them(settings: dict, share: float, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    finish_step(study.child("world"), "world", settings=settings)
    assert load_famous_rivals(study) == share
    text = famous_rivals_text(StudyData(study=study))
    assert ("75 % of the rivals of contested facts" in text) == (share > 0)
    assert ("`--world.famous-rivals 0` builds a world without it." in text) == (share > 0)


def test_models_without_a_world_have_no_famous_rivals(tmp_path: Path) -> None:
    assert load_famous_rivals(Folder(str(tmp_path))) == 0.0
    assert famous_rivals_text(StudyData()) == ""


def test_unknown_questions_and_the_relations_with_fewest_and_most() -> None:
    names = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")
    rows = {"P17": (40, 30, 20, 10), "P19": (1, 1, 1, 7)}
    data = StudyData(counts={(name, "id", "train"): dict(zip(names, row, strict=True)) for name, row in rows.items()})
    assert counts_sentence(data) == (
        "The model never answered 17 of 110 train questions correctly under any prompt: 15 % are Unknown, from 10 % of "
        "P17 to 70 % of P19."
    )
    assert counts_sentence(StudyData()) == ""


def test_audit_without_answers_has_no_sentence() -> None:
    assert graded_sentence(None) == ""
