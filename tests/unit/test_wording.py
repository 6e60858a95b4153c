"""The second wording: templates, reworded questions and rows, and the section of the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from slick.datasets.relations import load_relations, split_template
from slick.datasets.rewordings import load_rewordings, reword_questions
from slick.errors import DataError, StudyError
from slick.report.data import StudyData
from slick.report.measurements import InsufficientDataError
from slick.report.sections.wording import (
    LearnedCounts,
    WordingResults,
    changed_overall,
    labels_table,
    learned_sentence,
    learned_table,
    load_wording,
    survival,
    wording_section,
)
from slick.storage import Folder
from slick.study import require_manifest
from slick.study_files import EPOCHS_SCHEMA, GENERATION_SCHEMA, PREDICTIONS_SCHEMA, QUESTION_SCHEMA
from slick.types import Category
from slick.world.config import smoke_world_config
from slick.world.corpus import corpus_epoch
from slick.world.facts import plant_facts, synthetic_rows
from tests.study_builder import finish_step, write_knowledge, write_questions, write_variants
from tuning.config import TrainConfig
from tuning.wording import reworded_rows

HIGHLY, MAYBE, WEAKLY, UNKNOWN = Category
TEMPLATES = {"P19": "What is the birthplace of [X]?"}


def question(name: str, relation: str = "P19", subject: str | None = "", **fields: Any) -> dict[str, Any]:
    row = {"question_id": name, "relation": relation, "domain": "id", "split": "train"}
    row |= {"subject": name if subject == "" else subject, "question": f"Where was {name} born?"}
    return row | {"answers": [f"gold {name}"]} | fields


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=QUESTION_SCHEMA)


# Templates.


def test_every_relation_that_is_trained_on_or_tested_has_another_second_template() -> None:
    relations, rewordings = load_relations(), load_rewordings()
    asked = {name: relation for name, relation in relations.items() if relation.domain != "dropped"}
    assert rewordings.keys() == asked.keys()
    for name, template in rewordings.items():
        assert template != asked[name].template
        assert split_template(template)[1].endswith("?")
    assert len(set(rewordings.values())) == len(rewordings), "one wording must not ask for two relations"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "found nothing"),
        ("{", "not UTF-8 JSON"),
        ("{}", "found nothing"),
        ('{"P19": null}', "found 'None'"),
        ('{"P19": "Where was he born?"}', "found 0"),
        ('{"P19": "Is [X] the same as [X]?"}', "found 2"),
        ('{"P19": "Where\\nis [X]?"}', "expected"),
        ('{"": "Where is [X]?"}', "relation ''"),
    ],
)
def test_malformed_templates_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "templates.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        load_rewordings(str(path))
    assert str(path) in str(error.value)


def test_templates_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not exist"):
        load_rewordings(str(tmp_path / "none.json"))


def test_templates_of_the_user_replace_the_shipped_ones(tmp_path: Path) -> None:
    path = tmp_path / "templates.json"
    path.write_text(json.dumps({"born": "Whence came [X]?"}))
    assert load_rewordings(str(path)) == {"born": "Whence came [X]?"}


# Questions.


def test_questions_are_reworded_with_their_subject() -> None:
    rows = [question("Ada"), question("Emmy", subject=None), question("Lima", "P36"), question("Zoë")]
    reworded = reword_questions(table(*rows), TEMPLATES)
    assert reworded["question_id"].to_pylist() == ["Ada", "Zoë"], "no subject, no template"
    assert reworded["question"].to_pylist() == ["What is the birthplace of Ada?", "What is the birthplace of Zoë?"]
    assert reworded["answers"].to_pylist() == [["gold Ada"], ["gold Zoë"]]


def test_a_second_wording_that_is_the_first_one_is_refused() -> None:
    with pytest.raises(DataError, match="P19 is its first one: 'Where was Ada born"):
        reword_questions(table(question("Ada")), {"P19": "Where was [X] born?"})


def test_a_subject_with_a_placeholder_is_inserted_as_it_is() -> None:
    reworded = reword_questions(table(question("a [X] b")), TEMPLATES)
    assert reworded["question"].to_pylist() == ["What is the birthplace of a [X] b?"]


def trained_study(path: Path) -> Folder:
    """A study whose set has a gold row, a relabelled one, one of weight 0 and one without a second wording."""
    study = Folder(str(path))
    rows = [question("Ada"), question("Emmy"), question("Rosa"), question("Lima", "P36"), question("Dev", split="dev")]
    write_questions(study, rows)
    write_knowledge(study, [row | {"category": "Unknown"} for row in rows[:4]])
    finish_step(study.child("annotate"), "annotate")
    targets = {"Ada": "gold Ada", "Emmy": "I don't know", "Rosa": "gold Rosa", "Lima": "gold Lima"}
    variant = [
        {
            "question_id": row["question_id"],
            "category": "Unknown",
            "prompt": f"Answer the following question.\n{row['question']}\n",
            "target": targets[row["question_id"]],
            "weight": 0.0 if row["question_id"] == "Rosa" else 1.0,
        }
        for row in rows[:4]
    ]
    write_variants(study, {"unknown-050": variant}, counts={"unknown-050": {"kind": "unknown", "num": 4}})
    return study


def test_training_rows_that_taught_the_gold_answer_are_reworded(tmp_path: Path) -> None:
    study = trained_study(tmp_path)
    (row,) = reworded_rows(study, TrainConfig(), TEMPLATES, "")
    assert (row.question_id, row.prompt) == (
        "Ada",
        "Answer the following question.\nWhat is the birthplace of Ada?\n",
    )


# The section.


def results(
    unknown: tuple[float, float] = (100, 90), known: tuple[float, float] = (100, 90), seeds: int = 1
) -> WordingResults:
    """Results with (facts answered in the trained wording, in both) of Unknown and HighlyKnown rows."""
    learned = {UNKNOWN: LearnedCounts(120, *unknown, 95), HIGHLY: LearnedCounts(120, *known, 95)}
    labels = {(HIGHLY, HIGHLY): 8, (HIGHLY, UNKNOWN): 2, (UNKNOWN, UNKNOWN): 10, (UNKNOWN, WEAKLY): 10}
    return WordingResults(
        labels=labels,
        questions={HIGHLY: 900, UNKNOWN: 100},
        learned={"unknown-050": learned},
        num_seeds={"unknown-050": seeds},
    )


def with_results(found: WordingResults | None) -> StudyData:
    data = StudyData()
    data.loaded[load_wording] = found
    return data


def test_the_share_over_all_questions_weights_each_category_by_its_number_of_questions() -> None:
    overall = changed_overall(results())
    assert overall.value == pytest.approx(0.9 * 20 + 0.1 * 50)
    assert overall.se > 0


def test_labels_are_never_certain_in_a_small_sample() -> None:
    labels = {(HIGHLY, HIGHLY): 3}
    assert changed_overall(WordingResults(labels=labels, questions={HIGHLY: 10})).se > 5


@pytest.mark.parametrize(
    ("unknown", "known", "verdict"),
    [
        ((100, 50), (100, 90), "depend more on the wording"),
        ((100, 95), (100, 50), "depend less on the wording"),
        ((100, 85), (100, 90), "no reliable difference"),
        ((12, 9), (12, 12), "no reliable difference"),
    ],
)
def test_every_verdict_on_learned_facts_is_possible(
    unknown: tuple[int, int], known: tuple[int, int], verdict: str
) -> None:
    assert verdict in learned_sentence(results(unknown, known), "unknown-050")


def test_few_learned_facts_give_no_verdict() -> None:
    assert learned_sentence(results(unknown=(9, 9)), "unknown-050") == ""
    sentence = learned_sentence(results(known=(9, 9)), "unknown-050")
    assert "90.0 (" in sentence
    assert "Known ones" not in sentence


def test_questions_that_were_not_asked_are_counted() -> None:
    found = replace(results(), num_set_aside=3, num_without=1200)
    body = wording_section(with_results(found))
    assert "1,200 labelled questions have no second wording" in body.result
    assert "3 questions are too long" in body.result


def test_survival_is_over_the_facts_that_were_learned() -> None:
    found = survival(results(unknown=(80, 20)), "unknown-050", known=False)
    assert found is not None
    assert found.value == 25.0


def test_the_section_states_its_numbers_and_escapes_nothing_away() -> None:
    body = wording_section(with_results(results()))
    assert body.result.startswith("In a second wording, 23.0 (")
    assert "training on unknown-050 taught" in body.result
    rows = labels_table(results(), {None: "4.0 (1.0 to 9.0)"}).rows
    assert rows[0][:6] == ("HighlyKnown", 8, 0, 0, 2, 10)
    assert rows[1][5:7] == (0, None), "no MaybeKnown question was asked"
    assert rows[-1][-1] == "4.0 (1.0 to 9.0)"
    _, unknown = learned_table(results(unknown=(50, 40))).rows
    assert unknown[:5] == ("unknown-050", "Unknown", 120, 50, 40)
    assert unknown[6] == 55, "right in the second wording alone"


def test_a_study_without_the_step_says_what_is_needed() -> None:
    body = wording_section(with_results(None))
    assert body.result == ""
    for exhibit in body.exhibits:
        assert "--experiments wording" in (exhibit.missing or "")
    with pytest.raises(InsufficientDataError, match="kept the checkpoint"):
        learned_table(WordingResults())


def write_run(study: Folder, name: str, hits: dict[str, tuple[bool, bool]]) -> None:
    """A finished run and its answers in the second wording: question_id -> hit in the trained and in the second one."""
    run = study.child("runs", name)
    epochs = [{"run_id": name, "epoch": 1, "split": "dev", "category": "all", "num": 1, "num_correct": 1}]
    run.write_table("epochs.parquet", pa.Table.from_pylist(epochs, schema=EPOCHS_SCHEMA))
    predictions = [
        {"question_id": i, "split": "train", "category": "Unknown", "hit": first, "text": ""}
        for i, (first, _) in hits.items()
    ]
    run.child("predictions").write_table(
        "epoch-001.parquet", pa.Table.from_pylist(predictions, schema=PREDICTIONS_SCHEMA)
    )
    trained = finish_step(run, "finetune", identity=f"run {name}", settings={"variant": "unknown-050"})
    folder = study.child("wording", "trained", name)
    answers = [
        {
            "question_id": i,
            "relation": "P19",
            "greedy_text": ["x"],
            "greedy_hit": [second],
            "sampled_text": [[]],
            "sampled_hit": [[]],
            "num_tokens": 1,
        }
        for i, (_, second) in hits.items()
    ]
    folder.child("answers").write_table("part-000000.parquet", pa.Table.from_pylist(answers, schema=GENERATION_SCHEMA))
    finish_step(folder, "wording", inputs={"run": trained.fingerprint})


def test_results_are_loaded_and_averaged_over_seeds(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    rows = [question(name) for name in ("Ada", "Emmy", "Rosa")]
    write_questions(study, rows)
    write_knowledge(study, [row | {"category": str(UNKNOWN)} for row in rows])
    finish_step(study.child("annotate"), "annotate")
    assert load_wording(study) is None
    again = {"question_id": ["Ada", "Emmy"], "category": [str(UNKNOWN), str(WEAKLY)]}
    study.child("wording").write_table("knowledge.parquet", pa.table(again))
    assert load_wording(study) is None, "the step is not finished"
    counts = {"without_second_wording": {"P36": 4}, "set_aside": {"generations": {"long": {"P19": {"train": 2}}}}}
    labels = {"labels": require_manifest(study.child("annotate"), "annotate").fingerprint}
    finish_step(study.child("wording"), "wording", counts=counts, inputs=labels)
    write_run(study, "unknown-050-seed0", {"Ada": (True, True), "Emmy": (True, False), "Rosa": (False, True)})
    write_run(study, "unknown-050-seed1", {"Ada": (True, True), "Emmy": (True, True), "Rosa": (False, False)})
    write_run(study, "unknown-050-seed0-learning_rate=0.1", {"Ada": (False, False)})
    found = load_wording(study)
    assert found is not None
    assert found.labels == {(UNKNOWN, UNKNOWN): 1, (UNKNOWN, WEAKLY): 1}
    assert found.learned == {"unknown-050": {UNKNOWN: LearnedCounts(3, 2, 1.5, 2)}}
    assert found.num_seeds == {"unknown-050": 2}
    assert (found.num_without, found.num_set_aside) == (4, 2)
    finish_step(study.child("runs", "unknown-050-seed1"), "finetune", identity="trained again")
    found = load_wording(study)
    assert found is not None
    assert found.num_seeds == {"unknown-050": 1}, "answers of an earlier model are not those of the present one"
    finish_step(study.child("annotate"), "annotate", identity="rescored")
    assert load_wording(study) is None, "the answers were compared with other labels"


def test_a_malformed_file_of_labels_is_refused(tmp_path: Path) -> None:
    study = Folder(str(tmp_path))
    rows = [question("Ada")]
    write_questions(study, rows)
    write_knowledge(study, [row | {"category": str(UNKNOWN)} for row in rows])
    finish_step(study.child("annotate"), "annotate")
    study.child("wording").write_table("knowledge.parquet", pa.table({"question_id": ["Ada"], "category": ["Half"]}))
    labels = {"labels": require_manifest(study.child("annotate"), "annotate").fingerprint}
    finish_step(study.child("wording"), "wording", inputs=labels)
    with pytest.raises(StudyError, match="Half"):
        load_wording(study)


# Worlds.


def test_a_world_states_facts_in_both_wordings_if_asked_to() -> None:
    config = replace(smoke_world_config(), seed=3)
    facts = plant_facts(synthetic_rows(config), load_relations(), config)
    plain, mixed = (corpus_epoch(facts, replace(config, second_wording=share), 0) for share in (0.0, 0.5))
    assert not any("birthplace" in document for document in plain)
    documents = [document for document in mixed if "born?" in document or "birthplace" in document]
    reworded = [document for document in documents if "birthplace" in document]
    assert not any("born?" in document for document in reworded), "a document has one wording"
    assert 0.4 < len(reworded) / len(documents) < 0.6
    assert config.identity() == replace(config, second_wording=0.0).identity()
    assert "second_wording" not in config.identity(), "existing worlds keep their fingerprint"
    assert "second_wording" in replace(config, second_wording=0.5).identity()
