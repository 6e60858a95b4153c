"""The questions step: validation, splits, filters, ids and accepted formats."""

import csv
import json
import random
import unicodedata
import zipfile
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slick.datasets.prepare import QuestionsConfig, part_name, prepare_questions, read_questions
from slick.datasets.validate import question_id
from slick.errors import DataError, SettingsError, StudyError
from slick.storage import Folder
from slick.study_files import QUESTION_SCHEMA

GOOD_ROWS = [
    {"relation": "P19", "split": split, "question": f"Where was {split} {i} born?", "answers": [f"{split}ville {i}"]}
    for split in ("train", "dev", "test")
    for i in range(3)
]


def write_jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def prepare(tmp_path, rows, name="study", **settings):
    source = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    study = Folder(str(tmp_path / name))
    return prepare_questions(study, QuestionsConfig(questions=source, **settings)), study


def write_layout(folder, rows):
    """Write rows as an EntityQuestions folder."""
    files = {}
    for row in rows:
        files.setdefault((row["split"], row["relation"]), []).append({key: row[key] for key in ("question", "answers")})
    for (split, relation), content in files.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / split / f"{relation}.{split}.json").write_text(json.dumps(content))
    return str(folder)


def test_questions_are_validated_sorted_and_have_ids(tmp_path, capsys):
    manifest, study = prepare(
        tmp_path, [*GOOD_ROWS, {**GOOD_ROWS[0], "relation": "P112", "split": "test", "subject": " Ada "}]
    )
    table = read_questions(study)
    assert table.schema == QUESTION_SCHEMA
    rows = table.to_pylist()
    keys = [(r["relation"], r["domain"], r["split"], r["question_id"]) for r in rows]
    assert keys == sorted(keys)
    assert rows[0] == {
        "question_id": question_id("P112", "test", "Where was train 0 born?", ["trainville 0"]),
        "relation": "P112",
        "domain": "ood",
        "split": "test",
        "subject": "Ada",
        "question": "Where was train 0 born?",
        "answers": ["trainville 0"],
    }
    assert {r["subject"] for r in rows[1:]} == {f"{s} {i}" for s in ("train", "dev", "test") for i in range(3)}
    assert study.child("questions").names(".parquet") == ["part-P112.parquet", "part-P19.parquet"]
    assert read_questions(study, columns=["answers", "split"]).column_names == ["answers", "split"]
    assert manifest.counts["totals"] == {"train": 3, "dev": 3, "test": 3, "ood": 1}
    assert manifest.counts["audit"] is None
    assert "P19       id      3/3/3" in capsys.readouterr().out


def test_ids_depend_on_neither_row_order_nor_file_format(tmp_path):
    expected = read_questions(prepare(tmp_path, GOOD_ROWS)[1])
    for seed in range(5):
        shuffled = random.Random(seed).sample(GOOD_ROWS, len(GOOD_ROWS))
        assert read_questions(prepare(tmp_path, shuffled, f"s{seed}")[1]).equals(expected)
    pq.write_table(pa.Table.from_pylist(GOOD_ROWS), tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["relation", "split", "question", "answer"])
        writer.writerows([r["relation"], r["split"], r["question"], r["answers"][0]] for r in GOOD_ROWS)
    for source in (tmp_path / "a.parquet", tmp_path / "a.csv", write_layout(tmp_path / "eq", GOOD_ROWS)):
        study = Folder(f"{source}.study")
        prepare_questions(study, QuestionsConfig(questions=str(source)))
        assert read_questions(study).equals(expected)


def test_questions_of_a_study_are_a_source_for_another_study(tmp_path):
    _, study = prepare(tmp_path, GOOD_ROWS)
    other = Folder(str(tmp_path / "other"))
    prepare_questions(other, QuestionsConfig(questions=study.child("questions").uri))
    assert read_questions(other).equals(read_questions(study))


