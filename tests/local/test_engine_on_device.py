"""The engine on a simulated device: no tensor stays on the CPU, the host waits once per forward pass, and answers stay
the same where memory is shared or runs out.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from slick.inference.devices import free_bytes
from slick.inference.packed.engine import TransformersEngine
from tests.local.device_memory import MANY_BATCHES, MEMORY_CASES, SHARED_MEMORY
from tests.local.engine_results import BATCH, SAMPLING, all_results, texts
from tests.local.simulated_device import SimulatedDevice, print_cases, put_on_device, run_cases_in_subprocess
from tests.local.tiny import CONFIGS, UNPACKED, tiny_model, tiny_tokenizer

COMPILED = "llama float32 compiled"
"""torch.compile does not trace while the device is simulated; `test_compiled` compares compiled layers on the CPU."""
QUICK_MODELS = ("llama float32", "llama bfloat16", "gemma3_text float32")
SLOW_MODELS = tuple(
    model
    for model in (
        *(f"{name} float32" for name in (*CONFIGS, *UNPACKED)),
        "gemma3_text bfloat16",
        "gpt2 bfloat16",
        COMPILED,
    )
    if model not in QUICK_MODELS
)
QUICK = (*QUICK_MODELS, "two actors")
SLOW = (*SLOW_MODELS, "training and evaluation", "thousandth batch")


@cache
def run_cases(cases: tuple[str, ...]) -> dict[str, Any]:
    """Run all cases in one subprocess, because importing torch takes most of its time."""
    return run_cases_in_subprocess("tests.local.test_engine_on_device", cases)


@pytest.mark.parametrize(
    "model", [*QUICK_MODELS, *(pytest.param(model, marks=pytest.mark.slow) for model in SLOW_MODELS)]
)
def test_results_on_a_device_equal_those_on_the_cpu(model: str) -> None:
    result = run_cases(QUICK if model in QUICK_MODELS else SLOW)[model]
    name, dtype, *_ = model.split()
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


def test_two_actors_on_one_gpu_stay_within_their_halves() -> None:
    """The second actor answers while the first is in the middle of a batch."""
    result = run_cases(QUICK)["two actors"]
    assert result["alone"] == result["first"] == result["second"] == result["cpu"]
    assert result["interruptions"] >= 2
    assert result["batch_first"] >= result["batch_second"] >= 2
    assert result["batch_alone"] >= 1.5 * result["batch_first"], "an actor with the whole GPU takes larger batches"
    for name in ("first", "second"):
        assert 0 < result["peak"][name] <= SHARED_MEMORY / 2
    assert result["num_refused"] == 0, "the batch size follows the actor's share of the memory"


@pytest.mark.slow
def test_evaluation_fits_into_the_memory_that_training_leaves() -> None:
    result = run_cases(SLOW)["training and evaluation"]
    assert result["device"] == result["cpu"]
    assert len(set(result["cpu"])) > 3
    assert result["batch"] < result["num_rows"], "fewer rows at once than with unlimited memory"
    assert result["used_after"] == result["used_before"], "evaluation leaves no memory behind"
    assert sorted(result["losses"], reverse=True) == result["losses"], "training continues"
    assert len(result["losses"]) == 3


@pytest.mark.slow
def test_memory_that_runs_out_at_the_thousandth_batch() -> None:
    result = run_cases(SLOW)["thousandth batch"]
    assert result["equal"]
    assert result["num_refused"] == 1
    assert result["warnings"] == ["out of memory with a batch of 2 questions; continuing with batches of 1"]
    assert result["sizes"] == [2] * MANY_BATCHES + [1] * 20, "the refused batch is repeated in halves"
    assert result["used_late"] == result["used_early"], "batches leave no memory behind"


def run_case(case: str) -> dict[str, Any]:
    """Results of one case."""
    return MEMORY_CASES[case]() if case in MEMORY_CASES else run_model(case)


def run_model(case: str) -> dict[str, Any]:
    """Results of a model on the CPU and on the device, with the number of reads by the host."""
    name, dtype, *compiled = case.split()
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
        engine = TransformersEngine(model, tokenizer, compiled=bool(compiled))
        device.reads.clear()
        num_tokens.clear()
        result |= {"device": all_results(engine), "uses_packing": engine.uses_packing}
        result |= {"passes": len(num_tokens), "num_tokens": list(num_tokens), "reads": +device.reads}
        if engine.uses_packing:
            device.largest_bytes = 0
            engine.generate(BATCH, SAMPLING)
            device.limit_bytes = 0.7 * device.largest_bytes  # enough for half of the questions
            result["little_memory"] = texts(TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING))
            # Enough memory for the keys and values of some questions and the logits of a few tokens.
            device.limit_bytes, device.fraction = math.inf, 2**-14
            num_tokens.clear()
            result["little_free_memory"] = texts(TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING))
            result["num_tokens_with_little_memory"] = num_tokens
        device.free_bytes, device.fraction = 1 << 33, 0.25
        result["free_bytes"] = [free_bytes(torch.device("standin"))]
        device.free_bytes = 1 << 20
        result["free_bytes"].append(free_bytes(torch.device("standin")))
    return result | {"times_emptied": device.times_emptied}


if __name__ == "__main__":
    print_cases(run_case)
