"""The package `slick`: names load lazily, functions take a path, URI or folder, and the README example runs."""

import ast
import importlib
import inspect
import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import slick
from slick.storage import FolderLike, as_folder
from slick.study import complete_step, require_manifest
from tests.study_builder import SMALL, write_labelled_study
from tests.unit.readme_snippet import SNIPPET, statements
from tests.unit.report_study import write_annotation
from tests.unit.test_layers import HEAVY, loaded_by

ROOT = Path(__file__).parents[2]
STEPS = ("prepare_questions", "annotate", "rescore", "draw_variants", "finetune", "sweep", "make_report", "build_world")
READERS = ("read_questions", "read_knowledge", "read_generations", "read_p_true", "read_variant", "read_points")


def test_names_are_loaded_from_the_listed_modules() -> None:
    assert list(slick.__all__) == sorted(slick.__all__)
    assert slick._MODULE_OF.keys() == set(slick.__all__)
    assert set(slick.__all__) <= set(dir(slick))
    for name, module in slick._MODULE_OF.items():
        value = getattr(slick, name)
        assert value is getattr(importlib.import_module(module), name)
        assert inspect.getdoc(value), name
    assert {*STEPS, *READERS} <= set(slick.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'anotate'"):
        slick.anotate  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "slick" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == slick._MODULE_OF
    assert all((ROOT / package / "py.typed").exists() for package in ("slick", "tuning"))


def test_no_public_name_is_also_a_module() -> None:
    modules = {path.stem for path in (ROOT / "slick").iterdir()}
    assert not modules & set(slick.__all__), "importing the module would replace the function"


def test_importing_slick_loads_nothing_else() -> None:
    loaded = loaded_by("import slick")
    assert not loaded & {*HEAVY, "pyarrow", "numpy", "tuning", "jobs"}


def test_every_name_is_loaded_without_heavy_libraries() -> None:
    loaded = loaded_by("import slick\nfor name in slick.__all__: getattr(slick, name)")
    assert {"tuning", "pyarrow"} <= loaded
    assert not loaded & HEAVY
    assert "jobs" not in loaded


@pytest.mark.parametrize("name", [*STEPS, *READERS])
def test_functions_take_a_path_a_uri_or_a_folder(name: str, tmp_path: Path) -> None:
    function = getattr(slick, name)
    assert inspect.signature(function).parameters["study"].annotation == FolderLike
    config = get_type_hints(function).get("config")
    arguments: list[Any] = [config()] if config else ["unknown-050"] if name == "read_variant" else []
    if name == "build_world":
        return  # without an error before it builds
    for study in (str(tmp_path / "none"), tmp_path / "none", slick.Folder(str(tmp_path / "none"))):
        with pytest.raises(slick.SlickError):
            function(study, *arguments)
    with pytest.raises(slick.SettingsError, match="loses a slash"):
        function(Path("s3://bucket/study"), *arguments)


def test_as_folder_accepts_text_path_and_folder(tmp_path: Path) -> None:
    folder = slick.Folder(str(tmp_path))
    assert as_folder(folder) is folder
    assert as_folder(tmp_path).uri == as_folder(str(tmp_path)).uri == folder.uri
    assert as_folder("s3://bucket/study").uri == "s3://bucket/study"
    with pytest.raises(slick.SettingsError, match="is or may be a secret"):
        as_folder("s3://KEY:SECRET@bucket/study")


def test_variants_are_drawn_by_path(tmp_path: Path) -> None:
    write_labelled_study(tmp_path / "study", SMALL)
    path = tmp_path / "study"
    manifest = slick.draw_variants(path, slick.VariantsConfig(unknown_shares=(0.0, 1.0), natural=False))
    assert manifest.step == "variants"
    assert slick.read_variant(path, "unknown-100").num_rows == manifest.counts["unknown-100"]["num"]


def test_readme_example_runs_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/local/test_python_api.py` runs all statements."""
    rows = [
        {
            "relation": relation,
            "split": split,
            "question": f"Where is {relation} {split} {i}?",
            "answers": [f"City {i}"],
        }
        for relation in ("P19", "P36")
        for split in ("train", "dev", "test")
        for i in range(16)
    ]
    monkeypatch.chdir(tmp_path)
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    statements_by_name, names = statements(), {}
    for name, source in statements_by_name.items():
        if name == "slick.annotate":  # write its output instead of running a model
            questions = slick.read_questions("studies/mine").to_pylist()
            categories = [str(category) for category in slick.Category]
            labelled = [{**row, "category": categories[i % 4]} for i, row in enumerate(questions)]
            study = slick.Folder("studies/mine")
            write_annotation(study, labelled)
            inputs = {"questions": require_manifest(study.child("questions"), "questions").fingerprint, "model": "m"}
            complete_step(
                study.child("annotate"), "annotate", "k", settings={}, inputs=inputs, counts={}, started_at=0.0
            )
        elif name != "slick.finetune":
            exec(source, names)
    assert len(names["labels"]) == 2 * 3 * 16
    assert slick.read_variant("studies/mine", "unknown-050").num_rows
    assert (tmp_path / "studies/mine/report/index.html").exists()
    assert "slick.finetune" in statements_by_name


def test_readme_example_is_short() -> None:
    assert len(SNIPPET.splitlines()) <= 10
    assert all(name.partition(".")[2] in slick.__all__ for name in statements() if name.startswith("slick."))