BAD_ROWS = {
    "empty question": (
        {**GOOD_ROWS[0], "question": " "},
        "empty question (' '), expected text; fill it in or remove the row",
    ),
    "no question": ({"relation": "P19", "answers": ["a"]}, "no question, expected a string"),
    "no relation": ({"question": "Who?", "answers": ["a"]}, "no relation, expected a string"),
    "no answer": ({**GOOD_ROWS[0], "answers": []}, "no answer, expected at least one gold answer"),
    "no answer column": ({"relation": "P19", "question": "Who?"}, "no answer, expected"),
    "empty answer": ({**GOOD_ROWS[0], "answers": ["a", ""]}, "empty answer (''), expected text"),
    "number": ({**GOOD_ROWS[0], "answers": [1984]}, "answer is 1984 (int), expected a string; put it in quotes"),
    "null answer": ({**GOOD_ROWS[0], "answers": [None]}, "answer is None (NoneType), expected a string"),
    "bare string": ({**GOOD_ROWS[0], "answers": "Paris"}, "answers is 'Paris' (str), expected a list of strings"),
    "question type": ({**GOOD_ROWS[0], "question": ["Who?"]}, "question is ['Who?'] (list), expected a string"),
    "line break": ({**GOOD_ROWS[0], "answers": ["a\nb"]}, "holds a line break"),
    "surrogate": ({**GOOD_ROWS[0], "question": "a\ud800"}, "half a surrogate pair at character 2"),
    "relation": ({**GOOD_ROWS[0], "relation": "P999"}, "unknown relation 'P999', expected one of P131, P136, P17"),
    "split": ({**GOOD_ROWS[0], "split": "held out"}, "split is 'held out', expected one of train, training, dev"),
    "domain": ({**GOOD_ROWS[0], "domain": "dropped"}, "domain is 'dropped', expected one of id, ood"),
    "duplicate": (GOOD_ROWS[1], "duplicate row: the same as {source}, line 2; remove one of the two"),
    "not json": ('{"relation": "P19", "quest', "found no whole JSON object"),
    "not an object": ("[1, 2]", "found a JSON list, expected an object"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_is_an_error_with_file_line_and_both_values(tmp_path, case):
    row, message = BAD_ROWS[case]
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, [*GOOD_ROWS, row])
    error = str(caught.value)
    assert error.startswith(f"{tmp_path / 'study.jsonl'}, line {len(GOOD_ROWS) + 1}: ")
    assert message.format(source=tmp_path / "study.jsonl") in error
    assert "--rejects FILE" in error
    assert not (tmp_path / "study").exists()


def test_bad_rows_are_counted_in_one_message(tmp_path):
    with pytest.raises(
        DataError, match=r"line 1: no answer.* In all 3 rows are bad: 2 x no answer, 1 x unknown relation"
    ):
        prepare(tmp_path, [BAD_ROWS["no answer"][0], BAD_ROWS["no answer"][0], BAD_ROWS["relation"][0], *GOOD_ROWS])


def test_rejects_file_holds_bad_rows(tmp_path, capsys):
    rows = [row for row, _ in BAD_ROWS.values()]
    rejects = tmp_path / "deep" / "rejects.jsonl"
    manifest, study = prepare(tmp_path, [*GOOD_ROWS, *rows], rejects=str(rejects))
    assert read_questions(study).equals(read_questions(prepare(tmp_path, GOOD_ROWS, "good")[1]))
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(len(GOOD_ROWS) + 1, len(GOOD_ROWS) + len(BAD_ROWS) + 1))
    for line, (row, message) in zip(lines, BAD_ROWS.values(), strict=True):
        assert line["file"] == str(tmp_path / "study.jsonl")
        assert message.format(source=line["file"]) in line["reason"]
        assert line["content"] == (json.loads(row) if row == "[1, 2]" else row)
    assert manifest.counts["rejected"] == len(BAD_ROWS) == sum(manifest.counts["reasons"].values())
    assert f"Rows set aside: {len(BAD_ROWS)} (" in capsys.readouterr().out


