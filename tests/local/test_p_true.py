"""P(True) and scores of stored answers on real Ray: equal to a plain forward pass, resumable, added to old labels."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.status import describe_hidden, describe_p_true
from slick.annotation import AnnotateConfig, RescoreConfig, annotate, read_generations, read_p_true, rescore
from slick.datasets import QuestionsConfig, prepare_questions, read_questions
from slick.errors import EngineError, StudyError
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from slick.matching import make_matcher, normalize
from slick.models import load_model, load_tokenizer
from slick.prompts import P_TRUE_CHOICES, P_TRUE_PREFIX, few_shot_prefix, few_shot_suffix, p_true_suffix
from slick.report.statistics.hidden_answers import load_hidden
from slick.storage import Folder
from slick.study import require_manifest
from slick.study_files import CANDIDATE_SCHEMA, P_TRUE_SCHEMA, read_candidates, read_exemplars
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


def reference_log_probability(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Log-probability of one answer after one prompt, from a plain forward pass over the whole text."""
    num_prompt_tokens = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(f"{prompt} {answer}", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0].double()
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return sum(
        float(log_probabilities[position - 1, ids[0, position]]) for position in range(num_prompt_tokens, ids.shape[1])
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "mamba"])
def test_log_probability_of_a_text_is_the_sum_over_its_tokens(name: str) -> None:
    """Also for texts of different lengths without a common prefix, and for questions in several batches."""
    model, tokenizer = tiny_model(name, spread=0.1), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer, batch_questions=3)
    assert engine.uses_packing == (name in CONFIGS)
    choices = ("(A", "(B", "London", "(A) True", "Lo")
    for suffix, scores in zip(BATCH.suffixes, engine.log_probabilities(BATCH, choices), strict=True):
        expected = [reference_log_probability(model, tokenizer, P_TRUE_PREFIX + suffix, choice) for choice in choices]
        assert scores == pytest.approx(expected, abs=1e-4)
    assert engine.stats.generations == 0
    assert engine.stats.prompts == len(NAMES)
    assert engine.stats.prompt_tokens == sum(len(tokenizer(P_TRUE_PREFIX + s)["input_ids"]) for s in BATCH.suffixes)


def reference_answer_score(model: Any, tokenizer: Any, prompt: str, answer: str, *, with_end: bool) -> float:
    """Log-probability of a whole answer: its tokens, and any token that ends a line and adds no text to it."""
    total = reference_log_probability(model, tokenizer, prompt, answer)
    if not with_end:
        return total
    ids = tokenizer(f"{prompt} {answer}", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        after = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, -1].double(), dim=-1)
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    ends = [i for i, text in enumerate(texts) if "\n" in text and not text.split("\n")[0].strip()]
    return total + float(torch.logsumexp(after[sorted({*ends, tokenizer.eos_token_id})], dim=0))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_log_probability_of_whole_answers_equals_a_plain_pass(name: str) -> None:
    """Under several prefixes, for answers of different lengths, and for one as long as generated answers may be."""
    model, tokenizer = tiny_model(name, spread=0.1), tiny_tokenizer()
    engine = TransformersEngine(model, tokenizer, batch_questions=3)
    prefixes = [few_shot_prefix([("Where is Rome?", "Italy")]), few_shot_prefix([("Who wrote Dune?", "Frank Herbert")])]
    names = ("Peru", "Ada", "Emmy", "Dune", "Lima")
    batch = PromptBatch(
        prefixes=prefixes, question_ids=names, suffixes=[few_shot_suffix(f"What is {name}?") for name in names]
    )
    answers = ("London", "Lo", "Paris and Rome", "Dune", "the city of Lima in Peru")
    lengths = [len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) for answer in answers]
    assert sorted(lengths)[-2] < max(lengths)
    results = engine.answer_log_probabilities(batch, answers, max(lengths))
    for suffix, answer, num_tokens, scores in zip(batch.suffixes, answers, lengths, results, strict=True):
        has_end = num_tokens < max(lengths)
        expected = [
            reference_answer_score(model, tokenizer, prefix + suffix, answer, with_end=has_end) for prefix in prefixes
        ]
        assert [score.log_probability for score in scores] == pytest.approx(expected, abs=1e-4)
        assert {score.num_tokens for score in scores} == {num_tokens + has_end}
    assert engine.stats.generations == 0


