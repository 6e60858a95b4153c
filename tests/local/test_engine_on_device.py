"""The engine where its model is not on the CPU: nothing of it is left behind there, and the host seldom waits."""

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.local.tiny import CONFIGS, UNPACKED

QUICK = ("llama float32", "llama bfloat16", "gemma3_text float32", "gpt2 float32", "mamba float32")
SLOW = tuple(
    model
    for model in (*(f"{name} float32" for name in (*CONFIGS, *UNPACKED)), "gemma3_text bfloat16", "gpt2 bfloat16")
    if model not in QUICK
)


@cache
def compared(models: tuple[str, ...]) -> dict[str, Any]:
    """One process for all of them, since most of its time it imports torch."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.local.stand_in_device", *models],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("model", [*QUICK, *(pytest.param(model, marks=pytest.mark.slow) for model in SLOW)])
def test_on_a_device_the_answers_are_those_of_the_cpu(model: str) -> None:
    found = compared(QUICK if model in QUICK else SLOW)[model]
    name, dtype = model.split()
    assert found["packs"] == found["packs_on_cpu"] == (name in CONFIGS)
    cpu, device = found["cpu"], found["device"]
    assert len(cpu["full"]) == 36
    assert len({text for texts in cpu["full"] for text in texts}) > 36
    assert device["full"] == cpu["full"]
    assert 0 < sum(text is None for texts in cpu["labels"] for text in texts) < 36 * 5
    assert device["labels"] == cpu["labels"]
    rtol = 2e-2 if dtype == "bfloat16" else 1e-5
    assert len(set(cpu["probability"])) > 20
    np.testing.assert_allclose(device["probability"], cpu["probability"], rtol=rtol)
    assert len(set(cpu["choices"])) == 24
    np.testing.assert_allclose(device["choices"], cpu["choices"], rtol=rtol)

    # One read a pass brings all there is to know, and nothing else makes the host wait.
    assert found["passes"] > 10
    assert found["reads"] == {"to": found["passes"]}

    if found["packs"]:
        assert found["emptied"] > 0
        assert max(found["fed_then"]) <= 256 < max(found["fed"])
        if dtype == "float32":  # where the company of an answer changes none of its digits that matter
            assert found["little_memory"] == found["little_free"] == cpu["full"]