def test_damaged_file_is_an_error_despite_rejects(tmp_path):
    source = tmp_path / "eq" / "train" / "P19.train.json"
    write_layout(tmp_path / "eq", GOOD_ROWS)
    source.write_text(source.read_text()[:-5])
    config = QuestionsConfig(questions=str(tmp_path / "eq"), rejects=str(tmp_path / "rejects.jsonl"))
    with pytest.raises(DataError, match="not whole JSON"):
        prepare_questions(Folder(str(tmp_path / "study")), config)


def test_source_with_only_bad_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no question left: 0 were read"):
        prepare(tmp_path, [BAD_ROWS["no answer"][0]], rejects=str(tmp_path / "rejects.jsonl"))


def test_table_without_rows_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("relation,question,answers\n")
    with pytest.raises(DataError, match="holds no row"):
        prepare_questions(Folder(str(tmp_path / "study")), QuestionsConfig(questions=str(tmp_path / "a.csv")))


def test_csv_rows_with_wrong_cells_are_bad_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('relation,question,answers\nP19,"Where\nwas A born?",x\nP19,Who?\nP19,Who?,x\n')
    rejects = tmp_path / "rejects.jsonl"
    with pytest.raises(DataError, match="no question left"):
        prepare_questions(Folder(str(tmp_path / "study")), QuestionsConfig(questions=str(path), rejects=str(rejects)))
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(line["row"], line["reason"].split(";")[0]) for line in lines] == [
        (2, "question 'Where\\nwas A born?' holds a line break, expected one line"),
        (4, "found 2 cells, expected 3 as in the header"),
        (5, "answers is 'x' (str), expected a list of strings such as [\"Paris\"]"),
    ]


def test_repeated_rows_of_entity_questions_have_distinct_ids(tmp_path):
    rows = [*GOOD_ROWS, GOOD_ROWS[0], GOOD_ROWS[0]]
    study = Folder(str(tmp_path / "study"))
    manifest = prepare_questions(study, QuestionsConfig(questions=write_layout(tmp_path / "eq", rows)))
    table = read_questions(study).to_pylist()
    assert manifest.counts["repeated_rows"] == 2
    assert len({row["question_id"] for row in table}) == len(rows)
    repeated_ids = {row["question_id"] for row in table if row["question"] == GOOD_ROWS[0]["question"]}
    assert repeated_ids == {
        question_id("P19", "train", GOOD_ROWS[0]["question"], GOOD_ROWS[0]["answers"], copy) for copy in (1, 2, 3)
    }


def test_rows_without_a_split_are_assigned_one_by_content(tmp_path):
    rows = [
        {"relation": r, "question": f"Where was {r} {i} born?", "answer": f"a{i}"}
        for r in ("P19", "P112")
        for i in range(500)
    ]
    manifest, study = prepare(tmp_path, rows, dev_share=0.2, test_share=0.1, filter="none")
    assert manifest.counts["splits_assigned"] == 1000
    splits = {
        r: [row["split"] for row in read_questions(study).to_pylist() if row["relation"] == r] for r in ("P19", "P112")
    }
    # 500 fair draws: four standard deviations are 36 (0.2) and 27 (0.1), one false alarm in 16,000
    assert abs(splits["P19"].count("dev") - 100) < 36
    assert abs(splits["P19"].count("test") - 50) < 27
    assert splits["P112"].count("train") == 0
    assert len(splits["P112"]) == 500
    again = read_questions(prepare(tmp_path, rows[::-1], "again", dev_share=0.2, test_share=0.1, filter="none")[1])
    assert again.equals(read_questions(study))


