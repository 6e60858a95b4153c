"""The engine on a GPU: the answers it gives on CPU, whatever the architecture, and a batch that memory decides."""

from typing import Any

import pytest
import torch

from slick.engines.base import PromptBatch, SamplingConfig
from slick.engines.transformers import TransformersEngine
from tests.local.tiny import CONFIGS, tiny_model, tiny_tokenizer

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
    return [(a.greedy_text, *a.sampled_text) for one in answers for a in one]


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_the_cpu(name: str) -> None:
    model, tokenizer = tiny_model(name, spread=0.2), tiny_tokenizer()
    right = texts(TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING))
    engine = TransformersEngine(model.to("cuda"), tokenizer)
    assert engine.packs
    found = texts(engine.generate(BATCH, SAMPLING))
    same = sum(a == b for one, other in zip(found, right, strict=True) for a, b in zip(one, other, strict=True))
    assert same >= 0.98 * len(right) * 6  # the last bits differ, and a draw may fall between


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_bfloat16_runs_packed_and_scores_gold(name: str) -> None:
    engine = TransformersEngine(tiny_model(name, dtype="bfloat16", spread=0.1).to("cuda"), tiny_tokenizer())
    assert engine.packs
    answers = engine.generate(BATCH, SAMPLING)
    scores = engine.score(BATCH, [one[0].greedy_text or "x" for one in answers], SAMPLING)
    assert len(scores) == len(answers) == len(NAMES)
    assert any(score.is_greedy for one in scores for score in one)


def test_a_full_device_halves_the_batch_and_loses_nothing() -> None:
    model, tokenizer = tiny_model("llama", spread=0.2).to("cuda"), tiny_tokenizer()
    right = texts(TransformersEngine(model, tokenizer).generate(BATCH, SAMPLING))
    engine = TransformersEngine(model, tokenizer, batch_questions=40)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (2 << 20)) / total)
    try:
        assert texts(engine.generate(BATCH, SAMPLING)) == right
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
