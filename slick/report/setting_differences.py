"""Differences between studies in settings and inputs, from the manifests of their steps. Pure.

The settings classes declare which settings affect results (`slick.settings`), and each manifest stores these as its
identity. For manifests without one, the identity is derived from the stored settings. Settings that cannot be
determined count as different, so studies have the same settings only if that is certain.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slick.datasets.relations import load_relations
from slick.settings import IDENTITY, field_affects, filter_settings, nested_settings_class, settings_class
from slick.study import Manifest, fingerprint, flatten_settings
from slick.world.config import RECIPE

Settings = Mapping[str, Mapping[str, Any]]
"""Step -> dotted name of a setting -> its value."""

TRAININGS = "trainings"
"""The step of all fine-tuning runs of a study."""
MODEL, QUESTIONS = "model fingerprint", "questions fingerprint"
SETTING_COMBINATIONS = "combinations of these settings"
FINISHED = "finished"
AUTO = "auto"
"""A value that is resolved at run time. The counts of the manifest have the resolved value, which is compared."""
NOT_STATED = "not stated"
"""The value of a setting that a manifest does not have, or that has no effect in a study."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyIdentity:
    """Everything that determines the results of a study. comparison.json stores these fields."""

    settings: Settings
    """All settings but seeds, and the fingerprints of inputs from outside the study. Settings of `TRAININGS` with
    several values are sorted lists of the distinct values over all runs."""
    seeds: Mapping[str, Any]
    """`STEP NAME` to the seed."""
    products: Mapping[str, str]
    """Fingerprints of the model and questions that the study's world made, which depend on its seed."""
    unknown: tuple[str, ...]
    """Settings and inputs that affect results but are not in any manifest."""


class SettingDifference(NamedTuple):
    """One setting or input that differs between studies."""

    step: str
    name: str
    values: tuple[str, ...]
    """One text per study."""


def study_identity(manifests: Mapping[str, Manifest]) -> StudyIdentity:
    """Everything that determines the results of a study, from the manifests of its finished steps and runs.

    Args:
        manifests: as returned by `slick.report.provenance.read_manifests`.
    """
    settings: dict[str, dict[str, Any]] = {}
    seeds: dict[str, Any] = {}
    products: dict[str, str] = {}
    unknown: list[str] = []
    runs: list[dict[str, Any]] = []
    run_seeds: dict[str, list[Any]] = {}
    for name, manifest in manifests.items():
        step = "finetune" if name.startswith("runs/") else name.removeprefix("annotate/")
        values, missing = _relevant_settings(step, manifest)
        seed_values = {key: values.pop(key) for key in seed_setting_names(settings_class(step)) if key in values}
        inputs, own_products = _split_inputs(step, manifest, manifests)
        values |= inputs
        products |= own_products
        unknown += [f"{name}: {setting}" for setting in missing]
        if step == "finetune":
            runs.append(values)
            for key, value in seed_values.items():
                run_seeds.setdefault(f"{TRAININGS} {key}", []).append(value)
        else:
            settings[step] = values
            seeds |= {f"{step} {key}": value for key, value in seed_values.items()}
    if runs:
        settings[TRAININGS] = _merge_run_settings(runs)
    seeds |= {name: _distinct_values(values) for name, values in run_seeds.items()}
    return StudyIdentity(settings=settings, seeds=seeds, products=products, unknown=tuple(unknown))


def seed_setting_names(cls: type | None, prefix: str = "") -> list[str]:
    """Dotted names of the seeds among the settings of a class."""
    names = []
    for field in dataclasses.fields(cls) if cls else ():
        if "seed" in field_affects(field):
            names.append(f"{prefix}{field.name}")
        names += seed_setting_names(nested_settings_class(field), f"{prefix}{field.name}.")
    return names


def _relevant_settings(step: str, manifest: Manifest) -> tuple[dict[str, Any], list[str]]:
    """The settings of a step that affect results, and the names of those whose values are not known."""
    cls = settings_class(step)
    identity = _contents_from_fingerprint(step, manifest) if manifest.identity is None else manifest.identity
    values = flatten_settings(filter_settings(cls, manifest.settings)) | flatten_settings(identity)
    known = manifest.inputs.keys() | identity.keys()
    missing = [
        f"content of {field.name} {manifest.settings[field.name]}"
        for field in (dataclasses.fields(cls) if cls else ())
        if "content" in field_affects(field)
        and manifest.settings.get(field.name)
        and not {field.name, field.metadata.get("formerly")} & set(known)
    ]
    for name in [name for name, value in values.items() if value == AUTO and step != "sweep"]:  # runs have the sweep's
        values[name] = manifest.counts.get(name, AUTO)
        if values[name] == AUTO:
            missing.append(f"the resolved value of {name} {AUTO}")
    return values, missing


