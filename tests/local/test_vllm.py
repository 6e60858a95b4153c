"""vLLM on the CPU, in an environment of its own (`make test-vllm`): its answers and scores are the packed engine's.

The model is SmolLM2-135M in float32. vLLM and the packed engine add numbers in another order, so a greedy answer may
differ where two tokens are nearly as likely: at most one in fifty may. Probabilities may differ by 1e-4, and
log-probabilities by 1e-3.
"""

import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slick.annotation import AnnotateConfig, annotate, read_p_true
from slick.annotation.store import read_generations
from slick.inference.base import EngineConfig, PromptBatch, SamplingConfig
from slick.inference.engines import load_transformers_engine, load_vllm_engine
from slick.matching import make_matcher
from slick.models import load_model, load_tokenizer
from slick.prompts import P_TRUE_CHOICES
from slick.storage import Folder
from slick.study_files import read_knowledge
from tests.faults.hold import hold, holdable, release
from tests.faults.nodes import live_actors, start_and_kill_driver
from tests.local.conftest import copy_questions
from tests.waiting import TIMEOUT_S, wait_for

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here; `make test-vllm` installs it", allow_module_level=True)

# Before Ray starts, so that its workers have them: 1 GiB of keys and values per engine, and no binding to cores.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

CAPITALS = {
    **{"Japan": "Tokyo", "Germany": "Berlin", "Ohio": "Columbus", "Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi"},
    **{
        "Texas": "Austin",
        "Italy": "Rome",
        "Nevada": "Carson City",
        "Poland": "Warsaw",
        "Cuba": "Havana",
        "Iraq": "Baghdad",
    },
}
BATCH = PromptBatch(
    prefixes=[
        "Q: What is the capital of France?\nA: Paris\nQ: What is the capital of Spain?\nA: Madrid\n",
        "Q: What is the capital of Sweden?\nA: Stockholm\nQ: What is the capital of Iran?\nA: Tehran\n",
    ],
    question_ids=list(CAPITALS),
    suffixes=[f"Q: What is the capital of {name}?\nA:" for name in CAPITALS],
)
SAMPLING = SamplingConfig(num_samples=16, max_new_tokens=8)
DRIVER = """
import sys
from slick.annotation import annotate
from slick.storage import Folder
from tests.local.test_vllm import annotation
annotate(Folder(sys.argv[1]), annotation(sys.argv[2], "vllm"))
"""


