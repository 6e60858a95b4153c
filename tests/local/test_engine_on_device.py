"""The engine where its model is not on the CPU: nothing of it is left behind there, and the host seldom waits."""

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
from tests.local.stand_in_device import SimulatedDevice, print_cases, put_on_device, run_cases_in_subprocess
from tests.local.tiny import CONFIGS, UNPACKED, tiny_model, tiny_tokenizer

QUICK = ("llama float32", "llama bfloat16", "gemma3_text float32", "gpt2 float32", "mamba float32")
SLOW = tuple(
    model
    for model in (*(f"{name} float32" for name in (*CONFIGS, *UNPACKED)), "gemma3_text bfloat16", "gpt2 bfloat16")
    if model not in QUICK
)


@cache
def of_all(models: tuple[str, ...]) -> dict[str, Any]:
    """One process for all of them, since most of its time it imports torch."""
    return run_cases_in_subprocess("tests.local.test_engine_on_device", models)


@pytest.mark.parametrize("model", [*QUICK, *(pytest.param(model, marks=pytest.mark.slow) for model in SLOW)])
def test_on_a_device_the_answers_are_those_of_the_cpu(model: str) -> None:
    found = of_all(QUICK if model in QUICK else SLOW)[model]
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

    assert found["room"] == [1 << 32, 1 << 20]
    if found["packs"]:
        assert found["times_emptied"] > 0
        assert max(found["fed_then"]) <= 256 < max(found["fed"])
        if dtype == "float32":  # where the company of an answer changes none of its digits that matter
            assert found["little_memory"] == found["little_free"] == cpu["full"]


class _OfALength:
    """Right answers of a question, for the sake of having some: few, so that not every greedy answer is one."""

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
    return [[a.greedy_text, *a.sampled_text] for one in answers for a in one]


def everything(engine: TransformersEngine) -> dict[str, Any]:
    """What the engine gives when it is asked in each of its ways."""
    full = engine.generate(_BATCH, _SAMPLING)
    labels = engine.generate(_BATCH, _SAMPLING, [_OfALength()] * len(_NAMES))
    gold = engine.score(_BATCH, _NAMES, replace(_SAMPLING, top_k=400))
    choices = engine.log_probabilities(_ONE_PREFIX, [" London", " He"])
    return {
        "full": _texts(full),
        "labels": _texts(labels),
        "probability": [score.probability for one in gold for score in one],
        "choices": [chance for one in choices for chance in one],
    }


def compared(case: str) -> dict[str, Any]:
    """What a model answers on the CPU and on the device, and how often its values were read."""
    name, dtype = case.split()
    model, tokenizer = tiny_model(name, spread=0.2, dtype=dtype), tiny_tokenizer()
    on_cpu = TransformersEngine(model, tokenizer)
    found: dict[str, Any] = {"packs_on_cpu": on_cpu.uses_packing, "cpu": everything(on_cpu)}
    device, fed = SimulatedDevice(), list[int]()
    model.register_forward_pre_hook(lambda _, __, given: fed.append(given["input_ids"].numel()), with_kwargs=True)
    with device.activated():
        with torch.inference_mode():
            put_on_device(model)
        engine = TransformersEngine(model, tokenizer)
        device.reads.clear()
        fed.clear()
        found |= {"device": everything(engine), "packs": engine.uses_packing}
        found |= {"passes": len(fed), "fed": list(fed), "reads": +device.reads}
        if engine.uses_packing:
            device.largest_bytes = 0
            engine.generate(_BATCH, _SAMPLING)
            device.limit_bytes = 0.7 * device.largest_bytes  # enough for half of the questions
            found["little_memory"] = _texts(TransformersEngine(model, tokenizer).generate(_BATCH, _SAMPLING))
            # Room for the keys and values of some questions, and for the logits of few tokens.
            device.limit_bytes, device.fraction = math.inf, 2**-14
            fed.clear()
            found["little_free"] = _texts(TransformersEngine(model, tokenizer).generate(_BATCH, _SAMPLING))
            found["fed_then"] = fed
        device.free_bytes, device.fraction = 1 << 33, 0.25
        found["room"] = [free_bytes(torch.device("standin"))]
        device.free_bytes = 1 << 20
        found["room"].append(free_bytes(torch.device("standin")))
    return found | {"times_emptied": device.times_emptied}


if __name__ == "__main__":
    print_cases(compared)
