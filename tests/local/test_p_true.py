"""P(True) on real Ray: against a plain forward pass, resumed, bound to the labelled model, and beside old labels."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.status import describe_p_true
from slick.annotation import AnnotateConfig, annotate, read_p_true
from slick.datasets import QuestionsConfig, prepare_questions, read_questions
from slick.errors import EngineError, StudyError
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from slick.models import load_model, load_tokenizer
from slick.prompts import P_TRUE_CHOICES, P_TRUE_PREFIX, p_true_suffix
from slick.storage import Folder
from slick.study import require_manifest
from slick.study_files import P_TRUE_SCHEMA
from slick.world import build_world, smoke_world_config
from tests.local.tiny import CONFIGS, save_tiny_model, tiny_model, tiny_tokenizer

NAMES = ("Peru", "Ada", "Emmy", "Dune", "\nx", "London", "Lima Q")
BATCH = PromptBatch(
    prefixes=[P_TRUE_PREFIX],
    question_ids=NAMES,
    suffixes=[p_true_suffix(f"What is the capital of {name}?", name) for name in NAMES],
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def direct(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """The logarithm of the chance of one answer behind one prompt, from the whole text through the plain pass."""
    before = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(f"{prompt} {answer}", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0].double()
    chances = torch.log_softmax(logits, dim=-1)
    return sum(float(chances[place - 1, ids[0, place]]) for place in range(before, ids.shape[1]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "mamba"])
def test_the_chance_of_a_text_is_that_of_its_tokens_one_by_one(name: str) -> None:
    """Also where texts differ in length and share no beginning, and where questions go in several parts."""
    model, tokenizer = tiny_model(name, spread=0.1), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer, batch_questions=3)
    assert engine.uses_packing == (name in CONFIGS)
    choices = ("(A", "(B", "London", "(A) True", "Lo")
    for suffix, found in zip(BATCH.suffixes, engine.log_probabilities(BATCH, choices), strict=True):
        right = [direct(model, tokenizer, P_TRUE_PREFIX + suffix, choice) for choice in choices]
        assert found == pytest.approx(right, abs=1e-4)
    assert engine.stats.generations == 0
    assert engine.stats.prompts == len(NAMES)
    assert engine.stats.prompt_tokens == sum(len(tokenizer(P_TRUE_PREFIX + s)["input_ids"]) for s in BATCH.suffixes)


def test_answers_are_drawn_as_before_once_chances_were_read() -> None:
    model, tokenizer = tiny_model("llama", spread=0.2), tiny_tokenizer()
    sampling = SamplingConfig(num_samples=3, max_new_tokens=4)
    right = TransformersEngine(model, tokenizer).generate(BATCH, sampling)
    engine = TransformersEngine(model, tokenizer)
    engine.log_probabilities(BATCH, P_TRUE_CHOICES)
    assert engine.generate(BATCH, sampling) == right


def test_a_model_that_gives_no_numbers_is_an_error() -> None:
    model = tiny_model("llama")
    engine = TransformersEngine(model, tiny_tokenizer())
    model.lm_head.weight.data[5, 5] = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        engine.log_probabilities(BATCH, P_TRUE_CHOICES)


CONFIG = AnnotateConfig(
    num_exemplar_sets=2,
    num_shots=2,
    sampling=SamplingConfig(num_samples=2, max_new_tokens=6),
    limit_per_relation=6,
    batch_questions=4,
    batches_per_file=1,
    max_actors=1,
)
WITH = replace(CONFIG, p_true=True)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Folder:
    """A smoke world with labels and without P(True)."""
    study = Folder(str(tmp_path_factory.mktemp("labelled")))
    build_world(study, smoke_world_config())
    prepare_questions(study, QuestionsConfig())
    annotate(study, CONFIG)
    return study


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, labelled: Folder) -> Folder:
    """The same with P(True), asked of it later."""
    return scored(tmp_path_factory.mktemp("done"), labelled)


def scored(path: Path, labelled: Folder, config: AnnotateConfig = WITH) -> Folder:
    study = copy(path, labelled)
    annotate(study, config)
    return study


def copy(path: Path, study: Folder) -> Folder:
    shutil.copytree(study.local_path, path, dirs_exist_ok=True)
    return Folder(str(path))


def wanted_ids(study: Folder) -> list[str]:
    table = study.child("annotate").read_table("knowledge.parquet").to_pylist()
    return sorted(row["question_id"] for row in table if (row["domain"], row["split"]) == ("id", "test"))


def test_every_test_question_has_the_chance_that_a_plain_pass_gives(done: Folder) -> None:
    rows = read_p_true(done)
    assert rows.schema.equals(P_TRUE_SCHEMA)
    assert rows["question_id"].to_pylist() == wanted_ids(done)
    questions = {row["question_id"]: row for row in read_questions(done).to_pylist()}
    folder = done.child("world", "model").local_path
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    for row in rows.to_pylist():
        question = questions[row["question_id"]]
        prompt = (
            f"Question: {question['question']}\nProposed Answer: {question['answers'][0]}\n"
            "Is the proposed answer:\n\n(A) True\n(B) False\nThe proposed answer is:"
        )
        p_a, p_b = (math.exp(direct(model, tokenizer, prompt, letter)) for letter in ("(A", "(B"))
        assert (row["p_a"], row["p_b"]) == pytest.approx((p_a, p_b), rel=1e-3, abs=1e-9)
        assert row["p_true"] == pytest.approx(p_a / (p_a + p_b), abs=1e-5)
    assert len(set(rows["p_true"].to_pylist())) > 1
    counts = done.child("annotate", "p_true").read_json("manifest.json")["counts"]
    assert counts["questions"] == rows.num_rows
    assert 0 < counts["prefilled_tokens"] < counts["prompt_tokens"]
    assert counts["percentiles"]["0"] <= counts["percentiles"]["50"] <= counts["percentiles"]["100"]


def test_the_manifest_says_what_it_was_scored_on(done: Folder) -> None:
    manifest = require_manifest(done.child("annotate", "p_true"), "annotate")
    assert manifest.settings["dtype"] == manifest.counts["dtype"] == "float32", "dtype auto on a CPU"
    assert manifest.counts["device"] == "cpu"
    assert manifest.counts["attention"].startswith("slick packed")


def test_the_labels_are_left_as_they_were(done: Folder, labelled: Folder) -> None:
    before, after = (study.child("annotate").sizes() for study in (labelled, done))
    assert {name for name in after if name not in before} == {name for name in after if name.startswith("p_true/")}
    for name in ("manifest.json", "started.json", "knowledge.parquet"):
        assert labelled.child("annotate").read_bytes(name) == done.child("annotate").read_bytes(name)
    p_true = done.child("annotate", "p_true")
    written = {name: p_true.read_bytes(name) for name in p_true.names()}
    annotate(done, WITH)  # finished: nothing runs
    assert {name: p_true.read_bytes(name) for name in p_true.names()} == written


def test_a_study_is_labelled_and_scored_in_one_go(done: Folder, labelled: Folder, tmp_path: Path) -> None:
    study = copy(tmp_path, labelled)
    study.child("annotate").delete()
    annotate(study, replace(WITH, min_actors=2, max_actors=2, batches_per_file=3, cpus_per_actor=0.5))
    assert read_p_true(study).equals(read_p_true(done))
    assert len(study.child("annotate", "p_true").names(".parquet")) < len(done.child("annotate", "p_true").names())


def test_half_the_parts_gone_are_made_again_and_the_others_kept(done: Folder, tmp_path: Path) -> None:
    study = copy(tmp_path, done)
    folder = study.child("annotate", "p_true")
    folder.delete("manifest.json")
    names = folder.names(".parquet")
    assert len(names) > 3
    for name in names[::2]:
        folder.delete(name)
    kept = {name: folder.read_bytes(name) for name in names[1::2]}
    half = sum(folder.num_rows(name) for name in names[1::2])
    whole = len(wanted_ids(study))
    assert describe_p_true(study) == f"begun, not finished, {half} of {whole} gold answers scored"
    annotate(study, replace(WITH, batches_per_file=2))
    assert describe_p_true(study).endswith(f", {whole} of {whole} gold answers scored")
    assert read_p_true(study).equals(read_p_true(done))
    assert {name: folder.read_bytes(name) for name in kept} == kept
    assert folder.exists("manifest.json")


def test_another_model_is_refused(labelled: Folder, tmp_path: Path) -> None:
    study = copy(tmp_path / "study", labelled)
    other = save_tiny_model(tmp_path / "other", steps=0)
    with pytest.raises(StudyError, match="holds labels of the model with fingerprint"):
        annotate(study, replace(WITH, model=other))
    assert not study.child("annotate", "p_true").exists()


def test_other_settings_are_refused_and_all_questions_can_be_asked(
    done: Folder, labelled: Folder, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=r"p_true was written with other inputs or settings"):
        annotate(done, replace(WITH, p_true_of="all"))
    study = scored(tmp_path, labelled, replace(WITH, p_true_of="all"))
    found = read_p_true(study)
    knowledge = study.child("annotate").read_table("knowledge.parquet")
    assert found["question_id"].to_pylist() == sorted(knowledge["question_id"].to_pylist())
    same = dict(zip(found["question_id"].to_pylist(), found["p_true"].to_pylist(), strict=True))
    for row in read_p_true(done).to_pylist():  # batches are cut otherwise, which shows in the last digits alone
        assert same[row["question_id"]] == pytest.approx(row["p_true"], abs=1e-5)