def test_unlisted_relations_need_a_file_or_a_flag(tmp_path):
    rows = [{**row, "relation": "place of birth"} for row in GOOD_ROWS]
    _, study = prepare(tmp_path, rows, "leave", unknown_relations="id")
    assert set(read_questions(study)["domain"].to_pylist()) == {"id"}
    assert study.child("questions").names(".parquet") == [part_name("place of birth")]
    (tmp_path / "relations.json").write_text(
        json.dumps({"place of birth": {"template": "Where was [X] born?", "domain": "ood"}})
    )
    _, study = prepare(tmp_path, rows, "file", relations=str(tmp_path / "relations.json"))
    table = read_questions(study).to_pylist()
    assert {(row["domain"], row["split"]) for row in table} == {("ood", "dev"), ("ood", "test")}
    assert {row["subject"] for row in table} == {f"{s} {i}" for s in ("dev", "test") for i in range(3)}


def test_template_of_the_source_extracts_the_subject_if_the_listed_one_does_not_fit(tmp_path):
    rows = [{**row, "question": row["question"].replace("Where was", "Birthplace of")} for row in GOOD_ROWS]
    folder = tmp_path / "eq"
    write_layout(folder / "dataset", rows)
    study = Folder(str(tmp_path / "a"))
    manifest = prepare_questions(study, QuestionsConfig(questions=str(folder)))
    assert manifest.counts["without_subject"] == len(GOOD_ROWS)
    (folder / "relation_query_templates.json").write_text(json.dumps({"P19": "Birthplace of [X] born?"}))
    study = Folder(str(tmp_path / "b"))
    assert prepare_questions(study, QuestionsConfig(questions=str(folder))).counts["without_subject"] == 0
    assert "train 0" in read_questions(study)["subject"].to_pylist()


def test_limit_keeps_the_smallest_ids_of_each_relation_and_split(tmp_path):
    _, study = prepare(tmp_path, GOOD_ROWS)
    manifest, limited = prepare(tmp_path, GOOD_ROWS, "limited", limit_per_relation=2)
    expected = {}
    for row in read_questions(study).to_pylist():
        expected.setdefault(row["split"], []).append(row)
    assert read_questions(limited).to_pylist() == [row for split in sorted(expected) for row in expected[split][:2]]
    assert manifest.counts["over_limit"] == 3
    _, few_dev = prepare(tmp_path, GOOD_ROWS, "fewer", limit_per_relation=2, dev_limit_per_relation=1)
    splits = read_questions(few_dev)["split"].to_pylist()
    assert {split: splits.count(split) for split in splits} == {"train": 2, "dev": 1, "test": 2}
    _, few_dev = prepare(tmp_path, GOOD_ROWS, "others", dev_limit_per_relation=1)
    splits = read_questions(few_dev)["split"].to_pylist()
    assert {split: splits.count(split) for split in splits} == {"train": 3, "dev": 1, "test": 3}


def test_finished_step_is_not_repeated_nor_overwritten(tmp_path):
    manifest, study = prepare(tmp_path, GOOD_ROWS)
    assert prepare(tmp_path, GOOD_ROWS)[0] == manifest
    with pytest.raises(StudyError, match="other inputs or settings"):
        prepare(tmp_path, GOOD_ROWS, filter="none")
    with pytest.raises(StudyError, match="other inputs or settings"):
        prepare(tmp_path, GOOD_ROWS[1:])
    study.child("questions").delete("manifest.json")
    with pytest.raises(StudyError, match="not finished"):
        read_questions(study)
    assert prepare(tmp_path, GOOD_ROWS)[0].fingerprint == manifest.fingerprint
    assert read_questions(study).num_rows == len(GOOD_ROWS)


def test_default_source_is_the_world_of_the_study(tmp_path):
    study = Folder(str(tmp_path / "study"))
    with pytest.raises(StudyError, match="no finished world and no question source"):
        prepare_questions(study, QuestionsConfig())
    write_layout(tmp_path / "study" / "world" / "dataset", GOOD_ROWS)
    study.child("world").write_json("manifest.json", {})
    prepare_questions(study, QuestionsConfig())
    assert read_questions(study).num_rows == len(GOOD_ROWS)


