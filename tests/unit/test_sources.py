"""Question sources: folders, zip archives and tables, and messages for damaged ones."""

import csv
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slick import limits
from slick.datasets.sources import open_source, read_rows
from slick.errors import DataError
from tests.planted import MaliciousPickle

ROWS = [
    {"question": "Where was Ada born?", "answers": ["London"]},
    {"question": "Where was Bo born?", "answers": ["Oslo"]},
]
FILES = {f"{split}/P19.{split}.json": json.dumps(ROWS).encode() for split in ("train", "dev", "test")}
EXPECTED = "expected EntityQuestions"


def write_folder(top, files=FILES):
    for name, data in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return top


def write_zip(path, files=FILES, top="dataset/", **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            archive.writestr(top + name, data)
    return path


def read_contents(path):
    return [row.content for row in read_rows(open_source(str(path)))]


def error_message(path):
    with pytest.raises(DataError) as caught:
        read_contents(path)
    return str(caught.value)


def test_folder_its_parent_and_a_zip_are_the_same_source(tmp_path):
    folder = write_folder(tmp_path / "eq" / "dataset").parent
    locations = [
        folder,
        folder / "dataset",
        f"{folder}/",
        write_zip(tmp_path / "a.zip"),
        write_zip(tmp_path / "b.ZIP", top=""),
    ]
    sources = [open_source(str(location)) for location in locations]
    assert {(s.fingerprint, s.layout, tuple(s.files)) for s in sources} == {
        (sources[0].fingerprint, "entity_questions", tuple(sorted(FILES)))
    }
    assert read_contents(folder)[0] == {
        "question": "Where was Ada born?",
        "answers": ["London"],
        "relation": "P19",
    }
    assert [row.named_splits for row in read_rows(open_source(str(folder)))][::2] == [("dev",), ("test",), ("train",)]


def test_templates_are_read_beside_the_dataset_in_a_folder_and_a_zip(tmp_path):
    templates = json.dumps({"P19": "Where was [X] born?", "note": "no place"}).encode()
    folder = write_folder(tmp_path / "eq" / "dataset").parent
    (folder / "relation_query_templates.json").write_bytes(templates)
    path = write_zip(
        tmp_path / "a.zip",
        {**{f"dataset/{n}": d for n, d in FILES.items()}, "relation_query_templates.json": templates},
        top="",
    )
    for location in (folder, folder / "dataset", path):
        assert open_source(str(location)).templates == {"P19": "Where was [X] born?"}
    (folder / "relation_query_templates.json").write_bytes(b"[]")
    assert "relation_query_templates.json is not of the form" in error_message(folder)
    (folder / "relation_query_templates.json").write_bytes(b"{")
    assert "relation_query_templates.json is not UTF-8 JSON" in error_message(folder)


def test_tables_of_every_format_give_the_same_rows(tmp_path):
    rows = [{"relation": "P19", "question": 'Where was "Ada", Ö born?', "answers": ["London", "UK"]}]
    (tmp_path / "a.jsonl").write_text(
        "\ufeff" + "".join(json.dumps(row) + "\r\n\r\n" for row in rows), encoding="utf-8"
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    text = io.StringIO()
    csv.writer(text).writerows(
        [["relation", "question", "answers"], *([r["relation"], r["question"], json.dumps(r["answers"])] for r in rows)]
    )
    (tmp_path / "a.csv").write_text("\ufeff" + text.getvalue(), encoding="utf-8")
    assert read_contents(tmp_path / "a.jsonl") == read_contents(tmp_path / "a.parquet") == rows
    assert read_contents(tmp_path / "a.csv") == [{**rows[0], "answers": '["London", "UK"]'}]


def test_folder_of_tables_is_read_in_the_order_of_names(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"relation": "P19", "question": name, "answer": name}))
    (tmp_path / "notes.txt").write_text("not a table")
    source = open_source(str(tmp_path))
    assert [(row.where, row.content["question"]) for row in read_rows(source)] == [
        (f"{tmp_path}: a.jsonl, line 1", "a"),
        (f"{tmp_path}: b.jsonl, line 1", "b"),
    ]


def test_files_that_macos_adds_to_a_zip_are_ignored(tmp_path):
    extra = {
        **{f"eq/dataset/{n}": d for n, d in FILES.items()},
        "__MACOSX/eq/dataset/train/P19.train.json": b"x",
        "eq/dataset/train/._P19.train.json": b"x",
    }
    assert len(open_source(str(write_zip(tmp_path / "a.zip", extra, top=""))).files) == 3


def test_missing_and_unsupported_sources_are_refused(tmp_path):
    assert "nowhere.zip does not exist; " + EXPECTED in error_message(tmp_path / "nowhere.zip")
    (tmp_path / "a.txt").write_text("x")
    assert "a.txt has an unsupported file format; " + EXPECTED in error_message(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    assert "holds no question file, found nothing; " + EXPECTED in error_message(tmp_path / "empty")
    (tmp_path / "empty" / "dataset" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "dataset" / "train" / "P19.dev.json").write_text("[]")
    assert "holds no question file, found dataset/" in error_message(tmp_path / "empty")
    assert "has no name" in error_message(" ")
    assert "cannot be read" in error_message("nothing://at/all")


@pytest.mark.parametrize("suffix", ["zip", "jsonl", "csv", "parquet"])
def test_empty_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"")
    assert str(path) in error_message(path)


