"""The annotate step on real Ray: labels are independent of scheduling, runs resume, and invalid inputs are refused."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from slick.annotation import AnnotateConfig, RescoreConfig, annotate, rescore, selection
from slick.annotation.knowledge import knowledge_table
from slick.annotation.progress import MAIN_ANSWERS, AnswerProgress, annotation_progress
from slick.annotation.store import read_generations, select_questions
from slick.annotation.uncertainty import Scoring, collect_evidence
from slick.datasets import read_questions
from slick.errors import DataError, EngineError, ModelError, SettingsError, SlickError, StudyError
from slick.formatting import ProgressReporter
from slick.inference.base import SamplingConfig
from slick.matching import is_hit
from slick.storage import Folder
from slick.study import require_manifest
from slick.study_files import KNOWLEDGE_SCHEMA, read_knowledge
from slick.types import categories
from tests.faults.hold import hold, holdable, release
from tests.local.metrics import exported_metrics
from tests.local.tiny import save_tiny_model, write_birthplace_questions
from tests.waiting import wait_for

SAMPLING = SamplingConfig(num_samples=4, max_new_tokens=6, temperature=0.8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def config(model: str) -> AnnotateConfig:
    return AnnotateConfig(
        model=model,
        num_exemplar_sets=3,
        num_shots=2,
        sampling=SAMPLING,
        batch_questions=4,
        batches_per_file=1,
        max_actors=1,
    )


@pytest.fixture(scope="module")
def annotated_study(tmp_path_factory: pytest.TempPathFactory, config: AnnotateConfig, ray_cluster: None) -> Folder:
    """A study annotated by one actor."""
    return annotate_questions(tmp_path_factory.mktemp("one"), config)


def annotate_questions(path: Path, config: AnnotateConfig) -> Folder:
    study = Folder(str(path))
    write_birthplace_questions(study)
    annotate(study, config)
    return study


def test_no_thread_is_left(annotated_study: Folder) -> None:
    assert "Prefetcher" not in {thread.name for thread in threading.enumerate()}


def assert_same(first: Folder, second: Folder) -> None:
    assert read_knowledge(first).equals(read_knowledge(second))
    assert read_generations(first).equals(read_generations(second))


def test_every_question_has_answers_and_a_category(annotated_study: Folder, config: AnnotateConfig) -> None:
    knowledge, generations = read_knowledge(annotated_study), read_generations(annotated_study)
    gold = {row["question_id"]: row["answers"] for row in read_questions(annotated_study).to_pylist()}
    expected = {i for i in gold if "train" in i or "test" in i} - {i for i in gold if i.startswith("P9-train")}
    assert knowledge.schema == KNOWLEDGE_SCHEMA
    assert sorted(knowledge["question_id"].to_pylist()) == sorted(expected)
    assert annotation_progress(annotated_study) == {
        MAIN_ANSWERS: AnswerProgress(num=len(expected), expected=len(expected))
    }
    labels = {row["question_id"]: row for row in knowledge.to_pylist()}
    for row in generations.to_pylist():
        answers = gold[row["question_id"]]
        assert [len(texts) for texts in row["sampled_text"]] == [SAMPLING.num_samples] * config.num_exemplar_sets
        assert row["greedy_hit"] == [is_hit(text, answers) for text in row["greedy_text"]]
        assert row["sampled_hit"] == [[is_hit(text, answers) for text in texts] for texts in row["sampled_text"]]
        hits = sum(sum(hits) for hits in row["sampled_hit"])
        label = labels[row["question_id"]]
        assert [label["category"]] == categories(np.array([sum(row["greedy_hit"])]), np.array([3]), np.array([hits]))
        assert (label["p_correct_sampled"], label["p_correct_greedy"]) == (hits / 12, sum(row["greedy_hit"]) / 3)
        assert (label["p_upper"] is None) == bool(hits or sum(row["greedy_hit"]))
    assert len(set(knowledge["category"].to_pylist())) > 1, "the model must produce more than one category"


def test_manifest_counts_generations_and_tokens(annotated_study: Folder, config: AnnotateConfig) -> None:
    manifest = annotate(annotated_study, config)  # finished: nothing runs
    counts, generations = manifest.counts, read_generations(annotated_study)
    assert counts["questions"] == generations.num_rows
    assert counts["generations"] == generations.num_rows * 3 * 5
    assert counts["answer_tokens"] == sum(generations["num_tokens"].to_pylist())
    assert 0 < counts["prefilled_tokens"] < counts["prompt_tokens"]
    assert 0 < counts["decoded_tokens"] < counts["answer_tokens"]
    num = sum(n for splits in counts["categories"].values() for sizes in splits.values() for n in sizes.values())
    assert num == generations.num_rows
    assert set(manifest.inputs) == {"questions", "model"}


def test_exemplars_are_dev_questions_of_their_relation(annotated_study: Folder) -> None:
    exemplars = annotated_study.child("annotate").read_json("exemplars.json")
    assert set(exemplars) == {"P1", "P2", "P9"}
    for relation, sets in exemplars.items():
        assert len({tuple(ids) for ids in sets}) == 3
        assert all(i.startswith(f"{relation}-dev-") for ids in sets for i in ids)


@pytest.mark.slow
def test_labels_do_not_depend_on_actors_and_files(
    annotated_study: Folder, config: AnnotateConfig, tmp_path: Path
) -> None:
    before = tasks_of("NORMAL_TASK")
    other = annotate_questions(
        tmp_path, replace(config, min_actors=2, max_actors=2, batches_per_file=3, cpus_per_actor=0.5)
    )
    assert_same(annotated_study, other)
    assert tasks_of("NORMAL_TASK") == before, "annotation must start actors only"
    assert tasks_of("ACTOR_TASK")
    files = [study.child("annotate", "generations").names(".parquet") for study in (annotated_study, other)]
    assert len(files[0]) > len(files[1])


def test_progress_is_reported_after_every_unit(
    config: AnnotateConfig, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, num_reports, add = Folder(str(tmp_path)), 0, ProgressReporter.add

    def add_and_release(progress: ProgressReporter, num: int, note: str = "") -> None:
        nonlocal num_reports
        num_reports += 1
        if num_reports == 2:
            release(study)
        add(progress, num, note)

    monkeypatch.setattr(ProgressReporter, "add", add_and_release)
    hold(study, at=2)  # the actors pause after two files, until both are reported
    with holdable():
        annotate_questions(tmp_path, config)
    assert num_reports == len(study.child("annotate", "generations").names(".parquet")) > 2


def tasks_of(kind: str) -> set[str]:
    """Ids of all tasks of a kind that Ray has run."""
    import ray
    from ray.util.state import list_tasks

    cluster = ray.get_runtime_context().gcs_address
    return {task.task_id for task in list_tasks(cluster, filters=[("type", "=", kind)], limit=10_000)}


def test_run_resumes_where_files_are_missing(annotated_study: Folder, config: AnnotateConfig, tmp_path: Path) -> None:
    shutil.copytree(annotated_study.local_path, tmp_path, dirs_exist_ok=True)
    study = Folder(str(tmp_path))
    folder = study.child("annotate")
    parts = folder.child("generations")
    for name in parts.names(".parquet")[::3]:
        parts.delete(name)
    broken = parts.names(".parquet")[1]
    parts.write_bytes(broken, parts.read_bytes(broken)[:100])
    kept = {name: parts.read_bytes(name) for name in parts.names(".parquet") if name != broken}
    for name in ("manifest.json", "knowledge.parquet"):
        folder.delete(name)
    annotate(study, replace(config, batches_per_file=2))
    assert_same(annotated_study, study)
    assert all(parts.read_bytes(name) == data for name, data in kept.items())


def test_tasks_of_large_studies_give_the_same_labels(
    annotated_study: Folder, config: AnnotateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, by_tasks = (
        Folder(str(shutil.copytree(annotated_study.local_path, tmp_path / name))) for name in ("here", "tasks")
    )
    rescoring = RescoreConfig(matcher="contains", num_samples=2)
    expected = rescore(here, rescoring)
    monkeypatch.setattr(selection, "PARALLEL_QUESTIONS", 1)
    folder = by_tasks.child("annotate")
    for name in ("manifest.json", "knowledge.parquet", "exemplars.json"):
        folder.delete(name)
    generations = folder.child("generations")
    generations.delete(generations.names(".parquet")[1])
    annotate(by_tasks, config)
    assert_same(annotated_study, by_tasks)
    assert not folder.exists("temporary")
    counts = rescore(by_tasks, rescoring).counts
    assert read_knowledge(by_tasks).equals(read_knowledge(here))
    for name in ("exemplars.json", "confidence.json"):
        assert folder.read_json(name) == here.child("annotate").read_json(name)
    for name in ("questions", "categories", "draws_by_category", "generations", "answer_tokens"):
        assert counts[name] == expected.counts[name]


def test_an_error_in_a_task_is_the_same_error(
    config: AnnotateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.setattr(selection, "PARALLEL_QUESTIONS", 1)
    study = Folder(str(tmp_path))
    write_birthplace_questions(study, num_dev=2)
    with pytest.raises(DataError, match="relation P1 has 2 dev questions"):
        annotate(study, config)


def test_dev_questions_are_never_their_own_exemplars(annotated_study: Folder) -> None:
    exemplars = annotated_study.child("annotate").read_json("exemplars.json")
    used = {i for sets in exemplars.values() for ids in sets for i in ids}
    selected = select_questions(read_questions(annotated_study), dev=True, exemplars=exemplars, limit=None)
    dev = {i for i in selected["question_id"].to_pylist() if "dev" in i}
    assert dev
    assert not dev & used
    assert len(dev | used) == 18


def test_limit_selects_a_fixed_sample_per_relation_and_split(annotated_study: Folder) -> None:
    questions = read_questions(annotated_study)
    selected = select_questions(questions, dev=False, exemplars={}, limit=2)
    groups = [(row["relation"], row["split"]) for row in selected.to_pylist()]
    assert {group: groups.count(group) for group in groups} == dict.fromkeys(
        (("P1", "train"), ("P1", "test"), ("P2", "train"), ("P2", "test"), ("P9", "test")), 2
    )
    more = select_questions(questions, dev=False, exemplars={}, limit=3)
    assert set(selected["question_id"].to_pylist()) < set(more["question_id"].to_pylist())


def test_other_settings_are_refused(annotated_study: Folder, config: AnnotateConfig) -> None:
    with pytest.raises(StudyError, match="other inputs or settings"):
        annotate(annotated_study, replace(config, sampling=replace(SAMPLING, temperature=0.7)))


def test_actor_error_is_one_message(config: AnnotateConfig, ray_cluster: None, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    write_birthplace_questions(study)
    broken = shutil.copytree(config.model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SlickError, match="finite") as raised:
        annotate(study, replace(config, model=str(broken)))
    assert "\n" not in str(raised.value)
    assert not study.child("annotate").exists("manifest.json")
    assert study.child("annotate", "generations").names() == []


def test_missing_model_is_refused_before_ray_starts(config: AnnotateConfig, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    write_birthplace_questions(study)
    with pytest.raises(ModelError, match=r"nowhere\.gguf does not exist"):
        annotate(study, replace(config, model=str(tmp_path / "nowhere.gguf")))
    with pytest.raises(ModelError, match="no finished world"):
        annotate(study, replace(config, model=""))
    with pytest.raises(ModelError, match=r"has no config\.json"):
        annotate(study, replace(config, model=str(tmp_path)))


def test_too_few_dev_questions_are_refused(config: AnnotateConfig, tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    write_birthplace_questions(study, num_dev=2)
    with pytest.raises(DataError, match="relation P1 has 2 dev questions"):
        annotate(study, config)


def test_files_of_other_questions_are_refused(annotated_study: Folder, config: AnnotateConfig, tmp_path: Path) -> None:
    study = Folder(str(shutil.copytree(annotated_study.local_path, tmp_path / "study")))
    folder = study.child("annotate")
    folder.delete("manifest.json")
    generations = folder.child("generations")
    name = generations.names(".parquet")[0]
    generations.write_table(name, generations.read_table(name).slice(1))
    with pytest.raises(StudyError, match="form complete batches of this run"):
        annotate(study, config)
    assert not folder.exists("temporary")


def test_missing_or_repeated_answer_is_an_error(annotated_study: Folder) -> None:
    questions, generations = read_questions(annotated_study), read_generations(annotated_study)
    answered = questions.filter(
        pa.array([i in set(generations["question_id"].to_pylist()) for i in questions["question_id"].to_pylist()])
    )
    evidence = collect_evidence(iter([generations]), Scoring(matcher="exact", num_exemplar_sets=3, num_samples=4)).rows
    with pytest.raises(EngineError, match="none for 1 questions"):
        knowledge_table(answered, evidence.slice(1))
    with pytest.raises(EngineError, match="62 rows"):
        knowledge_table(answered, pa.concat_tables([evidence, evidence.slice(0, 1)]))


def test_chosen_engine_is_stored_and_is_the_identity(annotated_study: Folder, config: AnnotateConfig) -> None:
    manifest = require_manifest(annotated_study.child("annotate"), "annotate")
    assert config.engine == "auto"
    assert manifest.settings["engine"] == "transformers"
    assert manifest.counts["engine_choice"] == "the model runs on the CPU"
    for engine in ("auto", "transformers"):
        assert annotate(annotated_study, replace(config, engine=engine)) == manifest, "it is finished"
    with pytest.raises(StudyError, match="engine was transformers, is vllm"):
        annotate(annotated_study, replace(config, engine="vllm"))


def test_invalid_settings_are_refused() -> None:
    for invalid in ({"num_shots": 0}, {"limit_per_relation": 0}, {"min_actors": 3, "max_actors": 2}):
        with pytest.raises(SettingsError):
            AnnotateConfig(**invalid)
    with pytest.raises(SettingsError, match="WeaklyKnown from Unknown"):
        AnnotateConfig(sampling=SamplingConfig(num_samples=0))
    for invalid in ({"mode": "labels"}, {"matcher": "raw"}):
        with pytest.raises(SettingsError, match="gold estimator generates no answers"):
            AnnotateConfig(estimator="gold", **invalid)


def test_speed_settings_are_not_part_of_the_identity() -> None:
    base = AnnotateConfig()
    assert replace(base, max_actors=7, batches_per_file=9, gpus_per_actor=0.5).identity() == base.identity()
    assert replace(base, matcher="raw").identity() != base.identity()
    assert replace(base, matcher="f1>=0.7").identity() != replace(base, matcher="f1").identity()


@pytest.fixture(scope="module")
def labels_mode_study(
    tmp_path_factory: pytest.TempPathFactory, config: AnnotateConfig, annotated_study: Folder
) -> Folder:
    """The study of `annotated_study`, annotated again in labels mode."""
    return annotate_questions(tmp_path_factory.mktemp("labels"), replace(config, mode="labels"))


def test_labels_mode_gives_the_same_categories_with_fewer_answers(
    annotated_study: Folder, labels_mode_study: Folder
) -> None:
    names = ["question_id", "category", "greedy_hits", "p_upper"]
    assert read_knowledge(labels_mode_study).select(names).equals(read_knowledge(annotated_study).select(names))
    full = {row["question_id"]: row for row in read_generations(annotated_study).to_pylist()}
    spared = cut = 0
    for row in read_generations(labels_mode_study).to_pylist():
        expected = full[row["question_id"]]
        assert row["greedy_text"] == expected["greedy_text"]
        flat = (
            [x for samples in r[name] for x in samples]
            for r in (row, expected)
            for name in ("sampled_text", "sampled_hit")
        )
        for text, hit, other_text, other_hit in zip(*flat, strict=True):
            assert text in (None, other_text)
            assert hit in (None, other_hit)
            spared += hit is None
            cut += text is None and hit is False
    counts, full_counts = (annotate_counts(study) for study in (labels_mode_study, annotated_study))
    assert spared > 0
    assert cut > 0
    assert counts["generations"] == full_counts["generations"] - spared
    assert counts["decoded_tokens"] < full_counts["decoded_tokens"]
    by_category = counts["draws_by_category"]
    assert by_category["Unknown"]["spared"] == 0
    assert all(by_category[name]["spared"] > 0.5 for name in by_category if name in ("HighlyKnown", "MaybeKnown"))


def annotate_counts(study: Folder) -> dict[str, Any]:
    return study.child("annotate").read_json("manifest.json")["counts"]


def test_gold_estimator_agrees_with_samples(annotated_study: Folder, config: AnnotateConfig, tmp_path: Path) -> None:
    study = annotate_questions(tmp_path, replace(config, estimator="gold", matcher="exact"))
    gold = {row["question_id"]: row for row in read_knowledge(study).to_pylist()}
    expected = sampled = variance = 0.0
    for row in read_knowledge(annotated_study).to_pylist():
        assert gold[row["question_id"]]["greedy_hits"] == row["greedy_hits"]
        assert (gold[row["question_id"]]["category"] == row["category"]) or not row["greedy_hits"]
        sampled += row["sampled_hits"]
    for row in study.child("annotate", "gold").read_tables().to_pylist():
        expected += SAMPLING.num_samples * sum(row["gold_probability"])
        variance += SAMPLING.num_samples * sum(p * (1 - p) for p in row["gold_probability"])
    assert expected > 50
    # Five standard deviations: a false alarm in one of two million runs, and the seed is fixed.
    assert abs(sampled - expected) < 5 * variance**0.5
    assert not study.child("annotate", "generations").exists()
    assert annotate_counts(study)["estimator"].startswith("gold: the first answer's text")


@pytest.mark.slow
def test_rescoring_equals_annotating_with_other_settings(
    annotated_study: Folder, config: AnnotateConfig, tmp_path: Path
) -> None:
    study, fresh = (Folder(str(tmp_path / name)) for name in ("rescored", "fresh"))
    shutil.copytree(annotated_study.local_path, study.local_path)
    before = study.child("annotate", "generations").read_tables()
    small = replace(config, num_exemplar_sets=2, sampling=replace(SAMPLING, num_samples=2), matcher="contains")
    rescore(study, RescoreConfig(matcher="contains", num_exemplar_sets=2, num_samples=2))
    annotate_questions(tmp_path / "fresh", small)
    assert read_knowledge(study).equals(read_knowledge(fresh))
    assert not read_knowledge(study).equals(read_knowledge(annotated_study))
    annotate(study, small)  # finished: nothing runs
    rescore(study, RescoreConfig(matcher="f1>=0.3"))
    assert require_manifest(study.child("annotate"), "annotate").settings["matcher"] == "f1>=0.3"
    rescore(study, RescoreConfig())
    assert read_knowledge(study).equals(read_knowledge(annotated_study))
    assert study.child("annotate", "generations").read_tables().equals(before)
    with pytest.raises(SettingsError, match="3 exemplar sets with 4 samples"):
        rescore(study, RescoreConfig(num_samples=5))


def test_labels_mode_cannot_be_rescored(labels_mode_study: Folder) -> None:
    with pytest.raises(StudyError, match="does not keep all answers"):
        rescore(labels_mode_study, RescoreConfig(matcher="raw"))


@pytest.mark.slow
def test_repeats_and_controls_are_summarized(annotated_study: Folder, config: AnnotateConfig, tmp_path: Path) -> None:
    study = annotate_questions(tmp_path, replace(config, repeats_per_relation=3, controls_per_relation=2))
    assert_same(annotated_study, study)
    confidence = study.child("annotate").read_json("confidence.json")
    assert confidence["repeats"]["questions"] == 9
    assert sum(sum(row.values()) for row in confidence["repeats"]["from_to"].values()) == 9
    assert confidence["controls"]["questions"] == 6
    controls = study.child("annotate", "controls").read_tables()
    assert all(question_id.startswith("control-") for question_id in controls["question_id"].to_pylist())
    steps = {(row["exemplar_sets"], row["samples"]): row["categories"] for row in confidence["settling"]}
    table = read_knowledge(study)["category"].to_pylist()
    assert {name: num for name, num in steps[3, 4].items() if num} == {name: table.count(name) for name in set(table)}
    assert set(steps) == {(1, 4), (2, 4), (3, 4), (3, 1), (3, 2)}
    main, repeats = (study.child("annotate", name).read_tables() for name in ("generations", "repeats"))
    texts = dict(zip(main["question_id"].to_pylist(), main["sampled_text"].to_pylist(), strict=True))
    assert any(texts[row["question_id"]] != row["sampled_text"] for row in repeats.to_pylist())


def test_annotation_is_exported_to_ray_metrics(annotated_study: Folder) -> None:
    expected = {"questions", "generations", "prompt_tokens", "prefilled_tokens", "answer_tokens", "decoded_tokens"}

    def exported() -> list[tuple[str, dict[str, str], float]]:
        totals = [
            (name.removesuffix("_total"), tags, value) for name, tags, value in exported_metrics("slick_annotate_")
        ]
        return [metric for metric in totals if metric[0] in expected]

    wait_for(lambda: {name for name, _, _ in exported()} == expected, exported)
    metrics = exported()
    assert {"HighlyKnown", "Unknown"} & {tags.get("category") for _, tags, _ in metrics}
    assert sum(value for name, _, value in metrics if name == "generations") >= 15