def test_audit_source_must_have_all_relations(tmp_path):
    source = write_layout(tmp_path / "eq", GOOD_ROWS)
    with pytest.raises(DataError, match=r"eq lacks relation P106, P112.*all 24 relations"):
        prepare(tmp_path, GOOD_ROWS, audit=source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dev_share": 20}, "a share in"),
        ({"dev_share": 0.6, "test_share": 0.6}, "add up to 1.2"),
        ({"limit_per_relation": 0}, "limit_per_relation must be 1 or more"),
        ({"dev_limit_per_relation": 0}, "dev_limit_per_relation must be 1 or more"),
        ({"filter": "papr"}, "filter is one of paper, strict, none, got 'papr'"),
        ({"questions": "a.jsonl", "rejects": "a.jsonl"}, "would overwrite the input a.jsonl"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        QuestionsConfig(**settings)


def to_nfd(value):
    """The same rows in Unicode normalization form NFD."""
    if isinstance(value, str):
        return unicodedata.normalize("NFD", value)
    if isinstance(value, list):
        return [*map(to_nfd, value)]
    return {to_nfd(key): to_nfd(value[key]) for key in value} if isinstance(value, dict) else value


def accented_row(split, num, subject="José", answer="Málaga"):
    return {
        "relation": "P19",
        "split": split,
        "subject": f"{subject} {num}",
        "question": f"Where was {subject} {num} born?",
        "answers": [f"{answer} {num}"],
    }


def test_unicode_forms_change_neither_ids_nor_filters_nor_stored_text(tmp_path):
    rows = [accented_row(split, i) for split in ("train", "dev", "test") for i in range(3)]
    tables = {}
    for name, rows_of_form in (("nfc", rows), ("nfd", to_nfd(rows)), ("mixed", [*rows[:3], *to_nfd(rows[3:])])):
        _, study = prepare(tmp_path, rows_of_form, name)
        tables[name] = read_questions(study)
        assert {*tables[name]["question"].to_pylist()} == {row["question"] for row in rows_of_form[3:]}
    assert tables["nfc"]["question_id"] == tables["nfd"]["question_id"] == tables["mixed"]["question_id"]
    assert tables["nfc"]["subject"].to_pylist() != tables["nfd"]["subject"].to_pylist()
    assert tables["nfc"].num_rows == 6  # the train questions have the subjects of test questions
    splitless = [{key: row[key] for key in ("relation", "question", "answers")} for row in rows[:3]]
    by_hash = [
        read_questions(prepare(tmp_path, form, name, filter="none", dev_share=0.3, test_share=0.4)[1])["question_id"]
        for name, form in (("a", splitless), ("b", to_nfd(splitless)))
    ]
    assert by_hash[0] == by_hash[1]


def test_same_question_in_another_unicode_form_is_a_duplicate(tmp_path):
    with pytest.raises(DataError, match=r"line 2: duplicate row: the same as .*line 1"):
        prepare(tmp_path, [accented_row("train", 0), to_nfd(accented_row("train", 0))])


def test_strict_filter_and_relations_ignore_unicode_forms(tmp_path):
    (tmp_path / "relations.json").write_text(
        json.dumps(to_nfd({"né": {"template": "Né où, [X], né?", "domain": "id"}})), encoding="utf-8"
    )
    rows = [
        {"relation": "né", "split": split, "question": f"Né où, {subject}, né?", "answers": [answer]}
        for split, subject, answer in (
            ("train", "A", "Málaga"),
            ("train", "B", "Orléans"),
            ("train", "Nîmes", "Gédéon"),
            ("dev", "C", "Oslo"),
        )
    ] + to_nfd(
        [
            {"relation": "né", "split": "test", "question": f"Né où, {subject}, né?", "answers": [answer]}
            for subject, answer in (("D", "Málaga"), ("Gédéon", "Nîmes"))
        ]
    )
    manifest, study = prepare(tmp_path, rows, relations=str(tmp_path / "relations.json"), filter="strict")
    assert [row["subject"] for row in read_questions(study).to_pylist() if row["split"] == "train"] == ["B"]
    assert manifest.counts["without_subject"] == 0


def write_files(folder, files):
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows), folder / name)
        else:
            write_jsonl(folder / name, rows)
    return str(folder)


