"""No module loads pickles, which can run code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for package in ("slick", "tuning", "jobs") for path in (ROOT / package).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"read_pickle", "to_pickle", "load_checkpoint", "restore", "ds_to_universal"}
"""Functions of pandas, DeepSpeed and Ray that always read pickles."""


def find_pickle_loads(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if MODULES & set(alias.name.split(".")))
        elif isinstance(node, ast.ImportFrom):
            names = {*(node.module or "").split("."), *(alias.name for alias in node.names)}
            yield from sorted(MODULES & names)
        elif isinstance(node, ast.Call):
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            call = ast.unparse(node.func)
            if call == "torch.load" and options.get("weights_only") != "True":
                yield call
            if options.get("allow_pickle", "False") != "False" or call.rpartition(".")[2] in CALLS:
                yield call
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "ds_to_universal" in node.value:
            yield node.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_loads_pickles(path: Path) -> None:
    assert not list(find_pickle_loads(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import ray.cloudpickle as serializer",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "engine.load_checkpoint(folder)",
        "tune.Tuner.restore(path, trainable)",
        "run([python, '-m', 'deepspeed.checkpoint.ds_to_universal'])",
    ],
)
def test_pickle_loads_are_detected(source: str) -> None:
    assert list(find_pickle_loads(source))
    assert not list(find_pickle_loads("torch.load(path, weights_only=True); np.load(path)"))
