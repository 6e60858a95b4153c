"""Imports point one way, and heavy libraries stay in few, named files: the rest starts fast and is tested alone."""

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_USE = {"slick": {"slick"}, "tuning": {"slick", "tuning"}, "jobs": {"slick", "tuning", "jobs"}}
FILES = sorted(path for package in MAY_USE for path in (ROOT / package).rglob("*.py"))

HOMES = {
    "ray": [
        "slick/compat.py",
        "slick/cluster.py",
        "slick/cluster_setup.py",
        "slick/annotation/worker.py",
        "tuning/finetune.py",
        "tuning/ray_trainer.py",
        "tuning/worker.py",
        "tuning/progress_table.py",
        "tuning/distributed.py",
        "tuning/sweep.py",
        "tuning/trials.py",
        "jobs/ray_client.py",
    ],
    "torch": [
        *("slick/models.py", "slick/model_validation.py", "slick/inference/*.py", "slick/world/*.py"),
        "slick/compat.py",
        *(
            "tuning/evaluate.py",
            "tuning/forward.py",
            "tuning/trainer.py",
            "tuning/distributed.py",
            "tuning/state_tensors.py",
        ),
        *("tuning/trainable.py", "tuning/worker.py"),
    ],
    "transformers": ["slick/compat.py", "slick/models.py", "slick/inference/*.py", "slick/world/*.py"],
    "tokenizers": ["slick/world/corpus.py"],
    "deepspeed": ["slick/compat.py", "tuning/trainer.py", "tuning/state_tensors.py", "tuning/trainable.py"],
    "peft": ["tuning/trainable.py"],
    "tensorboardX": ["tuning/trackers.py"],
    "mlflow": ["tuning/trackers.py"],
    "wandb": ["tuning/trackers.py"],
    "optuna": ["tuning/trials.py"],
    "vllm": ["slick/inference/engines.py"],
    "scipy": ["slick/report/*.py", "slick/annotation/uncertainty.py"],
    "statsmodels": ["slick/report/statistics/*.py"],
    "matplotlib": ["slick/report/*.py"],
    "jinja2": ["slick/report/*.py"],
    "tyro": ["jobs/common.py"],
    "gguf": ["slick/models.py"],
    "yaml": ["slick/user_files.py"],
}
"""Library -> the files that may import it. A new file here is a decision, not a formality."""

HEAVY = {"ray", "torch", "transformers", "deepspeed", "vllm", "scipy", "matplotlib", "tokenizers", "gguf"}
HEAVY |= {"statsmodels"}

PURE = [
    *("slick.compat", "slick.types", "slick.errors", "slick.matching", "slick.rng", "slick.prompts"),
    *("slick.storage", "slick.study", "slick.formatting", "slick.datasets.filters", "slick.variants"),
    *("slick.variants.sampling", "slick.variants.config"),
    *("tuning.policies", "tuning.grid", "tuning.config", "tuning.data"),
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, *, inside_functions: bool = True) -> Iterator[str]:
    """Full names of the modules that a file imports; those for type checkers alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from imports(ast.Module(body=node.orelse, type_ignores=[]), inside_functions=inside_functions)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, inside_functions=inside_functions)


def roots(path: Path, *, inside_functions: bool = True) -> set[str]:
    found = imports(ast.parse(path.read_text(), filename=str(path)), inside_functions=inside_functions)
    return {module.split(".")[0] for module in found}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Names of the top-level modules in a fresh interpreter after the code ran."""
    report = "\nimport sys; print('\\n' + '\\n'.join({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code + report, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("path", FILES, ids=name)
def test_packages_import_only_lower_layers(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    up = roots(path) & (MAY_USE.keys() - MAY_USE[package])
    assert not up, f"{name(path)} imports {sorted(up)}; {package} may use {sorted(MAY_USE[package])}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_heavy_libraries_are_imported_only_in_listed_files(path: Path) -> None:
    found = roots(path)
    assert "tests" not in found
    for library in found & HOMES.keys():
        at_home = any(fnmatch.fnmatch(name(path), pattern) for pattern in HOMES[library])
        assert at_home, f"{name(path)} imports {library}, whose homes are {HOMES[library]}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_modules_with_a_config_import_no_heavy_library(path: Path) -> None:
    tree = ast.parse(path.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.bases]
    configs = [node.name for node in classes if node.name.endswith("Config")]
    heavy = roots(path, inside_functions=False) & HEAVY
    assert not (configs and heavy), f"{name(path)} owns {configs}, which --help reads, and loads {sorted(heavy)}"


def test_pure_modules_import_nothing_heavy() -> None:
    found = loaded_by(f"import {', '.join(PURE)}")
    assert not found & HEAVY


def test_the_report_loads_no_heavy_library_before_it_is_made() -> None:
    modules = [name(path)[:-3].replace("/", ".") for path in FILES if name(path).startswith("slick/report/")]
    assert not loaded_by(f"import {', '.join(modules)}") & (HEAVY - {"scipy"})


def test_help_loads_neither_torch_nor_ray_nor_any_step() -> None:
    found = loaded_by("import sys; sys.argv = ['slick', '--help']\nfrom jobs.cli import main; main()")
    assert not found & (HEAVY | {"tyro", "tuning"}), "slick --help has half a second"


def test_every_command_is_imported_without_heavy_libraries() -> None:
    doors = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")
    assert {"cli", "study", "status", "variants", "sweep", "presets"} <= set(doors)
    assert not loaded_by("\n".join(f"import jobs.{door}" for door in doors)) & HEAVY


def test_a_steps_help_is_read_without_heavy_libraries() -> None:
    # tyro ends the process after --help; the modules are reported all the same.
    code = (
        "import sys; sys.argv = ['slick', 'variants', 'demo', '--help']\n"
        "from jobs.cli import main\ntry: main()\nexcept SystemExit as end: assert end.code == 0, end.code"
    )
    found = loaded_by(code)
    assert "tyro" in found
    assert not found & HEAVY


def test_the_guard_itself_sees_what_it_must() -> None:
    code = (
        "import a\nfrom b.c import d\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import e\nelse:\n    import f\n"
        "class G:\n    import g\n    def method(self):\n        import h\n"
        "try:\n    import i\nexcept ImportError:\n    import j\n"
    )
    everything = set(imports(ast.parse(code)))
    assert everything == {"a", "b.c.d", "typing.TYPE_CHECKING", "f", "g", "h", "i", "j"}
    assert everything - set(imports(ast.parse(code), inside_functions=False)) == {"h"}
    assert "ray" in loaded_by("import sys, types; sys.modules['ray.data'] = types.ModuleType('ray.data')")
