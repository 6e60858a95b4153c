"""Printed and documented commands have the precision, and so the memory, that the plan assumes."""

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
"""Of the command line itself, not of a step; each takes a value."""
_SWITCHES = {"--dry-run", "--no-wait", "--plan"}


def settings_of(command: str) -> Any:
    """What a command line gives its step, parsed as the step itself parses it; None for other commands."""
    words = shlex.split(re.sub(r" N\b", " 1", command.replace("...", "")), comments=True)
    words = words[words.index("slick") + 1 :] if "slick" in words else words
    words = words[1:] if words[0] == "submit" else words
    if len(words) < 2 or words[0] not in STEP_PRESETS or words[1] not in STEP_PRESETS[words[0]]:
        return None
    step, preset, *rest = words
    flags: list[str] = []
    given = iter(rest)
    for word in given:
        if word in _OWN_FLAGS:
            next(given)
        elif word not in _SWITCHES:
            flags.append(word)
    if "--rescore" in flags:
        return parse_config(RescoreConfig(), [word for word in flags if word != "--rescore"], step)
    return parse_config(STEP_PRESETS[step][preset](), flags, step)


@dataclass(frozen=True)
class Taken:
    """What a command makes a GPU hold."""

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


def taken_by(command: str) -> Taken | None:
    """By the trainings and the annotation that a command starts; None where it starts neither."""
    match settings_of(command):
        case AnnotateConfig() as config:
            return Taken(config, None)
        case TrainConfig() as config:
            return Taken(None, config)
        case SweepConfig() as config:
            return Taken(None, config.train)
        case StudyConfig() as config:
            return Taken(config.annotate, config.sweep.train)
    return None


def documented(name: str) -> list[str]:
    """Every command of a file that starts work, in comments and on several lines too."""
    text = (ROOT / name).read_text()
    text = re.sub(r"\n\s*#", "\n#", text)
    text = re.sub(r"\s*\\\n#?\s*", " ", text)
    if name == "kuberay.yaml":
        text = re.sub(r"entrypoint: >-\n((?:\s{8}.*\n)+)", lambda found: " ".join(found[1].split()) + "\n", text)
    text = re.sub(r"job\nsubmit", "job submit", text)
    found = re.findall(r"(?:slick|python -m jobs\.)\s?(?:submit )?(?:annotate|finetune|sweep|study) [^\n`]*", text)
    return [command.replace("python -m jobs.", "slick ") for command in found]


def planned(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    plan.main(flags)
    return capsys.readouterr().out


def commands_in(text: str) -> Iterator[str]:
    return (found[0].rstrip(";,. ") for found in re.finditer(r"slick (?:annotate|finetune) [^;\n]*", text))


@pytest.mark.parametrize("size", ["135M", "1B", "7B", "13B", "70B"])
@pytest.mark.parametrize(
    ("gpus", "memory"), [(1, 24), (1, 80), (4, 40), (8, 80), (16, 141)], ids=lambda number: str(number)
)
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_printed_command_has_the_memory_of_the_plan(
    capsys: pytest.CaptureFixture[str], size: str, gpus: int, memory: int, dtype: str
) -> None:
    text = planned(capsys, "--model-size", size, "--gpus", str(gpus), "--gpu-memory", str(memory), "--dtype", dtype)
    shape, room = published_shape(size), (1 - HEADROOM) * memory * GB
    width = {"auto": 2, "float32": 4}[dtype]
    (weights,) = re.findall(r"Annotation, \w+: weights ([\d.]+) GB", text)
    assert float(weights) == pytest.approx(width * shape.parameters / GB, abs=0.051)
    for command in commands_in(text):
        taken = taken_by(command)
        assert taken is not None, command
        if taken.annotate is not None:
            share = max(1, taken.annotate.gpus_per_actor or 1)
            assert share * taken.annotation_weights(shape) == width * shape.parameters, command
            assert taken.annotation_weights(shape) < room, command
        else:
            found = taken.training(shape)
            assert found.peak_device_bytes < room, command
            flags = command.split("large ")[1].split(" --num-workers")[0]
            (row,) = (line for line in text.splitlines() if line.strip().startswith(f"{flags} "))
            numbers = [float(word.replace(",", "")) for word in row.removeprefix(f"  {flags}").split()[:7]]
            assert numbers[0] == pytest.approx(found.weights / GB, abs=0.051), command
            assert numbers[6] == pytest.approx(found.peak_device_bytes / GB, abs=0.051), command


def test_plans_print_commands_of_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    """The test above compares nothing where no command is found."""
    for dtype, flag in (("auto", ""), ("float32", " --dtype float32")):
        text = planned(capsys, "--model-size", "7B", "--dtype", dtype)
        found = list(commands_in(text))
        assert [command.split()[1] for command in found] == ["finetune", "annotate"], text
        assert all(command.endswith(flag) for command in found)


@pytest.mark.parametrize("name", ["README.md", "cluster.yaml", "kuberay.yaml"])
def test_a_documented_command_takes_the_bytes_that_the_plan_counts(name: str) -> None:
    shape, found = published_shape("7B"), documented(name)
    assert found
    for command in found:
        taken = taken_by(command)
        if taken is not None and taken.annotate is not None:
            assert taken.annotation_weights(shape) == 2 * shape.parameters, command
        if taken is not None and taken.train is not None:
            one = replace(taken.train, num_workers=1, min_workers=None, zero_stage=0, offload="none")
            assert Taken(None, one).training(shape).weights >= 2 * shape.parameters, command
            assert Taken(None, one).training(shape).loading == 2 * shape.parameters, command


@pytest.mark.parametrize("name", ["cluster.yaml", "kuberay.yaml"])
def test_the_example_of_a_cluster_fits_the_gpus_that_it_names(name: str) -> None:
    """Its comment names the memory of a GPU, and the largest model with and without LoRA."""
    text = (ROOT / name).read_text()
    (example,) = (command for command in documented(name) if "gpus-per-actor" in command)
    memory = float(re.findall(r"GPUs? with (\d+) GB", text)[0])
    whole, lora = re.findall(r"models of(?:\n#)? up to (\d+B)", text)[:2]
    (flags,) = re.findall(r"`(--sweep.train.lora-rank [^`]*)`", text)
    for size, command in ((whole, example), (lora, f"{example.split('#')[0]} {flags}")):
        taken = taken_by(command)
        assert taken is not None
        assert taken.annotation_weights(published_shape(size)) < 0.8 * (1 - HEADROOM) * memory * GB, size
        assert taken.training(published_shape(size)).peak_device_bytes < (1 - HEADROOM) * memory * GB, size