def test_whole_answers_from_non_finite_logits_are_an_error() -> None:
    model = tiny_model("llama")
    engine = TransformersEngine(model, tiny_tokenizer())
    answers = ["London"] * len(NAMES)
    assert engine.answer_log_probabilities(BATCH, answers, 4)
    model.lm_head.weight.data[5, 5] = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        engine.answer_log_probabilities(BATCH, answers, 4)


def test_scoring_does_not_change_later_samples() -> None:
    model, tokenizer = tiny_model("llama", spread=0.2), tiny_tokenizer()
    sampling = SamplingConfig(num_samples=3, max_new_tokens=4)
    expected = TransformersEngine(model, tokenizer).generate(BATCH, sampling)
    engine = TransformersEngine(model, tokenizer)
    engine.log_probabilities(BATCH, P_TRUE_CHOICES)
    assert engine.generate(BATCH, sampling) == expected


def test_non_finite_logits_are_an_error() -> None:
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
CONFIG_WITH_P_TRUE = replace(CONFIG, p_true=True)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Folder:
    """A smoke world with labels and without P(True)."""
    study = Folder(str(tmp_path_factory.mktemp("labelled")))
    build_world(study, smoke_world_config())
    prepare_questions(study, QuestionsConfig())
    annotate(study, CONFIG)
    return study


@pytest.fixture(scope="module")
def scored_study(tmp_path_factory: pytest.TempPathFactory, labelled: Folder) -> Folder:
    """The study of `labelled`, with P(True) added later."""
    return score_copy(tmp_path_factory.mktemp("done"), labelled)


def score_copy(path: Path, labelled: Folder, config: AnnotateConfig = CONFIG_WITH_P_TRUE) -> Folder:
    study = copy_study(path, labelled)
    annotate(study, config)
    return study


def copy_study(path: Path, study: Folder) -> Folder:
    shutil.copytree(study.local_path, path, dirs_exist_ok=True)
    return Folder(str(path))


def scored_question_ids(study: Folder) -> list[str]:
    table = study.child("annotate").read_table("knowledge.parquet").to_pylist()
    return sorted(row["question_id"] for row in table if (row["domain"], row["split"]) == ("id", "test"))


def test_p_true_of_every_test_question_equals_a_plain_pass(scored_study: Folder) -> None:
    rows = read_p_true(scored_study)
    assert rows.schema.equals(P_TRUE_SCHEMA)
    assert rows["question_id"].to_pylist() == scored_question_ids(scored_study)
    questions = {row["question_id"]: row for row in read_questions(scored_study).to_pylist()}
    folder = scored_study.child("world", "model").local_path
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    for row in rows.to_pylist():
        question = questions[row["question_id"]]
        prompt = (
            f"Question: {question['question']}\nProposed Answer: {question['answers'][0]}\n"
            "Is the proposed answer:\n\n(A) True\n(B) False\nThe proposed answer is:"
        )
        p_a, p_b = (math.exp(reference_log_probability(model, tokenizer, prompt, letter)) for letter in ("(A", "(B"))
        assert (row["p_a"], row["p_b"]) == pytest.approx((p_a, p_b), rel=1e-3, abs=1e-9)
        assert row["p_true"] == pytest.approx(p_a / (p_a + p_b), abs=1e-5)
    assert len(set(rows["p_true"].to_pylist())) > 1
    counts = scored_study.child("annotate", "p_true").read_json("manifest.json")["counts"]
    assert counts["questions"] == rows.num_rows
    assert 0 < counts["prefilled_tokens"] < counts["prompt_tokens"]
    assert counts["percentiles"]["0"] <= counts["percentiles"]["50"] <= counts["percentiles"]["100"]


def test_manifest_has_dtype_device_and_attention(scored_study: Folder) -> None:
    manifest = require_manifest(scored_study.child("annotate", "p_true"), "annotate")
    assert manifest.settings["dtype"] == manifest.counts["dtype"] == "float32", "dtype auto on a CPU"
    assert manifest.counts["device"] == "cpu"
    assert manifest.counts["attention"].startswith("slick packed")


