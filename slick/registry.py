"""Registries of components: engines, readers, row formats, containers, matchers, policies, findings, report sections.

A component registers itself where it is defined, with a decorator. Built-in components are in the module of their
registry, in another module, or in the modules of a package. Other distributions add components by an entry point of
the group `slick.components` that names a module; the module is imported when a registry is first read, in every
process, so components also work in Ray workers.
"""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from slick.errors import SettingsError

ENTRY_POINTS = "slick.components"
"""Group of entry points whose modules are imported."""

T = TypeVar("T")


class Registry(Generic[T]):
    """Components of one kind by name, in the order in which they were registered.

    Example:
        matchers: Registry[Callable[[str, str], bool]] = Registry("matcher")

        @matchers.register("same length")
        def same_length(answer: str, gold: str) -> bool:
            return len(answer) == len(gold)
    """

    def __init__(self, kind: str, package: str = "", *, lazy: bool = False) -> None:
        """An empty registry.

        Args:
            kind: the noun for messages, such as `matcher`.
            package: the module, or the package whose modules, that register the built-in components; empty for the
                module of the registry.
            lazy: import a built-in module only when its component is needed, because it loads heavy libraries.
        """
        self.kind = kind
        self._package, self._lazy = package, lazy
        self._components: dict[str, T] = {}
        self._families: dict[str, Callable[[str], T | None]] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a component.

        Raises:
            ValueError: another component has that name.
        """

        def add(component: T) -> T:
            if name in self._components:
                raise ValueError(f"there are two components of kind {self.kind} with the name {name!r}; rename one")
            self._components[name] = component
            return component

        return add

    def register_family(self, form: str) -> Callable[[Callable[[str], T | None]], Callable[[str], T | None]]:
        """A decorator that registers a function which makes components from names that contain a number.

        The function takes a name and returns its component, or None if the name has another form. It raises
        `SettingsError` if the number is invalid.

        Args:
            form: how such names look, for help and messages, such as `f1>=x`.
        """

        def add(make: Callable[[str], T | None]) -> Callable[[str], T | None]:
            self._families[form] = make
            return make

        return add

    def families(self) -> tuple[str, ...]:
        """The forms of names that contain a number."""
        self._import_all()
        return tuple(self._families)

    def get(self, name: str) -> T:
        """The component of a name.

        Raises:
            SettingsError: there is none.
        """
        self.check(name)
        if name not in self._components and (member := self._family_member(name)) is not None:
            return member
        if name not in self._components:
            import_module(f"{self._package}.{name}")
        return self._components[name]

    def check(self, name: str) -> None:
        """Refuse a name without a component.

        Raises:
            SettingsError: there is none.
        """
        names = self.names()
        if name not in names and self._family_member(name) is None:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join((*names, *self._families))}"
            raise SettingsError(f"there is no {self.kind} {name!r}; {hint}")

    def _family_member(self, name: str) -> T | None:
        made = (make(name) for make in self._families.values())
        return next((component for component in made if component is not None), None)

    def names(self) -> tuple[str, ...]:
        """The names of all components without a number, those of lazily imported modules too."""
        self._import_all()
        lazy = [module for module in self._modules() if module not in self._components] if self._lazy else []
        return (*self._components, *lazy)

    def items(self) -> tuple[tuple[str, T], ...]:
        """All components by name. Imports every module."""
        return tuple((name, self.get(name)) for name in self.names())

    def _import_all(self) -> None:
        if self._complete:
            return
        self._complete = True  # first: a module that is imported here may read the registry
        try:
            if not self._lazy:
                for module in self._modules():
                    import_module(f"{self._package}.{module}")
            import_entry_points()
        except BaseException:
            self._complete = False  # the next reader must not see an incomplete registry
            raise

    def _modules(self) -> Iterator[str]:
        if self._package:
            path = getattr(import_module(self._package), "__path__", ())  # a module has none
            yield from (module.name for module in iter_modules(path))


@cache
def import_entry_points() -> None:
    """Import the modules that other distributions name, once per process.

    Raises:
        SettingsError: one of them cannot be imported.
    """
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            owner = point.dist.name if point.dist else "an unknown distribution"
            raise SettingsError(
                f"the components of {owner} ({point.value}) cannot be imported: {type(error).__name__}: {error}; "
                "repair or uninstall that distribution"
            ) from error
