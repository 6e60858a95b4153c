"""Differences in settings, inputs and versions of studies are reported, except seeds and settings without effect."""

import ast
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from slick.annotation.config import AnnotateConfig
from slick.report.compare import _settings_sentences
from slick.report.comparison import ComparedStudy, group_by_settings, have_same_settings_and_seeds, version_differences
from slick.report.data import StudyData
from slick.report.provenance import Provenance, read_provenance
from slick.report.setting_differences import SettingDifference, setting_differences
from slick.settings import (
    HIDDEN_IDENTITY,
    P_TRUE_IDENTITY,
    field_affects,
    filter_settings,
    nested_settings_class,
    settings_class,
)
from slick.storage import Folder
from slick.study import Manifest, complete_step, fingerprint, read_manifest, settings_to_json
from slick.world.config import WorldConfig

ROOT = Path(__file__).parents[2]
STEPS = ("world", "questions", "annotate", "variants", "finetune", "sweep")
WITHIN = {"SamplingConfig", "GridConfig", "JudgeConfig"}
"""Settings that are nested in others."""
NOT_COMPARED = {
    "ReportConfig": "how the page is made; a comparison makes its own",
    "RescoreConfig": "its result is an annotation, whose manifest has the settings of AnnotateConfig",
    "WorkerConfig": "made from AnnotateConfig",
    "EngineConfig": "made from AnnotateConfig",
    "WordingConfig": "a check of the labels, which other steps do not read",
    "CurateConfig": "makes questions and an annotation, whose manifests are compared",
    "StudyConfig": "holds the settings of the steps, which their manifests have",
    "PlanConfig": "plans, and computes nothing",
}
WITHOUT_RESULT = {"cost", "content", "nothing"}
"""What a field may affect without affecting results."""
SEARCHED = {"search": "optuna"}
"""A search, so that its settings have an effect."""
WEIGHTED = {"weighted_shares": [0.5], "p_correct_shares": [0.5]}
"""Sets with weights, likewise."""
EVALUATED = {"evaluate": "needed"}
"""Evaluations whose epochs the settings choose."""
JUDGED = {"matcher": "judge"}
"""A matcher whose settings have an effect."""


def fields_of(cls: type, prefix: str = "") -> list[tuple[str, frozenset[str]]]:
    """Dotted names of all fields, including nested ones, and what they affect."""
    names = []
    for field in dataclasses.fields(cls):
        inner = nested_settings_class(field)
        name = f"{prefix}{field.name}"
        names += fields_of(inner, f"{name}.") if inner else [(name, field_affects(field))]
    return names


FIELDS = [(step, name, affected) for step in STEPS for name, affected in fields_of(settings_class(step))]


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else 7 if value is None else [*value, "x"]


def settings_by_step(change: tuple[str, str] | None, path: tuple[str, str] | None) -> dict[str, dict[str, Any]]:
    settings = {step: settings_to_json(settings_class(step)()) for step in STEPS}
    settings["sweep"] |= SEARCHED
    settings["variants"] |= WEIGHTED
    settings["annotate"] |= JUDGED
    settings["finetune"] |= EVALUATED
    settings["sweep"]["train"] |= EVALUATED
    settings["sweep"]["grid"] |= {"further_seeds": [8]}
    for step in ("annotate", "finetune"):
        settings[step]["dtype"] = "float32"  # as steps store the resolved value of `auto`
    settings["annotate"]["engine"] = "transformers"  # likewise
    if path:
        settings[path[0]][path[1]] = "path"
    if change:
        step, name = change
        *outer, last = name.split(".")
        inner = settings[step]
        for part in outer:
            inner = inner[part]
        inner[last] = other(inner[last])
    return settings


def study(
    change: tuple[str, str] | None = None, *, older: bool = False, path: tuple[str, str] | None = None
) -> dict[str, Manifest]:
    """The manifests of a study with its own world, one setting of one step changed.

    Args:
        older: manifests hold no identities.
        path: a setting that names an input, which is then not that of the study's own world.
    """
    inputs = {
        "world": {"source": "source"},
        "questions": {"source": "world's questions", "audit": "audit"},
        "annotate": {"questions": "questions", "model": "weights", "exemplars": "ids"},
        "variants": {"knowledge": "annotate", "model": "weights"},
        "finetune": {
            "variant": "rows",
            "questions": "questions",
            "knowledge": "annotate",
            "model": "weights",
            "deepspeed": "entries",
        },
        "sweep": {"unknown-050-seed0": "finetune 3"},
        "p_true": {"questions": "questions", "model": "weights"},
        "hidden": {"questions": "questions", "model": "weights", "labels": "annotate"},
    }
    settings = settings_by_step(change, path)
    contents = {"world": {"recipe": 3}, "questions": {"relations": "default"}}
    names = {"finetune": "runs/unknown-050-seed0", "p_true": "annotate/p_true", "hidden": "annotate/hidden"}
    scored = filter_settings(AnnotateConfig, settings["annotate"], P_TRUE_IDENTITY)
    ranked = filter_settings(AnnotateConfig, settings["annotate"], HIDDEN_IDENTITY)
    return {
        names.get(step, step): Manifest(
            step=step,
            fingerprint=step,
            settings=values,
            inputs=inputs[step],
            counts={},
            seconds=1.0,
            versions={"torch": "2.13.0"},
            identity=None if older else {**filter_settings(settings_class(step), values), **contents.get(step, {})},
        )
        for step, values in {**settings, "p_true": scored, "hidden": ranked}.items()
    }


