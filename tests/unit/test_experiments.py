"""Experiments: their variants under different settings, unmet requirements, and later additions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import presets
from jobs.common import parse_config
from jobs.study import _steps, forecast_cost, include_finished_variants, needs_training, resolve, unmet_requirements
from slick.errors import SettingsError
from slick.experiments import (
    EXPERIMENTS,
    PAPER_EXPERIMENTS,
    missing_requirements,
    parse_experiment_names,
    variants_for_experiments,
)
from slick.report.data import StudyData
from slick.report.findings.base import FindingResult, Verdict, findings
from slick.report.page import Exhibit, Section
from slick.report.sections import make_sections, sections
from slick.report.step import explain_unrequested_findings, label_sections, requested_experiments
from slick.storage import Folder
from slick.variants.config import VariantsConfig, variant_names
from tuning.estimates import check_training_memory

FINDINGS = {f"E{i}" for i in range(1, 26)}
PAPER_VARIANTS = VariantsConfig()


def resolve_demo_study(**changes: object) -> presets.StudyConfig:
    return resolve(replace(presets.demo_study(), variants=PAPER_VARIANTS, **changes))


def test_experiments_cover_all_findings_and_variants_of_the_paper() -> None:
    assert set(findings.names()) == FINDINGS
    assert all(EXPERIMENTS[finding.experiments[0]].exhibits for _, finding in findings.items())
    assert set(variants_for_experiments(PAPER_EXPERIMENTS, PAPER_VARIANTS)) == set(variant_names(PAPER_VARIANTS))
    assert sections.get("idk").experiment == "idk"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("idk", ("unknown-050", "idk-050")),
        ("p_true", ("natural",)),
        ("categories", ("unknown-100", "highlyknown", "maybeknown", "weaklyknown", "natural")),
        ("ood", tuple(f"unknown-{percent:03d}" for percent in (0, 10, 25, 50, 75, 90, 100))),
        ("counts", ()),
        ("stability", ()),
    ],
)
def test_variants_of_an_experiment(name: str, expected: tuple[str, ...]) -> None:
    assert variants_for_experiments([name], PAPER_VARIANTS) == expected


def test_shares_of_an_experiment_follow_the_settings() -> None:
    config = VariantsConfig(unknown_shares=(0.0, 0.29, 1.0), idk_shares=(0.29,), concentrated_shares=(0.29,))
    assert variants_for_experiments(["idk"], config) == ("unknown-029", "idk-029")
    assert variants_for_experiments(["concentration"], config) == ("unknown-029", "concentrated-029")
    assert [requirement.label for requirement in missing_requirements(EXPERIMENTS["fit"], config)] == [
        "D with half Unknown rows"
    ]


def test_experiment_names_are_separate_or_joined_by_commas() -> None:
    parsed = parse_config(presets.demo_study(), ["--experiments", "idk,p-true", "counts"], "slick study demo")
    assert parse_experiment_names(parsed.experiments) == ("counts", "p_true", "idk")
    with pytest.raises(SettingsError, match=r"no experiment figure_3, idq; the experiments are counts, .*planted"):
        parse_experiment_names(["idq,figure_3"])


def test_experiments_share_variants() -> None:
    config = resolve_demo_study(experiments=("idk", "p_true"))
    assert config.sweep.grid.variants == ("unknown-050", "natural", "idk-050")
    runs = [run.run_id for run in config.sweep.trajectories if not run.settings]
    assert runs == ["unknown-050-seed0", "natural-seed0", "idk-050-seed0"]
    assert variant_names(config.variants) == variant_names(PAPER_VARIANTS), "all sets are drawn"


def test_default_experiments_are_the_paper_and_free_additions() -> None:
    config = resolve_demo_study()
    assert set(PAPER_EXPERIMENTS) <= set(config.experiments)
    assert {"stability", "planted", "forgetting"} <= set(config.experiments)
    assert "concentration" not in config.experiments
    assert config.sweep.grid.variants == variant_names(PAPER_VARIANTS)


def test_concentrated_variants_are_drawn_if_requested() -> None:
    assert resolve_demo_study(experiments=("concentration",)).sweep.grid.variants == ("unknown-050", "concentrated-050")


def test_weighted_variants_are_drawn_if_requested() -> None:
    assert resolve_demo_study(experiments=("weights",)).sweep.grid.variants == (
        "unknown-050",
        "known-050",
        "weighted-050",
    )
    assert "weights" not in resolve(presets.demo_study()).experiments, "it would make the demo longer"
    assert "weighted-050" not in resolve(presets.demo_study()).sweep.grid.variants


def test_remedies_add_their_sets_and_settings_if_requested() -> None:
    config = resolve_demo_study(experiments=("remedies",))
    assert config.sweep.grid.variants == ("unknown-050", "known-050", "idk-050", "p-correct-050")
    settings = [run.settings_text for run in config.sweep.trajectories if run.variant == "unknown-050"]
    assert settings == [
        "",
        "learning_rate=0.0022",
        "distill_weight=1.0",
        "replay_known=64",
        "trainable=attention",
        "trainable=ffn",
        "lora_rank=8;learning_rate=0.0022",
    ]
    default = resolve(presets.demo_study())
    assert "remedies" not in default.experiments, "it would make the demo longer"
    assert not default.sweep.grid.further_settings
    drawn = replace(presets.demo_study().variants, p_correct_shares=(0.5,))
    assert "remedies" not in resolve(replace(presets.demo_study(), variants=drawn)).experiments


def test_remedies_of_a_study_with_lora_have_no_lora() -> None:
    study = replace(presets.lora_study(), experiments=("remedies",), model="m", questions="q")
    texts = {run.settings_text for run in resolve(study).sweep.trajectories}
    assert not any("lora_rank" in text for text in texts)
    assert "trainable=attention" in texts


def test_p_true_is_scored_if_requested() -> None:
    assert resolve_demo_study().annotate.p_true
    assert resolve_demo_study(experiments=("p_true",)).annotate.p_true
    assert not resolve_demo_study(experiments=("idk",)).annotate.p_true
    assert not resolve(presets.smoke_study()).annotate.p_true, "no trained run to compare it with"


def test_stored_answers_are_scored_if_requested() -> None:
    config = resolve_demo_study(experiments=("hidden",))
    assert config.annotate.hidden
    assert not needs_training(config)
    default = resolve(presets.demo_study())
    assert "hidden" not in default.experiments, "it would make the demo longer"
    assert not default.annotate.hidden


def test_study_without_training_has_no_sweep() -> None:
    config = resolve_demo_study(experiments=("counts,stability",))
    assert not needs_training(config)
    assert [name for name, _ in _steps(config)] == ["world", "questions", "annotate", "report"]
    assert [name for name, _ in _steps(resolve_demo_study(experiments=("idk",)))][-3:] == [
        "variants",
        "sweep",
        "report",
    ]


@pytest.mark.parametrize(
    ("preset", "flags", "message"),
    [
        ("smoke", ["--experiments", "p_true"], r"p_true cannot .* needs D_Natural, .*\(add --variants\.natural\)"),
        (
            "demo",
            ["--experiments", "hidden", "--annotate.estimator", "gold"],
            r"hidden.* needs .*--estimator sampled",
        ),
        (
            "demo",
            ["--experiments", "error_audit", "--annotate.mode", "labels"],
            r"needs every answer \(--annotate\.mode",
        ),
        ("demo", ["--experiments", "stability", "--annotate.repeats-per-relation", "0"], "annotated twice"),
        ("demo", ["--experiments", "remedies", "--annotate.estimator", "gold"], r"needs every answer"),
        ("paper", ["--experiments", "planted", "--model", "m", "--questions", "q"], "planted facts"),
        ("demo", ["--experiments", "idk", "--sweep.grid.variants", "natural"], "both determine the trained variants"),
    ],
)
def test_experiments_with_unmet_requirements_are_rejected(preset: str, flags: list[str], message: str) -> None:
    config = parse_config(presets.STUDY[preset](), flags, "slick study")
    with pytest.raises(SettingsError, match=message):
        resolve(config)


def test_default_experiments_omit_unmet_requirements() -> None:
    config = resolve(presets.smoke_study())
    assert set(PAPER_EXPERIMENTS) <= set(config.experiments)
    assert unmet_requirements("categories", config)
    assert "left out: needs D_Natural" in forecast_cost(config)


def test_cost_forecast_without_a_model_counts_each_experiment() -> None:
    lines = forecast_cost(resolve(presets.paper_study(), needs_model=False)).splitlines()
    cells = {line.split()[0]: line for line in lines if line}
    assert cells["unknown_ratio"].split()[-3:] == ["12", "12", "600"]
    assert cells["idk"].split()[-3:] == ["2", "2", "100"]
    assert "17 trainings, 850 epochs in all" in "\n".join(lines)
    assert "no training" in forecast_cost(resolve_demo_study(experiments=("counts",)))
    assert "4,720 questions: 802,400 generations" in forecast_cost(resolve_demo_study())


def test_small_real_study_trains_20_sets_and_shifts_all_seeds() -> None:
    config = resolve(replace(presets.small_real_study(), seed=5), needs_model=False)
    runs = [run.run_id for run in config.sweep.trajectories]
    assert len(runs) == 7 + 5 + 2 + 3 + 3, "shares, Known rows only, natural and IDK, second seeds, learning rate"
    assert [run for run in runs if "seed6" in run] == [f"unknown-{share}-seed6" for share in ("000", "050", "100")]
    assert sum("learning_rate=0.0002" in run for run in runs) == 3
    assert config.annotate.p_true
    assert unmet_requirements("categories", config)


LLAMA = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip


@pytest.fixture
def llama_8b(tmp_path: Path) -> str:
    """A folder with the configuration of Llama 3.1 8B, and no weights."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return str(tmp_path)


