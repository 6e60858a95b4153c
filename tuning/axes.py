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
    values = tuple(_parse_value(name, value, text) for value in value_list.split(","))
    if len(set(values)) < len(values):
        raise SettingsError(f"axis {text!r} names a value more than once")
    if other is None:
        return Axis(name, values)
    return Axis(name, values, (other, required if other == VARIANT else _parse_value(other, required, text)))


def _parse_range(name: str, match: re.Match[str], text: str, *, has_condition: bool) -> Axis:
    low, high = (_parse_value(name, value, text) for value in match.groups()[:2])
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


def _parse_value(name: str, text: str, axis: str) -> Any:
    """A value in the type of its setting."""
    accepted = _accepted_types()
    if (name, text) == ("dtype", AUTO):
        raise SettingsError(f"axis {axis!r}: auto is not a fixed precision; give float32 or bfloat16")
    if name in _GRID_FIELDS:
        raise SettingsError(f"axis {axis!r}: {name} is an axis of the grid itself, --grid.{_GRID_FIELDS[name]}")
    if name not in accepted:
        raise SettingsError(f"axis {axis!r}: no setting {name} changes results; there are {', '.join(accepted)}")
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
    raise SettingsError(f"axis {axis!r}: {name} is {text!r}, it must be {expected}")


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
