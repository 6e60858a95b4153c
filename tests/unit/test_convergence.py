"""Trainings that end with less than 100 % of their training rows correct are named."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from slick.report.convergence import (
    MAX_NAMED,
    FinalTrainAccuracies,
    UnfittedRun,
    convergence_note,
    final_train_accuracies,
    mentions_convergence,
)
from slick.report.data import Run, StudyData, Variant
from slick.report.page import Exhibit, Section
from slick.report.tables import Table
from slick.storage import Folder
from tests.study_builder import finish_step
from tests.unit.report_study import epoch_row

TRAIN = ("train", "all")


def run(variant: str, accuracies: tuple[float, ...], seed: int = 0) -> Run:
    return Run(
        run_id=f"{variant}-seed{seed}",
        variant=variant,
        seed=seed,
        epochs=np.arange(1, len(accuracies) + 1),
        accuracy={TRAIN: np.array(accuracies)},
        num={TRAIN: 200},
        early_epoch=1,
    )


VARIANTS = {
    "unknown-100": Variant(name="unknown-100", kind="unknown", share=1.0, num=200),
    "known-050": Variant(name="known-050", kind="known", share=0.5, num=100),
    "weaklyknown": Variant(name="weaklyknown", kind="category", share=None, num=200),
}


def test_trainings_below_100_percent_are_named_with_their_accuracy() -> None:
    runs = (run("unknown-100", (10.0, 92.84)), run("known-050", (90.0, 100.0)), run("weaklyknown", (50.0, 99.99)))
    result = final_train_accuracies(StudyData(variants=VARIANTS, runs=runs))
    assert convergence_note(result) == (
        "Convergence is the last epoch, at which 2 of 3 trainings answer fewer than 100 % of their training rows "
        "correctly: D, 100 % Unknown: 92.8 %; D_WeaklyKnown: 99.9 %."
    )


def test_trainings_with_other_settings_count_if_they_are_as_long(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    for name, epochs, correct in (
        ("unknown-100-seed0-learning_rate=5.5e-05", 2, 71),
        ("unknown-100-seed0-learning_rate=0.1", 1, 3),
        ("known-050-seed0", 2, 100),
    ):
        folder = study.child("runs", name)
        rows = [epoch_row(name, epoch, "train", "all", 200, correct, None) for epoch in range(1, epochs + 1)]
        folder.write_table("epochs.parquet", pa.Table.from_pylist(rows))
        finish_step(folder, "finetune")
    data = StudyData(study=study, variants=VARIANTS, runs=(run("known-050", (90.0, 100.0)),))
    assert final_train_accuracies(data) == FinalTrainAccuracies(
        (UnfittedRun("D, 100 % Unknown, learning rate 5.5e-05", 35.5),), 2
    )


def test_seeds_are_named_if_there_are_several() -> None:
    runs = (run("unknown-100", (10.0, 90.0)), run("unknown-100", (10.0, 80.0), seed=1))
    unfitted = final_train_accuracies(StudyData(variants=VARIANTS, runs=runs)).unfitted
    assert [item.label for item in unfitted] == ["D, 100 % Unknown, seed 1", "D, 100 % Unknown, seed 0"]


def test_no_note_if_all_converged_and_long_lists_are_shortened() -> None:
    assert convergence_note(FinalTrainAccuracies((), 5)) == ""
    many = tuple(UnfittedRun(f"D {i}", 90.0) for i in range(MAX_NAMED + 3))
    assert convergence_note(FinalTrainAccuracies(many, 20)).endswith("; and 3 more.")


def test_sections_about_convergence_have_the_note() -> None:
    def section(text: str = "", result: str = "", **exhibit) -> Section:
        return Section(name="a", title="A", text=text, result=result, exhibits=(Exhibit(**{"caption": ""} | exhibit),))

    table = Table(name="t", columns=("checkpoint",), rows=(("convergence",),))
    assert mentions_convergence(section("At convergence, it falls."))
    assert mentions_convergence(section(result="At convergence, it falls."))
    assert mentions_convergence(section(caption="At convergence."))
    assert mentions_convergence(section(table=table))
    assert not mentions_convergence(section("At early stop."))
