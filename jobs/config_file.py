"""`--config FILE`: settings from YAML or JSON, inserted as flags before those of the command line.

A file is first checked on its own, so that messages name the file and the dotted path of the key. Its settings then
become flags: they override the preset, and flags of the command line override them.

A file holds the settings of one step or of a whole study: a study.json, the output of `--dry-run`, or written by the
user. A study copies its `model`, `questions` and `seed` to the settings of its steps (`jobs.study.resolve`). If the
file is read for a study, these copies are removed, so that a flag that overrides the study's setting still reaches
every step. If it is read for one step, the step's section is used, with the study's settings copied into it.
"""

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jobs.flags import FlagParser, canonical_flags, closest_names, did_you_mean, flag_name, flag_names, negated_flag
from jobs.presets import StudyConfig
from slick import limits
from slick.errors import SettingsError
from slick.experiments import PAPER_EXPERIMENTS, parse_experiment_names
from slick.storage import Folder
from slick.stored_files import MismatchError, convert, format_value
from slick.strict_json import parse_user_json
from slick.uris import check_uri
from slick.user_files import parse_yaml, too_large_error
from slick.variants import VariantsConfig, variant_names
from tuning.grid import GridConfig

_FORMAT_HINT = "expected settings by name in a .json or .yaml file, as `slick study PRESET --dry-run` prints them"

SECTIONS = {
    "world": "world",
    "questions": "prepare",
    "annotate": "annotate",
    "variants": "variants",
    "sweep": "sweep",
    "finetune": "sweep.train",
    "wording": "wording",
    "report": "report",
}
"""Step -> the dotted path of its settings in those of a study."""

SEED_PATHS = ("world.seed", "annotate.seed", "annotate.sampling.seed", "variants.seed")
MODEL_PATHS = ("annotate.model", "sweep.train.model")
QUESTIONS_PATH = "prepare.questions"
"""Settings of steps that the study sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """The content of a settings file, not yet checked against a settings class."""

    source: str
    """`--config` and the file's location, for messages."""
    values: Mapping[str, Any]


SettingsSelector = Callable[[ConfigFile, type, frozenset[str]], dict[str, Any]]
"""(file, settings class, names of the flags in the command line) -> the settings by dotted path."""


def expand_config_file(
    argv: Sequence[str],
    preset: object,
    prog: str,
    select: SettingsSelector | None = None,
    others: Iterable[str] = ("out",),
) -> list[str]:
    """Replace `--config FILE` by flags for its settings.

    Args:
        argv: flags of a step and their values.
        preset: the settings to override; values of the file that equal these give no flag.
        prog: the command so far, for messages.
        select: picks the step's settings from the file; None: the file holds only settings of the step.
        others: further flags of the command, for suggestions.

    Raises:
        SettingsError: the file holds an unknown key, a value of another type, or a secret.
        DataError: the file does not exist, is not JSON or YAML, or is too large.
    """
    parser = FlagParser(prog)
    parser.add_flag("--config", action="append", default=[])
    known, rest = parser.parse_known(argv)
    if not known.config or {"-h", "--help"} & set(argv):
        return rest
    if len(known.config) > 1:
        raise SettingsError(f"{prog} takes one --config FILE, got {', '.join(known.config)}")
    names = flag_names(type(preset))
    rest = canonical_flags(rest, names, prog, (*others, "config"))
    switches = {negated_flag(name): name for name, is_switch in names.items() if is_switch}
    given = frozenset(switches.get(name, name) for name in map(flag_name, rest) if name)
    file = read_config_file(known.config[0])
    values = select(file, type(preset), given) if select else check_settings(file.values, type(preset), file.source)
    flags: list[str] = []
    for path, value in values.items():
        if path.replace("_", "-") not in given and value != _get_by_path(preset, path):
            flags += _to_flags(path, value, file.source)
    return [*flags, *rest]


def read_config_file(location: str) -> ConfigFile:
    """Read a settings file: JSON if its name ends in .json, else YAML.

    Args:
        location: a path or a URI.

    Raises:
        DataError: see `parse_user_json` and `parse_yaml`.
        SettingsError: it is a folder, holds no settings, or has a key or value that is an address with a secret.
    """
    file = Folder(location)
    source = f"--config {location}"
    if file.is_local and Path(file.local_path).is_dir():
        raise SettingsError(f"{source} is a folder; give a file, such as {location.rstrip('/')}/study.json")
    is_json = location.partition("?")[0].lower().endswith(".json")
    max_bytes = limits.MAX_SETTINGS_BYTES if is_json else limits.MAX_YAML_BYTES
    with file.parent.open_input(file.name) as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise too_large_error(source, len(data), max_bytes, _FORMAT_HINT)
    values = parse_user_json(data, source, _FORMAT_HINT) if is_json else parse_yaml(data, source, _FORMAT_HINT)
    if not isinstance(values, dict) or not values:
        raise SettingsError(f"{source} holds {format_value(values) if values else 'nothing'}; {_FORMAT_HINT}")
    _check_secrets(values, source)
    return ConfigFile(source=source, values=values)


