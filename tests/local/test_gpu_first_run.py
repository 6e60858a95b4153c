"""The first run on a GPU with tiny models on the CPU: every kind of step finishes, and a repeated run skips it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.tables import NOT_MEASURED
from tests.local.head import ROOT

STEPS = [
    *("answers equal the CPU's", "samples in distribution", "the paper's questions"),
    *("annotation 135M full", "annotation 135M labels", "annotation 135M gold", "annotation 135M host-labels"),
    *("annotation 135M generate", "annotation 135M batched", "annotation 135M continuous", "annotation 8B full"),
    *("training 135M bare, 1 GPU", "training 135M bare-joined, 1 GPU", "training 135M trainer, 1 GPU"),
    *("training 135M slick ZeRO 0, 1 GPU", "training 135M slick ZeRO 3 offload all, 2 GPUs"),
    *("training 135M bare, 2 GPUs", "training 8B slick ZeRO 0 LoRA 16, 1 GPU", "annotation 135M vllm"),
]

_HANG_S = 3400.0
"""Below pytest's own time limit; only a hanging run takes so long."""


def first_run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu.first_run", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_HANG_S,
        check=False,
    )


@pytest.mark.slow
def test_every_kind_of_step_runs_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = ["--device", "cpu", "--minutes", "55", "--out", str(out), "--steps", *STEPS]
    completed = first_run(*command)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    steps = json.loads(out.read_text())["steps"]
    assert set(STEPS) <= steps.keys()
    assert "annotation 135M full, 4 processes on a GPU" in steps
    vllm = steps.pop("annotation 135M vllm")
    assert (vllm["status"], vllm["reason"]) == ("not reached", "vllm is not installed")
    assert {name: entry["status"] for name, entry in steps.items()} == dict.fromkeys(steps, "done")
    for name, entry in steps.items():
        result = entry["result"]
        assert result["passed"] if "rows" in result else result["seconds"] > 0, name
        assert "slick" not in name or result["planned_bytes"] > 0
    full, labels = (steps[f"annotation 135M {mode}"]["result"] for mode in ("full", "labels"))
    assert full["tokens"] / full["questions"] > 1.5 * labels["tokens"] / labels["questions"], "labels mode stops early"
    assert f"| 135M | full | {NOT_MEASURED}" not in completed.stdout
    assert f"| 1B | full | {NOT_MEASURED}" in completed.stdout

    before = out.read_text()
    repeated = first_run(*command)
    assert repeated.stdout.count("finished before") == len(steps)
    assert json.loads(out.read_text())["steps"] == json.loads(before)["steps"]
    assert first_run("--table", str(out)).stdout.strip() in repeated.stdout
    other = first_run("--device", "cpu", "--model", str(tmp_path), "--out", str(out))
    assert other.returncode == 2
    assert "give another --out" in other.stderr
