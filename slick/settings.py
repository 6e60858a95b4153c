"""What each setting affects, declared once on its dataclass field. Pure.

Fingerprints, the comparison of studies and the classes of cost of a sweep derive from these declarations. A field that
declares nothing is taken to affect everything, so a forgotten declaration never hides a difference.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

Affects = Literal["result", "labels", "p_true", "seed", "length", "cost", "content", "nothing"]
"""`result`: what the step computes. `labels`, `p_true`: of the annotate step, only that part of it. `seed`: the result,
but only through random draws. `length`: how far a training goes, not what it computes until then, so it can be extended
later. `cost`: time and memory. `content`: a path to an input, which counts by what it holds. `nothing`: none of these.
"""

DEFAULT_AFFECTS: frozenset[Affects] = frozenset({"result", "cost"})
"""What a field affects that declares nothing."""

IDENTITY: frozenset[Affects] = frozenset({"result", "labels", "seed"})
"""Settings that are part of a step's fingerprint."""

P_TRUE_IDENTITY: frozenset[Affects] = frozenset({"result", "p_true"})
"""Of the annotate step, settings that are part of the fingerprint of P(True)."""

COMPARISON: frozenset[Affects] = IDENTITY | {"length"}
"""Settings in which two studies may differ."""

Condition = Callable[[Mapping[str, Any]], object]
"""Given all settings of the class by name, whether this one has any effect."""

T = TypeVar("T")
Class = TypeVar("Class", bound=type)

_CLASSES: dict[str, type] = {}


def affects(*what: Affects, when: Condition | None = None, former_name: str = "") -> dict[str, Any]:
    """The declaration as `metadata` of a dataclass field; see `setting`."""
    return {"affects": frozenset(what), "when": when, "formerly": former_name}


def setting(default: T, *what: Affects, when: Condition | None = None, former_name: str = "") -> T:
    """A dataclass field with a default, and what it affects.

    Args:
        default: its value unless another is given.
        what: what it affects.
        when: whether it has any effect, given all settings; None: always.
        formerly: its name in manifests of earlier versions, if it had another.
    """
    return dataclasses.field(default=default, metadata=affects(*what, when=when, former_name=former_name))


def register_settings(step: str) -> Callable[[Class], Class]:
    """Class decorator: these are the settings that manifests of this step hold."""

    def register(cls: Class) -> Class:
        _CLASSES[step] = cls
        return cls

    return register


def settings_class(step: str) -> type | None:
    """The settings class of a step; None if no imported module has it."""
    return _CLASSES.get(step)


def field_affects(field: "dataclasses.Field[Any]") -> frozenset[Affects]:
    """What a field affects."""
    declared: frozenset[Affects] = field.metadata.get("affects", DEFAULT_AFFECTS)
    return declared


def fields_affecting(cls: type, *what: Affects) -> tuple[str, ...]:
    """Names of the fields that affect all of these, in the order of the class."""
    return tuple(field.name for field in dataclasses.fields(cls) if field_affects(field) >= set(what))


def identity_settings(config: object, what: frozenset[Affects] = IDENTITY) -> dict[str, Any]:
    """The settings of a dataclass that affect any of `what`, by name; those without effect are left out."""
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    return filter_settings(
        type(config), {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}, what
    )


def filter_settings(
    cls: type | None, values: Mapping[str, Any], what: frozenset[Affects] = COMPARISON
) -> dict[str, Any]:
    """Those of some settings that affect any of `what`.

    Args:
        cls: declares them; None if that is not known.
        values: by name, as the dataclass or a manifest has them. Names that the class does not know count.
        what: see `Affects`.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)} if cls else {}
    fields |= {field.metadata["formerly"]: field for field in fields.values() if field.metadata.get("formerly")}
    found = {}
    for name, value in values.items():
        field = fields.get(name)
        if field is not None and not (field_affects(field) & what and _has_effect(field, values)):
            continue
        found[name] = _filter_nested(nested_settings_class(field), value, what)
    return found


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
