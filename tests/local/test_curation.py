"""Fine-tuning files are labelled by a real model on real Ray, with the labels of a study of the same questions."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import slick
from jobs.curate import main
from slick.annotation import AnnotateConfig, annotate
from slick.annotation.store import read_generations
from slick.curation.claims import FEW_EXEMPLARS, NO_CLAIM, NO_NAME
from slick.curation.config import CurateConfig
from slick.curation.files import open_data
from slick.curation.forecast import forecast, forecast_lines
from slick.curation.plan import SEVERAL_LINES, plan_curation
from slick.curation.selection import Skipped
from slick.curation.step import curate, curate_file
from slick.datasets import read_questions
from slick.errors import StudyError
from slick.inference.base import SamplingConfig
from slick.models import context_length
from slick.storage import Folder
from slick.study import read_manifest
from slick.study_files import read_knowledge
from tests.local.tiny import save_tiny_model, write_birthplace_questions

ANNOTATION = AnnotateConfig(
    num_exemplar_sets=3,
    num_shots=2,
    sampling=SamplingConfig(num_samples=4, max_new_tokens=6, temperature=0.8),
    batch_questions=4,
    max_actors=1,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def config(model: str) -> CurateConfig:
    return CurateConfig(model=model, max_new_tokens=6, annotate=ANNOTATION)


@pytest.fixture(scope="module")
def own_study(tmp_path_factory: pytest.TempPathFactory, model: str, ray_cluster: None) -> Folder:
    """A study with questions and labels of its own, as the paper has them."""
    study = Folder(str(tmp_path_factory.mktemp("own")))
    write_birthplace_questions(study)
    annotate(study, replace(ANNOTATION, model=model))
    return study


def messages_row(row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answers"][0]}]
    return {"question_id": row["question_id"], "relation": row["relation"], "messages": turns}


def alpaca_row(row: dict[str, Any]) -> dict[str, Any]:
    names = {"question_id": row["question_id"], "relation": row["relation"]}
    return {**names, "instruction": row["question"], "input": "", "output": row["answers"][0]}


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("suffix", "make_row", "write"),
    [
        ("messages.jsonl", messages_row, write_jsonl),
        pytest.param("alpaca.csv", alpaca_row, write_csv, marks=pytest.mark.slow),
    ],
)
def test_labels_equal_those_of_a_study_with_the_same_exemplars(
    own_study: Folder,
    config: CurateConfig,
    tmp_path: Path,
    suffix: str,
    make_row: Callable[[dict[str, Any]], dict[str, Any]],
    write: Callable[[Path, Sequence[dict[str, Any]]], None],
) -> None:
    labelled = set(read_knowledge(own_study, ["question_id"])["question_id"].to_pylist())
    rows = [row for row in read_questions(own_study).to_pylist() if len(row["answers"]) == 1]
    data, exemplars, copy = tmp_path / suffix, tmp_path / f"dev-{suffix}", tmp_path / f"copy-{suffix}"
    write(data, [make_row(row) for row in rows if row["question_id"] in labelled])
    write(exemplars, [make_row(row) for row in rows if row["split"] == "dev"])
    settings = replace(config, data=str(data), exemplars=str(exemplars), group_by="relation", to=str(copy))
    study = Folder(str(tmp_path / "study"))
    curate_file(study, settings)
    columns = ["question_id", "greedy_text", "sampled_text"]
    expected = read_generations(own_study, columns).sort_by("question_id").to_pylist()
    assert read_generations(study, columns).sort_by("question_id").to_pylist() == [
        row for row in expected if row["question_id"] in {r["question_id"] for r in rows}
    ]
    categories = read_knowledge(own_study, ["question_id", "category"]).to_pydict()
    by_id = dict(zip(categories["question_id"], categories["category"], strict=True))
    if suffix.endswith(".csv"):
        with copy.open(newline="") as file:
            written = list(csv.DictReader(file))
    else:
        written = [json.loads(line) for line in copy.read_text().splitlines()]
    assert {row["question_id"]: row["slick_category"] for row in written} == {
        row["question_id"]: by_id[row["question_id"]] for row in written
    }
    assert len(written) == len(labelled & {r["question_id"] for r in rows})


@pytest.fixture(scope="module")
def rows(own_study: Folder) -> list[dict[str, Any]]:
    chats = [messages_row(row) for row in read_questions(own_study).to_pylist() if row["relation"] == "P1"]
    for row in chats[::4]:
        row["messages"][1]["content"] = "Quito in the Andes"  # nothing that the model says
    code = [{"role": "user", "content": "Print 1."}, {"role": "assistant", "content": "```print(1)```"}]
    return [*chats, {"question_id": "code", "relation": "P1", "messages": code}]


def test_every_row_that_tests_knowledge_is_labelled(
    rows: list[dict[str, Any]], config: CurateConfig, tmp_path: Path
) -> None:
    """Rows that serve as exemplars are labelled too, and fine-tuning sets can be drawn from the labels."""
    settings = {"annotate": config.annotate, "max_new_tokens": 6, "unknown": "drop"}
    labelled = curate(rows, model=config.model, out=tmp_path / "study", annotate=config.annotate, max_new_tokens=6)
    assert [{name: row[name] for name in rows[0]} for row in labelled] == rows
    assert [row["question_id"] for row in labelled if row["slick_category"] is None] == ["code"]
    assert labelled[-1]["slick_reason"] == "code"
    before = (tmp_path / "study/annotate/manifest.json").stat().st_mtime_ns
    cleaned = curate(pa.Table.from_pylist(rows), model=config.model, out=tmp_path / "study", **settings)
    assert (tmp_path / "study/annotate/manifest.json").stat().st_mtime_ns == before  # no answer is generated again
    kept = [row["question_id"] for row in labelled if row["slick_category"] != "Unknown"]
    assert cleaned["question_id"].to_pylist() == kept
    manifest = read_manifest(Folder(str(tmp_path / "study/curate")))
    assert manifest is not None
    assert manifest.counts["asked"] == len(rows) - 1
    assert "Quito in the Andes" in (tmp_path / "study/curate/index.html").read_text()
    check_forecast(rows, config, tmp_path / "study")
    exemplars = json.loads((tmp_path / "study/curate/exemplars.json").read_text())
    used = {i for sets in exemplars.values() for ids in sets for i in ids}
    assert used <= set(read_knowledge(tmp_path / "study", ["question_id"])["question_id"].to_pylist())
    shares = slick.VariantsConfig(
        unknown_shares=(0.0,), known_shares=(), idk_shares=(), single_categories=False, natural=False, size_rule="pools"
    )
    drawn = slick.draw_variants(tmp_path / "study", shares)
    assert slick.read_variant(tmp_path / "study", "unknown-000").num_rows > 0, drawn


def check_forecast(rows: list[dict[str, Any]], config: CurateConfig, study: Path) -> None:
    """The forecast has the generations and tokens of the finished study."""
    result = forecast(plan_curation(open_data(rows), config))
    annotated = read_manifest(Folder(str(study / "annotate")))
    assert annotated is not None
    assert result.num_generations == annotated.counts["generations"]
    assert round(result.mean_tokens * result.num_questions * result.num_sets) == annotated.counts["prompt_tokens"]
    assert (result.num_rows, result.num_labelled, result.reasons) == (len(rows), len(rows) - 1, {"code": 1})


def test_forecast_counts_prompts_that_are_too_long(model: str, tmp_path: Path) -> None:
    exemplars = tmp_path / "exemplars.jsonl"
    write_jsonl(exemplars, [{"question": f"Who was {i}?", "answer": "Emmy Noether"} for i in range(6)])
    rows = [{"question": f"Who is {i}? {'Tell me. ' * (28 if i == 9 else 0)}", "answer": "Ada"} for i in range(10)]
    config = CurateConfig(
        model=model, exemplars=str(exemplars), max_new_tokens=context_length(model) - 120, annotate=ANNOTATION
    )
    result = forecast(plan_curation(open_data(rows), config))
    assert (result.num_questions, result.num_too_long) == (10, 1)
    assert result.num_generations == 9 * 3 * 5
    assert "would stop" in "\n".join(forecast_lines(plan_curation(open_data(rows), config), result))


@pytest.mark.slow
def test_probe_measures_time_and_deletes_its_files(
    rows: list[dict[str, Any]],
    config: CurateConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "rows.jsonl"
    write_jsonl(data, rows)
    flags = ["--max-new-tokens", "6", "--annotate.num-exemplar-sets", "3", "--annotate.num-shots", "2"]
    flags += ["--annotate.sampling.num-samples", "4", "--annotate.max-actors", "1"]
    main(
        [str(data), "--model", config.model, *flags, "--probe-rows", "8", "--price", "2", "--out", str(tmp_path / "s")]
    )
    text = capsys.readouterr().out
    assert re.search(r"Probe: 8 of 33 questions in \d+ batches", text), text
    assert re.search(r"Whole file: [\d.e-]+ hours of one actor = .* s \(\d+ s to \d+ s", text), text
    assert "Price: " in text
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_interrupted_curation_resumes(rows: list[dict[str, Any]], config: CurateConfig, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": config.model, "annotate": config.annotate, "max_new_tokens": 6}
    study = Folder(str(tmp_path))
    first = curate(rows, out=study, **settings)
    generations = study.child("annotate", "generations")
    for name in ("manifest.json", "knowledge.parquet"):
        study.child("annotate").delete(name)
    generations.delete(generations.names(".parquet")[0])
    kept = {name: generations.version(name) for name in generations.names(".parquet")}
    assert curate(rows, out=study, **settings) == first
    assert {name: generations.version(name) for name in kept} == kept
    assert len(generations.names(".parquet")) > len(kept)
    with pytest.raises(StudyError, match="questions"):
        curate(rows[:-3], out=study, **settings)


def test_sentences_are_planned_as_questions(config: CurateConfig) -> None:
    texts = [f"Sure! Bo {i} was born in Ur. He is known.\nHe died in {1900 + i}." for i in range(8)]
    rows = [{"question": f"Who is Bo {i}?", "answer": text} for i, text in enumerate(texts)]
    rows[0]["answer"] = texts[0].replace("\n", " ")
    claims = replace(config, claims="sentences")
    plan = plan_curation(open_data(rows), claims)
    assert plan.annotation.matcher == "first-sentence:names"
    assert {(q.relation, q.answer_start) for q in plan.questions} == {("rows, sentence 2", "Sure! ")}
    assert Counter(d.reason for d in plan.decisions if isinstance(d, Skipped)) == {
        NO_CLAIM: 8,
        NO_NAME: 8,
        SEVERAL_LINES: 7,  # prompts without a chat template end an answer at the newline
        FEW_EXEMPLARS: 1,
    }
    by_words = plan_curation(open_data(rows), replace(claims, matcher="f1>=0.8"))
    assert by_words.annotation.matcher == "first-sentence:f1>=0.8"
    assert {q.relation for q in by_words.questions} == {"rows, sentence 2", "rows, sentence 3"}
    whole = plan_curation(open_data([{"question": f"Who is Bo {i}?", "answer": "Bo. He"} for i in range(8)]), config)
    assert all(question.answer_start is None for question in whole.questions)


@pytest.mark.slow
def test_sentences_are_labelled_and_unknown_ones_removed(
    rows: list[dict[str, Any]], config: CurateConfig, tmp_path: Path
) -> None:
    chats = [dict(row, messages=[dict(message) for message in row["messages"]]) for row in rows[:-1]]
    for row in chats:
        row["messages"][1]["content"] = f"{row['messages'][1]['content']} is the place. The sea is near Zog."
    settings: dict[str, Any] = {"annotate": config.annotate, "max_new_tokens": 6, "claims": "sentences"}
    labelled = curate(chats, model=config.model, out=tmp_path, **settings)
    knowledge = {row["question_id"]: row for row in read_knowledge(tmp_path).to_pylist()}
    questions = read_questions(tmp_path, ["question_id", "relation", "answer_start"]).to_pylist()
    assert {row["question_id"] for row in questions} == set(knowledge)
    assert {row["relation"] for row in questions} == {"rows, sentence 1", "rows, sentence 2"}
    for row, chat in zip(labelled, chats, strict=True):
        own = [knowledge[f"{row['question_id']}-sentence{place}"] for place in (1, 2)]
        assert row["slick_unknown_claims"] == sum(claim["category"] == "Unknown" for claim in own) / 2
        assert row["slick_p_correct"] == min(claim["p_correct_greedy"] for claim in own)
        starts = [q["answer_start"] for q in questions if q["question_id"].startswith(f"{row['question_id']}-")]
        assert sorted(starts) == ["", f"{chat['messages'][1]['content'].split('. ')[0]}. "]
    before = (tmp_path / "annotate/manifest.json").stat().st_mtime_ns
    shortened = curate(chats, model=config.model, out=tmp_path, unknown="drop-claims", **settings)
    assert (tmp_path / "annotate/manifest.json").stat().st_mtime_ns == before  # no answer is generated again
    kept = [row for row in labelled if row["slick_unknown_claims"] < 1]
    assert [row["question_id"] for row in shortened] == [row["question_id"] for row in kept]
    manifest = read_manifest(Folder(str(tmp_path / "curate")))
    assert manifest is not None
    assert manifest.counts["claims"]["asked"] == 2 * len(chats)