def rows_without_split(num):
    return [{"relation": "P19", "question": f"Where was {num}{i} born?", "answer": f"{num}{i}"} for i in range(3)]


def test_splits_are_read_from_file_names_in_a_folder_and_a_zip(tmp_path, capsys):
    files = {
        "my.Train.jsonl": rows_without_split("a"),
        "validation-00000-of-00002.parquet": rows_without_split("b"),
        "valid/more.jsonl": rows_without_split("c"),
        "latest.jsonl": rows_without_split("d"),
        "TEST_set2.jsonl": [{**row, "split": "test"} for row in rows_without_split("e")],
    }
    source = write_files(tmp_path / "set", files)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in files:
            archive.write(tmp_path / "set" / name, name)
    for location in (source, f"{source}.zip"):
        study = Folder(f"{location}.study")
        settings = {"filter": "none", "dev_share": 0.0, "test_share": 1.0}
        manifest = prepare_questions(study, QuestionsConfig(questions=location, **settings))
        splits = {row["answers"][0]: row["split"] for row in read_questions(study).to_pylist()}
        expected = {"a": "train", "b": "dev", "c": "dev", "d": "test", "e": "test"}
        assert splits == {f"{num}{i}": split for num, split in expected.items() for i in range(3)}
        assert manifest.counts["splits_from"] == {
            "column": {"test": 3},
            "file name": {"train": 3, "dev": 6},
            "share": {"test": 3},
        }
        assert (
            "Splits: 3 rows from the column split (3 test); 9 rows from the names of the files (3 train, 6 dev); "
            "3 rows by --dev-share and --test-share (3 test).\n"
        ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("train.jsonl", "test", "line 1: column split says test, but the name of the file says train; correct"),
        ("train_test.jsonl", "dev", "column split says dev, but the name of the file says train or test"),
        (
            "train_dev.jsonl",
            None,
            "line 1: no split, and the name of the file may mean train or dev, expected one split",
        ),
        ("test/train.jsonl", None, "may mean train or test"),
        ("eval.jsonl", None, "may mean dev or test"),
    ],
)
def test_contradictory_and_ambiguous_splits_are_refused(tmp_path, name, split, message):
    rows = [row | ({"split": split} if split else {}) for row in rows_without_split("a")]
    config = QuestionsConfig(questions=write_files(tmp_path / "set", {name: rows}), filter="none")
    with pytest.raises(DataError) as caught:
        prepare_questions(Folder(str(tmp_path / "study")), config)
    assert message in str(caught.value)
    assert "In all 3 rows are bad" in str(caught.value)


def test_split_column_of_entity_questions_must_match_the_folder(tmp_path):
    folder = write_layout(tmp_path / "eq", GOOD_ROWS)
    (tmp_path / "eq" / "train" / "P19.train.json").write_text(json.dumps([{**GOOD_ROWS[0], "split": "test"}]))
    with pytest.raises(DataError, match="column split says test, but the name of the file says train"):
        prepare_questions(Folder(str(tmp_path / "study")), QuestionsConfig(questions=folder))


def test_relation_may_have_the_name_of_a_split(tmp_path):
    rows = [{**row, "relation": "test"} for row in GOOD_ROWS]
    _, study = prepare(tmp_path, rows, unknown_relations="id")
    again = Folder(str(tmp_path / "again"))
    prepare_questions(again, QuestionsConfig(questions=study.child("questions").uri, unknown_relations="id"))
    assert read_questions(again).equals(read_questions(study))


