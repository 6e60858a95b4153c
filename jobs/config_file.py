"""`--config FILE`: settings from YAML or JSON, inserted as flags before those of the command line.

A file is first checked on its own, so that messages name the file and the dotted path of the key. Its settings then
become flags: they override the preset, and flags of the command line override them.
"""

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jobs.flags import FlagParser, canonical_flags, closest_names, did_you_mean, flag_name, flag_names, negated_flag
from slick import limits
from slick.errors import SettingsError
from slick.storage import Folder
from slick.stored_files import MismatchError, convert, format_value
from slick.strict_json import parse_user_json
from slick.uris import check_uri
from slick.user_files import parse_yaml, too_large_error

_FORMAT_HINT = "expected settings by name in a .json or .yaml file, as `slick study PRESET --dry-run` prints them"


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
        DataError: as `parse_user_json` and `parse_yaml`.
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
