"""A smoke world, built for real: it loads, it repeats itself, and the model knows what was planted."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slick.categories import categorize
from slick.matching import is_hit
from slick.prompts import draw_exemplar_sets, few_shot_prefix, few_shot_suffix
from slick.storage import Folder
from slick.study import Manifest
from slick.types import Category
from slick.world import WorldConfig, build_world, smoke_world


@dataclass(frozen=True)
class Built:
    study: Folder
    manifest: Manifest
    config: WorldConfig


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLICK_CACHE", str(path))
        yield path


@pytest.fixture(scope="module")
def built(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    study, config = Folder(str(tmp_path_factory.mktemp("study"))), smoke_world()
    return Built(study, build_world(study, config), config)


@pytest.fixture(scope="module")
def labels(built: Built) -> list[dict[str, Any]]:
    """Every train and test question with its planted strength and what the real engine says of it."""
    from slick.engines.base import PromptBatch, SamplingConfig
    from slick.engines.transformers import TransformersEngine
    from slick.models import load_model, load_tokenizer

    folder = built.study.child("world", "model").local_path
    engine = TransformersEngine(load_model(folder), load_tokenizer(folder))
    by_relation: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in built.study.child("world").read_table("planted.parquet").to_pylist():
        by_relation[row["relation"]].append(row)
    asked: list[dict[str, Any]] = []
    for relation, rows in by_relation.items():
        dev = {row["question"]: row["answer"] for row in rows if row["split"] == "dev"}
        rows = [dict(row) for row in rows if row["split"] != "dev"]
        batch = PromptBatch(
            prefixes=[
                few_shot_prefix([(question, dev[question]) for question in shots])
                for shots in draw_exemplar_sets({relation: list(dev)})[relation]
            ],
            question_ids=[row["question"] for row in rows],
            suffixes=[few_shot_suffix(row["question"]) for row in rows],
        )
        for row, found in zip(rows, engine.generate(batch, SamplingConfig(max_new_tokens=16)), strict=True):
            row["greedy"] = sum(is_hit(answers.greedy_text, [row["answer"]]) for answers in found)
            texts = [text or "" for answers in found for text in answers.sampled_text]
            row["sampled"] = sum(is_hit(text, [row["answer"]]) for text in texts)
        asked += [row | {"category": categorize(row["greedy"], 10, row["sampled"], 160)} for row in rows]
    return asked


def test_the_folder_is_a_question_set_and_a_model_that_transformers_loads(built: Built) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from slick.questions.sources import open_source

    world = built.study.child("world")
    source = open_source(world.uri)
    assert source.layout == "entity_questions"
    assert "train/P36.train.json" in source.files
    assert source.templates["P36"] == "What is the capital of [X]?"
    model = AutoModelForCausalLM.from_pretrained(world.child("model").local_path)
    tokenizer = AutoTokenizer.from_pretrained(world.child("model").local_path)
    assert model.config.model_type == "llama"
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert world.child("model").exists("model.safetensors")
    assert built.manifest.counts["facts"] == world.read_table("planted.parquet").num_rows


def test_the_tokenizer_loses_nothing_and_gives_an_answer_the_same_tokens_everywhere(built: Built) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(built.study.child("world", "model").local_path)
    for text in (
        "Q: Who?\nA: Ärzte 東京 \U0001f600\n",
        "\n\n  two spaces\t\n x",
        "",
        " a",
        "Answer the question.\nWho?\n",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    planted = built.study.child("world").read_table("planted.parquet")
    for answer in set(planted["answer"].to_pylist()):
        alone = tokenizer(answer)["input_ids"]
        assert tokenizer(f"A: {answer}")["input_ids"][-len(alone) :] == alone
        assert tokenizer(f"Who?\n{answer}")["input_ids"][-len(alone) :] == alone


def test_the_model_is_the_function_that_was_trained(built: Built) -> None:
    """TinyLlama and transformers' Llama give the same logits, so nothing was lost on the way."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from slick.world.pretrain import TinyLlama, as_llama

    tokenizer = AutoTokenizer.from_pretrained(built.study.child("world", "model").local_path)
    tiny = TinyLlama(built.config, len(tokenizer), torch.float32)
    tokens = torch.randint(0, len(tokenizer), (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(tiny(tokens), as_llama(tiny, tokenizer, built.config)(tokens).logits, atol=1e-5)
        loaded = AutoModelForCausalLM.from_pretrained(built.study.child("world", "model").local_path)
        assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in tiny.parameters())


def test_a_built_world_is_copied_from_the_cache_byte_for_byte(built: Built, cache: Path, tmp_path: Path) -> None:
    copy = Folder(str(tmp_path))
    manifest = build_world(copy, built.config)
    assert manifest.fingerprint == built.manifest.fingerprint
    assert [path.name for path in (cache / "worlds").iterdir()] == [manifest.fingerprint]
    for path in Path(built.study.child("world").local_path).rglob("*"):
        if path.is_file() and path.name not in ("manifest.json", "started.json"):
            relative = path.relative_to(built.study.child("world").local_path)
            assert Path(copy.child("world").local_path, relative).read_bytes() == path.read_bytes(), relative


def test_the_same_seed_builds_the_same_world_again(
    built: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the cache. Questions to the byte; weights to rounding, since threads may add in another order."""
    from safetensors.numpy import load_file

    monkeypatch.setenv("SLICK_CACHE", str(tmp_path / "other"))
    again = Folder(str(tmp_path / "study"))
    build_world(again, built.config)
    first, second = Path(built.study.child("world").local_path), Path(again.child("world").local_path)
    for pattern in ("*.parquet", "dataset/*/*.json", "relation_query_templates.json", "model/tokenizer.json"):
        paths = list(first.glob(pattern))
        assert paths
        for path in paths:
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert weights.keys() == others.keys()
    assert all(np.allclose(weights[name], others[name], rtol=1e-2, atol=1e-2) for name in weights)


def test_categories_follow_the_planted_strength(labels: list[dict[str, Any]]) -> None:
    share: dict[tuple[str, Category], float] = defaultdict(float)
    sizes: dict[str, int] = defaultdict(int)
    for row in labels:
        sizes[row["strength"]] += 1
    for row in labels:
        share[row["strength"], row["category"]] += 1 / sizes[row["strength"]]
    assert share["never", Category.UNKNOWN] > 0.6
    assert share["firm", Category.HIGHLY_KNOWN] > 0.6
    assert share["minority", Category.WEAKLY_KNOWN] == max(share["minority", category] for category in Category)
    assert share["contested", Category.MAYBE_KNOWN] == max(share[strength, Category.MAYBE_KNOWN] for strength in sizes)


def test_p_correct_rises_with_the_planted_strength(labels: list[dict[str, Any]]) -> None:
    means = [
        np.mean([row["sampled"] / 160 for row in labels if row["strength"] == strength])
        for strength in ("never", "minority", "contested", "firm")
    ]
    assert means == sorted(means)
    assert means[0] < 0.1
    assert means[3] > 0.7


def test_all_four_categories_are_filled(labels: list[dict[str, Any]]) -> None:
    train = [row["category"] for row in labels if row["split"] == "train"]
    for category in Category:
        assert train.count(category) >= 0.08 * len(train), category


def test_training_that_fails_leaves_no_world_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from slick.errors import ModelError

    monkeypatch.setenv("SLICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match="stopped with exit status 1"):
        build_world(Folder(str(tmp_path / "study")), smoke_world())
    assert not Folder(str(tmp_path / "study" / "world")).exists("manifest.json")
    assert list((tmp_path / "cache" / "worlds").iterdir()) == []
    assert json.loads((tmp_path / "study" / "world" / "started.json").read_text())["fingerprint"]
