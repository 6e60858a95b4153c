"""`--engine auto`: decided by the model, the device and the installed packages; earlier results keep their engine."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import slick.cluster
from jobs import presets
from jobs.plan import PlanConfig, plan
from jobs.study import forecast_cost
from slick.annotation import AnnotateConfig
from slick.annotation.p_true import p_true_settings, resolve_p_true_engine
from slick.errors import SettingsError
from slick.inference import selection
from slick.inference.base import ENGINES, SamplingConfig
from slick.inference.selection import (
    EngineChoice,
    EngineRequest,
    choose_engine,
    describe_rule,
    num_gpus_for_weights,
    read_stored_engine,
)
from slick.model_files import count_parameters
from slick.precision import CPU, Device
from slick.storage import Folder
from slick.study import begin_step, complete_step

GPU = Device(is_gpu=True, supports_bfloat16=True, name="NVIDIA L4", memory=24_000_000_000)


def write_model(folder: Path, *shapes: tuple[int, ...], num_heads: int = 32) -> str:
    """A model folder with weights of these shapes, whose files have holes in place of numbers."""
    folder.mkdir(exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": num_heads, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for i, shape in enumerate(shapes):
        header[f"model.{i}"] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [end, end := end + 2 * math.prod(shape)],
        }
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("ab") as file:
        file.truncate(8 + len(text) + end)
    return str(folder)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A model of 8 billion parameters."""
    return write_model(tmp_path / "8B", (1_000_000, 8_000))


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A model of 70 billion parameters."""
    return write_model(tmp_path / "70B", (1_000_000, 30_000), (1_000_000, 40_000))


def request(model: str, **changed: Any) -> EngineRequest:
    return replace(
        AnnotateConfig(dtype="bfloat16").engine_request(model),
        **changed,
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Make vLLM, as built for GPUs, installed or not."""

    def install(is_installed: bool) -> None:
        monkeypatch.setattr(selection, "find_spec", lambda _: SimpleNamespace() if is_installed else None)
        monkeypatch.setattr(selection, "_is_vllm_for_cpu", lambda: False)
        monkeypatch.setattr(selection, "packing_problem", lambda _: "")

    install(False)
    return install


def test_weights_are_counted_from_the_headers(small: str, large: str) -> None:
    assert [count_parameters(model) for model in (small, large)] == [8e9, 70e9]


def test_a_model_that_fits_one_gpu_or_runs_on_the_cpu_gets_the_packed_engine(
    small: str, large: str, installed: Callable[[bool], None]
) -> None:
    for is_installed in (False, True):
        installed(is_installed)
        assert choose_engine(request(small), GPU) == EngineChoice(
            engine="transformers",
            reason="its weights (16.0 GB in bfloat16) fit the 24.0 GB of NVIDIA L4",
            gpus_per_actor=None,
        )
        assert str(choose_engine(request(large), CPU)) == "engine transformers, because the model runs on the CPU"
        unknown = choose_engine(request(large), replace(GPU, memory=None))
        assert (unknown.engine, unknown.reason) == ("transformers", "the model is assumed to fit NVIDIA L4")


def test_a_larger_model_gets_vllm_on_as_many_gpus_as_it_needs(
    large: str, tmp_path: Path, installed: Callable[[bool], None]
) -> None:
    installed(True)
    assert choose_engine(request(large), GPU) == EngineChoice(
        engine="vllm",
        reason="its weights (140.0 GB in bfloat16) exceed 72 % of the 24.0 GB of NVIDIA L4: 16 GPUs do",
        gpus_per_actor=16,
    )
    a100 = replace(GPU, name="A100", memory=80_000_000_000)
    assert choose_engine(request(large), a100).gpus_per_actor == 4
    uneven = write_model(tmp_path / "uneven", (1_000_000, 30_000), num_heads=28)
    assert choose_engine(request(uneven), replace(GPU, memory=21_000_000_000)).gpus_per_actor == 4
    with pytest.raises(SettingsError, match=r"30B|uneven: its weights \(60.0 GB .* Options: GPUs with more memory"):
        choose_engine(request(uneven), replace(GPU, memory=15_000_000_000))