def test_studies_of_large_models_have_the_settings_and_memory_of_their_trainings(llama_8b: str) -> None:
    gigabytes = {}
    for name, training in (("lora", presets.lora_training()), ("large", presets.large_training())):
        config = resolve(replace(presets.STUDY[name](), model=llama_8b, questions="q.zip"))
        assert replace(config.sweep.train, model="") == training
        assert config.sweep.grid.epochs == presets.paper_sweep().grid.epochs
        (line,) = [line for line in forecast_cost(config).splitlines() if line.startswith("a training takes")]
        assert f"{training.num_workers} workers" in line
        gigabytes[name] = float(line.split()[5])
    assert 16 < gigabytes["lora"] < 20, "the weights in bfloat16"
    assert 16 * 8 / 8 < gigabytes["large"] < 24, "16 bytes per parameter over 8 GPUs, and what is gathered"
    without_folder = replace(presets.large_study(), model="org/name", questions="q.zip")
    assert "a training takes" not in forecast_cost(resolve(without_folder)), "it is not downloaded"


def test_memory_of_a_study_is_that_of_its_largest_training(llama_8b: str) -> None:
    """Self-distillation holds a copy of the frozen model."""

    def gigabytes(*experiments: str) -> float:
        study = replace(presets.paper_study(), model=llama_8b, questions="q.zip", experiments=experiments)
        (line,) = [line for line in forecast_cost(resolve(study)).splitlines() if line.startswith("a training takes")]
        return float(line.split()[5])

    assert gigabytes("remedies") - gigabytes("idk") == pytest.approx(16, abs=0.2)


