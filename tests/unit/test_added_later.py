"""Experiments added to a study one after another: each adds its runs, and nothing is refused or repeated."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.presets import StudyConfig, demo_study, paper_study, smoke_study
from jobs.study import include_finished_settings, include_finished_variants, needs_training, resolve
from slick.errors import StudyError
from slick.experiments import EXPERIMENTS, PAPER_EXPERIMENTS, variants_for_experiments
from slick.models import model_fingerprint, resolve_model
from slick.storage import Folder
from slick.study import begin_step, complete_step, fingerprint
from slick.types import Category
from slick.variants import draw_variants
from tuning.grid import SweepConfig
from tuning.runs import RunPlan, plan_runs, run_folder

DEMO = replace(demo_study(), variants=replace(demo_study().variants, concentrated_shares=()))
"""Settings that allow all experiments; concentrated sets are drawn when requested."""
RELATIONS = ("P1", "P2", "P3")


@pytest.fixture
def labelled(tmp_path: Path) -> Folder:
    """A study with a model and labelled questions."""
    study = Folder(str(tmp_path))
    rows = [
        {"relation": relation, "domain": "id", "split": split, "category": category, "question_id": f"{prefix}-{i}"}
        | {"greedy_hits": 1, "greedy_total": 10, "sampled_hits": 2, "sampled_total": 160, "p_correct_sampled": 0.0125}
        for relation in RELATIONS
        for split, num in (("train", 10), ("test", 1))
        for category in Category
        for i in range(num)
        for prefix in [f"{relation}-{split}-{category}"]
    ]
    dev = [
        {"relation": r, "domain": "id", "split": "dev", "category": None, "question_id": f"{r}-dev"} for r in RELATIONS
    ]
    questions = [
        {**row, "subject": "x", "question": f"What of {row['question_id']}?", "answers": ["gold"]} for row in rows + dev
    ]
    study.child("questions").write_table("part-0.parquet", pa.Table.from_pylist(questions).drop_columns(["category"]))
    study.child("annotate").write_table("knowledge.parquet", pa.Table.from_pylist(rows))
    model = study.child("world", "model")
    model.write_json("config.json", {})
    model.write_bytes("model.safetensors", (2).to_bytes(8, "little") + b"{}")  # no tensors
    inputs = {"questions": "q", "model": model_fingerprint(resolve_model(model.uri))}
    for step, step_inputs in (("world", {}), ("questions", {}), ("annotate", inputs)):
        identity = "q" if step == "questions" else step
        complete_step(study.child(step), step, identity, settings={}, inputs=step_inputs, counts={}, started_at=0.0)
    return study


def resolve_experiments(base: StudyConfig, *experiments: str) -> StudyConfig:
    return resolve(replace(base, experiments=experiments))


def unfinished_plans(study: Folder, sweep: SweepConfig) -> list[RunPlan]:
    return plan_runs(study, {run.run_id: run.config(sweep.train) for run in sweep.trajectories})


def run_without_training(study: Folder, config: StudyConfig) -> set[str]:
    """Draw variants and finish all runs as `slick study` does, without training; returns the ids of new runs."""
    if not needs_training(config):
        return set()
    draw_variants(study, config.variants)
    plans = unfinished_plans(study, include_finished_variants(study, config))
    for plan in plans:
        folder, counts = run_folder(study, plan.run_id), {"epochs": plan.config.epochs}
        complete_step(folder, "finetune", plan.identity, settings={}, inputs=plan.inputs, counts=counts, started_at=0.0)
    return {plan.run_id for plan in plans}


def variant_files(study: Folder) -> dict[str, bytes]:
    variants = study.child("variants")
    return {name: variants.read_bytes(name) for name in variants.names(".parquet")}


@pytest.mark.parametrize(
    ("first", "name"),
    [
        *((("idk",), name) for name in EXPERIMENTS),
        *((("concentration", "categories"), name) for name in ("idk", "counts", "unknown_ratio")),
    ],
)
def test_experiment_is_added_to_a_finished_study(labelled: Folder, first: tuple[str, ...], name: str) -> None:
    before, after = resolve_experiments(DEMO, *first), resolve_experiments(DEMO, name)
    run_ids = run_without_training(labelled, before)
    files = variant_files(labelled)
    assert run_ids

    for step in ("world", "prepare"):
        assert getattr(after, step) == getattr(before, step)
    assert after.annotate.identity() == before.annotate.identity(), "labels must be reused"
    added = run_without_training(labelled, after)
    assert not added & run_ids, "finished runs must not be trained again"
    expected = {run.run_id for run in after.sweep.trajectories} if EXPERIMENTS[name].requirements else set()
    assert added == expected - run_ids
    assert {key: content for key, content in variant_files(labelled).items() if key in files} == files
    if needs_training(after):
        points = include_finished_variants(labelled, after).grid.variants
        requested = {
            *variants_for_experiments(first, replace(DEMO.variants, concentrated_shares=(0.5,))),
            *after.sweep.grid.variants,
        }
        assert set(points) == requested, "finished sets must keep their points"
        assert not unfinished_plans(labelled, include_finished_variants(labelled, after))


@pytest.mark.parametrize(
    "base", [smoke_study(), replace(paper_study(), model="m", questions="q")], ids=["smoke", "paper"]
)
def test_concentration_is_added_to_every_preset(labelled: Folder, base: StudyConfig) -> None:
    before, after = resolve_experiments(base), resolve_experiments(base, "concentration")
    draw_variants(labelled, before.variants)
    files = variant_files(labelled)
    manifest = draw_variants(labelled, after.variants)
    assert set(after.sweep.grid.variants) == {"unknown-050", "concentrated-050"} <= manifest.counts.keys()
    assert variant_files(labelled).keys() - files.keys() == {"concentrated-050.parquet"}
    assert draw_variants(labelled, before.variants) == manifest, "the earlier settings must remain valid"


def test_concentration_is_added_to_the_experiments_of_the_paper(labelled: Folder) -> None:
    run_ids = run_without_training(labelled, resolve_experiments(DEMO))
    assert {run.split("-seed")[0] for run in run_ids} == set(variants_for_experiments(PAPER_EXPERIMENTS, DEMO.variants))
    assert run_without_training(labelled, resolve_experiments(DEMO, "concentration")) == {"concentrated-050-seed0"}
    assert not run_without_training(labelled, resolve_experiments(DEMO)), "the earlier experiments must be unchanged"


def test_more_ratios_are_added_to_a_study(labelled: Folder) -> None:
    run_ids = run_without_training(labelled, resolve_experiments(DEMO, "unknown_ratio"))
    more = replace(DEMO, variants=replace(DEMO.variants, unknown_shares=(0.0, 0.33, 1.0)))
    assert run_without_training(labelled, resolve_experiments(more, "ood")) == {
        "unknown-033-seed0",
        "unknown-033-seed0-learning_rate=0.0022",
    }
    assert len(run_ids) > len(variant_files(labelled)) / 2


def test_remedies_are_added_to_the_experiments_of_the_paper(labelled: Folder) -> None:
    run_without_training(labelled, resolve_experiments(DEMO))
    remedies = {
        "p-correct-050-seed0",
        *(
            f"unknown-050-seed0-{settings}"
            for settings in (
                "distill_weight=1.0",
                "replay_known=64-epochs10",
                "trainable=attention",
                "trainable=ffn",
                "lora_rank=8-learning_rate=0.0022",
            )
        ),
    }
    assert run_without_training(labelled, resolve_experiments(DEMO, "remedies")) == remedies
    for experiments in ((), ("idk",)):
        config = resolve_experiments(DEMO, *experiments)
        assert not run_without_training(labelled, config), "the earlier experiments must be unchanged"
        sweep = include_finished_settings(labelled, include_finished_variants(labelled, config))
        assert remedies <= {run.run_id for run in sweep.trajectories}, "finished trainings must keep their points"
        assert not unfinished_plans(labelled, sweep)


def test_remedies_for_more_epochs_replay_again(labelled: Folder) -> None:
    """Rows are replayed in the last epoch, so a longer training has another one."""
    run_without_training(labelled, resolve_experiments(DEMO, "remedies"))
    grid = replace(DEMO.sweep.grid, epochs=(10, 20))
    longer = resolve_experiments(replace(DEMO, sweep=replace(DEMO.sweep, grid=grid)), "remedies")
    run_ids = {run.run_id for run in longer.sweep.trajectories}
    assert "unknown-050-seed0-replay_known=64-epochs20" in run_ids
    plans = unfinished_plans(labelled, include_finished_variants(labelled, longer))
    assert {plan.run_id for plan in plans} == run_ids
    assert not [text for text in finished_settings(labelled, longer) if "replay_known" in text]


def test_unfinished_remedies_are_left_out_of_other_sweeps(labelled: Folder) -> None:
    run_without_training(labelled, resolve_experiments(DEMO, "remedies"))
    labelled.child("runs", "unknown-050-seed0-trainable=ffn").delete()
    texts = finished_settings(labelled, resolve_experiments(DEMO, "idk"))
    assert len(texts) == 4
    assert not [text for text in texts if "trainable=ffn" in text]


def finished_settings(study: Folder, config: StudyConfig) -> tuple[str, ...]:
    sweep = include_finished_variants(study, replace(config, sweep=without_further_settings(config.sweep)))
    return include_finished_settings(study, sweep).grid.further_settings


def without_further_settings(sweep: SweepConfig) -> SweepConfig:
    return replace(sweep, grid=replace(sweep.grid, further_settings=()))


@pytest.mark.parametrize(
    ("name", "changes", "difference"),
    [
        ("stability", {"repeats_per_relation": 0}, "repeats_per_relation was 0, is 4"),
        ("error_audit", {"mode": "labels"}, "mode was labels, is full"),
    ],
)
def test_experiment_that_needs_other_labels_is_refused(
    tmp_path: Path, name: str, changes: dict[str, object], difference: str
) -> None:
    """Labels of one study must have the same settings, so they cannot be completed with other ones."""
    study = Folder(str(tmp_path))
    before = resolve_experiments(replace(DEMO, annotate=replace(DEMO.annotate, **changes)), "idk")
    for config in (before, resolve_experiments(DEMO, name)):
        identity = fingerprint({}, config.annotate.identity())
        if config is before:
            begin_step(study.child("annotate"), "annotate", identity, config.annotate)
            continue
        with pytest.raises(StudyError, match=rf"\({difference}\); choose another --out, or delete that folder"):
            begin_step(study.child("annotate"), "annotate", identity, config.annotate)
