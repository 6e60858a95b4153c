"""Verify and measure slick on a GPU: everything of value in ten minutes, most valuable first.

python -m tests.gpu.first_run --minutes 10 --out results.json
python -m tests.gpu.first_run --minutes 30 --out results.json         # continues: finished steps are skipped
python -m tests.gpu.first_run --table results.json                    # the tables for docs/benchmarks.md
python -m tests.gpu.first_run --out cpu.json --device cpu             # every step with tiny models, without a GPU

The steps check that answers equal those of the CPU, and measure annotation beside other engines, training beside a
PyTorch loop, models of 135 M, 1 B and 8 B parameters with random weights, and the paper's 98,029 questions. Each runs
in its own process with a time limit, and its result is saved at once. Ray is not needed; steps that need DeepSpeed,
vLLM or several GPUs are skipped with the reason where these are missing. Nothing is downloaded.

The exit status is 1 if a step failed or an answer differs, and 2 if the run cannot start.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slick.cluster import LOCAL_CLUSTER_ENV
from tests.gpu.annotation import COMPILED
from tests.gpu.models import SIZES, Settings
from tests.gpu.schedule import UNAVAILABLE, Results, RunError, Step, Unavailable, run_steps, write_result
from tests.gpu.tables import format_tables

_MEASURING_SHARE = 0.25
"""Share of a step's time limit in which it measures; the rest is for loading and the last batch."""
_PAPER_SHARE = 0.6
_PACKAGES = ("torch", "transformers", "numpy", "deepspeed", "ray", "vllm", "peft", "accelerate")
_DESCRIBE_S = 120
_PROCESSES = 4
_CPU_STEP_S = 900.0
"""Time limit of a step on the CPU, where the run checks the steps and measures nothing."""


def make_steps(num_gpus: int) -> list[Step]:
    """All steps, most valuable first.

    Args:
        num_gpus: GPUs of the machine.
    """
    return [
        Step(name="answers equal the CPU's", seconds=90, options={"run": "compare_with_cpu"}),
        Step(name="samples in distribution", seconds=60, options={"run": "compare_distributions"}),
        *_annotation_steps(),
        *_training_steps(num_gpus),
        *_large_model_steps(),
        Step(
            name="the paper's questions",
            seconds=600,
            least_seconds=45,
            options={"run": "measure_paper", "size": SIZES[0]},
        ),
    ]


def _annotation_steps() -> list[Step]:
    engines = {"full": 45, "labels": 45, "gold": 45, "generate": 45, "continuous": 60, "vllm": 150, "batched": 45}
    engines |= dict.fromkeys((f"full{COMPILED}", f"labels{COMPILED}"), 100)
    steps = [_annotation_step(engine, SIZES[0], seconds) for engine, seconds in engines.items()]
    for engine in ("full", "labels"):
        options = {"run": "measure_shared", "engine": engine, "size": SIZES[0], "processes": _PROCESSES}
        name = f"annotation {SIZES[0]} {engine}, {_PROCESSES} processes on a GPU"
        steps.append(Step(name=name, seconds=75, options=options))
    return [*steps, *(_annotation_step(engine, SIZES[0], 30) for engine in ("host-full", "host-labels"))]


def _annotation_step(engine: str, size: str, seconds: float) -> Step:
    return Step(
        name=f"annotation {size} {engine}",
        seconds=seconds,
        packages=("vllm",) if engine == "vllm" else (),
        options={"run": "measure_annotation", "engine": engine, "size": size},
    )


def _training_steps(num_gpus: int) -> list[Step]:
    zero = [(0, "none"), (1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "all")]
    steps = [_training_step(method, SIZES[0], 1) for method in ("bare", "bare-joined")]
    steps += [_training_step("slick", SIZES[0], 1, zero_stage=stage, offload=offload) for stage, offload in zero]
    steps.append(_training_step("trainer", SIZES[0], 1))
    several = max(2, num_gpus)
    steps.append(_training_step("bare", SIZES[0], several))
    steps += [_training_step("slick", SIZES[0], several, zero_stage=stage, offload=offload) for stage, offload in zero]
    return steps


