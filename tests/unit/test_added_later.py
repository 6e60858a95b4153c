"""Experiments asked for one after another in one folder: what each adds, and that nothing is refused or done again."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.presets import StudyConfig, demo_study, paper_study, smoke_study
from jobs.study import include_finished_variants, needs_training, resolve
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
"""All experiments can be done with its settings; the concentrated sets are drawn when they are asked for."""
RELATIONS = ("P1", "P2", "P3")


@pytest.fixture
def labelled(tmp_path: Path) -> Folder:
    """A study whose model and questions are there and labelled."""
    study = Folder(str(tmp_path))
    rows = [
        {"relation": relation, "domain": "id", "split": split, "category": category, "question_id": f"{place}-{i}"}
        for relation in RELATIONS
        for split, num in (("train", 10), ("test", 1))
        for category in Category
        for i in range(num)
        for place in [f"{relation}-{split}-{category}"]
    ]
    dev = [
        {"relation": r, "domain": "id", "split": "dev", "category": None, "question_id": f"{r}-dev"} for r in RELATIONS
    ]
    asked = [
        {**row, "subject": "x", "question": f"What of {row['question_id']}?", "answers": ["gold"]} for row in rows + dev
    ]
    study.child("questions").write_table("part-0.parquet", pa.Table.from_pylist(asked).drop_columns(["category"]))
    study.child("annotate").write_table("knowledge.parquet", pa.Table.from_pylist(rows))
    model = study.child("world", "model")
    model.write_json("config.json", {})
    model.write_bytes("model.safetensors", (2).to_bytes(8, "little") + b"{}")  # no tensors
    inputs = {"questions": "q", "model": model_fingerprint(resolve_model(model.uri))}
    for step, given in (("world", {}), ("questions", {}), ("annotate", inputs)):
        mark = "q" if step == "questions" else step
        complete_step(study.child(step), step, mark, settings={}, inputs=given, counts={}, started_at=0.0)
    return study


def ask(base: StudyConfig, *experiments: str) -> StudyConfig:
    return resolve(replace(base, experiments=experiments))


def left(study: Folder, sweep: SweepConfig) -> list[RunPlan]:
    return plan_runs(study, {run.run_id: run.config(sweep.train) for run in sweep.trajectories})


def do(study: Folder, config: StudyConfig) -> set[str]:
    """Variants and sweep as `slick study` does them, but for the training; the runs that were trained."""
    if not needs_training(config):
        return set()
    draw_variants(study, config.variants)
    plans = left(study, include_finished_variants(study, config))
    for plan in plans:
        folder, counts = run_folder(study, plan.run_id), {"epochs": plan.config.epochs}
        complete_step(folder, "finetune", plan.identity, settings={}, inputs=plan.inputs, counts=counts, started_at=0.0)
    return {plan.run_id for plan in plans}


def bytes_of(study: Folder) -> dict[str, bytes]:
    variants = study.child("variants")
    return {name: variants.read_bytes(name) for name in variants.names(".parquet")}


@pytest.mark.parametrize(
    ("first", "name"),
    [
        *((("idk",), name) for name in EXPERIMENTS),
        *((("concentration", "categories"), name) for name in ("idk", "counts", "unknown_ratio")),
    ],
)
def test_an_experiment_is_added_to_a_study_that_did_others(labelled: Folder, first: tuple[str, ...], name: str) -> None:
    before, after = ask(DEMO, *first), ask(DEMO, name)
    done = do(labelled, before)
    sets = bytes_of(labelled)
    assert done

    for step in ("world", "prepare"):
        assert getattr(after, step) == getattr(before, step)
    assert after.annotate.identity() == before.annotate.identity(), "labels are not refused"
    added = do(labelled, after)
    assert not added & done, "what is trained is not trained again"
    wanted = {run.run_id for run in after.sweep.trajectories} if EXPERIMENTS[name].requirements else set()
    assert added == wanted - done
    assert {key: content for key, content in bytes_of(labelled).items() if key in sets} == sets
    if needs_training(after):
        points = include_finished_variants(labelled, after).grid.variants
        both = {
            *variants_for_experiments(first, replace(DEMO.variants, concentrated_shares=(0.5,))),
            *after.sweep.grid.variants,
        }
        assert set(points) == both, "finished sets keep their points"
        assert not left(labelled, include_finished_variants(labelled, after))


@pytest.mark.parametrize(
    "base", [smoke_study(), replace(paper_study(), model="m", questions="q")], ids=["smoke", "paper"]
)
def test_concentration_is_added_to_every_preset(labelled: Folder, base: StudyConfig) -> None:
    before, after = ask(base), ask(base, "concentration")
    draw_variants(labelled, before.variants)
    sets = bytes_of(labelled)
    manifest = draw_variants(labelled, after.variants)
    assert set(after.sweep.grid.variants) == {"unknown-050", "concentrated-050"} <= manifest.counts.keys()
    assert bytes_of(labelled).keys() - sets.keys() == {"concentrated-050.parquet"}
    assert draw_variants(labelled, before.variants) == manifest, "the first wish finds what it had"


def test_concentration_is_added_to_all_of_the_paper(labelled: Folder) -> None:
    done = do(labelled, ask(DEMO))
    assert {run.split("-seed")[0] for run in done} == set(variants_for_experiments(PAPER_EXPERIMENTS, DEMO.variants))
    assert do(labelled, ask(DEMO, "concentration")) == {"concentrated-050-seed0"}
    assert not do(labelled, ask(DEMO)), "and what was asked first is there as it was"


def test_more_ratios_are_added_to_a_study(labelled: Folder) -> None:
    done = do(labelled, ask(DEMO, "unknown_ratio"))
    more = replace(DEMO, variants=replace(DEMO.variants, unknown_shares=(0.0, 0.33, 1.0)))
    assert do(labelled, ask(more, "ood")) == {"unknown-033-seed0"}
    assert len(done) > len(bytes_of(labelled)) / 2


@pytest.mark.parametrize(
    ("name", "without", "said"),
    [
        ("stability", {"repeats_per_relation": 0}, "repeats_per_relation was 0, is 4"),
        ("error_audit", {"mode": "labels"}, "mode was labels, is full"),
    ],
)
def test_what_labels_lack_cannot_be_added_and_the_message_says_what_it_is(
    tmp_path: Path, name: str, without: dict[str, object], said: str
) -> None:
    """Labels are one thing: part of them, made later with other settings, would not be theirs."""
    study = Folder(str(tmp_path))
    before = ask(replace(DEMO, annotate=replace(DEMO.annotate, **without)), "idk")
    for config in (before, ask(DEMO, name)):
        mark = fingerprint({}, config.annotate.identity())
        if config is before:
            begin_step(study.child("annotate"), "annotate", mark, config.annotate)
            continue
        with pytest.raises(StudyError, match=rf"\({said}\); choose another --out, or delete that folder"):
            begin_step(study.child("annotate"), "annotate", mark, config.annotate)