def test_labels_are_unchanged_by_p_true(scored_study: Folder, labelled: Folder) -> None:
    before, after = (study.child("annotate").sizes() for study in (labelled, scored_study))
    assert {name for name in after if name not in before} == {name for name in after if name.startswith("p_true/")}
    for name in ("manifest.json", "started.json", "knowledge.parquet"):
        assert labelled.child("annotate").read_bytes(name) == scored_study.child("annotate").read_bytes(name)
    p_true = scored_study.child("annotate", "p_true")
    written = {name: p_true.read_bytes(name) for name in p_true.names()}
    annotate(scored_study, CONFIG_WITH_P_TRUE)  # finished: nothing runs
    assert {name: p_true.read_bytes(name) for name in p_true.names()} == written


@pytest.mark.slow
def test_labels_and_p_true_in_one_run(scored_study: Folder, labelled: Folder, tmp_path: Path) -> None:
    study = copy_study(tmp_path, labelled)
    study.child("annotate").delete()
    annotate(study, replace(CONFIG_WITH_P_TRUE, min_actors=2, max_actors=2, batches_per_file=3, cpus_per_actor=0.5))
    assert read_p_true(study).equals(read_p_true(scored_study))
    assert len(study.child("annotate", "p_true").names(".parquet")) < len(
        scored_study.child("annotate", "p_true").names()
    )


def test_missing_files_are_scored_again_and_others_kept(scored_study: Folder, tmp_path: Path) -> None:
    study = copy_study(tmp_path, scored_study)
    folder = study.child("annotate", "p_true")
    folder.delete("manifest.json")
    names = folder.names(".parquet")
    assert len(names) > 3
    for name in names[::2]:
        folder.delete(name)
    kept = {name: folder.read_bytes(name) for name in names[1::2]}
    half = sum(folder.num_rows(name) for name in names[1::2])
    total = len(scored_question_ids(study))
    assert describe_p_true(study) == f"begun, not finished, {half} of {total} gold answers scored"
    annotate(study, replace(CONFIG_WITH_P_TRUE, batches_per_file=2))
    assert describe_p_true(study).endswith(f", {total} of {total} gold answers scored")
    assert read_p_true(study).equals(read_p_true(scored_study))
    assert {name: folder.read_bytes(name) for name in kept} == kept
    assert folder.exists("manifest.json")


def test_other_model_is_refused(labelled: Folder, tmp_path: Path) -> None:
    study = copy_study(tmp_path / "study", labelled)
    other = save_tiny_model(tmp_path / "other", steps=0)
    with pytest.raises(StudyError, match="holds labels of the model with fingerprint"):
        annotate(study, replace(CONFIG_WITH_P_TRUE, model=other))
    assert not study.child("annotate", "p_true").exists()


def test_other_settings_are_refused_and_all_questions_can_be_scored(
    scored_study: Folder, labelled: Folder, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=r"p_true was written with other inputs or settings"):
        annotate(scored_study, replace(CONFIG_WITH_P_TRUE, p_true_of="all"))
    study = score_copy(tmp_path, labelled, replace(CONFIG_WITH_P_TRUE, p_true_of="all"))
    p_true = read_p_true(study)
    knowledge = study.child("annotate").read_table("knowledge.parquet")
    assert p_true["question_id"].to_pylist() == sorted(knowledge["question_id"].to_pylist())
    by_question = dict(zip(p_true["question_id"].to_pylist(), p_true["p_true"].to_pylist(), strict=True))
    for row in read_p_true(scored_study).to_pylist():  # other batches differ in the last digits only
        assert by_question[row["question_id"]] == pytest.approx(row["p_true"], abs=1e-5)


CONFIG_WITH_HIDDEN = replace(CONFIG, hidden=True, hidden_questions=4, hidden_answers=3, hidden_prefixes=2)


@pytest.fixture(scope="module")
def ranked_study(tmp_path_factory: pytest.TempPathFactory, labelled: Folder) -> Folder:
    """The study of `labelled`, with scores of stored answers added later."""
    return score_copy(tmp_path_factory.mktemp("ranked"), labelled, CONFIG_WITH_HIDDEN)


