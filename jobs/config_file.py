"""`--config FILE`: settings from YAML or JSON, as if they were flags that stand before those of the command line.

A file is first checked by itself, so that messages name the file and the key's dotted path. Its settings then become
flags: they override the preset, flags of the command line override them, and the settings are validated once, together.
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

_FORMAT_HINT = "give settings by name, as `slick study PRESET --dry-run` prints them, in a .json or .yaml file"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """What a file of settings holds, before it is known which settings are wanted."""

    source: str
    """Its name, for messages."""
    values: Mapping[str, Any]


SettingsSelector = Callable[[ConfigFile, type, frozenset[str]], dict[str, Any]]
"""Given a file, the settings class and the flags of the command line by name: the settings by dotted path."""


def expand_config_file(
    argv: Sequence[str],
    preset: object,
    prog: str,
    select: SettingsSelector | None = None,
    others: Iterable[str] = ("out",),
) -> list[str]:
    """Replace `--config FILE` by the flags that its settings stand for.

    Args:
        argv: flags of a step and their values.
        preset: the settings that they override; values of the file that equal these give no flag.
        prog: the command so far, for messages.
        select: takes the step's settings from the file; None: the file holds them and no others.
        others: flags that the command takes beside those of the settings, to be suggested too.

    Raises:
        SettingsError: the file holds an unknown key, a value of another type, or a secret.
        DataError: the file is not there, not JSON or YAML, or too large.
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
    words: list[str] = []
    for path, value in values.items():
        if path.replace("_", "-") not in given and value != _get_by_path(preset, path):
            words += _to_flags(path, value, file.source)
    return [*words, *rest]


def read_config_file(location: str) -> ConfigFile:
    """Read a file of settings: JSON if its name ends in .json, else YAML.

    Args:
        location: a path or a URI.

    Raises:
        DataError: as `parse_user_json` and `parse_yaml`, or it holds no settings.
        SettingsError: a key or a text is an address with a secret in it.
    """
    file = Folder(location)
    source = f"--config {location}"
    if file.is_local and Path(file.local_path).is_dir():
        raise SettingsError(f"{source} is a folder; give a file, such as {location.rstrip('/')}/study.json")
    is_json = location.partition("?")[0].lower().endswith(".json")
    most = limits.MAX_SETTINGS_BYTES if is_json else limits.MAX_YAML_BYTES
    with file.parent.open_input(file.name) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise too_large_error(source, len(data), most, _FORMAT_HINT)
    values = parse_user_json(data, source, _FORMAT_HINT) if is_json else parse_yaml(data, source, _FORMAT_HINT)
    if not isinstance(values, dict) or not values:
        raise SettingsError(
            f"{source} holds {format_value(values) if values else 'nothing'}, wanted settings by name; {_FORMAT_HINT}"
        )
    _check_secrets(values, source)
    return ConfigFile(source=source, values=values)


def _check_secrets(value: object, source: str) -> None:
    """Refuse an address with a secret, in keys as well, before any message repeats it."""
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
    """Settings of a file by dotted path, such as `sweep.train.epochs`, each of its field's type.

    Keys may be spelled with hyphens, may be dotted paths themselves, and may be the field's name of an earlier version.

    Args:
        values: by key, nested.
        settings: the dataclass whose fields they are.
        where: the file, for messages.

    Raises:
        SettingsError: a key that there is not, with the nearest ones, or twice; or a value of another type.
    """
    checked: dict[str, Any] = {}
    _flatten_settings(values, settings, "", source, settings, checked)
    return checked


def _flatten_settings(
    values: Mapping[str, Any], settings: type, prefix: str, source: str, whole: type, checked: dict[str, Any]
) -> None:
    hints = get_type_hints(settings)
    former = {field.metadata["formerly"]: field.name for field in fields(settings) if field.metadata.get("formerly")}
    for key, value in values.items():
        head, dot, rest = key.replace("-", "_").partition(".")
        name = head if head in hints else former.get(head, head)
        path = f"{prefix}{name}"
        hint = hints.get(name)
        if hint is None or (dot and not is_dataclass(hint)):
            raise _unknown_setting_error(f"{prefix}{key}", whole, source)
        if isinstance(hint, type) and is_dataclass(hint):
            inner = {rest: value} if dot else {} if value is None else value
            if not isinstance(inner, dict):
                raise SettingsError(f"{source}: {path} is {format_value(value)}, wanted settings by name")
            _flatten_settings(inner, hint, f"{path}.", source, whole, checked)
        elif path in checked:
            raise SettingsError(f"{source}: {path} is given twice (as {key!r} the second time); give it once")
        else:
            checked[path] = _convert_value(value, hint, source, path)


def _unknown_setting_error(path: str, settings: type, source: str) -> SettingsError:
    near = [name.replace("-", "_") for name in closest_names(path, flag_names(settings))]
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    return SettingsError(f"{source}: there is no setting {path!r:.200}{meant}; {_FORMAT_HINT}")


def _convert_value(value: Any, hint: Any, source: str, path: str) -> Any:
    """A value as the field's type has it, or SettingsError."""
    kinds = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType) and value == "None":  # as the flags have it
        return None
    if get_origin(hint) is tuple and kinds[-1] is not Ellipsis and isinstance(value, list) and len(value) != len(kinds):
        raise SettingsError(f"{source}: {path} is a list of {len(value)} values, wanted {len(kinds)}")
    try:
        typed = convert(value, hint, path)
    except MismatchError as error:
        meant = did_you_mean(value, kinds) if get_origin(hint) is Literal and isinstance(value, str) else ""
        raise SettingsError(f"{source}: {error}{meant}") from error
    for number in typed if isinstance(typed, tuple) else (typed,):
        if isinstance(number, float) and not math.isfinite(number):
            raise SettingsError(f"{source}: {path} is {number}, wanted a finite number")
    return typed


def _get_by_path(settings: object, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def _to_flags(path: str, value: Any, source: str) -> list[str]:
    """The words of a command line that give one setting."""
    name = path.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name if value else negated_flag(name)}"]
    if not isinstance(value, tuple):
        return [f"--{name}={value}"]
    words = [str(item) for item in value]
    if any(isinstance(item, str) and item.startswith("-") for item in value):
        raise SettingsError(
            f"{source}: {path} holds a text that begins with a hyphen, which a list of flags cannot hold"
        )
    return [f"--{name}", *words]