def test_without_vllm_a_larger_model_is_refused_with_all_options(large: str, installed: Callable[[bool], None]) -> None:
    with pytest.raises(SettingsError) as error:
        choose_engine(request(large, dtype="float32"), replace(GPU, memory=80_000_000_000))
    assert str(error.value) == (
        f"no engine can be chosen for {large}: its weights (280.0 GB in float32) exceed 72 % of the 80.0 GB of NVIDIA "
        "L4. Options: --dtype bfloat16; --engine vllm --gpus-per-actor 8 (vLLM is not installed (pip install "
        "'slick-knowledge[vllm]')); GPUs with more memory; --gpus-per-actor 0 for the CPU; --engine transformers to "
        "try it anyway"
    )
    with pytest.raises(SettingsError, match=r"--gpus-per-actor 2 needs --engine vllm, but vLLM is not installed"):
        choose_engine(request(large, gpus_per_actor=2.0), GPU)


def test_a_share_of_a_gpu_counts_as_such(small: str, installed: Callable[[bool], None]) -> None:
    installed(True)
    with pytest.raises(SettingsError, match=r"exceed 72 % of 50 % of the 24.0 GB .* Options: --gpus-per-actor 1;"):
        choose_engine(request(small, gpus_per_actor=0.5), GPU)
    assert choose_engine(request(small, gpus_per_actor=2.0), GPU) == EngineChoice(
        engine="vllm", reason="--gpus-per-actor 2 shares the model among several GPUs", gpus_per_actor=2.0
    )


def test_vllm_declares_its_capabilities() -> None:
    transformers, vllm = (ENGINES.get(name).capabilities for name in ("transformers", "vllm"))
    assert transformers == {
        "answer_log_probabilities",
        "answers",
        "compile",
        "early_exit",
        "gold",
        "log_probabilities",
    }
    assert vllm == transformers - {"answer_log_probabilities", "compile"} | {"tensor_parallel"}
    for needs in ({"estimator": "gold"}, {"mode": "labels"}, {"gpus_per_actor": 2}):
        AnnotateConfig(engine="vllm", **needs)
        AnnotateConfig(**needs)
    with pytest.raises(SettingsError, match="--engine transformers does not support --gpus-per-actor 2"):
        AnnotateConfig(engine="transformers", gpus_per_actor=2)
    with pytest.raises(SettingsError, match="there is no engine 'autp'"):
        AnnotateConfig(engine="autp")


def test_several_gpus_share_attention_heads_equally() -> None:
    assert num_gpus_for_weights(72, 100) == 1
    assert num_gpus_for_weights(73, 100) == 2
    assert [num_gpus_for_weights(200, 100, heads) for heads in (0, 12, 6)] == [4, 4, None]


def test_the_rule_is_described_where_the_memory_is_not_known(small: str) -> None:
    assert describe_rule(request(small)) == (
        "engine transformers if the weights (16.0 GB in bfloat16) take at most 72 % of a GPU's memory, otherwise vllm; "
        "chosen when the annotation starts"
    )
    assert "if the weights take" in describe_rule(request(""))
    assert describe_rule(request(small, gpus_per_actor=2.0)).startswith(
        "engine vllm, because --gpus-per-actor 2 shares"
    )


