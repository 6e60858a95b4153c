"""Adding fine-tuning sets to a study: existing sets stay unchanged, and conflicting settings are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slick.errors import StudyError, VariantError
from slick.storage import Folder
from slick.variants import VariantsConfig, draw_variants, read_variant, variant_names
from slick.variants.config import merge_configs
from tests.study_builder import SMALL, finish_step, write_labelled_study

SETS = {
    "unknown_shares": (0.0, 0.5),
    "known_shares": (0.5,),
    "single_categories": False,
    "natural": False,
    "idk_shares": (),
    "concentrated_shares": (0.5,),
    "weighted_shares": (0.5,),
    "p_correct_shares": (0.5,),
}
ADDED_SETS = {
    "unknown_shares": (0.29, 1.0),
    "known_shares": (0.25,),
    "single_categories": True,
    "natural": True,
    "idk_shares": (0.5, 1.0),
    "concentrated_shares": (0.45,),
    "weighted_shares": (0.29,),
    "p_correct_shares": (0.29,),
}


def files(study: Folder) -> dict[str, bytes]:
    folder = study.child("variants")
    return {name: folder.read_bytes(name) for name in folder.names(".parquet")}


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", SETS)
def test_added_sets_equal_those_drawn_at_once(tmp_path: Path, name: str, nested: bool) -> None:
    first = VariantsConfig(**SETS, nested=nested)
    study = write_labelled_study(tmp_path / "later", SMALL)
    draw_variants(study, first)
    before = files(study)
    later = draw_variants(study, replace(first, **{name: ADDED_SETS[name]}))
    assert {name: content for name, content in files(study).items() if name in before} == before
    assert len(files(study)) > len(before)

    other_study = write_labelled_study(tmp_path / "at once", SMALL)
    merged = merge_configs(first, replace(first, **{name: ADDED_SETS[name]}))
    at_once = draw_variants(other_study, merged)
    assert files(study) == files(other_study)
    assert (later.counts, later.fingerprint, later.settings) == (at_once.counts, at_once.fingerprint, at_once.settings)
    assert list(later.counts) == list(variant_names(merged))


def test_fewer_or_reordered_sets_change_nothing(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    manifest = draw_variants(study, VariantsConfig(concentrated_shares=(0.5,)))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "variants").iterdir()}
    fewer = VariantsConfig(unknown_shares=(1.0, 0.5), natural=False, idk_shares=(), idk_phrase="No idea")
    for config in (
        fewer,
        VariantsConfig(),
        VariantsConfig(**SETS | {"concentrated_shares": (), "weighted_shares": (), "p_correct_shares": ()}),
    ):
        assert draw_variants(study, config) == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "variants").iterdir()} == stamps


def test_refused_addition_keeps_existing_sets(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, {"P17": (9, 12, 8, 30)})
    before = draw_variants(study, VariantsConfig())
    with pytest.raises(VariantError, match="1 relations with 8 rows cannot have one with only Unknown"):
        draw_variants(study, VariantsConfig(concentrated_shares=(0.5,)))
    assert draw_variants(study, VariantsConfig()) == before


@pytest.mark.parametrize(
    "other",
    [
        {"nested": False},
        {"size_rule": "pools"},
        {"size_per_relation": 3},
        {"min_per_relation": 2},
        {"drop_empty_relations": True},
        {"idk_phrase": "No idea"},
    ],
)
def test_sets_with_conflicting_settings_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    draw_variants(study, VariantsConfig())
    before = files(study)
    ((name, value),) = other.items()
    with pytest.raises(
        StudyError, match=rf"the settings now have {name} {value}, and sets of both would not be comparable"
    ):
        draw_variants(study, VariantsConfig(concentrated_shares=(0.5,), **other))
    assert files(study) == before


def test_idk_phrase_may_change_until_a_set_uses_it(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    draw_variants(study, VariantsConfig(idk_shares=()))
    draw_variants(study, VariantsConfig(idk_phrase="No idea"))
    assert "No idea" in read_variant(study, "idk-050")["target"].to_pylist()


def test_weights_may_change_until_a_set_uses_them(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    draw_variants(study, VariantsConfig())
    manifest = draw_variants(study, VariantsConfig(weighted_shares=(0.5,), unknown_weight=0.125))
    assert 0.125 in read_variant(study, "weighted-050")["weight"].to_pylist()
    assert draw_variants(study, VariantsConfig()) == manifest, "settings without weighted sets stay valid"
    with pytest.raises(StudyError, match=r"drawn with unknown_weight 0.125; the settings now have unknown_weight 0.25"):
        draw_variants(study, VariantsConfig(weighted_shares=(0.29,)))


def test_sets_of_another_knowledge_table_are_refused(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    draw_variants(study, VariantsConfig())
    finish_step(study.child("annotate"), "annotate", identity="k2", inputs={"questions": "q1", "model": "m1"})
    for config in (VariantsConfig(), VariantsConfig(concentrated_shares=(0.5,))):
        with pytest.raises(StudyError, match="was written with other inputs or settings"):
            draw_variants(study, config)


def test_interrupted_draw_is_repeated_with_any_settings(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    draw_variants(study, VariantsConfig(concentrated_shares=(0.5,)))
    study.child("variants").delete("manifest.json")
    manifest = draw_variants(study, VariantsConfig(natural=False))
    assert files(study).keys() == {f"{name}.parquet" for name in manifest.counts}
    assert "natural" not in manifest.counts


def test_interrupted_addition_is_repeated(tmp_path: Path) -> None:
    study = write_labelled_study(tmp_path, SMALL)
    draw_variants(study, VariantsConfig())
    old_manifest = study.child("variants").read_bytes("manifest.json")
    manifest = draw_variants(study, VariantsConfig(concentrated_shares=(0.5,)))
    study.child("variants").write_bytes(
        "manifest.json", old_manifest
    )  # as if the process had been killed before it wrote the manifest
    assert draw_variants(study, VariantsConfig()).counts.keys() == manifest.counts.keys() - {"concentrated-050"}
    again = draw_variants(study, VariantsConfig(concentrated_shares=(0.5,)))
    assert (again.counts, again.fingerprint) == (manifest.counts, manifest.fingerprint)
