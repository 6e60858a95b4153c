"""Registries: names, duplicates, suggestions, lazy modules."""

import sys
from pathlib import Path

import pytest

from slick.errors import SettingsError
from slick.registry import Registry


def test_components_are_listed_in_order_of_registration() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("two")(2)
    registry.register("one")(1)
    assert registry.names() == ("two", "one")
    assert registry.get("one") == 1
    assert registry.items() == (("two", 2), ("one", 1))


def test_duplicate_name_is_an_error() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    with pytest.raises(ValueError, match="two components of kind number with the name 'one'"):
        registry.register("one")(1)


@pytest.mark.parametrize(("name", "hint"), [("thre", "did you mean three"), ("x", "there are one, three")])
def test_unknown_name_is_refused_with_a_suggestion(name: str, hint: str) -> None:
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    registry.register("three")(3)
    with pytest.raises(SettingsError, match=f"there is no number '{name}'; {hint}"):
        registry.get(name)


def test_family_makes_components_from_names_with_a_number() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("one")(1)
    registry.register_family("n=x")(lambda name: int(name[2:]) if name.startswith("n=") else None)
    assert registry.get("n=12") == 12
    assert (registry.names(), registry.families()) == (("one",), ("n=x",))
    with pytest.raises(SettingsError, match="there is no number '12'; there are one, n=x"):
        registry.get("12")


@pytest.mark.parametrize("lazy", [False, True])
def test_modules_of_the_package_register_themselves(
    lazy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"toy_components_{lazy}".lower()
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(
        f"from slick.registry import Registry\nthings = Registry('thing', {package!r}, lazy={lazy})\n"
    )
    for name in ("a", "b"):
        (tmp_path / package / f"{name}.py").write_text(
            f"from {package} import things\n\n@things.register({name!r})\ndef make():\n    return {name!r}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(package)
    assert set(module.things.names()) == {"a", "b"}
    assert (f"{package}.a" in sys.modules) is not lazy
    assert module.things.get("a")() == "a"
    assert (f"{package}.b" in sys.modules) is not lazy


def test_failed_import_is_retried_by_the_next_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "failing_components"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from slick.registry import Registry\nthings = Registry('thing', 'failing_components')\n"
    )
    (package / "a.py").write_text("raise ImportError('no such library')\n")
    monkeypatch.syspath_prepend(tmp_path)
    things = __import__("failing_components").things
    for _ in range(2):
        with pytest.raises(ImportError, match="no such library"):
            things.names()
