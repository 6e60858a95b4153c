"""In what studies differ: settings, inputs and versions, read off the manifests of their steps. Pure.

Which settings count is declared by the settings classes (`slick.settings`) and kept in each manifest as its identity;
for manifests without one it is derived from the stored settings. What cannot be known makes studies differ, so they are
said to have the same settings only where that is certain.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slick.annotation.config import AnnotateConfig
from slick.datasets.prepare import QuestionsConfig
from slick.datasets.relations import load_relations
from slick.settings import IDENTITY, field_affects, filter_settings, nested_settings_class, settings_class
from slick.study import Manifest, fingerprint, flatten_settings
from slick.variants.config import VariantsConfig
from slick.world.config import RECIPE, WorldConfig

Settings = Mapping[str, Mapping[str, Any]]
"""step -> dotted name of a setting -> its value"""

TRAININGS = "trainings"
"""All fine-tunings of a study together, as a step."""
MODEL, QUESTIONS = "model fingerprint", "questions fingerprint"
SETTING_COMBINATIONS = "combinations of these settings"
FINISHED = "finished"
AUTO = "auto"
"""A value that the program chooses; what it chose is in the counts of the manifest, and is what counts."""
STEP_CONFIG_CLASSES = (WorldConfig, QuestionsConfig, AnnotateConfig, VariantsConfig)
"""Imported so that what these settings affect is known; `jobs.compare` imports those of sweeps and trainings."""
NOT_STATED = "not stated"
"""Of a setting that a manifest does not have, or that has no effect there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StudyIdentity:
    """What the results of a study depend on."""

    settings: Settings
    """All but seeds, with the fingerprints of inputs that do not come from the study's own world; of `TRAININGS` the
    distinct values over all runs, sorted, where there are several."""
    seeds: Mapping[str, Any]
    """step and dotted name -> value"""
    products: Mapping[str, str]
    """Fingerprints of what the study's own world made: they depend on its seed."""
    unknown: tuple[str, ...]
    """What results depend on and no manifest states."""


class SettingDifference(NamedTuple):
    """One setting or input that is not the same in all studies."""

    step: str
    name: str
    values: tuple[str, ...]
    """One a study, for people."""


def study_identity(manifests: Mapping[str, Manifest]) -> StudyIdentity:
    """Read what counts off the manifests of the finished steps and runs.

    Args:
        manifests: by step, and by `runs/RUN_ID`.
    """
    settings: dict[str, dict[str, Any]] = {}
    seeds: dict[str, Any] = {}
    products: dict[str, str] = {}
    unknown: list[str] = []
    runs: list[dict[str, Any]] = []
    run_seeds: dict[str, list[Any]] = {}
    for name, manifest in manifests.items():
        step = "finetune" if name.startswith("runs/") else name.removeprefix("annotate/")
        found, missing = _relevant_settings(step, manifest)
        drawn = {key: found.pop(key) for key in seed_setting_names(settings_class(step)) if key in found}
        inputs, made = _split_inputs(step, manifest, manifests)
        found |= inputs
        products |= made
        unknown += [f"{name}: {what}" for what in missing]
        if step == "finetune":
            runs.append(found)
            for key, value in drawn.items():
                run_seeds.setdefault(f"{TRAININGS} {key}", []).append(value)
        else:
            settings[step] = found
            seeds |= {f"{step} {key}": value for key, value in drawn.items()}
    if runs:
        settings[TRAININGS] = _merge_run_settings(runs)
    seeds |= {name: _distinct_values(values) for name, values in run_seeds.items()}
    return StudyIdentity(settings=settings, seeds=seeds, products=products, unknown=tuple(unknown))


def seed_setting_names(cls: type | None, prefix: str = "") -> list[str]:
    """Dotted names of the seeds among the settings of a class."""
    found = []
    for field in dataclasses.fields(cls) if cls else ():
        if "seed" in field_affects(field):
            found.append(f"{prefix}{field.name}")
        found += seed_setting_names(nested_settings_class(field), f"{prefix}{field.name}.")
    return found


def _relevant_settings(step: str, manifest: Manifest) -> tuple[dict[str, Any], list[str]]:
    """The settings of a step that count, and those whose effect is not known."""
    cls = settings_class(step)
    identity = _contents_from_fingerprint(step, manifest) if manifest.identity is None else manifest.identity
    found = flatten_settings(filter_settings(cls, manifest.settings)) | flatten_settings(identity)
    known = manifest.inputs.keys() | identity.keys()
    missing = [
        f"content of {field.name} {manifest.settings[field.name]}"
        for field in (dataclasses.fields(cls) if cls else ())
        if "content" in field_affects(field)
        and manifest.settings.get(field.name)
        and not {field.name, field.metadata.get("formerly")} & set(known)
    ]
    for name in [name for name, value in found.items() if value == AUTO and step != "sweep"]:  # its runs tell
        found[name] = manifest.counts.get(name, AUTO)
        if found[name] == AUTO:
            missing.append(f"what {name} {AUTO} was")
    return found, missing


