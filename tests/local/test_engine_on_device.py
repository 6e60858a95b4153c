"""The engine on a simulated device: no tensor stays on the CPU, and the host waits once per forward pass."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from slick.inference.base import Answers, PromptBatch, SamplingConfig
from slick.inference.devices import free_bytes
from slick.inference.packed.engine import TransformersEngine
from tests.local.simulated_device import SimulatedDevice, print_cases, put_on_device, run_cases_in_subprocess
from tests.local.tiny import CONFIGS, UNPACKED, tiny_model, tiny_tokenizer

QUICK = ("llama float32", "llama bfloat16", "gemma3_text float32", "gpt2 float32", "mamba float32")
SLOW = tuple(
    model
    for model in (*(f"{name} float32" for name in (*CONFIGS, *UNPACKED)), "gemma3_text bfloat16", "gpt2 bfloat16")
    if model not in QUICK
)


@cache
def run_models(models: tuple[str, ...]) -> dict[str, Any]:
    """Run all models in one subprocess, because importing torch takes most of its time."""
    return run_cases_in_subprocess("tests.local.test_engine_on_device", models)


@pytest.mark.parametrize("model", [*QUICK, *(pytest.param(model, marks=pytest.mark.slow) for model in SLOW)])
def test_results_on_a_device_equal_those_on_the_cpu(model: str) -> None:
    result = run_models(QUICK if model in QUICK else SLOW)[model]
    name, dtype = model.split()
    assert result["uses_packing"] == result["uses_packing_on_cpu"] == (name in CONFIGS)
    cpu, device = result["cpu"], result["device"]
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

    # The host reads from the device once per pass and at no other time.
    assert result["passes"] > 10
    assert result["reads"] == {"to": result["passes"]}

    assert result["free_bytes"] == [1 << 32, 1 << 20]
    if result["uses_packing"]:
        assert result["times_emptied"] > 0
        assert max(result["num_tokens_with_little_memory"]) <= 256 < max(result["num_tokens"])
        if dtype == "float32":  # the batch size does not change answers in float32
            assert result["little_memory"] == result["little_free_memory"] == cpu["full"]


class _ArtificialMatcher:
    """An artificial matcher that accepts few answers, so that not every greedy answer is a hit."""

    def is_hit(self, answer: str) -> bool:
        return self.can_still_match(answer) and len(answer) % 11 == 0

    def can_still_match(self, beginning: str) -> bool:
        return not beginning or ord(beginning[0]) % 3 != 0


_NAMES = [f"Peru {i}" for i in range(12)]
_BATCH = PromptBatch(
    prefixes=["Q: Where was Ada Lovelace born?\nA: London\n", "", "Q: Who wrote Dune?\nA: Frank\nQ: Who?\nA: He\n"],
    question_ids=_NAMES,
    suffixes=[f"Q: What is the capital of {name}?\nA:" for name in _NAMES],
)
_ONE_PREFIX = PromptBatch(prefixes=_BATCH.prefixes[:1], question_ids=_NAMES, suffixes=_BATCH.suffixes)
_SAMPLING = SamplingConfig(num_samples=5, max_new_tokens=8, temperature=1.0, top_k=20)


def _texts(answers: list[tuple[Answers, ...]]) -> list[list[str | None]]:
    return [[a.greedy_text, *a.sampled_text] for row in answers for a in row]


def all_results(engine: TransformersEngine) -> dict[str, Any]:
    """Results of generation, early exit, scoring and log-probabilities."""
    full = engine.generate(_BATCH, _SAMPLING)
    labels = engine.generate(_BATCH, _SAMPLING, [_ArtificialMatcher()] * len(_NAMES))
    gold = engine.score(_BATCH, _NAMES, replace(_SAMPLING, top_k=400))
    choices = engine.log_probabilities(_ONE_PREFIX, [" London", " He"])
    return {
        "full": _texts(full),
        "labels": _texts(labels),
        "probability": [score.probability for scores in gold for score in scores],
        "choices": [value for row in choices for value in row],
    }


def run_case(case: str) -> dict[str, Any]:
    """Results of a model on the CPU and on the device, with the number of reads by the host."""
    name, dtype = case.split()
    model, tokenizer = tiny_model(name, spread=0.2, dtype=dtype), tiny_tokenizer()
    on_cpu = TransformersEngine(model, tokenizer)
    result: dict[str, Any] = {"uses_packing_on_cpu": on_cpu.uses_packing, "cpu": all_results(on_cpu)}
    device, num_tokens = SimulatedDevice(), list[int]()
    model.register_forward_pre_hook(
        lambda _, __, kwargs: num_tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    with device.activated():
        with torch.inference_mode():
            put_on_device(model)
        engine = TransformersEngine(model, tokenizer)
        device.reads.clear()
        num_tokens.clear()
        result |= {"device": all_results(engine), "uses_packing": engine.uses_packing}
        result |= {"passes": len(num_tokens), "num_tokens": list(num_tokens), "reads": +device.reads}
        if engine.uses_packing:
            device.largest_bytes = 0
            engine.generate(_BATCH, _SAMPLING)
            device.limit_bytes = 0.7 * device.largest_bytes  # enough for half of the questions
            result["little_memory"] = _texts(TransformersEngine(model, tokenizer).generate(_BATCH, _SAMPLING))
            # Enough memory for the keys and values of some questions and the logits of a few tokens.
            device.limit_bytes, device.fraction = math.inf, 2**-14
            num_tokens.clear()
            result["little_free_memory"] = _texts(TransformersEngine(model, tokenizer).generate(_BATCH, _SAMPLING))
            result["num_tokens_with_little_memory"] = num_tokens
        device.free_bytes, device.fraction = 1 << 33, 0.25
        result["free_bytes"] = [free_bytes(torch.device("standin"))]
        device.free_bytes = 1 << 20
        result["free_bytes"].append(free_bytes(torch.device("standin")))
    return result | {"times_emptied": device.times_emptied}


if __name__ == "__main__":
    print_cases(run_case)
