"""Studies that earlier versions wrote are read by this one, and their finished steps are not repeated."""

import json
import shutil
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs import status
from slick.annotation import AnnotateConfig, RescoreConfig, rescore
from slick.annotation.wording import WordingConfig
from slick.datasets import QuestionsConfig, read_questions
from slick.datasets.relations import load_relations
from slick.errors import StudyError
from slick.prompts import draw_exemplar_sets
from slick.report import ReportConfig, make_report
from slick.report.loading import load_study
from slick.report.sections.wording import load_wording
from slick.settings import identity_settings
from slick.storage import Folder
from slick.stored_files import convert
from slick.study import Manifest, fingerprint, require_manifest
from slick.study_files import read_knowledge, read_points
from slick.types import Category
from slick.variants import VariantsConfig, draw_variants, read_variant
from slick.world.config import RECIPE, WorldConfig
from tests.stored.interrupt import RUN_ID, STORED_STATES, unpack
from tuning.config import TrainConfig
from tuning.data import read_rows
from tuning.grid import SweepConfig
from tuning.runs import plan_runs, read_curve, run_folder
from tuning.state import find_states
from tuning.sweep import points_table

STORED = sorted((Path(__file__).parents[1] / "stored").glob("study-*.zip"))
STEPS = ("world", "questions", "annotate", "variants", "sweep", "wording")
RUNS = ("idk-050-seed0", "known-050-seed0", "unknown-000-seed0", "unknown-050-seed0", "unknown-100-seed0")


@pytest.fixture(params=STORED, ids=lambda path: path.stem)
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path / "study")
    return Folder(str(tmp_path / "study"))


def test_there_are_stored_studies() -> None:
    assert STORED
    assert STORED_STATES


def test_all_tables_are_read(study: Folder) -> None:
    labels = read_knowledge(study)
    assert set(labels["category"].to_pylist()) == set(Category)
    assert len(read_questions(study)) >= labels.num_rows
    data = load_study(study)
    assert tuple(sorted(run.run_id for run in data.runs)) == RUNS
    assert {len(run.epochs) for run in data.runs} == {3}
    points = read_points(study)
    for run_id in RUNS:
        dev = read_curve(run_folder(study, run_id)).dev_accuracy
        (last,) = (p for p in points if (p["run_id"], p["policy"], p["epochs"]) == (run_id, "fixed(3)", 3))
        assert last["dev_all"] == dev[-1], "points have the accuracies of the epochs"
        rows = read_rows(study, last["variant"])
        assert len(rows["train"]) == read_variant(study, last["variant"]).num_rows
    found = load_wording(study)
    assert found is not None
    assert found.learned["unknown-050"]


def settings_of(manifest: Manifest, kind: Any) -> Any:
    return convert(manifest.settings, kind, "settings")


def test_fingerprints_of_finished_steps_are_those_of_this_version(study: Folder) -> None:
    """Otherwise the same command would refuse the folder, or repeat the work. A change of meaning must change them."""
    relations = {name: asdict(relation) for name, relation in load_relations().items()}
    manifests = {
        name: require_manifest(study.child(*name.split("/")), name)
        for name in (
            "world",
            "questions",
            "annotate",
            "variants",
            "sweep",
            "wording",
            *(f"runs/{name}" for name in RUNS),
        )
    }
    world = settings_of(manifests["world"], WorldConfig)
    expected = {
        "world": fingerprint(RECIPE, "", {**world.identity(), "source": ""}),
        "questions": fingerprint(
            manifests["questions"].inputs, settings_of(manifests["questions"], QuestionsConfig).identity(), relations
        ),
        "wording": fingerprint(
            manifests["wording"].inputs, identity_settings(settings_of(manifests["wording"], WordingConfig))
        ),
    }
    kinds = {"annotate": AnnotateConfig, "variants": VariantsConfig, "sweep": SweepConfig}
    for name in (*kinds, *(f"runs/{name}" for name in RUNS)):
        config = settings_of(manifests[name], kinds.get(name, TrainConfig))
        expected[name] = fingerprint(manifests[name].inputs, config.identity())
    assert expected == {name: manifest.fingerprint for name, manifest in manifests.items()}


