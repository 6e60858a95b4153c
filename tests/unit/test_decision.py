"""When to stop and which rows to drop, at the question set's own share of Unknown rows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slick.report.data import Predictions, Run, StudyData, Variant
from slick.report.decision import (
    Decision,
    ShareAdvice,
    decide,
    decision_note,
    decision_sentences,
    decision_table,
    neighbouring_shares,
)
from slick.report.measurements import InsufficientDataError, Measurement, is_significant
from slick.report.summary import model_size
from slick.storage import Folder

SURE_GAIN, SURE_LOSS = Measurement(5.0, 1.0, 1), Measurement(-5.0, 1.0, 1)  # 95 %: 3.0 to 7.0 points
NOISE = Measurement(1.0, 1.0, 1)  # 95 %: -1.0 to 3.0 points


def advice(share: float, **changes) -> ShareAdvice:
    values = ShareAdvice(
        share=share,
        stops=(3, 3),
        last_epoch=10,
        accuracy=Measurement(34.0, 1.0, 1),
        training_on=SURE_LOSS,
        dropping_at_stop=NOISE,
        dropping_at_end=SURE_GAIN,
    )
    return replace(values, **changes)


def decision(*neighbours: ShareAdvice, best_settings: str = "") -> Decision:
    return Decision(
        num_unknown=1_290,
        num_questions=4_300,
        split="training",
        neighbours=neighbours,
        nearest=neighbours[0],
        best_settings=best_settings,
    )


def test_neighbouring_shares_enclose_the_share_of_the_labels() -> None:
    shares = [0.0, 0.1, 0.25, 0.5, 1.0]
    assert neighbouring_shares(shares, 0.29) == [0.25, 0.5]
    assert neighbouring_shares(shares, 0.252) == [0.25]  # the same percentage, rounded
    assert neighbouring_shares(shares, 1.0) == [1.0]
    assert neighbouring_shares([0.5], 0.29) == [0.5]


def test_difference_is_significant_if_its_interval_excludes_0() -> None:
    assert is_significant(SURE_GAIN)
    assert is_significant(SURE_LOSS)
    assert not is_significant(NOISE)


def test_dropping_helps_at_convergence_but_not_at_early_stop() -> None:
    first, second = decision_sentences(decision(advice(0.25), advice(0.5)))
    assert first == "Stop after epoch 3: dropping the 1,290 Unknown rows then makes no reliable difference."
    assert second == (
        "If you train on to epoch 10, drop these 1,290 rows: without them, test accuracy changes by "
        "+5.0 (+3.0 to +7.0) points at 25 % Unknown rows and +5.0 (+3.0 to +7.0) points at 50 % Unknown rows."
    )


def test_gain_at_one_neighbouring_share_is_reported_with_the_other() -> None:
    _, second = decision_sentences(decision(advice(0.25, dropping_at_end=NOISE), advice(0.5)))
    assert second == (
        "If you train on to epoch 10, drop these 1,290 rows to be safe: without them, test accuracy changes by "
        "+5.0 (+3.0 to +7.0) points at 50 % Unknown rows; at 25 % there is no reliable difference."
    )


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        (
            {"dropping_at_stop": SURE_GAIN},
            ("Stop after epoch 3, and drop the 1,290 Unknown rows: that gains 5.0 points of test accuracy.", ""),
        ),
        (
            {"dropping_at_stop": SURE_LOSS, "dropping_at_end": NOISE},
            (
                "Stop after epoch 3, and keep the 1,290 Unknown rows: dropping them costs 5.0 points of test accuracy.",
                "If you train on to epoch 10, dropping them makes no reliable difference either.",
            ),
        ),
        (
            {"dropping_at_end": SURE_LOSS},
            (
                "Stop after epoch 3: dropping the 1,290 Unknown rows then makes no reliable difference.",
                "If you train on to epoch 10, keep these 1,290 rows: without them, test accuracy changes by "
                "-5.0 (-7.0 to -3.0) points at 25 % Unknown rows.",
            ),
        ),
        (
            {"stops": (10, 10)},
            (
                "Train for all 10 epochs, because dev accuracy is highest at the end: dropping the 1,290 Unknown rows "
                "then makes no reliable difference.",
                "",
            ),
        ),
        ({"stops": (2, 4), "dropping_at_stop": None}, ("Stop after epoch 2 to 4.", "")),
    ],
)
def test_advice_for_each_outcome(changes: dict, sentences: tuple[str, str]) -> None:
    assert decision_sentences(decision(advice(0.25, **changes))) == sentences


def test_table_marks_reliable_differences() -> None:
    table = decision_table(decision(advice(0.25, dropping_at_end=None), advice(0.5, stops=(2, 3))))
    assert table.columns == ("at the nearest shares", "25 % Unknown (nearest)", "50 % Unknown")
    assert [row[1:] for row in table.rows] == [
        ("3", "2 to 3"),
        ("34.0", "34.0"),
        ("-5.0 (-7.0 to -3.0)", "-5.0 (-7.0 to -3.0)"),
        ("+1.0 (-1.0 to +3.0)", "+1.0 (-1.0 to +3.0)"),
        (None, "+5.0 (+3.0 to +7.0)"),
    ]
    assert table.strong == {(2, 1), (2, 2), (4, 2)}


def test_note_has_the_share_of_unknown_rows_and_better_settings() -> None:
    note = decision_note(decision(advice(0.25), advice(0.5), best_settings="learning_rate=0.001"))
    assert note.startswith(
        "30.0 % of the training questions are Unknown (1,290 of 4,300); the nearest shares of the sweep are 25 % and "
        "50 %."
    )
    assert "best training settings at 25 % are learning rate 0.001; the values here are of the default" in note
    assert "best training settings" not in decision_note(decision(advice(0.25)))


def study(num_unknown: int = 28) -> StudyData:
    """100 training questions; at 25 % Unknown rows, training on loses 30 of 60 answers, and none without them."""
    sets = {"unknown-025": (60, 30), "known-025": (60, 60), "unknown-100": (50, 10)}
    variants = {
        name: Variant(name=name, kind=name.partition("-")[0], share=int(name[-3:]) / 100, num=80) for name in sets
    }
    ids = np.array([f"q{i:03d}" for i in range(400)])
    runs = []
    for name, correct in sets.items():
        hits = [np.arange(400) < 4 * num for num in correct]
        runs.append(
            Run(
                run_id=f"{name}-seed0",
                variant=name,
                seed=0,
                epochs=np.array([1, 2]),
                accuracy={("test", "all"): np.array(correct, dtype=float)},
                num={("test", "all"): 400},
                early_epoch=1,
                predictions={
                    (epoch, "test"): Predictions(question_ids=ids, categories=np.full(400, "Unknown"), hit=hit)
                    for epoch, hit in enumerate(hits, start=1)
                },
            )
        )
    counts = {("P17", "id", "train"): {"HighlyKnown": 100 - num_unknown, "Unknown": num_unknown}}
    full = {key: {"MaybeKnown": 0, "WeaklyKnown": 0, **values} for key, values in counts.items()}
    return StudyData(variants=variants, runs=tuple(runs), counts=full)


def test_advice_uses_the_runs_at_the_nearest_share() -> None:
    result = decide(study())
    assert (result.num_unknown, result.num_questions, result.split) == (28, 100, "training")
    assert [item.share for item in result.neighbours] == [0.25, 1.0]
    nearest = result.nearest
    assert (nearest.share, nearest.stops, nearest.last_epoch) == (0.25, (1, 1), 2)
    assert nearest.training_on.value == -30.0
    assert nearest.dropping_at_stop is not None
    assert nearest.dropping_at_end is not None
    assert (nearest.dropping_at_stop.value, nearest.dropping_at_end.value) == (0.0, 30.0)
    assert result.neighbours[1].dropping_at_end is None
    first, second = decision_sentences(result)
    assert first == "Stop after epoch 1: dropping the 28 Unknown rows then makes no reliable difference."
    assert second.startswith(
        "If you train on to epoch 2, drop these 28 rows: without them, test accuracy changes by +30.0"
    )
    # 400 paired questions, of which 120 differ by 1: the error is at most 100 * sqrt(.3 * .7 / 399) = 2.3 points.
    assert nearest.dropping_at_end.se < 2.6


def test_missing_labels_or_runs_are_reported() -> None:
    with pytest.raises(InsufficientDataError, match="no questions were annotated"):
        decide(StudyData())
    with pytest.raises(InsufficientDataError, match="needs runs at 1 or more shares of Unknown rows"):
        decide(replace(study(), runs=()))


def test_advice_for_a_share_nearer_to_the_larger_neighbour() -> None:
    assert decide(study(num_unknown=70)).nearest.share == 1.0


def test_parameter_count_is_read_from_weight_headers(tmp_path: Path) -> None:
    study_folder = Folder(str(tmp_path))
    header = {"__metadata__": {"format": "pt"}, "a": {"shape": [3, 4]}, "b": {"shape": [5]}}
    content = json.dumps(header).encode()
    weights = len(content).to_bytes(8, "little") + content + b"\0" * 68
    folder = study_folder.child("runs", "unknown-025-seed0", "checkpoint-last")
    assert model_size(study_folder, study()) is None
    folder.write_bytes("adapter_model.safetensors", weights)
    assert model_size(study_folder, study()) is None
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        folder.write_bytes(name, weights)
    assert model_size(study_folder, study()) == 2 * (3 * 4 + 5)
    folder.write_bytes("model-00002-of-00002.safetensors", b"\x05\0\0\0\0\0\0\0no json")
    assert model_size(study_folder, study()) is None
