"""Declarations on settings fields, and the stability of fingerprints derived from them."""

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

from slick.annotation.config import AnnotateConfig
from slick.annotation.p_true import p_true_settings
from slick.datasets.prepare import QuestionsConfig
from slick.errors import SettingsError
from slick.inference.base import SamplingConfig
from slick.report import ReportConfig
from slick.settings import (
    ABOVE_ZERO,
    COMPARISON,
    affects,
    check_settings,
    cost_settings,
    fields_affecting,
    filter_settings,
    identity_settings,
    setting,
)
from slick.study import fingerprint
from slick.variants import VariantsConfig
from slick.world.config import WorldConfig, smoke_world_config
from tuning.config import TrainConfig
from tuning.grid import GridConfig, SweepConfig

SAMPLING = SamplingConfig(seed=3, top_k=7)
LORA = {"schedule": "linear", "lora_rank": 8, "lora_alpha": 3.0}
FILES = {"questions": "x.csv", "relations": "r.json", "rejects": "bad.jsonl", "audit": "a"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AnnotateConfig(dtype="float32", engine="transformers"), "872cab6ea16c03ac"),
        (
            AnnotateConfig(
                engine="transformers",
                dtype="float32",
                model="m",
                matcher="f1",
                sampling=SAMPLING,
                annotate_dev=True,
                max_actors=3,
                p_true=True,
            ),
            "40e5c783a9f9f045",
        ),
        (WorldConfig(), "9dfd82ad6b9f3e59"),
        (smoke_world_config(), "d2aa3965873a8c17"),
        (WorldConfig(num_threads=3, seed=2), "1c3221fdfed9521a"),
        (QuestionsConfig(), "35f4cb40174ec445"),
        (QuestionsConfig(filter="none", dev_share=0.2, **FILES), "cfa57a3c2f82a395"),
        (VariantsConfig(), "a21c09a3f095f8f4"),
        (VariantsConfig(concentrated_shares=(0.5,), idk_phrase="No idea", seed=4), "fb007ca02175f0a8"),
        (TrainConfig(dtype="float32"), "33828940c8730fcb"),
        (
            TrainConfig(dtype="float32", epochs=7, num_workers=2, packing=False, track=("mlflow",)),
            "33828940c8730fcb",
        ),
        (TrainConfig(dtype="bfloat16", epochs=7, keep_checkpoints="none", **LORA), "1faf37cd3de5c188"),
        (TrainConfig(dtype="float32", epochs=7, replay_known=5), "bd980d91da0cf195"),
        (GridConfig(), "9c8917916f3e4998"),
        (
            GridConfig(variants=("natural",), axes=("learning_rate=1e-5,1e-4",), seeds=(0, 1)),
            "0aead1a17936700d",
        ),
        (SweepConfig(train=TrainConfig(dtype="float32")), "a09677506b62fa44"),
        (
            SweepConfig(train=TrainConfig(dtype="float32", schedule="cosine"), stop="live", retries=0),
            "6beb34def4271e31",
        ),
        (
            SweepConfig(
                train=TrainConfig(dtype="float32"),
                grid=GridConfig(axes=("learning_rate=1e-5..1e-4",)),
                search="optuna",
                samples=3,
                search_seed=2,
            ),
            "3eedea8e5d77d09d",
        ),
        (ReportConfig(), "da7255b6295d53f2"),
        (ReportConfig(title="t", graded="sheet.csv"), "d01a5ef8b3661d06"),
    ],
)
def test_fingerprints_equal_those_of_finished_studies(config: AnnotateConfig, expected: str) -> None:
    assert fingerprint(config.identity()) == expected


def test_p_true_fingerprints_equal_those_of_finished_studies() -> None:
    assert fingerprint(p_true_settings(AnnotateConfig(dtype="float32"))) == "c26efdeb1eaadabb"
    wider = AnnotateConfig(p_true_of="all", annotate_dev=True, dtype="bfloat16", seed=3)
    assert fingerprint(p_true_settings(wider)) == "2bf67205f5108a49"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    rate: float = 1.0
    seed: int = setting(0, "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    forgotten: int = 1
    path: str = setting("", "content")
    workers: int = setting(1, "cost")
    epochs: int = setting(2, "length")
    mode: str = setting("plain", "result")
    samples: int = setting(5, "result", when=lambda values: values.get("mode") == "search")
    inner: Inner = field(default_factory=Inner, metadata=affects("result"))


def test_undeclared_field_affects_everything() -> None:
    assert identity_settings(Outer()) == {"forgotten": 1, "mode": "plain", "inner": {"rate": 1.0, "seed": 0}}
    assert fields_affecting(Outer, "result", "cost") == ("forgotten",)


def test_settings_without_effect_are_omitted() -> None:
    assert identity_settings(Outer(mode="search"))["samples"] == 5
    assert identity_settings(Outer(), COMPARISON)["epochs"] == 2


def test_stored_settings_are_filtered_by_their_class() -> None:
    stored = {"path": "x", "workers": 3, "mode": "search", "samples": 4, "inner": {"rate": 2, "seed": 1}, "later": 7}
    kept = {"mode": "search", "samples": 4, "inner": {"rate": 2, "seed": 1}, "later": 7}
    assert filter_settings(Outer, stored) == kept, "settings unknown to the class must count"
    assert filter_settings(Outer, stored, frozenset({"result"}))["inner"] == {"rate": 2}
    assert filter_settings(None, stored) == stored


def test_former_setting_names_of_older_manifests_are_accepted() -> None:
    older = {"source": "there/q.csv", "filter": "none"}
    assert filter_settings(QuestionsConfig, older) == filter_settings(
        QuestionsConfig, {"questions": "here/q.csv", "filter": "none"}
    )
    assert filter_settings(WorldConfig, {"source": "q.zip"}) == {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    mode: Literal["fast", "exact"] | None = None
    layers: tuple[Literal["first", "last"], ...] = ()
    steps: tuple[int, ...] = setting((1,), minimum=1)
    share: float | None = setting(None, "cost", above=0, maximum=1)
    rate: float = setting(0.5, only_zero_changes_cost=True)

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "slow"}, "mode is one of fast, exact, None, got 'slow'"),
        ({"layers": ("first", "middle")}, "layers is one of first, last, got 'middle'"),
        ({"steps": (3, 0)}, "steps must be 1 or more, got 0"),
        ({"share": 0.0}, r"share is a share in \(0, 1\], got 0.0; 5 percent is 0.05"),
        ({"share": float("nan")}, "share is a share"),
    ],
)
def test_validation_follows_field_types_and_bounds(change: dict, message: str) -> None:
    Validated(mode="fast", layers=("last",), share=1.0)
    with pytest.raises(SettingsError, match=message):
        Validated(**change)


def test_cost_settings_change_results_and_cost() -> None:
    assert cost_settings(Validated(rate=0.1)) == {"mode": None, "layers": (), "steps": (1,), "rate": ABOVE_ZERO}
    assert cost_settings(Validated(rate=0.1)) == cost_settings(Validated(rate=0.2, share=0.3))
    assert cost_settings(Validated(rate=0.0)) != cost_settings(Validated(rate=0.2))


@pytest.mark.parametrize("step", ["world", "questions", "annotate", "variants", "finetune", "sweep", "report"])
def test_settings_class_of_a_step_is_imported_lazily(step: str) -> None:
    code = f"from slick.settings import settings_class; print(settings_class({step!r}).__name__)"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip().endswith("Config")