def test_labels_of_stored_answers_do_not_depend_on_files_and_version(study: Folder) -> None:
    before, folder = read_knowledge(study), study.child("annotate", "generations")
    names = folder.names(".parquet")
    rows = pa.concat_tables([folder.read_table(name) for name in names])
    for name in names:
        folder.delete(name)
    folder.write_table("part-000000.parquet", rows.take(list(range(rows.num_rows))[::-1]))
    rescore(study, RescoreConfig())
    assert read_knowledge(study).equals(before)


def test_exemplars_variants_and_points_are_drawn_again_without_a_difference(study: Folder) -> None:
    annotation = settings_of(require_manifest(study.child("annotate"), "annotate"), AnnotateConfig)
    dev: dict[str, list[str]] = {}
    for row in read_questions(study).to_pylist():
        if row["split"] == "dev":
            dev.setdefault(row["relation"], []).insert(0, row["question_id"])
    drawn = draw_exemplar_sets(
        dev, num_sets=annotation.num_exemplar_sets, num_shots=annotation.num_shots, seed=annotation.seed
    )
    stored = study.child("annotate").read_json("exemplars.json")
    assert drawn == stored

    variants = study.child("variants")
    before = {name: variants.read_table(name) for name in variants.names(".parquet")}
    config = settings_of(require_manifest(variants, "variants"), VariantsConfig)
    variants.delete()
    draw_variants(study, config)
    assert {name: variants.read_table(name) for name in variants.names(".parquet")} == before

    config = settings_of(require_manifest(study.child("sweep"), "sweep"), SweepConfig)
    points = points_table(study, config.grid, config.train, shared=not config.independent_reason)
    assert points.to_pylist() == read_points(study)


def test_report_and_status_of_a_stored_study(study: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    make_report(study, ReportConfig())
    outcomes = {row["id"]: row for row in json.loads(study.child("report").read_bytes("outcomes.json"))}
    assert len(outcomes) == 25
    assert outcomes["E2"]["holds"] is True
    status.main(["--out", study.uri])
    lines = capsys.readouterr().out
    for step in (*STEPS, "report"):
        assert f"  {step:<10} done in " in lines
    assert "5 of 5 trainings, 15 of 15 epochs" in lines


@pytest.mark.parametrize("archive", STORED_STATES, ids=lambda path: path.stem)
def test_interrupted_training_resumes_from_its_stored_state(archive: Path, tmp_path: Path) -> None:
    """tests/local/test_stored_state.py and test_state_tensors.py train on from it."""
    study, _, config = unpack(archive, tmp_path)
    (plan,) = plan_runs(study, {RUN_ID: config})
    assert plan.state is not None, "its settings and inputs have another fingerprint, or its format is not read"
    assert plan.state.progress.epoch == 2
    assert plan.remaining_epochs == 2
    assert len(read_curve(run_folder(study, RUN_ID)).dev_accuracy) >= 2
    resumed = plan_runs(study, {RUN_ID: replace(config, epochs=8)})
    assert resumed[0].state == plan.state, "more epochs resume from the same state"
    with pytest.raises(StudyError, match=r"half-seed0 was written with other inputs or settings.*delete that folder"):
        plan_runs(study, {RUN_ID: replace(config, learning_rate=1e-3)})


def test_stored_state_of_another_format_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, _, config = unpack(STORED_STATES[-1], tmp_path)
    (state,) = find_states(study, []).values()
    folder = Folder(state.uri)
    folder.write_json("progress.json", folder.read_json("progress.json") | {"format": 99})
    (plan,) = plan_runs(study, {RUN_ID: config})
    assert plan.state is None
    message = f"{folder} has a training state of format 99"
    assert f"{message}, and this version of slick reads format 2; its trainings restart" in capsys.readouterr().out
    shutil.copytree(folder.local_path, Path(study.local_path, "runs", RUN_ID, "state"))
    with pytest.raises(
        StudyError, match=r"runs/half-seed0/state has a training state of format 99.*delete that folder"
    ):
        plan_runs(study, {RUN_ID: config})