@pytest.fixture(scope="module")
def model(smollm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model as a Hugging Face folder; transformers cannot save one that was read from a GGUF file."""
    from transformers import AutoModelForCausalLM

    loaded: Any = load_model(smollm)
    copy = AutoModelForCausalLM.from_config(loaded.config)
    copy.load_state_dict(loaded.state_dict())
    folder = str(tmp_path_factory.mktemp("smollm"))
    copy.save_pretrained(folder)
    load_tokenizer(smollm).save_pretrained(folder)
    return folder


def annotation(model: str, engine: str) -> AnnotateConfig:
    return AnnotateConfig(
        model=model,
        engine=engine,
        dtype="float32",
        num_exemplar_sets=2,
        sampling=SamplingConfig(num_samples=4, max_new_tokens=8),
        limit_per_relation=4,
        batch_questions=3,
        batches_per_file=1,
        max_actors=1,
        p_true=True,
    )


def test_killed_actors_resume_and_answers_equal_the_packed_engines(
    model: str, real_questions: Folder, tmp_path: Path, ray_cluster: None
) -> None:
    study, reference = (copy_questions(real_questions, tmp_path / engine) for engine in ("vllm", "transformers"))
    parts = study.child("annotate", "generations")
    hold(study, at=2)
    start_and_kill_driver(DRIVER, study.uri, model, when=lambda: len(parts.names(".parquet")) >= 2)
    kept = {name: parts.read_bytes(name) for name in parts.names(".parquet")}
    assert len(kept) == 2

    hold(study, at=4)
    run = threading.Thread(target=annotate, args=(study, annotation(model, "vllm")))
    with holdable():
        run.start()
        wait_for(lambda: len(parts.names(".parquet")) >= 4)
        (actor,) = live_actors("AnnotationWorker")
        os.kill(actor.pid, signal.SIGKILL)
        release(study)
        run.join(TIMEOUT_S)
    assert not run.is_alive()
    assert len(parts.names(".parquet")) > 4
    assert {name: parts.read_bytes(name) for name in kept} == kept

    annotate(reference, annotation(model, "transformers"))
    rows, expected = (read_generations(folder).to_pylist() for folder in (study, reference))
    assert [row["question_id"] for row in rows] == [row["question_id"] for row in expected]
    assert len(rows) == 24
    pairs = [
        pair
        for row, reference_row in zip(rows, expected, strict=True)
        for pair in zip(row["greedy_text"], reference_row["greedy_text"], strict=True)
    ]
    num_equal = sum(text == reference_text for text, reference_text in pairs)
    print(f"\nvLLM under Ray: {num_equal} of {len(pairs)} greedy answers are the packed engine's")
    assert num_equal >= 0.98 * len(pairs)
    assert len({text for text, _ in pairs}) > 10
    hits, reference_hits = (read_knowledge(folder)["greedy_hits"].to_numpy() for folder in (study, reference))
    assert np.abs(hits - reference_hits).sum() <= 0.02 * len(pairs)
    assert {len(samples) for row in rows for samples in row["sampled_text"]} == {4}

    p_true, reference_p_true = (read_p_true(folder)["p_true"].to_numpy() for folder in (study, reference))
    difference = np.abs(p_true - reference_p_true).max()
    print(f"vLLM under Ray: P(True) of {len(p_true)} answers differs by at most {difference:.1e}")
    assert len(p_true) > 0
    assert difference < 1e-4
    manifest = study.child("annotate", "p_true").read_json("manifest.json")
    assert manifest["settings"]["engine"] == "vllm"


@pytest.fixture(scope="module")
def engines(model: str) -> Iterator[tuple[Any, Any]]:
    """vLLM and the packed engine."""
    config = EngineConfig(model=model)
    return load_vllm_engine(config), load_transformers_engine(config)


def test_gold_scores_and_choices_equal_the_packed_engines(engines: tuple[Any, Any]) -> None:
    vllm, packed = engines
    gold = list(CAPITALS.values())
    for max_new_tokens in (8, 1):
        sampling = SamplingConfig(max_new_tokens=max_new_tokens)
        scores, expected = (engine.score(BATCH, gold, sampling) for engine in engines)
        assert [[s.is_greedy for s in row] for row in scores] == [[s.is_greedy for s in row] for row in expected]
        values, reference = (np.array([[s.probability for s in row] for row in rows]) for rows in (scores, expected))
        print(f"\nvLLM: gold probabilities differ by at most {np.abs(values - reference).max():.1e}")
        np.testing.assert_allclose(values, reference, atol=1e-4)
        assert np.median(values) > 0.1
    one_prefix = PromptBatch(prefixes=BATCH.prefixes[:1], question_ids=BATCH.question_ids, suffixes=BATCH.suffixes)
    values, reference = (
        np.array(engine.log_probabilities(one_prefix, [*P_TRUE_CHOICES, "Columbus"])) for engine in engines
    )
    print(f"vLLM: log-probabilities differ by at most {np.abs(values - reference).max():.1e}")
    np.testing.assert_allclose(values, reference, atol=1e-3)
    assert vllm.stats.prompt_tokens == packed.stats.prompt_tokens


def test_samples_are_those_of_the_distribution_that_gold_scores_state(engines: tuple[Any, Any]) -> None:
    vllm, packed = engines
    gold = list(CAPITALS.values())
    answers = vllm.generate(BATCH, SAMPLING)
    greedy = [[answer.greedy_text for answer in row] for row in answers]
    assert greedy == [[answer.greedy_text for answer in row] for row in packed.generate(BATCH, SAMPLING)]
    assert answers == vllm.generate(BATCH, SAMPLING), "the same seed gives the same texts"
    scores = np.array([[score.probability for score in row] for row in vllm.score(BATCH, gold, SAMPLING)])
    num_hits = sum(
        text == capital
        for capital, row in zip(gold, answers, strict=True)
        for answer in row
        for text in answer.sampled_text
    )
    expected, deviation = 16 * scores.sum(), np.sqrt(16 * (scores * (1 - scores)).sum())
    print(f"\nvLLM: {num_hits} of {16 * scores.size} samples are correct, expected {expected:.1f} +- {deviation:.1f}")
    assert abs(num_hits - expected) < 5 * deviation

    accepted, refused = make_matcher([greedy[0][0]]), make_matcher([])
    early_exit = vllm.generate(BATCH, SAMPLING, [accepted] + [refused] * (len(CAPITALS) - 1))
    assert [answer.sampled_text for answer in early_exit[0]] == [(None,) * 16] * 2
    assert early_exit[1:] == answers[1:]
    assert vllm.stats.prefilled_tokens < vllm.stats.prompt_tokens
