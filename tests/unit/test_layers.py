"""Packages import only lower layers, and heavy libraries are imported in few listed files."""

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED_PACKAGES = {"slick": {"slick"}, "tuning": {"slick", "tuning"}, "jobs": {"slick", "tuning", "jobs"}}
FILES = sorted(path for package in ALLOWED_PACKAGES for path in (ROOT / package).rglob("*.py"))

ALLOWED_FILES = {
    "ray": [
        "slick/compat.py",
        "slick/cluster.py",
        "slick/cluster_setup.py",
        "slick/annotation/tasks.py",
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
    "transformers": [
        "slick/compat.py",
        "slick/models.py",
        "slick/quantization.py",
        "slick/inference/*.py",
        "slick/world/*.py",
    ],
    "tokenizers": ["slick/world/corpus.py"],
    "deepspeed": ["slick/compat.py", "tuning/trainer.py", "tuning/state_tensors.py", "tuning/trainable.py"],
    "peft": ["tuning/trainable.py"],
    "tensorboardX": ["tuning/trackers.py"],
    "mlflow": ["tuning/trackers.py"],
    "wandb": ["tuning/trackers.py"],
    "optuna": ["tuning/trials.py"],
    "vllm": ["slick/inference/vllm_engine.py"],
    "scipy": ["slick/report/*.py", "slick/annotation/uncertainty.py"],
    "statsmodels": ["slick/report/statistics/*.py"],
    "matplotlib": ["slick/report/*.py"],
    "jinja2": ["slick/report/*.py", "slick/prompt_formats.py"],
    "tyro": ["jobs/common.py"],
    "gguf": ["slick/models.py"],
    "yaml": ["slick/user_files.py"],
    "datasets": ["slick/curation/hf_datasets.py"],
}
"""Library -> the files that may import it."""

HEAVY = {"ray", "torch", "transformers", "deepspeed", "vllm", "scipy", "matplotlib", "tokenizers", "gguf"}
HEAVY |= {"statsmodels", "datasets"}

PURE = [
    *("slick.compat", "slick.types", "slick.errors", "slick.matching", "slick.rng", "slick.prompts"),
    *("slick.storage", "slick.study", "slick.formatting", "slick.datasets.filters", "slick.variants"),
    *("slick.variants.sampling", "slick.variants.config"),
    *("tuning.policies", "tuning.grid", "tuning.config", "tuning.data", "tuning.evaluation_epochs"),
]


def relative_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, *, inside_functions: bool = True) -> Iterator[str]:
    """Full names of the modules that a file imports, without those under TYPE_CHECKING."""
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


def imported_libraries(path: Path, *, inside_functions: bool = True) -> set[str]:
    modules = imports(ast.parse(path.read_text(), filename=str(path)), inside_functions=inside_functions)
    return {module.split(".")[0] for module in modules}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Names of the top-level modules in a fresh interpreter after the code ran."""
    report = "\nimport sys; print('\\n' + '\\n'.join({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code + report, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_packages_import_only_lower_layers(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    higher = imported_libraries(path) & (ALLOWED_PACKAGES.keys() - ALLOWED_PACKAGES[package])
    assert not higher, (
        f"{relative_name(path)} imports {sorted(higher)}; {package} may use {sorted(ALLOWED_PACKAGES[package])}"
    )


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_heavy_libraries_are_imported_only_in_listed_files(path: Path) -> None:
    imported = imported_libraries(path)
    assert "tests" not in imported
    for library in imported & ALLOWED_FILES.keys():
        is_allowed = any(fnmatch.fnmatch(relative_name(path), pattern) for pattern in ALLOWED_FILES[library])
        assert is_allowed, f"{relative_name(path)} imports {library}, allowed in {ALLOWED_FILES[library]}"


@pytest.mark.parametrize("path", FILES, ids=relative_name)
def test_modules_with_a_config_import_no_heavy_library(path: Path) -> None:
    tree = ast.parse(path.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.bases]
    configs = [node.name for node in classes if node.name.endswith("Config")]
    heavy = imported_libraries(path, inside_functions=False) & HEAVY
    assert not (configs and heavy), (
        f"{relative_name(path)} defines {configs}, which --help reads, and loads {sorted(heavy)}"
    )


def test_pure_modules_load_no_heavy_library() -> None:
    loaded = loaded_by(f"import {', '.join(PURE)}")
    assert not loaded & HEAVY


def test_report_modules_load_no_heavy_library() -> None:
    modules = [
        relative_name(path)[:-3].replace("/", ".") for path in FILES if relative_name(path).startswith("slick/report/")
    ]
    assert not loaded_by(f"import {', '.join(modules)}") & (HEAVY - {"scipy"})


def test_help_loads_no_heavy_library_and_no_step() -> None:
    loaded = loaded_by("import sys; sys.argv = ['slick', '--help']\nfrom jobs.cli import main; main()")
    assert not loaded & (HEAVY | {"tyro", "tuning"}), "slick --help must be fast"


def test_commands_load_no_heavy_library() -> None:
    commands = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")
    assert {"cli", "study", "status", "variants", "sweep", "presets"} <= set(commands)
    assert not loaded_by("\n".join(f"import jobs.{command}" for command in commands)) & HEAVY


def test_help_of_a_step_loads_no_heavy_library() -> None:
    # tyro ends the process after --help; the loaded modules are still reported.
    code = (
        "import sys; sys.argv = ['slick', 'variants', 'demo', '--help']\n"
        "from jobs.cli import main\ntry: main()\nexcept SystemExit as end: assert end.code == 0, end.code"
    )
    loaded = loaded_by(code)
    assert "tyro" in loaded
    assert not loaded & HEAVY


def test_imports_are_detected() -> None:
    code = (
        "import a\nfrom b.c import d\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import e\nelse:\n    import f\n"
        "class G:\n    import g\n    def method(self):\n        import h\n"
        "try:\n    import i\nexcept ImportError:\n    import j\n"
    )
    all_imports = set(imports(ast.parse(code)))
    assert all_imports == {"a", "b.c.d", "typing.TYPE_CHECKING", "f", "g", "h", "i", "j"}
    assert all_imports - set(imports(ast.parse(code), inside_functions=False)) == {"h"}
    assert "ray" in loaded_by("import sys, types; sys.modules['ray.data'] = types.ModuleType('ray.data')")
