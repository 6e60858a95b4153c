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

from jobs.flags import Parser, canonical_flags, did_you_mean, flag_names, flag_of, nearest, switched_off
from slick import limits
from slick.errors import SettingsError
from slick.storage import Folder
from slick.stored_files import MismatchError, convert, shown
from slick.uris import check_uri
from slick.user_files import parse_json, too_large
from slick.yaml_text import parse_yaml

_WANTED = "give settings by name, as `slick study PRESET --dry-run` prints them, in a .json or .yaml file"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """What a file of settings holds, before it is known which settings are wanted."""

    where: str
    """Its name, for messages."""
    values: Mapping[str, Any]


Select = Callable[[ConfigFile, type, frozenset[str]], dict[str, Any]]
"""Given a file, the settings class and the flags of the command line by name: the settings by dotted path."""


def take_config_file(
    argv: Sequence[str], preset: object, prog: str, select: Select | None = None, others: Iterable[str] = ("out",)
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
    parser = Parser(prog)
    parser.add_flag("--config", action="append", default=[])
    known, rest = parser.take(argv)
    if not known.config or {"-h", "--help"} & set(argv):
        return rest
    if len(known.config) > 1:
        raise SettingsError(f"{prog} takes one --config FILE, got {', '.join(known.config)}")
    names = flag_names(type(preset))
    rest = canonical_flags(rest, names, prog, (*others, "config"))
    switches = {switched_off(name): name for name, is_switch in names.items() if is_switch}
    given = frozenset(switches.get(name, name) for name in map(flag_of, rest) if name)
    file = read_config_file(known.config[0])
    values = select(file, type(preset), given) if select else check_settings(file.values, type(preset), file.where)
    words: list[str] = []
    for path, value in values.items():
        if path.replace("_", "-") not in given and value != _value_at(preset, path):
            words += _flag(path, value, file.where)
    return [*words, *rest]


def read_config_file(location: str) -> ConfigFile:
    """Read a file of settings: JSON if its name ends in .json, else YAML.

    Args:
        location: a path or a URI.

    Raises:
        DataError: as `parse_json` and `parse_yaml`, or it holds no settings.
        SettingsError: a key or a text is an address with a secret in it.
    """
    file = Folder(location)
    where = f"--config {location}"
    if file.is_local and Path(file.local_path).is_dir():
        raise SettingsError(f"{where} is a folder; give a file, such as {location.rstrip('/')}/study.json")
    is_json = location.partition("?")[0].lower().endswith(".json")
    most = limits.MAX_SETTINGS_BYTES if is_json else limits.MAX_YAML_BYTES
    with file.parent.open_input(file.name) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise too_large(where, len(data), most, _WANTED)
    values = parse_json(data, where, _WANTED) if is_json else parse_yaml(data, where, _WANTED)
    if not isinstance(values, dict) or not values:
        raise SettingsError(
            f"{where} holds {shown(values) if values else 'nothing'}, wanted settings by name; {_WANTED}"
        )
    _check_secrets(values, where)
    return ConfigFile(where=where, values=values)


def _check_secrets(value: object, where: str) -> None:
    """Refuse an address with a secret, in keys as well, before any message repeats it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_uri(key, where)
            _check_secrets(inner, f"{where}: {key}")
    elif isinstance(value, list):
        for inner in value:
            _check_secrets(inner, where)
    elif isinstance(value, str):
        check_uri(value, where)


def check_settings(values: Mapping[str, Any], settings: type, where: str) -> dict[str, Any]:
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
    _walk(values, settings, "", where, settings, checked)
    return checked


def _walk(
    values: Mapping[str, Any], settings: type, prefix: str, where: str, whole: type, checked: dict[str, Any]
) -> None:
    hints = get_type_hints(settings)
    former = {field.metadata["formerly"]: field.name for field in fields(settings) if field.metadata.get("formerly")}
    for key, value in values.items():
        head, dot, rest = key.replace("-", "_").partition(".")
        name = head if head in hints else former.get(head, head)
        path = f"{prefix}{name}"
        hint = hints.get(name)
        if hint is None or (dot and not is_dataclass(hint)):
            raise _unknown(f"{prefix}{key}", whole, where)
        if isinstance(hint, type) and is_dataclass(hint):
            inner = {rest: value} if dot else {} if value is None else value
            if not isinstance(inner, dict):
                raise SettingsError(f"{where}: {path} is {shown(value)}, wanted settings by name")
            _walk(inner, hint, f"{path}.", where, whole, checked)
        elif path in checked:
            raise SettingsError(f"{where}: {path} is given twice (as {key!r} the second time); give it once")
        else:
            checked[path] = _typed(value, hint, where, path)


def _unknown(path: str, settings: type, where: str) -> SettingsError:
    near = [name.replace("-", "_") for name in nearest(path, flag_names(settings))]
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    return SettingsError(f"{where}: there is no setting {path!r:.200}{meant}; {_WANTED}")


def _typed(value: Any, hint: Any, where: str, path: str) -> Any:
    """A value as the field's type has it, or SettingsError."""
    kinds = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType) and value == "None":  # as the flags have it
        return None
    if get_origin(hint) is tuple and kinds[-1] is not Ellipsis and isinstance(value, list) and len(value) != len(kinds):
        raise SettingsError(f"{where}: {path} is a list of {len(value)} values, wanted {len(kinds)}")
    try:
        typed = convert(value, hint, path)
    except MismatchError as error:
        meant = did_you_mean(value, kinds) if get_origin(hint) is Literal and isinstance(value, str) else ""
        raise SettingsError(f"{where}: {error}{meant}") from error
    for number in typed if isinstance(typed, tuple) else (typed,):
        if isinstance(number, float) and not math.isfinite(number):
            raise SettingsError(f"{where}: {path} is {number}, wanted a finite number")
    return typed


def _value_at(settings: object, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def _flag(path: str, value: Any, where: str) -> list[str]:
    """The words of a command line that give one setting."""
    name = path.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name if value else switched_off(name)}"]
    if not isinstance(value, tuple):
        return [f"--{name}={value}"]
    words = [str(item) for item in value]
    if any(isinstance(item, str) and item.startswith("-") for item in value):
        raise SettingsError(
            f"{where}: {path} holds a text that begins with a hyphen, which a list of flags cannot hold"
        )
    return [f"--{name}", *words]