LIST_CELLS = {
    '["Paris", "Paris City"]': ["Paris", "Paris City"],
    "['Paris', \"L'Haÿ\"]": ["Paris", "L'Haÿ"],
    " ['It\\'s',] ": ["It's"],
    "('Paris', 'Paris City')": ["Paris", "Paris City"],
    "(500) Days of Summer": ["(500) Days of Summer"],
    "Paris, Texas": ["Paris, Texas"],
    "'Paris'": ["'Paris'"],
}


@pytest.mark.parametrize("cell", LIST_CELLS)
@pytest.mark.parametrize("column", ["answer", "answers", "possible_answers"])
def test_list_in_a_string_is_parsed_the_same_in_every_column(tmp_path, column, cell):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["relation", "question", "split", column], ["P19", "Who?", "test", cell]])
    study = Folder(str(tmp_path / "study"))
    if column != "answer" and LIST_CELLS[cell] == [cell]:  # a plain text may contain several answers with a separator
        with pytest.raises(DataError, match=r"expected a list of strings"):
            prepare_questions(study, QuestionsConfig(questions=str(path), filter="none"))
        return
    prepare_questions(study, QuestionsConfig(questions=str(path), filter="none"))
    assert read_questions(study)["answers"].to_pylist() == [LIST_CELLS[cell]]


@pytest.mark.parametrize("column", ["answer", "answers", "possible_answers"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('["Paris", "Lyon', "begins like a list but is not one, expected a list of strings"),
        ("['Paris' 'Paris City']", "separated by commas"),  # as NumPy prints an array; Python joins the two
        ("['Paris', None]", "begins like a list but is not one"),
        ("[REC]", "begins like a list but is not one"),
        ("[]", "is an empty list, expected at least one"),
        ('{"value": "Paris"}', "is {'value': 'Paris'} (dict), expected a list of strings"),
        ({"value": "Paris"}, "is {'value': 'Paris'} (dict), expected a list of strings"),
        ("{'Paris'}", "begins like a list but is not one"),
        ([["Paris"]], "answer is ['Paris'] (list), expected a string; write a single string"),
    ],
)
def test_malformed_list_is_never_an_answer(tmp_path, column, value, message):
    row = {"relation": "P19", "question": "Who?", "split": "test", column: value}
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, [row], filter="none")
    assert message in str(caught.value)
    assert "put it in quotes" not in str(caught.value)


def test_unused_parquet_columns_are_not_read(tmp_path):
    num = len(GOOD_ROWS)
    far = pa.array([3_700_000] * num, pa.int32())  # in days; beyond the largest year of Python
    table = pa.table(
        {
            "relation": pa.array(["P19"] * num).dictionary_encode(),
            "question": pa.array([row["question"] for row in GOOD_ROWS], pa.large_string()),
            "answers": [row["answers"] for row in GOOD_ROWS],
            "split": [row["split"] for row in GOOD_ROWS],
            "subject": pa.nulls(num),
            "born": far.cast(pa.date32()),
            "seen": pa.array([2**62] * num, pa.timestamp("us")),
            "exactly": pa.array([1] * num, pa.timestamp("ns")),
            "nested": [[{"born": 1}]] * num,
            "bytes": pa.array([b"\xff"] * num),
        }
    )
    doubled = table.append_column("bytes", far)
    source = tmp_path / "a.parquet"
    pq.write_table(doubled, source)
    study = Folder(str(tmp_path / "study"))
    prepare_questions(study, QuestionsConfig(questions=str(source), filter="none"))
    assert (
        read_questions(study)["question_id"]
        == read_questions(prepare(tmp_path, GOOD_ROWS, "other", filter="none")[1])["question_id"]
    )
    for name in ("answer", "popularity"):
        broken = table.drop_columns(["answers", "split"]).append_column(name, far.cast(pa.date32()))
        broken = broken if name == "answer" else broken.append_column("answers", table["answers"])
        pq.write_table(broken, source)
        with pytest.raises(DataError, match=rf"a\.parquet: column {name} \(date32.*cannot be read: .*; store"):
            prepare_questions(Folder(str(tmp_path / name)), QuestionsConfig(questions=str(source)))


