"""A real smoke world: it loads, it is reproducible, and the model knows the planted facts."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slick.matching import is_hit, make_matcher
from slick.prompts import draw_exemplar_sets, few_shot_prefix, few_shot_suffix
from slick.storage import Folder
from slick.study import Manifest, require_manifest
from slick.types import Category, categories
from slick.world import WorldConfig, build_world, smoke_world_config
from tests.local.cli import run_slick


@dataclass(frozen=True)
class BuiltWorld:
    study: Folder
    manifest: Manifest
    config: WorldConfig


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltWorld:
    study, config = Folder(str(tmp_path_factory.mktemp("study"))), smoke_world_config()
    return BuiltWorld(study, build_world(study, config), config)


@pytest.fixture(scope="module")
def labels(built: BuiltWorld) -> list[dict[str, Any]]:
    """Every train and test question with its planted strength and its label from the real engine."""
    from slick.inference.base import SamplingConfig
    from slick.inference.packed.engine import TransformersEngine
    from slick.models import load_model, load_tokenizer

    folder = built.study.child("world", "model").local_path
    engine = TransformersEngine(load_model(folder), load_tokenizer(folder))
    planted = {row["question"]: row for row in built.study.child("world").read_table("planted.parquet").to_pylist()}
    rows: list[dict[str, Any]] = []
    for batch, answers in question_batches(built):
        results = engine.generate(batch, SamplingConfig(max_new_tokens=16))
        for question, answer, answers_of_question in zip(batch.question_ids, answers, results, strict=True):
            greedy = sum(is_hit(a.greedy_text, [answer]) for a in answers_of_question)
            sampled = sum(is_hit(text or "", [answer]) for a in answers_of_question for text in a.sampled_text)
            [category] = categories(np.array([greedy]), np.array([10]), np.array([sampled]))
            rows.append(planted[question] | {"greedy": greedy, "sampled": sampled, "category": category})
    return rows


def test_world_is_a_question_set_and_a_transformers_model(built: BuiltWorld) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from slick.datasets.sources import open_source

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


def test_tokenizer_is_lossless_and_encodes_answers_the_same_everywhere(built: BuiltWorld) -> None:
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


def test_transformers_model_has_the_logits_of_the_trained_model(built: BuiltWorld) -> None:
    """TinyLlama and the Llama of transformers have the same logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from slick.world.pretrain import TinyLlama, to_transformers

    tokenizer = AutoTokenizer.from_pretrained(built.study.child("world", "model").local_path)
    tiny = TinyLlama(built.config, len(tokenizer), torch.float32)
    tokens = torch.randint(0, len(tokenizer), (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(tiny(tokens), to_transformers(tiny, tokenizer, built.config)(tokens).logits, atol=1e-5)
        loaded = AutoModelForCausalLM.from_pretrained(built.study.child("world", "model").local_path)
        assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in tiny.parameters())


def test_decay_begins_when_the_model_recalls_half_of_the_firm_facts(built: BuiltWorld) -> None:
    training = built.manifest.counts["training"]
    nominal = built.config.num_tokens // (built.config.batch_rows * built.config.row_tokens)
    assert training["steps"] == training["constant_steps"] + round(0.4 * nominal)
    assert training["constant_steps"] < round(1.2 * nominal) - round(0.4 * nominal), "the target was not reached"
    assert training["recall"] > 0.85


def test_recall_counts_facts_of_which_every_answer_token_is_the_most_likely(built: BuiltWorld) -> None:
    import torch
    from transformers import AutoTokenizer

    from slick.world.facts import Fact
    from slick.world.pretrain import RecallProbe

    tokenizer = AutoTokenizer.from_pretrained(built.study.child("world", "model").local_path)
    rows = built.study.child("world").read_table("planted.parquet").to_pylist()
    firm = [Fact(**row) for row in rows if row["strength"] == "firm"]
    known = firm[: len(firm) // 2]
    texts = [f"Q: {fact.question}\nA: {fact.answer}" for fact in known]
    following = {tuple(ids[:i]): ids[i] for ids in tokenizer(texts)["input_ids"] for i in range(1, len(ids))}

    def model(tokens: torch.Tensor) -> torch.Tensor:
        """Logits of a model that continues the texts of the known facts, and predicts token 0 elsewhere."""
        logits = torch.zeros(*tokens.shape, len(tokenizer))
        for row, ids in enumerate(tokens.tolist()):
            for i in range(len(ids)):
                logits[row, i, following.get(tuple(ids[: i + 1]), 0)] = 1.0
        return logits

    probe: Any = RecallProbe(firm, tokenizer, built.config)
    assert probe.recall(model) == pytest.approx(len(known) / len(firm))
    without: Any = RecallProbe([], tokenizer, built.config)
    assert without.recall(model) == 0


def test_training_ends_at_the_limit_if_the_target_is_never_reached() -> None:
    from slick.world.pretrain import Schedule

    late, early = Schedule(100), Schedule(100)
    early.begin_decay(30)
    assert (late.num_steps, early.num_steps) == (120, 70)
    assert not early.is_probe_due(60)
    for schedule in (late, early):
        factors = [schedule.factor(step) for step in range(schedule.num_steps)]
        assert factors[0] < 0.01
        assert max(factors) == 1
        assert max(abs(a - b) for a, b in itertools.pairwise(factors)) < 0.21
        assert factors[-1] == pytest.approx(1 / 40)


def test_cached_world_is_copied_byte_for_byte(built: BuiltWorld, cache: Path, tmp_path: Path) -> None:
    copy = Folder(str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    manifest = build_world(copy, built.config)
    assert manifest.fingerprint == built.manifest.fingerprint
    assert cache / "worlds" / manifest.fingerprint in before
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before, (
        "the cached world must not be built again"
    )
    for path in Path(built.study.child("world").local_path).rglob("*"):
        if path.is_file() and path.name not in ("manifest.json", "started.json"):
            relative = path.relative_to(built.study.child("world").local_path)
            assert Path(copy.child("world").local_path, relative).read_bytes() == path.read_bytes(), relative


@pytest.mark.slow
def test_same_seed_builds_the_same_world(built: BuiltWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the cache. Questions are equal; weights may differ by rounding, because threads sum in any order."""
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


def test_categories_match_the_planted_strength(labels: list[dict[str, Any]]) -> None:
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


def test_all_four_categories_occur(labels: list[dict[str, Any]]) -> None:
    train = [row["category"] for row in labels if row["split"] == "train"]
    for category in Category:
        assert train.count(category) >= 0.08 * len(train), category


@pytest.mark.slow
def test_contested_facts_are_about_half_right_without_famous_rivals(tmp_path: Path) -> None:
    """Their answer and their rival are then alike, so that the model prefers either equally often."""
    from slick.inference.base import SamplingConfig
    from slick.inference.packed.engine import TransformersEngine
    from slick.models import load_model, load_tokenizer

    done = run_slick("world", "smoke", "--famous-rivals", "0", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    study = Folder(str(tmp_path))
    manifest = require_manifest(study.child("world"), "world")
    assert manifest.settings["famous_rivals"] == 0
    without = BuiltWorld(study, manifest, replace(smoke_world_config(), famous_rivals=0.0))
    rows = {row["question"]: row for row in study.child("world").read_table("planted.parquet").to_pylist()}
    folder = study.child("world", "model").local_path
    engine = TransformersEngine(load_model(folder), load_tokenizer(folder))
    preferred: list[bool] = []
    for batch, answers in question_batches(without):
        contested = [rows[question]["strength"] == "contested" for question in batch.question_ids]
        rivals = [
            rows[question]["rival"] or answer for question, answer in zip(batch.question_ids, answers, strict=True)
        ]
        scores = [engine.score(batch, golds, SamplingConfig(max_new_tokens=16)) for golds in (answers, rivals)]
        for is_contested, gold, rival in zip(contested, *scores, strict=True):
            if is_contested:
                preferred += [a.probability > b.probability for a, b in zip(gold, rival, strict=True)]
    assert len(preferred) > 1000
    # About 120 facts: three standard deviations are 0.14.
    assert np.mean(preferred) == pytest.approx(0.5, abs=0.14)


def test_failed_training_leaves_no_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from slick.errors import ModelError

    monkeypatch.setenv("SLICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match="ended with exit status 1"):
        build_world(Folder(str(tmp_path / "study")), smoke_world_config())
    assert not Folder(str(tmp_path / "study" / "world")).exists("manifest.json")
    assert list((tmp_path / "cache" / "worlds").iterdir()) == []
    assert json.loads((tmp_path / "study" / "world" / "started.json").read_text())["fingerprint"]


def question_batches(built: BuiltWorld) -> Iterator[tuple[Any, list[str]]]:
    """Train and test questions of each relation under ten exemplar sets, and their gold answers."""
    from slick.inference.base import PromptBatch

    by_relation: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in built.study.child("world").read_table("planted.parquet").to_pylist():
        by_relation[row["relation"]].append(row)
    for relation, rows in by_relation.items():
        dev = {row["question"]: row["answer"] for row in rows if row["split"] == "dev"}
        questions = [row for row in rows if row["split"] != "dev"]
        sets = draw_exemplar_sets({relation: list(dev)})[relation]
        batch = PromptBatch(
            prefixes=[few_shot_prefix([(question, dev[question]) for question in shots]) for shots in sets],
            question_ids=[row["question"] for row in questions],
            suffixes=[few_shot_suffix(row["question"]) for row in questions],
        )
        yield batch, [row["answer"] for row in questions]


def test_gold_probabilities_and_early_exit_agree_with_full_sampling(built: BuiltWorld) -> None:
    """Exact probabilities agree with samples, and early exit with all samples, on a model that knows facts."""
    from slick.inference.base import SamplingConfig
    from slick.inference.packed.cpu_linear import prepack_linears
    from slick.inference.packed.engine import TransformersEngine
    from slick.models import load_model, load_tokenizer

    folder = built.study.child("world", "model").local_path
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    plain = TransformersEngine(model, tokenizer)
    sampling = SamplingConfig(max_new_tokens=16)
    first_batch, gold = next(question_batches(built))
    before = plain.generate(first_batch, sampling)
    assert prepack_linears(model)
    full, early_exit = (TransformersEngine(model, tokenizer) for _ in range(2))
    same = [first == second for first, second in zip(before, full.generate(first_batch, sampling), strict=True)]
    assert sum(same) >= 0.97 * len(same), "packed weights change answers"
    expected = variance = drawn = 0.0
    for batch, answers in question_batches(built):
        all_results = full.generate(batch, sampling)
        scores = full.score(batch, answers, sampling)
        early_results = early_exit.generate(batch, sampling, [make_matcher([answer]) for answer in answers])
        for answer, all_answers, score, early_answers in zip(answers, all_results, scores, early_results, strict=True):
            assert [s.is_greedy for s in score] == [a.greedy_text == answer for a in all_answers]
            texts = [text or "" for a in all_answers for text in a.sampled_text]
            drawn += texts.count(answer)
            expected += sum(16 * s.probability for s in score)
            variance += sum(16 * s.probability * (1 - s.probability) for s in score)
            hits = [
                [is_hit(t or "", [answer]) for a in rows for t in a.sampled_text]
                for rows in (all_answers, early_answers)
            ]
            if not any(s.is_greedy for s in score):
                assert any(hits[0]) == any(hits[1])
    assert expected > 1000
    # Samples may spell an answer in unusual tokens, which the exact probability omits; that is rare in a trained
    # model. Otherwise the tolerance is five standard deviations.
    assert abs(drawn - expected) < 5 * variance**0.5 + 0.005 * expected
    assert early_exit.stats.decoded_tokens < 0.55 * full.stats.decoded_tokens
    assert gold


def test_modules_in_the_working_folder_are_not_imported(tmp_path: Path) -> None:
    import subprocess

    from slick.world.build import python_module

    for name in ("torch", "json", "numpy", "slick", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('was-run', 'w').close()\n")
    result = subprocess.run(
        [*python_module("slick.world.pretrain"), str(tmp_path / "missing")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "training.json" in result.stderr, result.stderr
    assert not (tmp_path / "was-run").exists()
