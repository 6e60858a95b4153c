"""The engine on a GPU gives the answers of the CPU, for many architectures, and adapts the batch size to memory."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from tests.local.engine_results import all_results
from tests.local.tiny import CONFIGS, UNPACKED, tiny_model, tiny_tokenizer

if not torch.cuda.is_available():
    pytest.skip("no GPU that torch can use", allow_module_level=True)

NAMES = [f"Peru {i}" for i in range(40)]
BATCH = PromptBatch(
    prefixes=["Q: Where was Ada Lovelace born?\nA: London\n", "Q: Who wrote Dune?\nA: Frank Herbert\nQ: Who?\nA: He\n"],
    question_ids=NAMES,
    suffixes=[f"Q: What is the capital of {name}?\nA:" for name in NAMES],
)
SAMPLING = SamplingConfig(num_samples=5, max_new_tokens=8, temperature=1.0, top_k=20)


def texts(answers: Any) -> list[Any]:
    return [(a.greedy_text, *a.sampled_text) for row in answers for a in row]


@pytest.mark.parametrize("name", [*CONFIGS, *UNPACKED])
def test_results_equal_those_on_the_cpu(name: str) -> None:
    model, tokenizer = tiny_model(name, spread=0.2), tiny_tokenizer()
    expected = all_results(TransformersEngine(model, tokenizer))
    engine = TransformersEngine(model.to("cuda"), tokenizer)
    assert engine.uses_packing == (name in CONFIGS)
    results = all_results(engine)
    for mode in ("full", "labels"):
        pairs = list(zip(chain(*results[mode]), chain(*expected[mode]), strict=True))
        assert len(pairs) == 36 * 6
        assert sum(a == b for a, b in pairs) >= 0.98 * len(pairs)  # rounding differs and may change a sample
    for key in ("probability", "choices"):
        np.testing.assert_allclose(results[key], expected[key], rtol=1e-2)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_bfloat16_runs_packed_and_scores_gold(name: str) -> None:
    engine = TransformersEngine(tiny_model(name, dtype="bfloat16", spread=0.1).to("cuda"), tiny_tokenizer())
    assert engine.uses_packing
    answers = engine.generate(BATCH, SAMPLING)
    scores = engine.score(BATCH, [row[0].greedy_text or "x" for row in answers], SAMPLING)
    assert len(scores) == len(answers) == len(NAMES)
    assert any(score.is_greedy for row in scores for score in row)


def test_out_of_memory_halves_the_batch() -> None:
    model, tokenizer = tiny_model("llama", spread=0.2).to("cuda"), tiny_tokenizer()
    expected = texts(TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING))
    engine = TransformersEngine(model, tokenizer, batch_questions=40)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (2 << 20)) / total)
    try:
        assert texts(engine.generate(BATCH, SAMPLING)) == expected
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