def _contents_from_fingerprint(step: str, manifest: Manifest) -> dict[str, Any]:
    """What a manifest without an identity does not state, but its fingerprint proves."""
    settings = filter_settings(settings_class(step), manifest.settings, IDENTITY)
    if step == "world":
        of_world = fingerprint(RECIPE, manifest.inputs.get("source", ""), {**settings, "source": ""})
        return {"recipe": RECIPE} if of_world == manifest.fingerprint else {}
    if step == "questions":
        content = {name: dataclasses.asdict(relation) for name, relation in load_relations(None).items()}
        same = fingerprint(manifest.inputs, settings, content) == manifest.fingerprint
        return {"relations": fingerprint(content)} if same else {}
    return {}


def _split_inputs(
    step: str, manifest: Manifest, manifests: Mapping[str, Manifest]
) -> tuple[dict[str, str], dict[str, str]]:
    """The inputs of a step that come from outside the study, and those that its own world made.

    What another step of the study made is left out, since that step's own settings and inputs are compared.
    """
    if step == "sweep":  # its inputs are the runs
        return {}, {}
    annotate, questions = manifests.get("annotate"), manifests.get("questions")
    own_model = "world" in manifests and annotate is not None and not annotate.settings.get("model")
    own_questions = (
        "world" in manifests and questions is not None and not any(map(questions.settings.get, ("questions", "source")))
    )
    steps = {other.fingerprint for name, other in manifests.items() if not name.startswith("runs/")}
    found: dict[str, str] = {}
    products: dict[str, str] = {}
    for name, value in manifest.inputs.items():
        if step == "annotate" and name == "model":
            (products if own_model else found)[MODEL] = value
        elif name == "model" and annotate is not None and value == annotate.inputs.get("model"):
            continue
        elif (step, name) == ("questions", "source") or (name == "questions" and value not in steps):
            (products if own_questions else found)[QUESTIONS] = value
        elif value not in steps and not (name == "variant" and "variants" in manifests):
            found[f"{name} fingerprint"] = value
    return found, products


def _merge_run_settings(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each setting's value, or its distinct values, over all runs; and how they were combined."""
    names = dict.fromkeys(name for run in runs for name in run)
    values = {name: _distinct_values([run.get(name, NOT_STATED) for run in runs]) for name in names}
    together = {name: several[0] if len(several) == 1 else several for name, several in values.items()}
    return {**together, SETTING_COMBINATIONS: fingerprint(sorted({fingerprint(run) for run in runs}))}


def _distinct_values(values: Sequence[Any]) -> list[Any]:
    by_text = {json.dumps(value, sort_keys=True): value for value in values}
    return [by_text[text] for text in sorted(by_text)]


def unexplained_differences(first: StudyIdentity, second: StudyIdentity) -> tuple[str, ...]:
    """What the worlds of two studies made differently, though they have the same seeds."""
    names = [seed for seed in first.seeds.keys() | second.seeds.keys() if seed.startswith("world ")]
    if any(first.seeds.get(name) != second.seeds.get(name) for name in names):
        return ()
    shared = first.products.keys() & second.products.keys()
    return tuple(sorted(name for name in shared if first.products[name] != second.products[name]))


def setting_differences(studies: Sequence[StudyIdentity]) -> list[SettingDifference]:
    """All settings and inputs that are not the same in all studies, by step; seeds are not among them."""
    found = []
    for step in dict.fromkeys(step for study in studies for step in study.settings):
        there = [study.settings.get(step) for study in studies]
        if None in there:
            said = tuple("not finished" if one is None else FINISHED for one in there)
            found.append(SettingDifference(step, "", said))
        found += _step_differences(step, there)
    for name in (MODEL, QUESTIONS):
        if any(name in unexplained_differences(a, b) for a in studies for b in studies):
            found.append(
                SettingDifference("world", name, tuple(study.products.get(name, NOT_STATED) for study in studies))
            )
    if any(study.unknown for study in studies):
        said = tuple("; ".join(study.unknown) or NOT_STATED for study in studies)
        found.append(SettingDifference("", "not known", said))
    return found


def _step_differences(step: str, there: Sequence[Mapping[str, Any] | None]) -> list[SettingDifference]:
    known = [one for one in there if one is not None]
    names = [name for name in dict.fromkeys(name for one in known for name in one) if name != SETTING_COMBINATIONS]
    rows: list[SettingDifference] = []
    for name in [*names, SETTING_COMBINATIONS]:
        texts = {json.dumps([name in one, one.get(name)]) for one in known}
        if len(texts) > 1 and not (name == SETTING_COMBINATIONS and rows):
            values = tuple(NOT_STATED if one is None or name not in one else format_setting(one[name]) for one in there)
            rows.append(SettingDifference(step, name, values))
    return rows


def format_setting(value: object) -> str:
    """A setting's value for people.

    >>> format_setting([0.25, None, True]), format_setting("f1"), format_setting([])
    ('0.25, none, yes', 'f1', 'none')
    """
    if isinstance(value, list | tuple):
        return ", ".join(map(format_setting, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