def test_plans_and_forecasts_name_the_choice(
    tmp_path: Path, small: str, monkeypatch: pytest.MonkeyPatch, installed: Callable[[bool], None]
) -> None:
    one, four = ("\n".join(plan(PlanConfig(model_size=size, gpu_memory=80))) for size in ("8B", "70B"))
    assert "One GPU per actor holds the model, so --engine auto chooses transformers" in one
    assert "4 GPUs per actor hold the model, so --engine auto chooses vllm" in four

    config = presets.demo_study()
    monkeypatch.setattr(slick.cluster, "_may_have_gpu", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "annotation: engine transformers, because the model runs on the CPU" in forecast_cost(config)
    monkeypatch.setattr(slick.cluster, "_may_have_gpu", lambda: True)
    with_model = replace(config, model=small)
    assert "if the weights (16.0 GB in bfloat16) take at most" in forecast_cost(with_model)
    named = replace(config, annotate=replace(config.annotate, engine="vllm"))
    assert "annotation: engine vllm\n" in forecast_cost(named)
    settings = AnnotateConfig(engine="vllm", dtype="float32")
    begin_step(Folder(str(tmp_path / "study")).child("annotate"), "annotate", "identity", settings)
    text = forecast_cost(config, Folder(str(tmp_path / "study")))
    assert "annotation: engine vllm, because earlier results in this folder are by this engine" in text


@pytest.mark.parametrize("is_finished", [True, False])
def test_earlier_results_keep_their_engine(tmp_path: Path, is_finished: bool) -> None:
    folder = Folder(str(tmp_path / "annotate"))
    assert read_stored_engine(folder, None) == {}
    settings = AnnotateConfig(engine="vllm", gpus_per_actor=4, dtype="bfloat16")
    begin_step(folder, "annotate", "identity", settings)
    if is_finished:
        complete_step(folder, "annotate", "identity", settings=settings, inputs={}, counts={}, started_at=0.0)
    assert read_stored_engine(folder, None) == {"engine": "vllm", "gpus_per_actor": 4}
    assert read_stored_engine(folder, 2.0) == {"engine": "vllm", "gpus_per_actor": 2.0}


def test_only_the_packed_engine_is_not_named_in_the_settings_of_p_true() -> None:
    """Earlier versions had no other one, so that their fingerprints stay (tests/unit/test_settings.py)."""
    settings = p_true_settings(AnnotateConfig(engine="transformers"))
    assert p_true_settings(AnnotateConfig()) == settings
    assert p_true_settings(AnnotateConfig(engine="vllm")) == settings | {"engine": "vllm"}


def test_p_true_is_by_the_engine_of_the_labels_unless_it_cannot_or_has_begun(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    labels = AnnotateConfig(engine="vllm", gpus_per_actor=4, dtype="float32")

    def engine(labels: AnnotateConfig) -> tuple[str, float | None]:
        resolved = resolve_p_true_engine(study, AnnotateConfig(p_true=True), labels)
        return resolved.engine, resolved.gpus_per_actor

    assert engine(labels) == ("vllm", 4)
    assert engine(AnnotateConfig(engine="transformers", gpus_per_actor=0.5)) == ("transformers", 0.5)
    # Earlier versions scored P(True) by the packed engine whatever the engine of the labels.
    begin_step(
        study.child("annotate", "p_true"),
        "P(True)",
        "identity",
        p_true_settings(AnnotateConfig(engine="transformers")),
    )
    assert engine(labels) == ("transformers", 1.0)


def test_default_is_auto_on_the_command_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.common import parse_config

    assert parse_config(AnnotateConfig(), [], "slick annotate").engine == "auto"
    assert parse_config(AnnotateConfig(), ["--engine", "vllm"], "slick annotate").engine == "vllm"
    with pytest.raises(SettingsError, match="auto"):
        parse_config(AnnotateConfig(), ["--engine", "other"], "slick annotate")
    with pytest.raises(SystemExit):
        parse_config(AnnotateConfig(), ["--help"], "slick annotate")
    assert "{auto,transformers,vllm}" in capsys.readouterr().out
    assert AnnotateConfig(sampling=SamplingConfig(num_samples=1)).needed_capabilities == {
        "answers": "--estimator sampled"
    }
