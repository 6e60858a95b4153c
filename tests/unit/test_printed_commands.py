"""Printed and documented commands have the precision, and therefore the memory, that the plan assumes."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from jobs import plan
from jobs.common import parse_config
from jobs.presets import STEP_PRESETS, StudyConfig
from slick.annotation import AnnotateConfig, RescoreConfig
from slick.precision import ASSUMED_GPU, dtype_bytes, resolve_dtype
from tuning.config import TrainConfig
from tuning.estimates import HEADROOM, ModelShape, estimate_training_memory, published_shape
from tuning.grid import SweepConfig

ROOT = Path(__file__).parents[2]
GB = 1e9
_OWN_FLAGS = {"--out", "--address", "--env", "--requirements"}
"""Flags of the command line itself, not of a step; each takes a value."""
_SWITCHES = {"--dry-run", "--no-wait", "--plan"}


def parse_command(command: str) -> Any:
    """The settings of a command line, parsed as its step does; None for other commands."""
    arguments = shlex.split(re.sub(r" N\b", " 1", command.replace("...", "")), comments=True)
    arguments = arguments[arguments.index("slick") + 1 :] if "slick" in arguments else arguments
    arguments = arguments[1:] if arguments[0] == "submit" else arguments
    if len(arguments) < 2 or arguments[0] not in STEP_PRESETS or arguments[1] not in STEP_PRESETS[arguments[0]]:
        return None
    step, preset, *rest = arguments
    flags: list[str] = []
    remaining = iter(rest)
    for word in remaining:
        if word in _OWN_FLAGS:
            next(remaining)
        elif word not in _SWITCHES:
            flags.append(word)
    if "--rescore" in flags:
        return parse_config(RescoreConfig(), [word for word in flags if word != "--rescore"], step)
    return parse_config(STEP_PRESETS[step][preset](), flags, step)


@dataclass(frozen=True)
class GpuSettings:
    """Settings that determine the GPU memory of a command."""

    annotate: AnnotateConfig | None
    train: TrainConfig | None

    def annotation_weights(self, shape: ModelShape) -> float:
        assert self.annotate is not None
        dtype = resolve_dtype(self.annotate.dtype, ASSUMED_GPU)
        return dtype_bytes(dtype) * shape.parameters / max(1, self.annotate.gpus_per_actor or 1)

    def training(self, shape: ModelShape) -> Any:
        assert self.train is not None
        dtype: Any = resolve_dtype(self.train.dtype, ASSUMED_GPU)
        return estimate_training_memory(shape, replace(self.train, dtype=dtype), self.train.num_workers)


def gpu_settings(command: str) -> GpuSettings | None:
    """Settings of the annotation and trainings of a command; None if it starts neither."""
    match parse_command(command):
        case AnnotateConfig() as config:
            return GpuSettings(config, None)
        case TrainConfig() as config:
            return GpuSettings(None, config)
        case SweepConfig() as config:
            return GpuSettings(None, config.train)
        case StudyConfig() as config:
            return GpuSettings(config.annotate, config.sweep.train)
    return None


def documented_commands(name: str) -> list[str]:
    """All commands in a file that annotate or train, also in comments and over several lines."""
    text = (ROOT / name).read_text()
    text = re.sub(r"\n\s*#", "\n#", text)
    text = re.sub(r"\s*\\\n#?\s*", " ", text)
    if name == "kuberay.yaml":
        text = re.sub(r"entrypoint: >-\n((?:\s{8}.*\n)+)", lambda match: " ".join(match[1].split()) + "\n", text)
    text = re.sub(r"job\nsubmit", "job submit", text)
    commands = re.findall(r"(?:slick|python -m jobs\.)\s?(?:submit )?(?:annotate|finetune|sweep|study) [^\n`]*", text)
    return [command.replace("python -m jobs.", "slick ") for command in commands]


def plan_output(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    plan.main(flags)
    return capsys.readouterr().out


def find_commands(text: str) -> Iterator[str]:
    return (match[0].rstrip(";,. ") for match in re.finditer(r"slick (?:annotate|finetune) [^;\n]*", text))


@pytest.mark.parametrize("size", ["135M", "1B", "7B", "13B", "70B"])
@pytest.mark.parametrize(
    ("gpus", "memory"), [(1, 24), (1, 80), (4, 40), (8, 80), (16, 141)], ids=lambda number: str(number)
)
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_printed_command_has_the_memory_of_the_plan(
    capsys: pytest.CaptureFixture[str], size: str, gpus: int, memory: int, dtype: str
) -> None:
    text = plan_output(capsys, "--model-size", size, "--gpus", str(gpus), "--gpu-memory", str(memory), "--dtype", dtype)
    shape, limit = published_shape(size), (1 - HEADROOM) * memory * GB
    num_bytes = {"auto": 2, "float32": 4}[dtype]
    (weights,) = re.findall(r"Annotation, \w+: weights ([\d.]+) GB", text)
    assert float(weights) == pytest.approx(num_bytes * shape.parameters / GB, abs=0.051)
    for command in find_commands(text):
        settings = gpu_settings(command)
        assert settings is not None, command
        if settings.annotate is not None:
            num_gpus = max(1, settings.annotate.gpus_per_actor or 1)
            assert num_gpus * settings.annotation_weights(shape) == num_bytes * shape.parameters, command
            assert settings.annotation_weights(shape) < limit, command
        else:
            estimate = settings.training(shape)
            assert estimate.peak_device_bytes < limit, command
            flags = command.split("large ")[1].split(" --num-workers")[0]
            (row,) = (line for line in text.splitlines() if line.strip().startswith(f"{flags} "))
            numbers = [float(word.replace(",", "")) for word in row.removeprefix(f"  {flags}").split()[:7]]
            assert numbers[0] == pytest.approx(estimate.weights / GB, abs=0.051), command
            assert numbers[6] == pytest.approx(estimate.peak_device_bytes / GB, abs=0.051), command


def test_plans_print_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise the test above would compare nothing."""
    for dtype, flag in (("auto", ""), ("float32", " --dtype float32")):
        text = plan_output(capsys, "--model-size", "7B", "--dtype", dtype)
        commands = list(find_commands(text))
        assert [command.split()[1] for command in commands] == ["finetune", "annotate"], text
        assert all(command.endswith(flag) for command in commands)


