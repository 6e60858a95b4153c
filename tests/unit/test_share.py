"""Sentences and tables on accuracy by share, and on D_IDK by category of the test question."""

import numpy as np
import pytest

from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.measurements import CONVERGENCE, EARLY_STOP, InsufficientDataError, Measurement
from slick.report.sections.share import (
    abstention_by_category_table,
    abstention_sentence,
    accuracy_sentence,
    answered_by_category,
    describe_refusal,
    training_on_sentence,
)

NUM = 100
CATEGORIES = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")


def study(answered: tuple[int, ...], *, with_text: bool = True) -> StudyData:
    """D_IDK answers these numbers of `NUM` test questions per category at the last epoch, and all at early stop.

    Half of its answers are correct.
    """

    def predictions(numbers: tuple[int, ...]) -> Predictions:
        text = [t for num in numbers for t in ["Paris"] * num + ["I DON'T KNOW."] * (NUM - num)]
        hit = [i < num // 2 for num in numbers for i in range(NUM)]
        return Predictions(
            question_ids=np.array([f"q{i:03d}" for i in range(4 * NUM)]),
            categories=np.repeat(CATEGORIES, NUM),
            hit=np.array(hit),
            text=np.array(text, dtype=object) if with_text else None,
        )

    run = Run(
        run_id="idk-050-seed0",
        variant="idk-050",
        seed=0,
        epochs=np.array([1, 2]),
        accuracy={},
        num={},
        early_epoch=1,
        predictions={(1, "test"): predictions((NUM,) * 4), (2, "test"): predictions(answered)},
    )
    variant = Variant(name="idk-050", kind="idk", share=0.5, num=80)
    return StudyData(variants={"idk-050": variant}, runs=(run,), idk_phrase="I don't know")


def test_answers_are_counted_by_category() -> None:
    data = study((80, 60, 40, 20))
    share, accuracy, num = answered_by_category(data, "idk-050", CONVERGENCE, "MaybeKnown")
    assert accuracy is not None
    assert (share.value, accuracy.value, num) == (60.0, 50.0, NUM)
    rows = {row[0]: row[1:] for row in abstention_by_category_table(data).rows}
    assert [str(cell).split(" ± ")[0] for cell in rows["Unknown"]] == ["100", "100.0", "50.0", "20.0", "50.0"]


def test_sentence_states_whether_unknown_questions_are_refused() -> None:
    # It answers (80 + 60 + 40) / 3 = 60 % of the Known and 20 % of the Unknown questions, 50 % of all.
    sentence = abstention_sentence(study((80, 60, 40, 20)))
    assert "answers 100.0 % of the test questions at early stop and 50.0 % at convergence, then " in sentence
    assert (
        "80.0 / 60.0 / 40.0 / 20.0 % of the HighlyKnown / MaybeKnown / WeaklyKnown / Unknown ones: +40.0 (" in sentence
    )
    assert sentence.endswith(
        "points more of the Known than of the Unknown ones, so it refuses Unknown questions more often."
    )
    assert abstention_sentence(study((42, 40, 38, 37))).endswith(
        "so it refuses at random, as far as these questions can tell."
    )


@pytest.mark.parametrize(
    ("answered", "lead", "text"),
    [
        (99.5, 0.0, "refuses almost nothing"),
        (40.0, 1.0, "refuses at random, as far as these questions can tell"),
        (40.0, 5.0, "refuses nearly at random"),
        (40.0, 15.0, "refuses Unknown questions more often"),
        (40.0, -5.0, "refuses Known questions more often than Unknown ones"),
    ],
)
def test_sentence_of_refusals(answered: float, lead: float, text: str) -> None:
    assert describe_refusal(Measurement(answered, 1.0, 1), Measurement(lead, 1.0, 1)) == text


def test_category_without_answers_has_no_accuracy() -> None:
    assert answered_by_category(study((80, 60, 40, 0)), "idk-050", CONVERGENCE, "Unknown")[1] is None


def test_missing_texts_are_reported() -> None:
    data = study((80, 60, 40, 20), with_text=False)
    with pytest.raises(InsufficientDataError, match="run idk-050-seed0 kept no answer texts"):
        answered_by_category(data, "idk-050", EARLY_STOP, "Unknown")
    assert abstention_sentence(data) == ""


def test_accuracy_loss_of_longer_training_is_averaged_over_shares() -> None:
    """D loses 10 points at 0 % and 30 points at 100 %, 20 on average."""
    runs = tuple(
        Run(
            run_id=f"{name}-seed0",
            variant=name,
            seed=0,
            epochs=np.array([1, 2]),
            accuracy={("test", "all"): np.array(accuracy)},
            num={("test", "all"): 400},
            early_epoch=1,
        )
        for name, accuracy in {"unknown-000": (60.0, 50.0), "unknown-100": (50.0, 20.0)}.items()
    )
    variants = {
        name: Variant(name=name, kind="unknown", share=share, num=80)
        for name, share in (("unknown-000", 0.0), ("unknown-100", 1.0))
    }
    data = StudyData(variants=variants, runs=runs)
    sentence = training_on_sentence(data)
    assert sentence.startswith("Training on from early stop to convergence changes test accuracy by -20.0 (")
    assert "on average over the shares, and by -30.0 (" in sentence
    assert sentence.endswith("points at 100 %.")
    assert "test accuracy goes from 60.0 to 50.0 % at early stop, -10.0 (" in accuracy_sentence(data)
    assert "and from 50.0 to 20.0 % at convergence, -30.0 (" in accuracy_sentence(data)
