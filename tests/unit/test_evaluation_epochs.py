"""Which epochs evaluate the test rows with `evaluate: needed`: all that points read, and few others."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from slick.errors import SettingsError, StudyError
from slick.report.data import StudyData
from slick.report.findings.base import evaluate_findings
from slick.report.loading import choose_durations, load_study
from slick.report.measurements import InsufficientDataError
from slick.report.sections import make_sections
from slick.report.sections.linear_model import linear_model_section
from slick.report.sections.retention import retention_curves
from slick.report.statistics.regression import regression_sample
from slick.settings import COMPARISON, identity_settings
from slick.storage import Folder
from slick.study import fingerprint
from slick.study_files import EPOCHS_SCHEMA
from tests.study_builder import finish_step
from tests.unit.report_study import write_study
from tests.unit.test_policies import POLICIES, random_curve
from tuning.config import TrainConfig
from tuning.evaluation_epochs import epochs_without_test_rows, expected_test_evaluations, needs_test_rows
from tuning.grid import GridConfig, SweepConfig
from tuning.policies import AccuracyCurve, StopDecision, apply_policy, parse_policy, stopping_policies
from tuning.records import rows_table
from tuning.runs import RunPlan
from tuning.sweep import check_stored_evaluations, points_table

NEEDED = TrainConfig(evaluate="needed", evaluate_stride=0, epochs=9)
BUDGETS = (3, 6, 9)


def evaluated_epochs(config: TrainConfig, curve: AccuracyCurve, policies: Sequence[tuple[str, int]] = ()) -> list[int]:
    num = curve.num_epochs
    return [
        epoch
        for epoch in range(1, num + 1)
        if needs_test_rows(config, curve.truncate_to(epoch), policies, is_last=epoch == num)
    ]


def test_every_point_of_every_policy_and_budget_is_evaluated() -> None:
    rng = np.random.default_rng(0)
    grid = GridConfig(epochs=BUDGETS, policies=tuple(map(str, POLICIES)))
    policies = SweepConfig(grid=grid, train=NEEDED).point_policies
    assert len(policies) > 20
    for _ in range(50):
        curve = random_curve(rng, 9)
        evaluated = evaluated_epochs(NEEDED, curve, policies)
        for text, budget in policies:
            assert apply_policy(parse_policy(text), curve, budget).stop_epoch in evaluated, (text, budget, curve)


def test_other_epochs_are_not_evaluated() -> None:
    curve = AccuracyCurve(dev_accuracy=(0.2, 0.4, 0.3, 0.4, 0.1, 0.5, 0.1, 0.1, 0.1))
    assert evaluated_epochs(NEEDED, curve) == [1, 2, 6, 9]
    assert evaluated_epochs(NEEDED, curve, [("fixed(4)", 4), ("best_dev", 4)]) == [1, 2, 4, 6, 9]
    assert evaluated_epochs(replace(NEEDED, evaluate_stride=4), curve) == [1, 2, 4, 6, 8, 9]
    assert evaluated_epochs(replace(NEEDED, evaluate="all"), curve) == list(range(1, 10))


def test_cost_estimates_count_the_evaluations() -> None:
    policies = [("fixed(4)", 4), ("best_dev", 4), ("fixed(9)", 9)]
    assert expected_test_evaluations(NEEDED, policies) == 2 + 3
    assert expected_test_evaluations(replace(NEEDED, evaluate_stride=2), policies) == 5 + 3
    assert expected_test_evaluations(NEEDED, policies, first_epoch=8) == 2
    assert expected_test_evaluations(replace(NEEDED, evaluate="all"), policies, first_epoch=8) == 2
    plan = RunPlan(
        run_id="a", config=NEEDED, identity="", inputs={}, model="m", num_train_rows=10, num_eval_rows=40,
        num_test_rows=20, point_policies=tuple(policies),
    )  # fmt: skip
    assert plan.remaining_eval_rows == 9 * 20 + 5 * 20
    assert replace(plan, config=replace(NEEDED, evaluate="all")).remaining_eval_rows == 9 * 40


def test_setting_is_compared_between_studies_and_is_no_part_of_fingerprints() -> None:
    default = TrainConfig(dtype="float32")
    changed = replace(default, evaluate="needed", evaluate_stride=2)
    assert fingerprint(changed.identity()) == fingerprint(default.identity())
    assert identity_settings(changed, COMPARISON).keys() - identity_settings(default, COMPARISON).keys() == {
        "evaluate",
        "evaluate_stride",
    }
    assert identity_settings(replace(default, evaluate_stride=2), COMPARISON) == identity_settings(default, COMPARISON)


def test_schedulers_need_all_epochs() -> None:
    with pytest.raises(SettingsError, match=r"scheduler asha .* --train\.evaluate all"):
        SweepConfig(scheduler="asha", train=replace(NEEDED, dtype="float32"))


def test_rows_table_has_the_splits_of_all_epochs() -> None:
    def table(*rows: tuple[str, str, bool]) -> pa.Table:
        names = ("question_id", "split", "hit")
        return pa.Table.from_pylist([dict(zip(names, row, strict=True)) | {"category": None} for row in rows])

    first, second = table(("a", "train", False)), table(("a", "train", True), ("t", "test", True))
    assert rows_table([first, second]).to_pylist() == [
        {"question_id": "a", "split": "train", "category": None, "first_fit_epoch": 2, "num_hits": 1}
    ]
    assert len(rows_table([second, second])) == 2


def test_epochs_without_test_rows() -> None:
    full, partial = {"dev_all", "test_all", "test_Unknown"}, {"dev_all", "train_all"}
    assert epochs_without_test_rows([partial, full, partial]) == [1, 3]
    assert epochs_without_test_rows([full, full - {"test_Unknown"}]) == [2]
    assert epochs_without_test_rows([partial, partial]) == [], "a study without test questions"


def drop_test_rows(study: Folder, keep: Iterable[int]) -> None:
    """Remove the test and out-of-distribution rows of all other epochs, as `evaluate: needed` stores them."""
    for run_id in study.child("runs").folders():
        run = study.child("runs", run_id)

        def is_kept(row: dict[str, Any], epoch: int) -> bool:
            return row["split"] in ("train", "dev") or epoch in keep

        epochs = [row for row in run.read_table("epochs.parquet").to_pylist() if is_kept(row, row["epoch"])]
        run.write_table("epochs.parquet", pa.Table.from_pylist(epochs))
        for name in run.child("predictions").names():
            table = run.child("predictions").read_table(name)
            rows = [row for row in table.to_pylist() if is_kept(row, int(name[6:9]))]
            run.child("predictions").write_table(name, pa.Table.from_pylist(rows, schema=table.schema))


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyData, StudyData]:
    """A study, and the same study with test rows after epochs 4 and 8 and at the best dev epochs only."""
    root = tmp_path_factory.mktemp("studies")
    loaded = []
    for name in ("all", "needed"):
        study = write_study(root / name, num_test=96, num_epochs=8)
        if name == "needed":
            best = {run.early_epoch for run in loaded[0].runs if run.early_epoch is not None}
            drop_test_rows(study, best | {4, 8})
        loaded.append(load_study(study))
    return loaded[0], loaded[1]


def test_findings_are_those_of_all_epochs_or_say_what_is_missing(studies: tuple[StudyData, StudyData]) -> None:
    complete, partial = ({result.id: asdict(result) for result in evaluate_findings(data)} for data in studies)
    assert len(complete) == 25
    assert {name for name in complete if complete[name] != partial[name]} == {"E12", "E13"}
    for name in ("E12", "E13"):
        assert complete[name]["verdict"] == partial[name]["verdict"] != "not testable"


def test_sections_show_evaluated_epochs_only(studies: tuple[StudyData, StudyData]) -> None:
    complete, partial = studies
    assert retention_curves(complete)
    with pytest.raises(InsufficientDataError, match="not tested on HighlyKnown test questions at every epoch"):
        retention_curves(partial)
    sentence = "without epochs at which the test questions were not evaluated"
    assert sentence not in str(linear_model_section(complete).text)
    assert sentence in str(linear_model_section(partial).text)
    samples = [regression_sample(data, "test") for data in studies]
    assert set(zip(*samples[1].x_P2.T.tolist(), samples[1].y_P.tolist(), strict=True)) < set(
        zip(*samples[0].x_P2.T.tolist(), samples[0].y_P.tolist(), strict=True)
    )


@pytest.mark.slow
def test_tables_equal_those_of_all_epochs(studies: tuple[StudyData, StudyData]) -> None:
    complete, partial = (
        {
            exhibit.table.name: exhibit.table
            for section in make_sections(data)
            for exhibit in section.exhibits
            if exhibit.table
        }
        for data in studies
    )
    # The linear model has fewer points; the best HighlyKnown epoch of a test curve needs all of them.
    assert {name for name in complete if complete[name] != partial.get(name)} == {
        *("linear_model", "linear_model_choices"),
        *("retention", "retention_numbers", "retention_categories"),
    }
    assert {"retention", "retention_numbers", "retention_categories"} == complete.keys() - partial.keys()


def test_training_lengths_of_the_report_are_evaluated_epochs(studies: tuple[StudyData, StudyData]) -> None:
    assert studies[0].durations == studies[1].durations
    assert choose_durations([], [50, 50], {1, 10, 40, 50}) == (10, 40, 50)
    assert all((epoch, "test") in run.predictions for run in studies[1].runs for epoch in studies[1].durations)


@pytest.fixture
def trained(tmp_path: Path) -> Folder:
    """A run of 5 epochs, the third best, with test rows after the first, third and fifth."""
    study = Folder(str(tmp_path))
    finish_step(
        study.child("variants"), "variants", counts={"half": {"kind": "unknown", "num": 4, "unknown_share": 0.5}}
    )
    rows = [
        {"run_id": "half-seed0", "epoch": epoch, "split": split, "category": "all", "num": 10, "num_correct": right}
        | {"loss": None}
        for epoch, right in enumerate((2, 1, 5, 5, 4), start=1)
        for split in ("dev", *(["test"] if epoch in (1, 3, 5) else []))
    ]
    study.child("runs", "half-seed0").write_table("epochs.parquet", pa.Table.from_pylist(rows, schema=EPOCHS_SCHEMA))
    return study


def test_points_are_read_off_evaluated_epochs(trained: Folder) -> None:
    grid = GridConfig(variants=("half",), epochs=(3, 5), policies=("fixed", "best_dev", "patience(1)"))
    points = points_table(trained, grid, TrainConfig(), shared=True).to_pylist()
    assert [(point["policy"], point["stop_epoch"], point["test_all"]) for point in points] == [
        ("fixed(3)", 3, 0.5),
        ("best_dev", 3, 0.5),
        ("patience(1)", 1, 0.2),
        ("fixed(5)", 5, 0.4),
        ("best_dev", 3, 0.5),
        ("patience(1)", 1, 0.2),
    ]


@pytest.mark.parametrize("change", [{"epochs": (4, 5)}, {"policies": ("fixed(2)",)}])
def test_point_at_an_epoch_without_test_rows_is_refused(trained: Folder, change: dict[str, Any]) -> None:
    """Instead of a point without an accuracy, which would read as a split without questions."""
    grid = replace(GridConfig(variants=("half",), epochs=(3, 5)), **change)
    message = r"half-seed0 has no test rows at epoch \d, which policy fixed\(\d\) selects"
    with pytest.raises(StudyError, match=message):
        points_table(trained, grid, TrainConfig(), shared=True)
    with pytest.raises(StudyError, match=message):  # the same before anything is trained
        check_stored_evaluations(trained, SweepConfig(grid=grid), [()], [])


def before_best(curve: AccuracyCurve) -> StopDecision:
    """A policy that selects an epoch only after its end."""
    return StopDecision(stop_epoch=max(1, int(np.argmax(curve.dev_accuracy))), cost_epochs=curve.num_epochs)


def test_policy_that_selects_epochs_after_their_end_is_refused(
    trained: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stopping_policies._components, "before_best", before_best)
    grid = GridConfig(variants=("half",), epochs=(5,), policies=("before_best",))
    with pytest.raises(StudyError, match="no test rows at epoch 2, which policy before_best selects"):
        points_table(trained, grid, TrainConfig(), shared=True)