def _check_secrets(value: object, source: str) -> None:
    """Reject addresses with a secret in keys and values, before another message repeats them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_uri(key, source)
            _check_secrets(inner, f"{source}: {key}")
    elif isinstance(value, list):
        for inner in value:
            _check_secrets(inner, source)
    elif isinstance(value, str):
        check_uri(value, source)


def check_settings(values: Mapping[str, Any], settings: type, source: str) -> dict[str, Any]:
    """Settings of a file by dotted path, such as `sweep.train.epochs`, converted to the types of their fields.

    A key may have hyphens for underscores, may be a dotted path, and may be a field's name of an earlier version.

    Args:
        values: nested settings.
        settings: the dataclass that has them as fields.
        source: the file, for messages.

    Raises:
        SettingsError: an unknown key, a key given twice, or a value of another type.
    """
    checked: dict[str, Any] = {}
    _flatten_settings(values, settings, "", source, settings, checked)
    return checked


def _flatten_settings(
    values: Mapping[str, Any], settings: type, prefix: str, source: str, root: type, checked: dict[str, Any]
) -> None:
    hints = get_type_hints(settings)
    former = {field.metadata["formerly"]: field.name for field in fields(settings) if field.metadata.get("formerly")}
    for key, value in values.items():
        head, dot, rest = key.replace("-", "_").partition(".")
        name = head if head in hints else former.get(head, head)
        path = f"{prefix}{name}"
        hint = hints.get(name)
        if hint is None or (dot and not is_dataclass(hint)):
            raise _unknown_setting_error(f"{prefix}{key}", root, source)
        if isinstance(hint, type) and is_dataclass(hint):
            inner = {rest: value} if dot else {} if value is None else value
            if not isinstance(inner, dict):
                raise SettingsError(f"{source}: {path} is {format_value(value)}; expected settings by name")
            _flatten_settings(inner, hint, f"{path}.", source, root, checked)
        elif path in checked:
            raise SettingsError(f"{source}: {path} is given twice (as {key!r} the second time); give it once")
        else:
            checked[path] = _convert_value(value, hint, source, path)


def _unknown_setting_error(path: str, settings: type, source: str) -> SettingsError:
    near = [name.replace("-", "_") for name in closest_names(path, flag_names(settings))]
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return SettingsError(f"{source}: there is no setting {path!r:.200}{hint}; {_FORMAT_HINT}")


def _convert_value(value: Any, hint: Any, source: str, path: str) -> Any:
    """The value as the field's type."""
    kinds = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType) and value == "None":  # as in flags
        return None
    if get_origin(hint) is tuple and kinds[-1] is not Ellipsis and isinstance(value, list) and len(value) != len(kinds):
        raise SettingsError(f"{source}: {path} is a list of {len(value)} values; expected {len(kinds)}")
    try:
        typed = convert(value, hint, path)
    except MismatchError as error:
        suggestion = did_you_mean(value, kinds) if get_origin(hint) is Literal and isinstance(value, str) else ""
        raise SettingsError(f"{source}: {error}{suggestion}") from error
    for number in typed if isinstance(typed, tuple) else (typed,):
        if isinstance(number, float) and not math.isfinite(number):
            raise SettingsError(f"{source}: {path} is {number}; expected a finite number")
    return typed


def _get_by_path(settings: object, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def _to_flags(path: str, value: Any, source: str) -> list[str]:
    """The arguments that give one setting."""
    name = path.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name if value else negated_flag(name)}"]
    if not isinstance(value, tuple):
        return [f"--{name}={value}"]
    if any(isinstance(item, str) and item.startswith("-") for item in value):
        raise SettingsError(
            f"{source}: {path} holds a text that begins with a hyphen, which a list cannot hold; remove the hyphen"
        )
    return [f"--{name}", *map(str, value)]


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
        for path in ("sweep.grid.seeds", "sweep.grid.further_seeds"):
            if path in values:
                values[path] = tuple(number - seed for number in values[path])
        _drop_derived_settings(values)
    if "experiments" in given:
        values.pop("sweep.grid.variants", None)
    if "sweep.grid.variants" in given:
        values.pop("experiments", None)
    return values


def _drop_derived_settings(values: dict[str, Any]) -> None:
    """Remove the experiments or the variants to train, whichever is determined by the other."""
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
        SettingsError: see `study_settings`, or the file has no settings for the step.
    """
    values, is_resolved = _validated_settings(file)
    if not is_resolved:
        values |= _propagated_settings(values)
    prefix = f"{SECTIONS[step]}."
    selected = {path[len(prefix) :]: value for path, value in values.items() if path.startswith(prefix)}
    if not selected:
        raise SettingsError(f"{file.source} has no settings of {prefix[:-1]}, which `slick {step}` takes; leave it out")
    if step == "finetune" and values.get("sweep.grid.seeds"):
        selected["seed"] = values["sweep.grid.seeds"][0]  # a study uses the grid's seeds, not `sweep.train.seed`
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