def test_truncated_zip_and_zip_without_questions_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip")
    path.write_bytes(path.read_bytes()[:-40])
    assert "a.zip is not a whole zip file" in error_message(path)
    assert "bytes found); download it again" in error_message(path)
    write_zip(path, {"readme.md": b"x"}, top="")
    assert "holds no member {train,dev,test}/P*.{train,dev,test}.json, found readme.md; " + EXPECTED in error_message(
        path
    )


def test_corrupt_zip_member_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"train/P19.train.json": json.dumps(ROWS * 50).encode()})
    data = bytearray(path.read_bytes())
    offset = data.index(b".json") + 15
    data[offset : offset + 10] = b"\0" * 10
    path.write_bytes(data)
    assert "a.zip, member dataset/train/P19.train.json: it is damaged" in error_message(path)


def test_encrypted_and_large_members_are_refused(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    data[start + 8] |= 1  # the flag 'encrypted' of the first member
    path.write_bytes(data)
    assert "it is encrypted, expected no encryption" in error_message(path)
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", 10)
    assert "P19.dev.json has 117 bytes, at most 10 are read; if you trust" in error_message(
        write_zip(tmp_path / "b.zip")
    )


def test_two_datasets_in_one_zip_are_refused(tmp_path):
    two_copies = {f"{top}/{name}": data for top in ("one", "two") for name, data in FILES.items()}
    assert "twice, as one/" in error_message(write_zip(tmp_path / "a.zip", two_copies, top=""))
    mixed = {"one/train/P19.train.json": b"[]", "two/train/P20.train.json": b"[]"}
    assert "below one/, two/; expected one dataset" in error_message(write_zip(tmp_path / "b.zip", mixed, top=""))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps(ROWS).encode()[:-9], "dev/P19.dev.json is not whole JSON"),
        (b'{"question": 1}', "holds a JSON object; expected a JSON list"),
        (b"3", "holds a JSON number"),
        (b"  ", "dev/P19.dev.json is empty (2 bytes)"),
        (b"[" * 100_000, "row 1: found JSON nested too deeply, expected at most 100 lists"),
        (
            '[{"question": "Où?", "answers": ["là"]}]'.encode("latin-1"),
            "byte 0xf9 at offset 16 (line 1); convert it, for example with `iconv -f WINDOWS-1252",
        ),
        (
            json.dumps(ROWS).encode("utf-16"),
            "byte 0xff at offset 0 (line 1); convert it, for example with `iconv -f UTF-16",
        ),
    ],
    ids=["truncated", "object", "number", "blank", "deep", "latin-1", "utf-16"],
)
def test_damaged_relation_file_is_refused(tmp_path, data, message):
    error = error_message(write_folder(tmp_path, {**FILES, "dev/P19.dev.json": data}))
    assert str(tmp_path) in error
    assert message in error


def test_byte_order_mark_is_ignored(tmp_path):
    files = {name: b"\xef\xbb\xbf" + data for name, data in FILES.items()}
    assert read_contents(write_folder(tmp_path / "a", files)) == read_contents(write_folder(tmp_path / "b"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.csv",
            b"relation,question\nP1,Who?\n",
            "lacks column answers (or answer); found relation, question, expected",
        ),
        (
            "a.csv",
            b"relation;question;answer\n",
            "lacks column relation, question, answers (or answer); found relation;question;answer (are the cells",
        ),
        ("a.csv", b"relation,question,answer,answer\n", "has column answer more than once"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "Who?"}], "source": "made"}\n',
            "a.jsonl lacks column relation, question, answers (or answer); found messages, source (this is a "
            "fine-tuning file; make one row of each question and answer), expected relation, question, answers and",
        ),
        (
            "a.json",
            b'[{"instruction": "Who?", "output": "Ada"}]',
            "a.json has an unsupported file format (a JSON list of objects with instruction, output: write one object "
            "per line, as .jsonl, with other columns); expected EntityQuestions",
        ),
        ("a.jsonl.gz", b"x", "has an unsupported file format (it is compressed: unpack it first); expected"),
        (
            "a.csv",
            b'relation,question,answer\nP1,Who?,A\nP1,"Who',
            "is not whole CSV: unexpected end of data in the row that begins on line 3",
        ),
        ("a.csv", b"relation,question,answer\nP1,Who?,\xe9\n", "byte 0xe9 at offset 33 (line 2)"),
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.jsonl", b'{"question": "\xff"}', "byte 0xff at offset 14"),
        ("a.parquet", b"PAR1 and no more", "is not a complete Parquet file"),
    ],
)
def test_damaged_table_is_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    error = error_message(tmp_path / name)
    assert str(tmp_path / name) in error
    assert message in error


def test_parquet_file_without_required_columns_or_footer_is_refused(tmp_path):
    pq.write_table(pa.table({"q": ["Who?"]}), tmp_path / "a.parquet")
    assert "lacks column relation, question, answers (or answer); found q, expected" in error_message(
        tmp_path / "a.parquet"
    )
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    assert "is not a complete Parquet file" in error_message(tmp_path / "a.parquet")


def test_parquet_column_of_pickles_is_refused_before_it_is_read(tmp_path):
    """Ray Data registers an Arrow type with which any Parquet file can load pickles."""
    import ray.data.extensions  # noqa: F401 - registers it
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

    code_ran = tmp_path / "code-ran"
    column = ArrowPythonObjectArray.from_objects([MaliciousPickle(code_ran)])
    pq.write_table(
        pa.table({"relation": ["P1"], "question": ["Who?"], "answers": column, "unused": column}),
        tmp_path / "a.parquet",
    )
    assert "can hold pickles, which run code when they are read: ['answers']" in error_message(tmp_path / "a.parquet")
    assert not code_ran.exists()