def test_parquet_with_lists_of_answers_in_several_row_groups_is_read(tmp_path):
    pq.write_table(pa.Table.from_pylist(GOOD_ROWS), tmp_path / "rows.parquet", row_group_size=2)
    study = Folder(str(tmp_path / "study"))
    prepare_questions(study, QuestionsConfig(questions=str(tmp_path / "rows.parquet"), filter="none"))
    assert read_questions(study).num_rows == len(GOOD_ROWS)


def test_damage_in_an_unused_parquet_column_is_ignored(tmp_path):
    source = tmp_path / "a.parquet"
    table = pa.Table.from_pylist([{**row, "note": "n" * 50} for row in GOOD_ROWS])
    pq.write_table(table, source, compression="none", use_dictionary=False)
    group = pq.ParquetFile(source).metadata.row_group(0)
    (note,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "note")
    data = bytearray(source.read_bytes())
    data[note.data_page_offset : note.data_page_offset + note.total_compressed_size] = (
        b"\xff" * note.total_compressed_size
    )
    source.write_bytes(data)
    with pytest.raises((OSError, pa.ArrowException)):
        pq.read_table(source)
    study = Folder(str(tmp_path / "study"))
    prepare_questions(study, QuestionsConfig(questions=str(source), filter="none"))
    assert read_questions(study).num_rows == len(GOOD_ROWS)


def test_values_of_other_types_are_refused_with_a_fix(tmp_path):
    for name, value, advice in (("bytes", b"Paris", "store the column as text"), ("date", date(1, 1, 1), "quotes")):
        pq.write_table(pa.table({"relation": ["P19"], "question": ["Who?"], "answer": [value]}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=rf"row 1: answer is .*{name}.*expected a string; .*{advice}"):
            prepare_questions(Folder(str(tmp_path / name)), QuestionsConfig(questions=str(tmp_path / "a.parquet")))


def test_unused_columns_of_text_files_may_have_any_value(tmp_path):
    rows = ['{"note": ' + "9" * 5000 + ", " + json.dumps(row)[1:] for row in GOOD_ROWS]
    assert read_questions(prepare(tmp_path, rows)[1]).num_rows == len(GOOD_ROWS)
    with pytest.raises(DataError, match="line 10: found answers more than once in the object"):
        prepare(tmp_path, [*GOOD_ROWS, json.dumps(GOOD_ROWS[0])[:-1] + ', "answers": ["Oslo"]}'], "twice")
    (tmp_path / "a.csv").write_text("note,relation,question,answer,note\n1,P19,Who?,Ada,2\n")
    study = Folder(str(tmp_path / "csv"))
    prepare_questions(study, QuestionsConfig(questions=str(tmp_path / "a.csv"), filter="none"))
    assert read_questions(study)["answers"].to_pylist() == [["Ada"]]


def test_summary_lists_the_questions_dropped_by_each_rule(tmp_path, capsys):
    rows = [*GOOD_ROWS, {**GOOD_ROWS[0], "question": "Where was train 9 born?", "answers": ["a", "b"]}]
    prepare(tmp_path, rows)
    out = capsys.readouterr().out
    assert "relation  domain  read   (1)    kept\n" in out
    assert "Dropped by the filter: (1) several answers: 1. Nothing dropped for: subject in test.\n" in out
    prepare(tmp_path, GOOD_ROWS, "nothing")
    out = capsys.readouterr().out
    assert "Cells are train/dev/test. Nothing dropped for: several answers; subject in test.\n" in out
    prepare(tmp_path, GOOD_ROWS, "none", filter="none")
    assert "Cells are train/dev/test. No filter.\n" in capsys.readouterr().out
