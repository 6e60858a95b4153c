"""Training settings as axes of a grid, some of which vary only where another setting has a given value. Pure."""

import fnmatch
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from slick.errors import SettingsError
from slick.precision import AUTO
from slick.settings import fields_affecting
from tuning.config import TrainConfig

SettingOverrides: TypeAlias = tuple[tuple[str, Any], ...]
"""Names and values of the settings that differ from the sweep's base settings."""

VARIANT = "variant"
"""The name by which a condition refers to the variant."""
_GRID_FIELDS = {
    "variant": "variants",
    "variants": "variants",
    "seed": "seeds",
    "seeds": "seeds",
    "epochs": "epochs",
    "policy": "policies",
    "policies": "policies",
}
"""Names that users may give to an axis, and the field of `GridConfig` to use instead."""
RangeScale: TypeAlias = Literal["no", "linear", "log"]
_RANGE_PATTERN = re.compile(r"([^,]+?)\.\.([^,:]+)(:log)?")
_MULTIPLE_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\*(\w+)")
_FURTHER_PATTERN = re.compile(r"\s*(\S+?)(?:\s+if\s+(\w+)\s*=\s*(\S+))?\s*")
_AXIS_PATTERN = re.compile(r"\s*(\w+)\s*=\s*([^\s]+)(?:\s+if\s+(\w+)\s*=\s*(\S+))?\s*")


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting, its values, and where it varies."""

    name: str
    values: tuple[Any, ...]
    """The listed values; for a range, its two ends."""
    condition: tuple[str, Any] | None = None
    """Another setting and its required value, or `variant` and a pattern of names, as `unknown-*`. Where the condition
    does not hold, the setting keeps its base value."""
    range: RangeScale = "no"
    """Whether the axis is the range between its two values, and on which scale."""


@dataclass(frozen=True, slots=True)
class Multiple:
    """A value that is a multiple of a base setting, as `10*learning_rate`."""

    factor: float
    of: str


@dataclass(frozen=True, slots=True)
class FurtherSettings:
    """Settings of one training in addition to the combinations of the axes, and the variants that have it."""

    values: tuple[tuple[str, Any], ...]
    """Names and values; a value may be a `Multiple`."""
    pattern: str = "*"
    """A pattern of names of variants."""

    def resolve(self, base: TrainConfig) -> SettingOverrides:
        """The settings that differ from the base; multiples are rounded to 12 digits, or to a whole number."""
        return changed_settings({name: _resolve_value(name, value, base) for name, value in self.values}, base)


def parse_further_settings(text: str) -> FurtherSettings:
    """Read `trainable=ffn`, or `lora_rank=8;learning_rate=10*learning_rate if variant=unknown-050`.

    Raises:
        SettingsError: an unknown setting, a value that it does not take, or a condition on anything but the variant.

    >>> parse_further_settings("lora_rank=8;learning_rate=10*learning_rate if variant=unknown-*")
    FurtherSettings(values=(('lora_rank', 8), ('learning_rate', Multiple(factor=10.0, of='learning_rate'))), \
pattern='unknown-*')
    """
    match = _FURTHER_PATTERN.fullmatch(text)
    parts = [part.partition("=") for part in match[1].split(";")] if match else []
    if match is None or not all(name and value for name, _, value in parts) or match[2] not in (None, VARIANT):
        raise SettingsError(
            "further settings are written `NAME=VALUE` or `NAME=VALUE;NAME=VALUE`, without spaces, or followed by "
            f"` if variant=PATTERN`, got {text!r}"
        )
    names = [name for name, *_ in parts]
    if len(set(names)) < len(names):
        raise SettingsError(f"further settings {text!r} name a setting more than once")
    if any("," in value for *_, value in parts):
        raise SettingsError(
            f"further settings {text!r}: each setting has one value; give one text per training, or use --grid.axes"
        )
    where = f"further settings {text!r}"
    values = tuple((name, _further_value(name, value, where)) for name, _, value in parts)
    return FurtherSettings(values, match[3] or "*")


def _further_value(name: str, text: str, where: str) -> Any:
    match = _MULTIPLE_PATTERN.fullmatch(text)
    if match is None:
        return _parse_value(name, text, where)
    for number in (name, match[2]):
        _check_name(number, where)
        if not {int, float} & set(_accepted_types()[number]):
            raise SettingsError(f"{where}: {number} is not a number, so {name} cannot be {text}")
    return Multiple(float(match[1]), match[2])


def _resolve_value(name: str, value: Any, base: TrainConfig) -> Any:
    if not isinstance(value, Multiple):
        return value
    of = getattr(base, value.of)
    if of is None:
        raise SettingsError(f"further settings: {name} is a multiple of {value.of}, which is none; give its value")
    number = value.factor * of
    return round(number) if int in _accepted_types()[name] else float(f"{number:.12g}")


def further_settings(
    texts: Sequence[str], base: TrainConfig, combined: Sequence[SettingOverrides], *, variant: str
) -> list[SettingOverrides]:
    """The further settings of a variant, without those that equal a combination of the axes.

    Args:
        texts: for `parse_further_settings`.
        base: the sweep's base settings.
        combined: the combinations of the axes that the variant is trained with.
        variant: its name.
    """
    known = set(map(frozenset, combined))
    found: dict[frozenset[tuple[str, Any]], SettingOverrides] = {}
    for parsed in map(parse_further_settings, texts):
        if fnmatch.fnmatchcase(variant, parsed.pattern):
            settings = parsed.resolve(base)
            found.setdefault(frozenset(settings), settings)
    return [settings for key, settings in found.items() if key not in known]


def parse_axis(text: str) -> Axis:
    """Read `learning_rate=1e-5,1e-4` or `lora_alpha=16,32 if lora_rank=16`; for searches also ranges, as
    `dropout=0.0..0.3`, or `learning_rate=1e-6..1e-3:log` on a logarithmic scale.

    Raises:
        SettingsError: an unknown setting, or values that it does not take.

    >>> parse_axis("lora_rank=0,8 if dropout=0.05")
    Axis(name='lora_rank', values=(0, 8), condition=('dropout', 0.05), range='no')
    """
    match = _AXIS_PATTERN.fullmatch(text)
    if match is None:
        raise SettingsError(
            f"an axis is written `NAME=VALUE,VALUE`, or `NAME=VALUE,VALUE if OTHER=VALUE`, got {text!r}"
        )
    name, value_list, other, required = match.groups()
    range_match = _RANGE_PATTERN.fullmatch(value_list)
    if range_match is not None:
        return _parse_range(name, range_match, text, has_condition=other is not None)
    values = tuple(_parse_value(name, value, f"axis {text!r}") for value in value_list.split(","))
    if len(set(values)) < len(values):
        raise SettingsError(f"axis {text!r} names a value more than once")
    if other is None:
        return Axis(name, values)
    return Axis(
        name, values, (other, required if other == VARIANT else _parse_value(other, required, f"axis {text!r}"))
    )


def _parse_range(name: str, match: re.Match[str], text: str, *, has_condition: bool) -> Axis:
    low, high = (_parse_value(name, value, f"axis {text!r}") for value in match.groups()[:2])
    if isinstance(low, bool) or not all(isinstance(end, int | float) for end in (low, high)) or not low < high:
        raise SettingsError(f"axis {text!r}: a range must go from a number to a larger number")
    if has_condition:
        raise SettingsError(f"axis {text!r}: a range takes no condition; list its values instead")
    if match[3] and low <= 0:
        raise SettingsError(f"axis {text!r}: a logarithmic range must begin above 0")
    return Axis(name, (low, high), None, "log" if match[3] else "linear")


def combinations(
    axes: Sequence[str], base: TrainConfig, *, variant: str | None = None, use_range_ends: bool = False
) -> list[SettingOverrides]:
    """Every combination of the axes' values, each once; an axis whose condition does not hold keeps its base value.

    Args:
        axes: texts for `parse_axis`; a condition may name an earlier axis, or any setting of the base.
        base: the sweep's base settings.
        variant: the variant whose combinations are returned; None: those of any variant.
        use_range_ends: take the two ends of a range; otherwise ranges are refused.

    Raises:
        SettingsError: an axis cannot be read, or is a range.

    >>> combinations(["lora_rank=0,8", "lora_alpha=8.0,32.0 if lora_rank=8"], TrainConfig())
    [(), (('lora_rank', 8), ('lora_alpha', 8.0)), (('lora_rank', 8), ('lora_alpha', 32.0))]
    """
    overrides: list[dict[str, Any]] = [{}]
    for text in axes:
        axis = parse_axis(text)
        if axis.range != "no" and not use_range_ends:
            raise SettingsError(
                f"axis {text!r} is a range of numbers, which a grid cannot enumerate; list the values, or give "
                "--search optuna"
            )
        overrides = [
            {**previous, axis.name: value} if varies else previous
            for previous in overrides
            for varies in _condition_outcomes(axis.condition, previous, base, variant)
            for value in (axis.values if varies else (None,))
        ]
    return list(dict.fromkeys(changed_settings(settings, base) for settings in overrides))


def changed_settings(settings: Mapping[str, Any], base: TrainConfig) -> SettingOverrides:
    """The settings that differ from the base."""
    return tuple((name, value) for name, value in settings.items() if value != getattr(base, name))


def _condition_outcomes(
    condition: tuple[str, Any] | None, settings: dict[str, Any], base: TrainConfig, variant: str | None
) -> tuple[bool, ...]:
    """Whether a condition holds; both outcomes if it depends on a variant that is not given."""
    if condition is None:
        return (True,)
    name, required = condition
    if name == VARIANT:
        return (False, True) if variant is None else (fnmatch.fnmatchcase(variant, required),)
    return (settings.get(name, getattr(base, name)) == required,)


def _parse_value(name: str, text: str, where: str) -> Any:
    """A value in the type of its setting."""
    accepted = _accepted_types()
    _check_name(name, where)
    if (name, text) == ("dtype", AUTO):
        raise SettingsError(f"{where}: auto is not a fixed precision; give float32 or bfloat16")
    for kind in accepted[name]:
        if kind is type(None) and text.lower() == "none":
            return None
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        if isinstance(kind, str) and kind == text:
            return text
    expected = ", ".join(kind if isinstance(kind, str) else kind.__name__ for kind in accepted[name])
    raise SettingsError(f"{where}: {name} is {text!r}, it must be {expected}")


def _check_name(name: str, where: str) -> None:
    """Check that a setting changes results and is no axis of the grid itself."""
    if name in _GRID_FIELDS:
        raise SettingsError(f"{where}: {name} is an axis of the grid itself, --grid.{_GRID_FIELDS[name]}")
    if name not in _accepted_types():
        raise SettingsError(f"{where}: no setting {name} changes results; there are {', '.join(_accepted_types())}")


def _accepted_types() -> dict[str, tuple[Any, ...]]:
    """Types of the settings that change results, without the axes of the grid itself; a `Literal` gives its options."""
    hints = typing.get_type_hints(TrainConfig)
    names = [name for name in fields_affecting(TrainConfig, "result") if name not in _GRID_FIELDS]
    return {name: _type_alternatives(hints[name]) for name in names}


def _type_alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _type_alternatives(part))
    return (hint,)