def compared(first: dict[str, Manifest], second: dict[str, Manifest]) -> list[SettingDifference]:
    """The differences, after checks that the summary agrees with them."""
    a, b = compared_studies(first, second)
    differences = setting_differences([a.provenance.basis, b.provenance.basis])
    assert bool(differences) == (not group_by_settings([a, b]) and not have_same_settings_and_seeds(a, b))
    assert any(
        "only in their seeds" in sentence or "the same settings, inputs" in sentence
        for sentence in _settings_sentences([a, b])
    ) == (not differences)
    return differences


def compared_studies(*studies: dict[str, Manifest]) -> list[ComparedStudy]:
    return [
        ComparedStudy(
            label="ABCD"[i], name=str(i), data=StudyData(), outcomes=(), provenance=read_provenance(manifests)
        )
        for i, manifests in enumerate(studies)
    ]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(("step", "name", "affected"), FIELDS)
def test_different_setting_is_reported_unless_it_affects_no_result(
    step: str, name: str, affected: frozenset[str], older: bool
) -> None:
    path = (step, name) if "content" in affected and "." not in name else None
    base, changed = study(older=older, path=path), study((step, name), older=older, path=path)
    differences = compared(base, changed)
    a, b = compared_studies(base, changed)
    if "seed" in affected:
        assert differences == []
        assert group_by_settings([a, b]) == [(a, b)]
    elif affected - WITHOUT_RESULT:
        assert name in {row.name for row in differences}
    elif older and name == "relations":
        assert differences[0].values == (
            "questions: content of relations path",
            "questions: content of relations pathx",
        )
    else:
        assert differences == []
        assert have_same_settings_and_seeds(a, b)


def test_every_settings_class_is_compared_or_listed_as_not_compared() -> None:
    files = [path for package in ("slick", "tuning", "jobs") for path in (ROOT / package).rglob("*.py")]
    classes = {
        node.name
        for path in files
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
    }
    compared_classes = {settings_class(step).__name__ for step in STEPS}
    assert classes == compared_classes | WITHIN | NOT_COMPARED.keys()


def test_search_settings_count_only_with_a_search() -> None:
    a, b = study(), study(("sweep", "samples"))
    for manifests in (a, b):
        sweep = manifests["sweep"]
        settings = {**sweep.settings, "search": "grid"}
        identity = filter_settings(settings_class("sweep"), settings)
        manifests["sweep"] = dataclasses.replace(sweep, settings=settings, identity=identity)
    assert compared(a, b) == []


def changed_input(manifests: dict[str, Manifest], step: str, name: str, value: str) -> dict[str, Manifest]:
    previous = manifests[step]
    return {**manifests, step: dataclasses.replace(previous, inputs={**previous.inputs, name: value})}


@pytest.mark.parametrize(
    ("step", "name", "row"),
    [
        ("world", "source", ("world", "source fingerprint")),
        ("questions", "source", ("world", "questions fingerprint")),
        ("questions", "audit", ("questions", "audit fingerprint")),
        ("annotate", "model", ("world", "model fingerprint")),
        ("annotate", "judge", ("annotate", "judge fingerprint")),
        ("runs/unknown-050-seed0", "model", ("trainings", "model fingerprint")),
        ("runs/unknown-050-seed0", "knowledge", ("trainings", "knowledge fingerprint")),
        ("variants", "knowledge", ("variants", "knowledge fingerprint")),
    ],
)
def test_different_input_is_reported(step: str, name: str, row: tuple[str, str]) -> None:
    assert row in [difference[:2] for difference in compared(study(), changed_input(study(), step, name, "another"))]


def test_products_of_worlds_with_different_seeds_are_not_differences() -> None:
    manifests = study(("world", "seed"))
    other_weights = changed_input(manifests, "annotate", "model", "another")
    for step in ("variants", "annotate/p_true", "annotate/hidden", "runs/unknown-050-seed0"):
        other_weights = changed_input(other_weights, step, "model", "another")
    assert compared(study(), changed_input(other_weights, "questions", "source", "another")) == []
    a, b, c = compared_studies(study(), changed_input(study(), "annotate", "model", "again"), manifests)
    assert group_by_settings([a, b, c]) == [(a, c)], "A and B have one seed and other weights"


