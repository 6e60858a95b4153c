"""Settings of a study or of one step from a file with the settings of a whole study.

The file is a study.json, the output of `--dry-run`, or written by the user. A study copies its `model`, `questions` and
`seed` to the settings of its steps (`jobs.study.resolve`). If the file is read for a study, these copies are removed,
so that a flag that overrides the study's setting still reaches every step. If it is read for one step, the step's
section is used, with the study's settings copied into it.
"""

from collections.abc import Mapping
from typing import Any

from jobs.config_file import ConfigFile, SettingsSelector, check_settings
from jobs.presets import StudyConfig
from slick.errors import SettingsError
from slick.experiments import PAPER_EXPERIMENTS, parse_experiment_names
from slick.variants import VariantsConfig, variant_names
from tuning.grid import GridConfig

SECTIONS = {
    "world": "world",
    "questions": "prepare",
    "annotate": "annotate",
    "variants": "variants",
    "sweep": "sweep",
    "finetune": "sweep.train",
    "report": "report",
}
"""Step -> the dotted path of its settings in those of a study."""

SEED_PATHS = ("world.seed", "annotate.seed", "annotate.sampling.seed", "variants.seed")
MODEL_PATHS = ("annotate.model", "sweep.train.model")
QUESTIONS_PATH = "prepare.questions"
"""Settings of steps that the study sets."""


def settings_selector(step: str) -> SettingsSelector:
    """The function that picks the settings of `step` (`study` or a key of `SECTIONS`) from a file.

    The file may hold the settings of the step or of a study.
    """

    def select(file: ConfigFile, settings: type, given: frozenset[str]) -> dict[str, Any]:
        if step == "study":
            return study_settings(file, given)
        section = SECTIONS[step]
        if "settings" not in file.values and not isinstance(file.values.get(section.partition(".")[0]), dict):
            return check_settings(file.values, settings, file.source)
        return step_settings(file, step)

    return select


def study_settings(file: ConfigFile, given: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Settings of a study by dotted path, without the copies in its steps.

    Args:
        file: the file's content.
        given: names of flags in the command line; they take precedence over settings that they exclude.

    Raises:
        SettingsError: an unknown key, a value of another type, or a step's setting that contradicts the study's.
    """
    values, is_resolved = _validated_settings(file)
    seed, questions = values.get("seed", 0), values.get("questions", "")
    for path in (*SEED_PATHS, *MODEL_PATHS, QUESTIONS_PATH):
        values.pop(path, None)
    if questions:
        for path in ("world.questions", "prepare.audit"):
            if values.get(path) == questions:
                del values[path]
    if is_resolved:
        if "sweep.grid.seeds" in values:
            values["sweep.grid.seeds"] = tuple(number - seed for number in values["sweep.grid.seeds"])
        _drop_derived_settings(values)
    if "experiments" in given:
        values.pop("sweep.grid.variants", None)
    if "sweep.grid.variants" in given:
        values.pop("experiments", None)
    return values


def _drop_derived_settings(values: dict[str, Any]) -> None:
    """Remove the experiments or the variants to train, whichever follows from the other."""
    if not set(PAPER_EXPERIMENTS) <= set(parse_experiment_names(values.get("experiments", ()))):
        values.pop("sweep.grid.variants", None)
        return
    values.pop("experiments")
    prefix = "variants."
    drawn = {path[len(prefix) :]: value for path, value in values.items() if path.startswith(prefix)}
    if values.get("sweep.grid.variants") == variant_names(VariantsConfig(**drawn)):
        del values["sweep.grid.variants"]


def step_settings(file: ConfigFile, step: str) -> dict[str, Any]:
    """Settings of a step by dotted path, from a file of a whole study.

    Raises:
        SettingsError: as `study_settings`, or the file has no settings for the step.
    """
    values, is_resolved = _validated_settings(file)
    if not is_resolved:
        values |= _propagated_settings(values)
    prefix = f"{SECTIONS[step]}."
    selected = {path[len(prefix) :]: value for path, value in values.items() if path.startswith(prefix)}
    if not selected:
        raise SettingsError(f"{file.source} has no settings of {prefix[:-1]}, which `slick {step}` takes; leave it out")
    if step == "finetune" and values.get("sweep.grid.seeds"):
        selected["seed"] = values["sweep.grid.seeds"][0]  # a study uses the grid's seeds, not that of `sweep.train`
    return selected


def _propagated_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The copies of the study's settings in its steps, as `jobs.study.resolve` makes them."""
    copies: dict[str, Any] = {}
    if "seed" in values:
        seeds = values.get("sweep.grid.seeds", GridConfig().seeds)
        copies |= dict.fromkeys(SEED_PATHS, values["seed"])
        copies["sweep.grid.seeds"] = tuple(values["seed"] + number for number in seeds)
    if "model" in values:
        copies |= dict.fromkeys(MODEL_PATHS, values["model"])
    if values.get("questions"):
        copies |= {QUESTIONS_PATH: values["questions"]} if values.get("model") else {}
        copies["world.questions"] = values["questions"]
        if not values.get("model"):
            copies["prepare.audit"] = values["questions"]
    return copies


def _validated_settings(file: ConfigFile) -> tuple[dict[str, Any], bool]:
    """Settings of a study by dotted path, and whether they are resolved, as in a study.json or a dry run's output."""
    inner = file.values.get("settings")
    is_study_json = isinstance(inner, dict)
    others = file.values.keys() - {"settings", "versions"}
    if is_study_json and others:
        raise SettingsError(
            f"{file.source} has {', '.join(sorted(others))} beside settings; a study.json has only settings and "
            "versions. Remove the other keys, or the level `settings`"
        )
    values = check_settings(inner if isinstance(inner, dict) else file.values, StudyConfig, file.source)
    seed, model, questions = values.get("seed", 0), values.get("model", ""), values.get("questions", "")
    allowed = (
        dict.fromkeys(SEED_PATHS, (seed,)) | dict.fromkeys(MODEL_PATHS, ("", model)) | {QUESTIONS_PATH: ("", questions)}
    )
    for path, expected in allowed.items():
        if path in values and values[path] not in expected:
            own = "seed" if path in SEED_PATHS else "model" if path in MODEL_PATHS else "questions"
            raise SettingsError(
                f"{file.source}: {path} is {values[path]!r}, but a study sets its own {own}, {expected[-1]!r}, in all "
                f"steps; leave {path} out, or set the study's {own}"
            )
    return values, is_study_json or all(path in values for path in SEED_PATHS)