@pytest.mark.parametrize("name", ["README.md", "cluster.yaml", "kuberay.yaml"])
def test_documented_command_has_the_memory_of_the_plan(name: str) -> None:
    shape, commands = published_shape("7B"), documented_commands(name)
    assert commands
    for command in commands:
        settings = gpu_settings(command)
        if settings is not None and settings.annotate is not None:
            assert settings.annotation_weights(shape) == 2 * shape.parameters, command
        if settings is not None and settings.train is not None:
            single_worker = replace(settings.train, num_workers=1, min_workers=None, zero_stage=0, offload="none")
            assert GpuSettings(None, single_worker).training(shape).weights >= 2 * shape.parameters, command
            assert GpuSettings(None, single_worker).training(shape).loading == 2 * shape.parameters, command


@pytest.mark.parametrize("name", ["cluster.yaml", "kuberay.yaml"])
def test_cluster_example_fits_its_gpus(name: str) -> None:
    """The comment of the example names the GPU memory and the largest model with and without LoRA."""
    text = (ROOT / name).read_text()
    (example,) = (command for command in documented_commands(name) if "gpus-per-actor" in command)
    memory = float(re.findall(r"GPUs? with (\d+) GB", text)[0])
    largest, largest_with_lora = re.findall(r"models of(?:\n#)? up to (\d+B)", text)[:2]
    (flags,) = re.findall(r"`(--sweep.train.lora-rank [^`]*)`", text)
    for size, command in ((largest, example), (largest_with_lora, f"{example.split('#')[0]} {flags}")):
        settings = gpu_settings(command)
        assert settings is not None
        assert settings.annotation_weights(published_shape(size)) < 0.8 * (1 - HEADROOM) * memory * GB, size
        assert settings.training(published_shape(size)).peak_device_bytes < (1 - HEADROOM) * memory * GB, size