def test_external_models_and_questions_are_compared_whatever_the_seeds() -> None:
    def own(model: str, questions: str) -> dict[str, Manifest]:
        manifests = study(("annotate", "seed"))
        del manifests["world"]
        for step in ("annotate", "variants", "annotate/p_true", "annotate/hidden", "runs/unknown-050-seed0"):
            manifests = changed_input(manifests, step, "model", model)
        return changed_input(manifests, "questions", "source", questions)

    assert compared(own("a", "q"), own("a", "q")) == []
    assert [row[:2] for row in compared(own("a", "q"), own("b", "q"))] == [("annotate", "model fingerprint")]
    assert [row[:2] for row in compared(own("a", "q"), own("a", "r"))] == [("questions", "questions fingerprint")]


def test_setting_that_an_earlier_manifest_lacks_is_a_difference() -> None:
    lacking = study(older=True)
    annotate = lacking["annotate"]
    settings = copy.deepcopy(annotate.settings)
    del settings["dtype"], settings["limit_per_relation"]
    lacking["annotate"] = dataclasses.replace(annotate, settings=settings)
    differences = compared(study(), lacking)
    assert SettingDifference("annotate", "dtype", ("float32", "not stated")) in differences
    assert SettingDifference("annotate", "limit_per_relation", ("none", "not stated")) in differences


def test_step_finished_in_one_study_only_is_a_difference() -> None:
    part = study()
    del part["annotate/p_true"]
    assert compared(study(), part) == [SettingDifference("p_true", "", ("finished", "not finished"))]
    del part["annotate"]
    assert read_provenance(part).recipe is None


def test_different_combinations_of_the_same_values_are_a_difference() -> None:
    def trained(*pairs: tuple[float, float]) -> dict[str, Manifest]:
        manifests = study()
        run = manifests.pop("runs/unknown-050-seed0")
        for i, (rate, dropout) in enumerate(pairs):
            changed = {"learning_rate": rate, "dropout": dropout}
            settings = {**run.settings, **changed}
            manifests[f"runs/{i}"] = dataclasses.replace(run, settings=settings, identity={**run.identity, **changed})
        return manifests

    differences = compared(trained((1, 0.1), (2, 0.2)), trained((1, 0.2), (2, 0.1)))
    assert [row[:2] for row in differences] == [("trainings", "combinations of these settings")]
    assert compared(trained((1, 0.1), (2, 0.2)), trained((2, 0.2), (1, 0.1))) == []


def test_automatic_values_are_compared_by_their_resolved_value() -> None:
    def automatic(**counts: str) -> dict[str, Manifest]:
        manifests = study()
        run = manifests["runs/unknown-050-seed0"]
        automatic = {**run.settings, "dtype": "auto"}
        manifests["runs/unknown-050-seed0"] = dataclasses.replace(
            run, settings=automatic, identity={**run.identity, "dtype": "auto"}, counts=counts
        )
        return manifests

    differences = compared(automatic(dtype="float32"), automatic(dtype="bfloat16"))
    assert differences == [SettingDifference("trainings", "dtype", ("float32", "bfloat16"))]
    assert compared(automatic(dtype="float32"), automatic(dtype="float32")) == []
    explicit = automatic()
    run = explicit["runs/unknown-050-seed0"]
    explicit["runs/unknown-050-seed0"] = dataclasses.replace(run, identity={**run.identity, "dtype": "float32"})
    assert compared(automatic(dtype="float32"), explicit) == []
    assert compared(automatic(), automatic()), "the resolved value is not known"


def test_different_versions_and_devices_are_reported() -> None:
    second = study(("annotate", "seed"))
    second["sweep"] = dataclasses.replace(second["sweep"], versions={"torch": "2.14.0"})
    second["annotate"] = dataclasses.replace(second["annotate"], counts={"device": "cuda:0"})
    a, b = compared_studies(study(), second)
    differences = version_differences([a, b])
    assert differences == {"torch": ("2.13.0", "2.13.0 and 2.14.0"), "device of the engines": ("", "cuda")}
    (sentence,) = _settings_sentences([a, b])
    assert sentence == "A and B differ only in their seeds, apart from torch, device of the engines."


def test_manifest_stores_the_identity_and_the_contents(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    config = WorldConfig(seed=3, num_threads=2, questions="here")
    complete_step(folder, "world", "x", settings=config, inputs={}, counts={}, started_at=0.0, contents={"recipe": 3})
    identity = read_manifest(folder).identity
    assert identity == json.loads(json.dumps(filter_settings(WorldConfig, settings_to_json(config)))) | {"recipe": 3}
    assert not {"num_threads", "questions", "source"} & identity.keys()
    assert identity["seed"] == 3


def test_fingerprint_of_an_earlier_manifest_determines_its_contents() -> None:
    config = WorldConfig(contested_ratio=0.95)  # earlier versions had this default
    settings = settings_to_json(config)
    mark = fingerprint(3, "", {**config.identity(), "source": ""})
    world = dataclasses.replace(study(older=True)["world"], settings=settings, inputs={}, fingerprint=mark)
    provenance: Provenance = read_provenance({"world": world})
    assert provenance.basis.settings["world"]["recipe"] == 3
    unproven = read_provenance({"world": dataclasses.replace(world, fingerprint="another")})
    assert "recipe" not in unproven.basis.settings["world"]
