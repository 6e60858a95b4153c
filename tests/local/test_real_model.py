"""A real pretrained model, SmolLM2-135M-Instruct as a GGUF file, on real EntityQuestions questions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slick.annotation import AnnotateConfig, annotate
from slick.annotation.store import read_generations
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from slick.models import load_model, load_tokenizer
from slick.storage import Folder
from slick.study_files import read_knowledge
from tests.local.conftest import REAL_RELATIONS, copy_questions


@pytest.fixture
def study(real_questions: Folder, tmp_path: Path) -> Folder:
    return copy_questions(real_questions, tmp_path / "study")


def test_greedy_answers_equal_generate(smollm: str) -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_model(smollm), load_tokenizer(smollm)
    prefix = "Q: What is the capital of France?\nA: Paris\nQ: What is the capital of Spain?\nA: Madrid\n"
    names = ["Japan", "Germany", "Ohio", "Norway"]
    batch = PromptBatch(
        prefixes=[prefix],
        question_ids=names,
        suffixes=[f"Q: What is the capital of {name}?\nA:" for name in names],
    )
    engine = TransformersEngine(model, tokenizer)
    assert engine.uses_packing
    answers = [answer.greedy_text for (answer,) in engine.generate(batch, SamplingConfig(max_new_tokens=8))]
    assert answers[:2] == ["Tokyo", "Berlin"]
    for suffix, text in zip(batch.suffixes, answers, strict=True):
        ids = tokenizer(prefix + suffix, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            generated = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        assert tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).split("\n")[0].strip() == text


@pytest.mark.slow
def test_model_knows_some_real_questions_only(smollm: str, study: Folder, tmp_path: Path, ray_cluster: None) -> None:
    sampling = SamplingConfig(max_new_tokens=10)
    config = AnnotateConfig(model=smollm, sampling=sampling, limit_per_relation=4, max_actors=1, batch_questions=8)
    manifest = annotate(study, config)
    knowledge = read_knowledge(study).to_pylist()
    assert len(knowledge) == 24
    assert manifest.counts["generations"] == 24 * 170
    assert {row["relation"] for row in knowledge} == set(REAL_RELATIONS)
    # On 288 real test questions the model knows about a third at least weakly, and more of these relations.
    categories = [row["category"] for row in knowledge]
    assert "Unknown" in categories
    assert 3 <= sum(category != "Unknown" for category in categories) <= 23
    texts = [text for row in read_generations(study).to_pylist() for text in row["greedy_text"]]
    assert not any("\n" in text for text in texts)
    assert len(set(texts)) > 10

    labelled = copy_questions(study, tmp_path / "labels mode")
    fewer = annotate(labelled, replace(config, mode="labels"))
    names = ["question_id", "greedy_hits", "category"]
    assert read_knowledge(labelled).select(names).equals(read_knowledge(study).select(names))
    assert fewer.counts["decoded_tokens"] < manifest.counts["decoded_tokens"]
