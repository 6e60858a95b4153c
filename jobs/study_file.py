"""The settings of one step from a file of a whole study: a study.json, what `--dry-run` prints, or one of the user's.

In a study.json the study's `model`, `questions` and `seed` are already handed down to its steps (`jobs.study.resolve`).
For a study they are taken back here, so that a flag that overrides one of them still reaches every step, and resolving
them again gives the same settings. For a single step its section is used, with what the study hands down to it.
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
"""Step -> where a study has its settings."""

SEED_PATHS = ("world.seed", "annotate.seed", "annotate.sampling.seed", "variants.seed")
MODEL_PATHS = ("annotate.model", "sweep.train.model")
QUESTIONS_PATH = "prepare.questions"
"""Settings of steps that a study sets itself."""


def settings_selector(step: str) -> SettingsSelector:
    """How to take the settings of a step, `study` or one of `SECTIONS`, from a file: its own ones or a study's."""

    def select(file: ConfigFile, settings: type, given: frozenset[str]) -> dict[str, Any]:
        if step == "study":
            return study_settings(file, given)
        section = SECTIONS[step]
        if "settings" not in file.values and not isinstance(file.values.get(section.partition(".")[0]), dict):
            return check_settings(file.values, settings, file.source)
        return step_settings(file, step)

    return select


def study_settings(file: ConfigFile, given: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Settings of a study by dotted path, without what the study hands down to its steps.

    Args:
        file: as read.
        given: flags of the command line, which decide where two settings exclude each other.

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
    """Of the experiments and the fine-tuning sets that they train keep the one from which the other follows."""
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
    found = {path[len(prefix) :]: value for path, value in values.items() if path.startswith(prefix)}
    if not found:
        raise SettingsError(f"{file.source} has no settings of {prefix[:-1]}, which `slick {step}` takes; leave it out")
    if step == "finetune" and values.get("sweep.grid.seeds"):
        found["seed"] = values["sweep.grid.seeds"][
            0
        ]  # in a study the grid says it, and that of `sweep.train` is not used
    return found


def _propagated_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the study's own settings, where the file has them, give to its steps; as `jobs.study.resolve`."""
    handed: dict[str, Any] = {}
    if "seed" in values:
        seeds = values.get("sweep.grid.seeds", GridConfig().seeds)
        handed |= dict.fromkeys(SEED_PATHS, values["seed"])
        handed["sweep.grid.seeds"] = tuple(values["seed"] + number for number in seeds)
    if "model" in values:
        handed |= dict.fromkeys(MODEL_PATHS, values["model"])
    if values.get("questions"):
        handed |= {QUESTIONS_PATH: values["questions"]} if values.get("model") else {}
        handed["world.questions"] = values["questions"]
        if not values.get("model"):
            handed["prepare.audit"] = values["questions"]
    return handed


def _validated_settings(file: ConfigFile) -> tuple[dict[str, Any], bool]:
    """Settings of a study by dotted path, and whether they are resolved: those of a study.json, or of a dry run."""
    inner = file.values.get("settings")
    is_written = isinstance(inner, dict)
    others = file.values.keys() - {"settings", "versions"}
    if is_written and others:
        raise SettingsError(
            f"{file.source} has {', '.join(sorted(others))} beside settings, so it is not the study.json of a study"
        )
    values = check_settings(inner if isinstance(inner, dict) else file.values, StudyConfig, file.source)
    seed, model, questions = values.get("seed", 0), values.get("model", ""), values.get("questions", "")
    allowed = (
        dict.fromkeys(SEED_PATHS, (seed,)) | dict.fromkeys(MODEL_PATHS, ("", model)) | {QUESTIONS_PATH: ("", questions)}
    )
    for path, wanted in allowed.items():
        if path in values and values[path] not in wanted:
            own = "seed" if path in SEED_PATHS else "model" if path in MODEL_PATHS else "questions"
            raise SettingsError(
                f"{file.source}: {path} is {values[path]!r}, but a study gives its own {own}, {wanted[-1]!r}, to its "
                f"steps; leave {path} out, or give the study's {own}"
            )
    return values, is_written or all(path in values for path in SEED_PATHS)
