"""Training settings as axes of a grid, some of which vary only where another has a certain value. Pure."""

import dataclasses
import fnmatch
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from slick.errors import SettingsError
from slick.precision import AUTO
from tuning.config import TrainConfig

SettingOverrides: TypeAlias = tuple[tuple[str, Any], ...]
"""Names and values, of those settings that differ from the sweep's own."""

VARIANT = "variant"
"""In a condition."""
_NON_AXIS_SETTINGS = ("variant", "seed", "epochs", "model")
"""Settings that have an axis of their own, or none."""
_GRID_FIELDS = {
    "variant": "variants",
    "variants": "variants",
    "seed": "seeds",
    "seeds": "seeds",
    "epochs": "epochs",
    "policy": "policies",
    "policies": "policies",
}
SpanScale: TypeAlias = Literal["no", "linear", "log"]
_SPAN_PATTERN = re.compile(r"([^,]+?)\.\.([^,:]+)(:log)?")
_AXIS_PATTERN = re.compile(r"\s*(\w+)\s*=\s*([^\s]+)(?:\s+if\s+(\w+)\s*=\s*(\S+))?\s*")


@dataclass(frozen=True, slots=True)
class Axis:
    """One setting, its values, and where it varies."""

    name: str
    values: tuple[Any, ...]
    """Those named; of a span, its two ends."""
    condition: tuple[str, Any] | None = None
    """Another setting and the value it must have, or `variant` and a pattern of names, as `unknown-*`; elsewhere this
    one keeps the sweep's own."""
    span: SpanScale = "no"
    """Whether all numbers between the two values are meant, and whether on a logarithmic scale."""


def parse_axis(text: str) -> Axis:
    """Read `learning_rate=1e-5,1e-4` or `lora_alpha=16,32 if lora_rank=16`; for searches `dropout=0.0..0.3`, every
    number from the one to the other, and `learning_rate=1e-6..1e-3:log`, the same on a logarithmic scale.

    Raises:
        SettingsError: no such setting, or values that it does not take.

    >>> parse_axis("lora_rank=0,8 if dropout=0.05")
    Axis(name='lora_rank', values=(0, 8), condition=('dropout', 0.05), span='no')
    """
    match = _AXIS_PATTERN.fullmatch(text)
    if match is None:
        raise SettingsError(
            f"an axis is written `NAME=VALUE,VALUE`, or `NAME=VALUE,VALUE if OTHER=VALUE`, got {text!r}"
        )
    name, values, other, wanted = match.groups()
    span = _SPAN_PATTERN.fullmatch(values)
    if span is not None:
        return _parse_span(name, span, text, has_condition=other is not None)
    found = tuple(_parse_value(name, value, text) for value in values.split(","))
    if len(set(found)) < len(found):
        raise SettingsError(f"axis {text!r} names a value more than once")
    if other is None:
        return Axis(name, found)
    return Axis(name, found, (other, wanted if other == VARIANT else _parse_value(other, wanted, text)))


def _parse_span(name: str, span: re.Match[str], text: str, *, has_condition: bool) -> Axis:
    low, high = (_parse_value(name, value, text) for value in span.groups()[:2])
    if isinstance(low, bool) or not all(isinstance(end, int | float) for end in (low, high)) or not low < high:
        raise SettingsError(f"axis {text!r}: a span goes from a number to a larger one")
    if has_condition:
        raise SettingsError(f"axis {text!r}: a span varies everywhere; name its values if it depends on another axis")
    if span[3] and low <= 0:
        raise SettingsError(f"axis {text!r}: a logarithmic scale begins above 0")
    return Axis(name, (low, high), None, "log" if span[3] else "linear")


def combinations(
    axes: Sequence[str], base: TrainConfig, *, variant: str | None = None, use_span_ends: bool = False
) -> list[SettingOverrides]:
    """Every combination of the axes' values, each once; an axis that does not vary there keeps the base's value.

    Args:
        axes: as `parse_axis` reads them; a condition may name an axis before it, or any setting of the base.
        base: the sweep's own settings.
        variant: whose combinations are wanted; None: those of any.
        ends: of a span take its two ends; otherwise it is refused.

    >>> combinations(["lora_rank=0,8", "lora_alpha=8.0,32.0 if lora_rank=8"], TrainConfig())
    [(), (('lora_rank', 8), ('lora_alpha', 8.0)), (('lora_rank', 8), ('lora_alpha', 32.0))]
    """
    found: list[dict[str, Any]] = [{}]
    for text in axes:
        axis = parse_axis(text)
        if axis.span != "no" and not use_span_ends:
            raise SettingsError(
                f"axis {text!r} is a span of numbers, of which a grid cannot train each; name the values, or let "
                "--search optuna choose among them"
            )
        found = [
            {**before, axis.name: value} if varies else before
            for before in found
            for varies in _condition_outcomes(axis.condition, before, base, variant)
            for value in (axis.values if varies else (None,))
        ]
    return list(dict.fromkeys(changed_settings(settings, base) for settings in found))


def changed_settings(settings: Mapping[str, Any], base: TrainConfig) -> SettingOverrides:
    """Those that differ from the base's."""
    return tuple((name, value) for name, value in settings.items() if value != getattr(base, name))


def _condition_outcomes(
    condition: tuple[str, Any] | None, settings: dict[str, Any], base: TrainConfig, variant: str | None
) -> tuple[bool, ...]:
    """Whether an axis varies there; both, if that depends on a variant that is not told."""
    if condition is None:
        return (True,)
    name, wanted = condition
    if name == VARIANT:
        return (False, True) if variant is None else (fnmatch.fnmatchcase(variant, wanted),)
    return (settings.get(name, getattr(base, name)) == wanted,)


def _parse_value(name: str, text: str, axis: str) -> Any:
    """A value of the setting's own type."""
    kinds = _accepted_types()
    if (name, text) == ("dtype", AUTO):
        raise SettingsError(f"axis {axis!r}: an axis compares stated precisions; name float32 or bfloat16")
    if name in _GRID_FIELDS:
        raise SettingsError(f"axis {axis!r}: {name} has an axis of its own, --grid.{_GRID_FIELDS[name]}")
    if name not in kinds:
        raise SettingsError(f"axis {axis!r}: no setting {name} changes results; there are {', '.join(kinds)}")
    for kind in kinds[name]:
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
    wanted = ", ".join(kind if isinstance(kind, str) else kind.__name__ for kind in kinds[name])
    raise SettingsError(f"axis {axis!r}: {name} is {text!r}, it must be {wanted}")


def _accepted_types() -> dict[str, tuple[Any, ...]]:
    """The types of the settings that change results: types, and the texts of a Literal."""
    hints = typing.get_type_hints(TrainConfig)
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in _NON_AXIS_SETTINGS]
    names = [name for name in names if name in TrainConfig(schedule="linear").identity()]
    return {name: _type_alternatives(hints[name]) for name in names}


def _type_alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _type_alternatives(part))
    return (hint,)
