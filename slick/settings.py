"""What each setting affects and which values it takes, declared once on its dataclass field. Pure.

Fingerprints, the comparison of studies, the cost classes of a sweep and validation derive from these declarations. A
field without a declaration affects the result and the cost, so a missing declaration never hides a difference.
"""

import dataclasses
import importlib
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from slick.errors import SettingsError
from slick.registry import Registry

Affects = Literal["result", "labels", "p_true", "hidden", "seed", "length", "evaluations", "cost", "content", "nothing"]
"""`result`: what the step computes. `labels`, `p_true`, `hidden`: only that part of the annotate step. `seed`: the
result, but only through random draws. `length`: how far a training goes, not what it computes until then, so it can be
extended later. `evaluations`: which evaluations are stored, not the weights or the results. `cost`: time and memory.
`content`: a path to an input, identified by its content. `nothing`: none of these.
"""

DEFAULT_AFFECTS: frozenset[Affects] = frozenset({"result", "cost"})
"""What a field without a declaration affects."""

IDENTITY: frozenset[Affects] = frozenset({"result", "labels", "seed"})
"""Settings that are part of a step's fingerprint."""

P_TRUE_IDENTITY: frozenset[Affects] = frozenset({"result", "p_true"})
"""Settings of the annotate step that are part of the fingerprint of P(True)."""

HIDDEN_IDENTITY: frozenset[Affects] = frozenset({"result", "hidden"})
"""Settings of the annotate step that are part of the fingerprint of the scores of stored answers."""

COMPARISON: frozenset[Affects] = IDENTITY | {"length", "evaluations"}
"""Settings that `slick compare` compares between studies."""

Condition = Callable[[Mapping[str, Any]], object]
"""Whether a setting has any effect, given all settings of its class by name."""

ABOVE_ZERO = "above 0"
"""In `cost_settings`, every value but 0 of a setting that is declared with `only_zero_changes_cost`."""

T = TypeVar("T")
Class = TypeVar("Class", bound=type)

_CLASSES: dict[str, type] = {}