def _training_step(method: str, size: str, gpus: int, **options: Any) -> Step:
    packages = {"slick": ["deepspeed"], "trainer": ["accelerate"]}.get(method, [])
    text = f"training {size} {method}"
    if method == "slick":
        text += f" ZeRO {options.get('zero_stage', 0)}"
    if options.get("offload", "none") != "none":
        text += f" offload {options['offload']}"
    if options.get("lora_rank"):
        packages = [*packages, "peft"]
        text += f" LoRA {options['lora_rank']}"
    if options.get("quantization", "none") != "none":
        packages = [*packages, "bitsandbytes"]
        text += f" {options['quantization']}"
    return Step(
        name=f"{text}, {gpus} GPU{'s' if gpus > 1 else ''}",
        seconds=75 if options.get("offload", "none") != "none" or size != SIZES[0] else 45,
        packages=tuple(packages),
        gpus=gpus,
        options={"run": "measure_training", "method": method, "size": size, "gpus": gpus, **options},
    )


def _large_model_steps() -> list[Step]:
    steps = []
    for size in SIZES[1:]:
        steps += [_annotation_step(engine, size, 60) for engine in (*("full", "labels", "gold"), "generate")]
    steps += [_training_step(method, SIZES[1], 1) for method in ("bare", "slick")]
    steps += [
        _training_step("slick", SIZES[2], 1, lora_rank=16, quantization=kind) for kind in ("none", "4bit", "8bit")
    ]
    return steps


def run_one(step: Step, settings: Settings, limit: float, result_path: Path) -> None:
    """Run a step in this process and write its result."""
    from tests.gpu import annotation, equality, training

    options = dict(step.options)
    run, measuring = options.pop("run"), _MEASURING_SHARE * limit
    if settings.device == "cpu":
        measuring = min(measuring, 1.0)
    try:
        if run == "measure_paper":
            seconds = _PAPER_SHARE * limit if settings.device == "cuda" else measuring
            result = annotation.measure_paper(settings, seconds, result_path, **options)
        elif run == "measure_shared":
            result = annotation.measure_shared(settings, limit, **options)
        elif run == "measure_annotation":
            result = annotation.measure_annotation(settings, measuring, **options)
        elif run == "measure_training":
            result = training.measure_training(settings, **options)
        else:
            result = getattr(equality, run)(settings)
    except Unavailable as error:
        result = {UNAVAILABLE: str(error)}
    write_result(result_path, result)


