"""Steps begin, finish, are skipped or rejected; fingerprints."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from slick.annotation import AnnotateConfig
from slick.errors import StudyError
from slick.inference.base import SamplingConfig
from slick.storage import Folder
from slick.study import begin_step, complete_step, fingerprint, read_manifest, require_manifest, settings_to_json
from slick.types import Category


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    seed: int = 0
    inner: Inner = Inner()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "study" / "annotate"))


def finish(folder: Folder, identity: str = "one", **counts: int) -> None:
    complete_step(
        folder, "annotate", identity, settings=Settings(), inputs={"model": "m"}, counts=counts, started_at=0.0
    )


def test_finished_step_is_skipped(folder: Folder) -> None:
    assert read_manifest(folder) is None
    assert begin_step(folder, "annotate", "one", Settings())
    assert folder.names() == ["started.json"]
    assert read_manifest(folder) is None, "a step that has begun is not finished"
    manifest = complete_step(
        folder,
        "annotate",
        "one",
        settings=Settings(seed=3),
        inputs={"model": "m"},
        counts={"rows": 7},
        started_at=time.monotonic() - 5,
    )
    assert read_manifest(folder) == require_manifest(folder, "annotate") == manifest
    assert (manifest.step, manifest.fingerprint, manifest.inputs) == ("annotate", "one", {"model": "m"})
    assert manifest.settings == {"seed": 3, "inner": {"sizes": [1, 2], "name": None}}
    assert manifest.counts == {"rows": 7}
    assert 5 <= manifest.seconds < 60
    assert "numpy" in manifest.versions
    assert not begin_step(folder, "annotate", "one", Settings())


def test_unfinished_step_resumes(folder: Folder) -> None:
    begin_step(folder, "annotate", "one", Settings())
    folder.write_bytes("part-00000.parquet", b"1")
    assert begin_step(folder, "annotate", "one", Settings())
    assert folder.exists("part-00000.parquet")


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_rejected_without_changes(folder: Folder, finished: bool) -> None:
    begin_step(folder, "annotate", "one", Settings())
    if finished:
        finish(folder, rows=7)
    before = {name: folder.read_bytes(name) for name in folder.names()}
    with pytest.raises(StudyError, match=r"its fingerprint is one, this annotate step's is two; .* delete that folder"):
        begin_step(folder, "annotate", "two", Settings())
    assert {name: folder.read_bytes(name) for name in folder.names()} == before


@pytest.mark.parametrize("finished", [False, True])
def test_error_names_the_changed_settings(folder: Folder, finished: bool) -> None:
    begin_step(folder, "annotate", "one", Settings())
    if finished:
        finish(folder)
    changed = Settings(seed=4, inner=Inner(sizes=(1, 3)))
    with pytest.raises(
        StudyError, match=r"is two \(seed was 0, is 4, inner\.sizes was \[1, 2\], is \[1, 3\]\); choose"
    ):
        begin_step(folder, "annotate", "two", changed)


def test_error_omits_settings_that_do_not_affect_results(folder: Folder) -> None:
    begin_step(folder, "annotate", "one", AnnotateConfig(max_actors=3))
    with pytest.raises(StudyError, match=r"is two \(sampling\.seed was 0, is 5\); choose"):
        begin_step(folder, "annotate", "two", AnnotateConfig(max_actors=9, sampling=SamplingConfig(seed=5)))
    with pytest.raises(StudyError, match=r"is two; choose"):
        begin_step(folder, "annotate", "two", AnnotateConfig(max_actors=9))


def test_error_of_an_unfinished_step_names_the_command(folder: Folder) -> None:
    begin_step(folder, "annotate", "one", Settings())
    with pytest.raises(StudyError, match=r"annotate is not finished: it has no manifest\.json; run `slick annotate`"):
        require_manifest(folder, "annotate")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b'{"step": "annotate"}', "written by another version of this program"),
        (b'{"step": "annotate", "more": 1}', "written by another version of this program"),
    ],
)
def test_invalid_manifest_is_a_study_error(folder: Folder, content: bytes, message: str) -> None:
    folder.write_bytes("manifest.json", content)
    with pytest.raises(StudyError, match=message):
        read_manifest(folder)


def test_fingerprint_depends_on_all_parts_and_not_on_key_order() -> None:
    first = fingerprint(Settings(), "input")
    assert first == fingerprint(Settings(), "input")
    assert first == fingerprint({"inner": {"name": None, "sizes": [1, 2]}, "seed": 0}, "input"), "as JSON values"
    others = [
        fingerprint(Settings(seed=1), "input"),
        fingerprint(Settings(inner=Inner(sizes=(2, 1))), "input"),
        fingerprint(Settings(inner=Inner(name="")), "input"),
        fingerprint(Settings(), "other"),
        fingerprint(Settings()),
        fingerprint("input", Settings()),
        fingerprint([Settings(), "input"]),
    ]
    assert len({first, *others}) == 1 + len(others)
    assert len(first) == 16
    assert fingerprint(Category.UNKNOWN) == fingerprint("Unknown")


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}, {1, 2}, Path("x")])
def test_fingerprint_rejects_values_without_json_form(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        fingerprint(value)


def test_plain_settings_are_json_values() -> None:
    assert settings_to_json(Settings()) == {"seed": 0, "inner": {"sizes": [1, 2], "name": None}}
    assert settings_to_json({"a": (1,)}) == {"a": [1]}