_SETTINGS_MODULES = {
    "world": "slick.world.config",
    "questions": "slick.datasets.prepare",
    "annotate": "slick.annotation.config",
    "curate": "slick.curation.config",
    "variants": "slick.variants.config",
    "finetune": "tuning.config",
    "sweep": "tuning.grid",
    "wording": "slick.annotation.wording",
    "report": "slick.report.config",
}
"""Step -> module that registers its settings. Imported when first needed, since `tuning` imports `slick`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The numbers that a setting takes; None on a side means no bound."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    """An exclusive lower bound."""
    below: float | None = None
    """An exclusive upper bound."""

    def contains(self, value: float) -> bool:
        """Whether a number is finite and within the bounds."""
        return (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def error_message(self, name: str, value: object) -> str:
        """The message for a value out of bounds.

        >>> Bounds(minimum=0, below=1).error_message("dropout", 5)
        'dropout is a share in [0, 1), got 5; 5 percent is 0.05'
        >>> Bounds(minimum=1).error_message("epochs", 0), Bounds(above=0).error_message("temperature", 0.0)
        ('epochs must be 1 or more, got 0', 'temperature must be above 0, got 0.0')
        """
        low = self.minimum if self.above is None else self.above
        high = self.maximum if self.below is None else self.below
        if low is None or high is None:
            sides = {"or more": self.minimum, "or less": self.maximum}
            texts = [f"{bound:g} {side}" for side, bound in sides.items() if bound is not None]
            sides = {"above": self.above, "below": self.below}
            texts += [f"{side} {bound:g}" for side, bound in sides.items() if bound is not None]
            return f"{name} must be {' and '.join(texts)}, got {value}"
        interval = f"{'[' if self.above is None else '('}{low:g}, {high:g}{']' if self.below is None else ')'}"
        if (low, high) == (0, 1):
            return f"{name} is a share in {interval}, got {value}; 5 percent is 0.05"
        return f"{name} must be in {interval}, got {value}"


def affects(
    *what: Affects,
    when: Condition | None = None,
    former_name: str = "",
    bounds: Bounds | None = None,
    registry: Registry[Any] | None = None,
    other_values: tuple[str, ...] = (),
    only_zero_changes_cost: bool = False,
) -> dict[str, Any]:
    """The declaration as `metadata` of a dataclass field; see `setting`."""
    return {
        "affects": frozenset(what) or DEFAULT_AFFECTS,
        "when": when,
        "formerly": former_name,
        "bounds": bounds,
        "registry": registry,
        "other_values": other_values,
        "only_zero_changes_cost": only_zero_changes_cost,
    }


def setting(
    default: T,
    *what: Affects,
    when: Condition | None = None,
    former_name: str = "",
    only_zero_changes_cost: bool = False,
    registry: Registry[Any] | None = None,
    other_values: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> T:
    """A dataclass field with a default value, what it affects, and the numbers that it takes.

    Args:
        default: the default value.
        what: what the setting affects; nothing given: `DEFAULT_AFFECTS`.
        when: whether the setting has any effect, given all settings; None: always.
        former_name: its name in manifests of earlier versions, if that differs.
        only_zero_changes_cost: all values other than 0 cost the same.
        registry: the value is the name of a component in this registry; None is always accepted.
        other_values: values that are accepted in addition to the names in the registry, such as `auto`.
        minimum: the lowest number; for a tuple, of each of its numbers. None is always accepted.
        maximum: the highest number.
        above: an exclusive lower bound.
        below: an exclusive upper bound.
    """
    bounds = Bounds(minimum=minimum, maximum=maximum, above=above, below=below)
    metadata = affects(
        *what,
        when=when,
        former_name=former_name,
        bounds=None if bounds == Bounds() else bounds,
        registry=registry,
        other_values=other_values,
        only_zero_changes_cost=only_zero_changes_cost,
    )
    return dataclasses.field(default=default, metadata=metadata)


def register_settings(step: str) -> Callable[[Class], Class]:
    """Class decorator: manifests of this step hold these settings."""

    def register(cls: Class) -> Class:
        _CLASSES[step] = cls
        return cls

    return register


def settings_class(step: str) -> type | None:
    """The settings class of a step; None if there is no such step."""
    if step not in _CLASSES and step in _SETTINGS_MODULES:
        importlib.import_module(_SETTINGS_MODULES[step])
    return _CLASSES.get(step)


def field_affects(field: "dataclasses.Field[Any]") -> frozenset[Affects]:
    """What a field affects."""
    declared: frozenset[Affects] = field.metadata.get("affects", DEFAULT_AFFECTS)
    return declared


def fields_affecting(cls: type, *what: Affects) -> tuple[str, ...]:
    """Names of the fields that affect all of these, in the order of the class."""
    return tuple(field.name for field in dataclasses.fields(cls) if field_affects(field) >= set(what))


def check_settings(config: Any) -> None:
    """Check every setting of a dataclass against the bounds and the registry of its field and its `Literal` type.

    Raises:
        SettingsError: a value is out of bounds, not among the options, or no component of the registry.
    """
    cls: Any = type(config)
    options = _literal_options(cls)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        bounds: Bounds = field.metadata.get("bounds") or Bounds()
        allowed = options.get(field.name)
        registry: Registry[Any] | None = field.metadata.get("registry")
        if registry is not None and value is not None and value not in field.metadata["other_values"]:
            registry.check(value)
        for part in value if isinstance(value, tuple) else (value,):
            if bounds != Bounds() and part is not None and not bounds.contains(part):
                raise SettingsError(bounds.error_message(field.name, part))
            if allowed is not None and part not in allowed:
                raise SettingsError(f"{field.name} is one of {', '.join(map(str, allowed))}, got {part!r}")


@cache
def _literal_options(cls: type) -> dict[str, tuple[object, ...]]:
    """Each setting typed as a `Literal`, or a tuple or optional of one, with its allowed values."""
    options: dict[str, tuple[object, ...]] = {}
    for name, hint in get_type_hints(cls).items():
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType, tuple) else (hint,)
        literals = [part for part in parts if get_origin(part) is Literal]
        if literals:
            optional = (None,) if type(None) in parts else ()
            options[name] = (*(option for literal in literals for option in get_args(literal)), *optional)
    return options


def cost_settings(config: Any) -> dict[str, object]:
    """The settings that change results and cost, by name; with equal ones, the same rows take the same time."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(config):
        if field_affects(field) >= {"result", "cost"}:
            value = getattr(config, field.name)
            if field.metadata.get("only_zero_changes_cost"):
                value = ABOVE_ZERO if value else 0
            values[field.name] = value
    return values


def identity_settings(config: object, what: frozenset[Affects] = IDENTITY) -> dict[str, Any]:
    """Settings of a dataclass that affect any of `what`, by name. Settings that others disable (`when`) are omitted."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"settings are a dataclass, got {type(config).__name__}")
    return filter_settings(
        type(config), {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}, what
    )


def filter_settings(
    cls: type | None, values: Mapping[str, Any], what: frozenset[Affects] = COMPARISON
) -> dict[str, Any]:
    """Those of the given settings that affect any of `what`.

    Args:
        cls: the class that declares them; None if it is not known.
        values: settings by name, as the dataclass or a manifest has them. Names unknown to the class are kept.
        what: see `Affects`.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)} if cls else {}
    fields |= {field.metadata["formerly"]: field for field in fields.values() if field.metadata.get("formerly")}
    kept = {}
    for name, value in values.items():
        field = fields.get(name)
        if field is not None and not (field_affects(field) & what and _has_effect(field, values)):
            continue
        kept[name] = _filter_nested(nested_settings_class(field), value, what)
    return kept


def nested_settings_class(field: "dataclasses.Field[Any] | None") -> type | None:
    """The settings class of a field that holds settings itself."""
    factory: Any = field.default_factory if field else None
    return factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None


def _has_effect(field: "dataclasses.Field[Any]", values: Mapping[str, Any]) -> bool:
    when = field.metadata.get("when")
    return when is None or bool(when(values))


def _filter_nested(cls: type | None, value: Any, what: frozenset[Affects]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return identity_settings(value, what)
    return filter_settings(cls, value, what) if cls and isinstance(value, Mapping) else value