def describe_machine(settings: Settings) -> dict[str, Any]:
    """The device with its measured speed, and versions of packages. Printed as JSON by a process of its own."""
    import torch

    from tests.gpu.roofline import measure_device

    machine: dict[str, Any] = {"device": settings.device, "gpu": "", "num_gpus": 0, "memory": 0}
    if settings.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("torch sees no GPU")
        properties = torch.cuda.get_device_properties(0)
        machine |= {"gpu": properties.name, "num_gpus": torch.cuda.device_count(), "memory": properties.total_memory}
    return machine | measure_device(settings.device, settings.dtype)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown" if find_spec(package) else ""
    return versions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps, or print the tables; returns the exit status."""
    arguments = _parse(argv)
    settings = Settings(
        device=arguments.device,
        folder=arguments.work,
        model=arguments.model,
        questions=arguments.questions,
        processes=arguments.processes,
    )
    if arguments.describe:
        print(json.dumps(describe_machine(settings)))
        return 0
    if arguments.run:
        steps = {step.name: step for step in make_steps(arguments.num_gpus)}
        run_one(steps[arguments.run], settings, arguments.limit, Path(arguments.result))
        return 0
    try:
        path = Path(arguments.table or arguments.out)
        if arguments.table and not path.exists():
            raise RunError(f"--table {path}: there is no such file")
        results = Results.read(path)
        if arguments.table:
            print(format_tables(results, make_steps(results.machine.get("num_gpus", 1))))
            return 0
        return run_all(arguments, results)
    except RunError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run_all(arguments: argparse.Namespace, results: Results) -> int:
    """Run the steps and print the tables.

    Raises:
        RunError: there is no GPU, an argument is wrong, or the results are of another machine.
    """
    for flag, path in (("--model", arguments.model), ("--questions", arguments.questions)):
        if path and not Path(path).exists():
            raise RunError(f"{flag} {path}: there is no such file or folder")
    with tempfile.TemporaryDirectory(prefix="first-run-") as folder:
        for number in (signal.SIGINT, signal.SIGTERM):  # also if a shell made this process ignore Ctrl-C
            signal.signal(number, signal.default_int_handler)
        if arguments.work:
            Path(arguments.work).mkdir(parents=True, exist_ok=True)
        common = [sys.executable, "-m", "tests.gpu.first_run", "--out", str(results.path), "--device", arguments.device]
        common += ["--work", arguments.work or folder, "--model", arguments.model, "--questions", arguments.questions]
        os.environ.update(_environment(arguments.device))
        machine = _describe([*common, "--describe"])
        machine |= {"model": arguments.model, "questions": arguments.questions, "versions": _versions()}
        check_machine(results, machine)
        results.machine = machine
        steps = make_steps(machine["num_gpus"])
        for text in arguments.steps:
            if not any(text in step.name for step in steps):
                raise RunError(f"--steps {text!r}: no step has this in its name; they are {[s.name for s in steps]}")
        if arguments.steps:
            steps = [step for step in steps if any(text in step.name for text in arguments.steps)]
        if arguments.device == "cpu":
            steps = [replace(step, seconds=_CPU_STEP_S, least_seconds=1.0) for step in steps]

        def make_command(step: Step, limit: float, result: Path) -> list[str]:
            more = ["--run", step.name, "--limit", str(limit), "--result", str(result)]
            return [*common, *more, "--num-gpus", str(machine["num_gpus"])]

        run_steps(
            steps,
            results,
            make_command,
            seconds=60 * arguments.minutes,
            num_gpus=machine["num_gpus"] if arguments.device == "cuda" else None,
            again=arguments.again,
            log=lambda line: print(line, flush=True),
        )
    print("\n" + format_tables(results, make_steps(results.machine["num_gpus"])))
    return int(has_failed(results))


def has_failed(results: Results) -> bool:
    """Whether a step failed, or found that answers differ."""
    return any(
        entry["status"] == "failed" or not entry.get("result", {}).get("passed", True)
        for entry in results.steps.values()
    )


def check_machine(results: Results, machine: dict[str, Any]) -> None:
    """Refuse to add results of another machine, model or questions to a file.

    Raises:
        RunError: they differ.
    """
    names = ("device", "gpu", "num_gpus", "model", "questions")
    changed = [name for name in names if results.steps and results.machine.get(name) != machine[name]]
    if changed:
        stored, new = ({name: where.get(name) for name in changed} for where in (results.machine, machine))
        raise RunError(f"{results.path} has results of {stored}, this run is of {new}; give another --out")


def _describe(command: list[str]) -> dict[str, Any]:
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=_DESCRIBE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"the device did not answer in {_DESCRIBE_S} s") from error
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or [f"exit status {completed.returncode}"]
        raise RunError(f"the device cannot be used: {lines[-1]}; --device cpu runs every step with tiny models")
    machine: dict[str, Any] = json.loads(completed.stdout.strip().splitlines()[-1])
    return machine


def _environment(device: str) -> dict[str, str]:
    """Environment of the steps: one thread, no downloads, and on the CPU no GPU."""
    environment = {
        **LOCAL_CLUSTER_ENV,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return environment | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="file of results; an existing one is continued")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--again", action="store_true", help="repeat finished steps")
    parser.add_argument("--steps", nargs="+", default=[], help="only steps with one of these in their name")
    parser.add_argument("--model", default="", help="Hugging Face folder, instead of the smallest random model")
    parser.add_argument("--questions", default="", help="EntityQuestions as zip, instead of invented questions")
    parser.add_argument("--work", default="", help="folder for models of random weights; default: temporary")
    parser.add_argument("--table", metavar="FILE", help="print the tables of a file of results")
    parser.add_argument("--describe", action="store_true", help=argparse.SUPPRESS)
    for hidden in ("--run", "--result"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--num-gpus", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if bool(arguments.out) == bool(arguments.table):
        parser.error("give either --out FILE or --table FILE")
    if arguments.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {arguments.minutes:g}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