def test_cost_forecast_counts_the_trainings_of_remedies_once() -> None:
    lines = forecast_cost(resolve_demo_study(experiments=("remedies", "idk"))).splitlines()
    cells = {line.split()[0]: line for line in lines if line}
    assert cells["remedies"].split()[-3:] == ["4", "10", "100"]
    assert cells["idk"].split()[-3:] == ["2", "3", "30"]


def test_training_that_cannot_fit_a_gpu_is_refused(llama_8b: str) -> None:
    large = presets.large_training()
    check_training_memory(llama_8b, large, 8, 80 * 10**9)
    with pytest.raises(SettingsError, match=r"takes about 1\d\d\.\d GB per worker with 1 workers, .* has 80\.0 GB"):
        check_training_memory(llama_8b, large, 1, 80 * 10**9)
    check_training_memory(llama_8b, presets.lora_training(), 1, 24 * 10**9)


@pytest.fixture
def study_with_variants(tmp_path: Path) -> Folder:
    """A study with variants and no training."""
    folder = Folder(str(tmp_path))
    counts = {name: {"num": 4, "kind": "x"} for name in variant_names(PAPER_VARIANTS)}
    folder.child("variants").write_json("manifest.json", manifest("variants", counts))
    return folder


def manifest(step: str, counts: dict) -> dict:
    return {
        "step": step,
        "fingerprint": step,
        "settings": {},
        "inputs": {},
        "counts": counts,
        "seconds": 1.0,
        "versions": {},
    }