def _contents_from_fingerprint(step: str, manifest: Manifest) -> dict[str, Any]:
    """Contents that a manifest without an identity does not state, if its fingerprint equals that of the default."""
    settings = filter_settings(settings_class(step), manifest.settings, IDENTITY)
    if step == "world":
        source = manifest.inputs.get("source", "")
        for recipe in range(1, RECIPE + 1):
            if fingerprint(recipe, source, {**settings, "source": ""}) == manifest.fingerprint:
                return {"recipe": recipe}
        return {}
    if step == "questions":
        content = {name: dataclasses.asdict(relation) for name, relation in load_relations(None).items()}
        expected = fingerprint(manifest.inputs, settings, content)
        return {"relations": fingerprint(content)} if expected == manifest.fingerprint else {}
    return {}


def _split_inputs(
    step: str, manifest: Manifest, manifests: Mapping[str, Manifest]
) -> tuple[dict[str, str], dict[str, str]]:
    """Fingerprints of the inputs of a step from outside the study, and of those that the study's world made.

    Outputs of other steps are left out, because the settings and inputs of those steps are compared.
    """
    if step == "sweep":  # its inputs are the runs
        return {}, {}
    annotate, questions = manifests.get("annotate"), manifests.get("questions")
    own_model = "world" in manifests and annotate is not None and not annotate.settings.get("model")
    own_questions = (
        "world" in manifests and questions is not None and not any(map(questions.settings.get, ("questions", "source")))
    )
    steps = {other.fingerprint for name, other in manifests.items() if not name.startswith("runs/")}
    external: dict[str, str] = {}
    products: dict[str, str] = {}
    for name, value in manifest.inputs.items():
        if step == "annotate" and name == "model":
            (products if own_model else external)[MODEL] = value
        elif name == "model" and annotate is not None and value == annotate.inputs.get("model"):
            continue
        elif (step, name) == ("questions", "source") or (name == "questions" and value not in steps):
            (products if own_questions else external)[QUESTIONS] = value
        elif value not in steps and not (name == "variant" and "variants" in manifests):
            external[f"{name} fingerprint"] = value
    return external, products


def _merge_run_settings(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The value of each setting, or its distinct values over all runs, and a fingerprint of their combinations."""
    names = dict.fromkeys(name for run in runs for name in run)
    distinct = {name: _distinct_values([run.get(name, NOT_STATED) for run in runs]) for name in names}
    merged = {name: values[0] if len(values) == 1 else values for name, values in distinct.items()}
    return {**merged, SETTING_COMBINATIONS: fingerprint(sorted({fingerprint(run) for run in runs}))}


def _distinct_values(values: Sequence[Any]) -> list[Any]:
    by_text = {json.dumps(value, sort_keys=True): value for value in values}
    return [by_text[text] for text in sorted(by_text)]


def unexplained_differences(first: StudyIdentity, second: StudyIdentity) -> tuple[str, ...]:
    """Products of the worlds of two studies that differ although the seeds of the worlds are equal."""
    names = [seed for seed in first.seeds.keys() | second.seeds.keys() if seed.startswith("world ")]
    if any(first.seeds.get(name) != second.seeds.get(name) for name in names):
        return ()
    shared = first.products.keys() & second.products.keys()
    return tuple(sorted(name for name in shared if first.products[name] != second.products[name]))


def setting_differences(studies: Sequence[StudyIdentity]) -> list[SettingDifference]:
    """All settings and inputs that differ between studies, by step, without seeds."""
    rows = []
    for step in dict.fromkeys(step for study in studies for step in study.settings):
        by_study = [study.settings.get(step) for study in studies]
        if None in by_study:
            values = tuple("not finished" if settings is None else FINISHED for settings in by_study)
            rows.append(SettingDifference(step, "", values))
        rows += _step_differences(step, by_study)
    for name in (MODEL, QUESTIONS):
        if any(name in unexplained_differences(a, b) for a in studies for b in studies):
            values = tuple(study.products.get(name, NOT_STATED) for study in studies)
            rows.append(SettingDifference("world", name, values))
    if any(study.unknown for study in studies):
        values = tuple("; ".join(study.unknown) or NOT_STATED for study in studies)
        rows.append(SettingDifference("", "not known", values))
    return rows


def _step_differences(step: str, by_study: Sequence[Mapping[str, Any] | None]) -> list[SettingDifference]:
    finished = [settings for settings in by_study if settings is not None]
    names = dict.fromkeys(name for settings in finished for name in settings if name != SETTING_COMBINATIONS)
    rows: list[SettingDifference] = []
    for name in [*names, SETTING_COMBINATIONS]:
        distinct = {json.dumps([name in settings, settings.get(name)]) for settings in finished}
        if len(distinct) > 1 and not (name == SETTING_COMBINATIONS and rows):
            values = tuple(format_setting(s[name]) if s is not None and name in s else NOT_STATED for s in by_study)
            rows.append(SettingDifference(step, name, values))
    return rows


def format_setting(value: object) -> str:
    """The value of a setting as text.

    >>> format_setting([0.25, None, True]), format_setting("f1"), format_setting([])
    ('0.25, none, yes', 'f1', 'none')
    """
    if isinstance(value, list | tuple):
        return ", ".join(map(format_setting, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
