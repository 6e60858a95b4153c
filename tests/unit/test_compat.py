"""Only slick/compat.py uses private APIs of other libraries, checked with the installed versions."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from slick import compat

ROOT = Path(__file__).parents[2]
FILES = [path for package in ("slick", "tuning") for path in sorted((ROOT / package).rglob("*.py"))]
FILES.remove(ROOT / "slick" / "compat.py")
FUNCTIONS = [
    function
    for name, function in vars(compat).items()
    if inspect.isfunction(inspect.unwrap(function)) and function.__module__ == "slick.compat"
]


def private_uses(tree: ast.AST) -> Iterator[str]:
    """Imports of private names and modules of other distributions, and private attributes of objects other than
    `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] not in ("slick", "tuning", "jobs"):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            yield from (f"import of {node.module}.{name}" for name in names if is_private(name))
        elif isinstance(node, ast.Import):
            yield from (
                f"import of {alias.name}" for alias in node.names if any(map(is_private, alias.name.split(".")))
            )
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()", "os"):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield ast.unparse(node)


def is_private(name: str) -> bool:
    if name in ("_asdict", "_fields", "_make", "_replace"):  # of named tuples: documented
        return False
    return (name.startswith("_") and not name.startswith("__")) or (name.startswith("__") and not name.endswith("__"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_compat_uses_private_names(path: Path) -> None:
    assert not list(private_uses(ast.parse(path.read_text())))


def test_private_names_are_detected() -> None:
    code = (
        "import ray._private\nfrom ray.train.v2._internal import a\nfrom ray.train import _b\n"
        "from slick.x import _own\nself._c = 1\nlayer._d = 2\n"
        "getattr(model, '_e', 3)\ngetattr(model, 'public')\nmodel.__class__\n"
    )
    assert set(private_uses(ast.parse(code))) == {
        "import of ray._private",
        "import of ray.train.v2._internal._internal",
        "import of ray.train._b",
        "layer._d",
        "getattr(model, '_e', 3)",
    }


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_private_apis_document_checked_version_and_replacement(function: object) -> None:
    text = " ".join((inspect.getdoc(function) or "").split())
    match = re.search(r"checked with ([\w-]+) (\d+\.\d+)", text, re.IGNORECASE)
    assert match, "write `Checked with LIBRARY X.Y. Replacement: ...`"
    assert re.search(r"replacement|see `", text, re.IGNORECASE), "write what could replace it"
    library, checked = match[1].lower(), match[2]
    if find_spec(library.replace("-", "_")) is not None:
        assert version(library).startswith(f"{checked}."), f"{library} {version(library)} is installed: check again"


def test_compat_has_functions() -> None:
    assert len(FUNCTIONS) >= 15