def test_sweep_without_finished_runs_has_the_requested_variants(study_with_variants: Folder) -> None:
    config = resolve_demo_study(experiments=("idk",))
    stored = replace(config.sweep, train=replace(config.sweep.train, dtype="float32"))
    assert include_finished_variants(study_with_variants, config) == stored, "with the resolved dtype"


def test_cost_forecast_counts_finished_runs(study_with_variants: Folder) -> None:
    study_with_variants.child("runs", "idk-050-seed0").write_json("manifest.json", manifest("finetune", {"epochs": 10}))
    assert "1 of these trainings are finished" in forecast_cost(
        resolve_demo_study(experiments=("idk",)), study_with_variants
    )


def make_result(name: str, holds: bool | None) -> FindingResult:
    verdict = Verdict.NOT_TESTABLE if holds is None else Verdict.HOLDS
    return FindingResult(id=name, claim="c", holds=holds, own=None, paper=None, why="needs a run", verdict=verdict)


def make_section(name: str, missing: str | None) -> Section:
    return Section(name=name, title=name, text="", exhibits=(Exhibit(caption="c", missing=missing),) * 2)


def test_findings_not_requested_name_the_flag() -> None:
    results = [make_result("E20", None), make_result("E23", None), make_result("E3", True), make_result("E22", None)]
    reasons = [result.why for result in explain_unrequested_findings(results, ("idk",))]
    assert reasons == ["not requested: add --experiments p_true", "needs a run", "needs a run", "needs a run"]
    assert explain_unrequested_findings(results, None) == results, "without a study command nothing is requested"


def test_sections_are_grouped_by_experiment_and_unrequested_ones_are_reduced() -> None:
    labelled = label_sections([make_section(name, "no run") for name in ("choice", "idk", "share", "other")], ("idk",))
    assert [section.name for section in labelled] == ["idk", "other", "choice", "share"], (
        "sections that were not requested come last"
    )
    assert [section.place for section in labelled][:3] == ["table 8", "", "figures 3a, 3b"]
    assert [exhibit.missing for exhibit in labelled[2].exhibits] == ["not requested: add --experiments unknown_ratio"]
    assert [exhibit.missing for exhibit in labelled[0].exhibits] == ["no run", "no run"]
    complete = label_sections([make_section(name, None) for name in ("choice", "idk", "share")], ("idk",))
    assert [section.name for section in complete] == ["choice", "share", "idk"]
    kept = label_sections([make_section("share", None)], ("idk",))
    assert len(kept[0].exhibits) == 2, "available exhibits are shown, requested or not"


def test_every_section_of_the_page_belongs_to_an_experiment() -> None:
    names = [section.name for section in make_sections(StudyData())]
    assert {sections.get(name).experiment for name in names} <= EXPERIMENTS.keys()
    assert {*sections.names()} - {*names} == {"planted"}, "the section of planted facts needs a world"


def test_requested_experiments_are_read_from_the_study(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert requested_experiments(folder) is None
    folder.write_json("study.json", {"settings": {"seed": 0}})
    assert requested_experiments(folder) is None
    folder.write_json("study.json", {"settings": {"experiments": ["idk"]}})
    assert requested_experiments(folder) == ("idk",)
