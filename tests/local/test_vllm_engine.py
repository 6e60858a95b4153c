"""What the vLLM engine computes from log-probabilities, with a tiny model in place of vLLM; and when `auto` chooses it.

tests/local/test_vllm.py runs vLLM itself, where that is installed.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from slick.annotation import AnnotateConfig
from slick.errors import EngineError
from slick.inference import selection
from slick.inference.base import EngineConfig, PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from slick.inference.scoring import EXTRA_CANDIDATES, score_answers, sort_candidates, top_candidates
from slick.inference.selection import EngineRequest, choose_engine, packing_problem
from slick.inference.vllm_engine import VllmEngine
from slick.models import load_model, load_tokenizer
from slick.precision import CPU, Device
from tests.local.tiny import save_tiny_model, tiny_model

GPU = Device(is_gpu=True, supports_bfloat16=True, name="NVIDIA L4", memory=24_000_000_000)
NAMES = [f"Train {chr(65 + i)}{i}" for i in range(7)]
BATCH = PromptBatch(
    prefixes=["Q: Where was Ada born?\nA: London\n", "Q: Who wrote Dune?\nA: Lima\nQ: Where was Emmy born?\nA: Lima\n"],
    question_ids=NAMES,
    suffixes=[f"Q: Where was {name} born?\nA:" for name in NAMES],
)
GOLD = ["London", "Lima", "Frank Herbert", "L", "London\n", "Erlangen", "He wrote"]


def request(model: str) -> EngineRequest:
    return AnnotateConfig(dtype="float32").engine_request(model)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(model: str, monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    """The engine with a stand-in for vLLM: the interface that scoring uses, computed by transformers."""

    class StandInLlm:
        def __init__(self, folder: str, **_: Any) -> None:
            self._model = load_model(folder)

        def generate(self, inputs: list[Any], params: Any, use_tqdm: bool) -> list[Any]:
            return [self._output(prompt["prompt_token_ids"], params) for prompt in inputs]

        def _output(self, ids: list[int], params: Any) -> Any:
            with torch.inference_mode():
                logits = self._model(input_ids=torch.tensor([ids])).logits[0, -1]
            values = torch.log_softmax(logits, dim=-1)
            chosen = getattr(params, "logprob_token_ids", None) or values.topk(params.logprobs).indices.tolist()
            # vLLM adds the token that it samples.
            chosen = {*chosen, int(values.argmax())}
            logprobs = [{token: SimpleNamespace(logprob=float(values[token])) for token in chosen}]
            return SimpleNamespace(outputs=[SimpleNamespace(logprobs=logprobs)], num_cached_tokens=0)

    stand_in = SimpleNamespace(LLM=StandInLlm, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    torch.set_num_threads(1)
    return VllmEngine(EngineConfig(model=model))


@pytest.mark.parametrize("max_new_tokens", [1, 3, 12])
def test_gold_scores_equal_those_of_the_packed_engine(engine: VllmEngine, model: str, max_new_tokens: int) -> None:
    reference = TransformersEngine(load_model(model), load_tokenizer(model))
    sampling = SamplingConfig(max_new_tokens=max_new_tokens, top_k=10)
    scores, expected = (scorer.score(BATCH, GOLD, sampling) for scorer in (engine, reference))
    assert [[s.is_greedy for s in row] for row in scores] == [[s.is_greedy for s in row] for row in expected]
    values, expected_values = (np.array([[s.probability for s in row] for row in rows]) for rows in (scores, expected))
    np.testing.assert_allclose(values, expected_values, rtol=1e-4, atol=1e-7)
    assert values.max() > 0.1
    assert values.min() == 0.0
    assert engine.stats.prompt_tokens == reference.stats.prompt_tokens
    assert engine.stats.decoded_tokens <= reference.stats.decoded_tokens


def test_choices_get_the_log_probabilities_of_the_packed_engine(engine: VllmEngine, model: str) -> None:
    reference = TransformersEngine(load_model(model), load_tokenizer(model))
    batch = PromptBatch(prefixes=BATCH.prefixes[:1], question_ids=NAMES, suffixes=BATCH.suffixes)
    choices = ("London", "Lima", "(A", "(B")
    values, expected = (np.array(scorer.log_probabilities(batch, choices)) for scorer in (engine, reference))
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    assert (engine.stats.prompts, engine.stats.generations) == (len(NAMES), 0)


@pytest.mark.parametrize("decimals", [9, 0])
def test_scores_of_log_probabilities_equal_those_of_logits(decimals: int) -> None:
    """Also with equal logits, which token ids break: rounded to whole numbers, many are equal at the edge of top-k."""
    rng, top_k, vocab_size = np.random.default_rng(1), 40, 60
    answers = [[3, 17], [5], [8, 9, 10, 11], [2, 2, 2, 2, 2], [1, 4, 6]]
    sampling = SamplingConfig(max_new_tokens=4, top_k=top_k, temperature=0.5)
    num_rows = 2 * sum(len(answer) + 1 if len(answer) <= 4 else 1 for answer in answers)
    logits = torch.from_numpy(np.round(rng.normal(scale=2.0, size=(num_rows, vocab_size)), decimals)).float()
    ends = np.zeros(vocab_size, dtype=bool)
    ends[[0, 7, 30]] = True
    rows = []
    for values in torch.log_softmax(logits, dim=-1):
        best = torch.sort(values, descending=True, stable=False).indices[: top_k + EXTRA_CANDIDATES].tolist()
        rows.append({token: float(values[token]) for token in reversed(best)})
    expected = score_answers(top_candidates(logits, top_k), answers, 2, ends, sampling)
    scores = score_answers(sort_candidates(rows, top_k), answers, 2, ends, sampling)
    for row, expected_row in zip(scores, expected, strict=True):
        assert [s.is_greedy for s in row] == [s.is_greedy for s in expected_row]
        assert [s.probability for s in row] == pytest.approx([s.probability for s in expected_row], rel=1e-5)
    assert [len(row) for row in scores] == [2] * 5
    assert [s.probability for s in scores[3]] == [0.0, 0.0], "no sample is as long as this answer"


def test_incomplete_or_infinite_log_probabilities_are_an_error() -> None:
    with pytest.raises(EngineError, match="of 2 tokens at a position, expected 3"):
        sort_candidates([{1: -1.0, 2: -2.0, 3: -3.0}, {1: -1.0, 2: -2.0}], 3)
    with pytest.raises(EngineError, match="log-probabilities of 0 tokens at a position, expected 1"):
        sort_candidates([{1: -1.0}, {}], 1)
    with pytest.raises(EngineError, match="not finite"):
        sort_candidates([{1: float("nan"), 2: float("nan")}], 2)


@pytest.mark.parametrize(
    ("name", "reason"), [("llama", ""), ("bloom", "attention of transformers"), ("mamba", "state")]
)
def test_packed_batches_are_predicted_from_the_classes(name: str, reason: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path)
    problem = packing_problem(request(str(tmp_path)))
    assert reason in problem
    assert bool(problem) == (name != "llama")


def test_a_model_without_packed_batches_gets_vllm_if_that_can_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("bloom").save_pretrained(tmp_path)
    model = str(tmp_path)
    assert choose_engine(request(model), GPU).engine == "transformers"
    architectures = ["BloomForCausalLM"]
    registry = SimpleNamespace(get_supported_archs=lambda: architectures)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    monkeypatch.setattr(selection, "find_spec", lambda _: SimpleNamespace())
    versions: dict[str, Callable[[str], str]] = {"gpu": lambda _: "0.32.0", "cpu": lambda _: "0.32.0+cpu"}
    for build, device, engine in (("gpu", CPU, "transformers"), ("cpu", CPU, "vllm"), ("gpu", GPU, "vllm")):
        monkeypatch.setattr(selection, "version", versions[build])
        choice = choose_engine(request(model), device)
        assert choice.engine == engine
    assert choice.reason == (
        "the model does not support packed batches: its layers do not use the attention of transformers"
    )
    architectures.clear()
    assert choose_engine(request(model), GPU).engine == "transformers"