def test_scores_of_stored_answers_equal_a_plain_pass(ranked_study: Folder) -> None:
    folder = ranked_study.child("annotate", "hidden")
    table = read_candidates(folder)
    assert table.schema.equals(CANDIDATE_SCHEMA)
    questions = {row["question_id"]: row for row in read_questions(ranked_study).to_pylist()}
    exemplars = read_exemplars(ranked_study.child("annotate"))
    model_folder = ranked_study.child("world", "model").local_path
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    for row in table.to_pylist()[::97]:
        question = questions[row["question_id"]]
        for ids, log_probability in zip(exemplars[row["relation"]], row["log_probability"], strict=True):
            shots = [(questions[i]["question"], questions[i]["answers"][0]) for i in ids]
            prompt = few_shot_prefix(shots) + few_shot_suffix(question["question"])
            has_end = row["num_tokens"] > len(tokenizer(f" {row['answer']}", add_special_tokens=False)["input_ids"])
            expected = reference_answer_score(model, tokenizer, prompt, row["answer"], with_end=has_end)
            assert log_probability == pytest.approx(expected, abs=1e-3)
        suffix = p_true_suffix(question["question"], row["answer"])
        p_a, p_b = (
            math.exp(reference_log_probability(model, tokenizer, P_TRUE_PREFIX + suffix, text))
            for text in P_TRUE_CHOICES
        )
        assert row["p_true"] == pytest.approx(p_a / (p_a + p_b), abs=1e-4)


def test_candidates_are_gold_answers_stored_answers_and_distractors(ranked_study: Folder, labelled: Folder) -> None:
    rows = read_candidates(ranked_study.child("annotate", "hidden")).to_pylist()
    questions = {row["question_id"]: row for row in read_questions(ranked_study).to_pylist()}
    stored = {row["question_id"]: row for row in read_generations(ranked_study).to_pylist()}
    golds = {
        relation: {normalize(row["answers"][0]) for row in questions.values() if row["relation"] == relation}
        for relation in {row["relation"] for row in rows}
    }
    for row in rows:
        question, answers = questions[row["question_id"]], stored[row["question_id"]]
        texts = [*answers["greedy_text"], *(text for samples in answers["sampled_text"] for text in samples)]
        assert row["count"] == sum(normalize(text) == normalize(row["answer"]) for text in texts)
        assert row["is_right"] == make_matcher(question["answers"], "exact").is_hit(row["answer"])
        assert row["is_gold"] == (row["answer"] == question["answers"][0])
        assert row["is_gold"] or row["count"] or row["num_distractors"]
        assert not row["num_distractors"] or normalize(row["answer"]) in golds[row["relation"]]
    assert {row["question_id"] for row in rows if row["is_gold"]} == {row["question_id"] for row in rows}
    before, after = (study.child("annotate").sizes() for study in (labelled, ranked_study))
    assert {name for name in after if name not in before} == {name for name in after if name.startswith("hidden/")}
    assert load_hidden(ranked_study).rankings is not None


def test_missing_scores_are_computed_again(ranked_study: Folder, tmp_path: Path) -> None:
    study = copy_study(tmp_path, ranked_study)
    folder = study.child("annotate", "hidden")
    expected = read_candidates(folder)
    assert f", {expected.num_rows:,} answers to " in describe_hidden(study)
    for name in ("manifest.json", "candidates.parquet"):
        folder.delete(name)
    stored = folder.child("log_probabilities")
    for name in stored.names(".parquet")[::2]:
        stored.delete(name)
    assert describe_hidden(study).startswith("begun, not finished, ")
    annotate(study, CONFIG_WITH_HIDDEN)
    assert read_candidates(folder).equals(expected)


def test_scores_of_other_labels_are_not_used(ranked_study: Folder, tmp_path: Path) -> None:
    study = copy_study(tmp_path, ranked_study)
    rescore(study, RescoreConfig(matcher="raw"))
    loaded = load_hidden(study)
    assert loaded.rankings is None
    assert "scored for other labels" in loaded.rankings_missing
    with pytest.raises(StudyError, match="hidden was written with other inputs or settings"):
        annotate(study, replace(CONFIG_WITH_HIDDEN, matcher="raw"))
