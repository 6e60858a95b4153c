"""Limits on files from users: each limit is one error message, and decompression bombs take little memory."""

import io
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slick import limits
from slick.datasets.prepare import QuestionsConfig, prepare_questions
from slick.datasets.relations import load_relations
from slick.datasets.sources import open_source, read_rows
from slick.datasets.validate import ValidationRules, first_row_error, validate_rows
from slick.errors import DataError, ModelError
from slick.models import context_length
from slick.report.grading import parse_grading_sheet, read_grading_sheets
from slick.storage import Folder

ROW = {"relation": "P19", "question": "Where was Ada born?", "answers": ["London"]}
HEADER = "relation,question,answer\n"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def write_parquet(path, columns, **options):
    pq.write_table(pa.table({"relation": ["P19"] * len(next(iter(columns.values()))), **columns}), path, **options)
    return str(path)


def validate_source(location):
    return validate_rows(read_rows(open_source(location)), ValidationRules(relations=load_relations()))


def error_of(location):
    with pytest.raises(DataError) as caught:
        validate_source(location)
    assert location in str(caught.value)
    return str(caught.value)


def first_bad_row_message(location):
    """The message for a source that has only bad rows."""
    return str(first_row_error(validate_source(location)))


def test_rows_of_a_file_are_limited_in_every_format(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ROWS_PER_FILE", 2)
    rows = [{**ROW, "question": f"Where was {i} born?"} for i in range(3)]
    layout = tmp_path / "eq" / "train"
    layout.mkdir(parents=True)
    write(layout / "P19.train.json", json.dumps(rows))
    files = [
        str(tmp_path / "eq"),
        write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))),
        write(tmp_path / "a.csv", HEADER + "".join(f"P19,Where was {i} born?,x\n" for i in range(3))),
        write_parquet(tmp_path / "a.parquet", {"question": [r["question"] for r in rows], "answer": ["x"] * 3}),
    ]
    for location in files:
        assert "has more than 2 rows, which is the limit; leave some out, or divide" in error_of(location)


def test_number_of_files_and_members_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_FILES", 2)
    for i in range(3):
        write(tmp_path / f"{i}.jsonl", json.dumps(ROW))
    assert "holds 3 question files, at most 2 are read; join" in error_of(str(tmp_path))
    path = write_zip(tmp_path / "a.zip", {"a.jsonl": json.dumps(ROW), "b.txt": "", "c.txt": ""})
    assert "holds 3 members, at most 2 are read; join" in error_of(path)


def test_unpacked_size_of_a_zip_is_limited(tmp_path, monkeypatch):
    bomb = write_zip(tmp_path / "bomb.zip", {"a.jsonl": " " * (2 << 20)})
    assert "bytes and would unpack to 2,097,152, at most 1,048,576 are read (100 times its bytes" in error_of(bomb)
    many = write_zip(tmp_path / "many.zip", {f"{i}.jsonl": " " * 1000 for i in range(1100)})
    assert "would unpack to 1,100,000" not in error_of(many), "a real ratio, below 100 to 1"
    monkeypatch.setattr(limits, "MAX_ARCHIVE_BYTES", 1_000_000)
    assert "would unpack to 1,100,000, at most 1,000,000 are read" in error_of(many)


def overlapping(num):
    """A zip whose `num` members share the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.jsonl", b" " * 500_000)
        (only,) = archive.filelist
        for i in range(1, num):
            copy = zipfile.ZipInfo(f"{i}.jsonl")
            for name in ("compress_type", "CRC", "compress_size", "file_size", "header_offset", "flag_bits"):
                setattr(copy, name, getattr(only, name))
            archive.filelist.append(copy)
    return buffer.getvalue()


def understated():
    """A zip whose member unpacks to 100 MB but states 1,000 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", b" " * 100_000_000)
    data = buffer.getvalue()
    size = (100_000_000).to_bytes(4, "little")
    assert data.count(size) == 2
    return data.replace(size, (1000).to_bytes(4, "little"))


def test_overlapping_and_understated_members_are_refused(tmp_path):
    assert "would unpack to 20,000,000, at most 1,048,576" in error_of(write(tmp_path / "a.zip", overlapping(40)))
    assert "member a.jsonl: it is damaged" in error_of(write(tmp_path / "b.zip", understated()))


@pytest.mark.parametrize(("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")])
def test_compression_methods_other_than_deflate_are_refused(tmp_path, method, name):
    path = write_zip(tmp_path / "a.zip", {"a.jsonl": json.dumps(ROW)}, method)
    assert f"member a.jsonl: it is compressed by {name}, expected deflate" in error_of(path)


def test_two_members_with_one_name_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {f"{name}.jsonl": json.dumps({**ROW, "answers": [name]}) for name in "ab"})
    data = (tmp_path / "a.zip").read_bytes().replace(b"b.jsonl", b"a.jsonl")
    assert "holds a.jsonl twice; expected each file once" in error_of(write(tmp_path / "a.zip", data))
    assert path.endswith("a.zip")


def test_rows_and_values_per_byte_of_parquet_are_limited(tmp_path, monkeypatch):
    num = 150_000
    same = pa.DictionaryArray.from_arrays(np.zeros(num, np.int32), ["Where was Ada born?"])
    table = pa.table({"relation": same, "question": same, "answer": same})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert "has 150,000 rows or values in" in error_of(str(tmp_path / "rows.parquet"))
    values = write_parquet(tmp_path / "values.parquet", {"question": ["Who?"], "answers": [["a"] * num]})
    assert "has 150,000 rows or values in" in error_of(values)
    random.seed(0)
    big = "".join(random.choices("abcdefghijkl", k=20_000))
    repeated = write_parquet(tmp_path / "text.parquet", {"question": [big] * 5_000, "answer": ["a"] * 5_000})
    assert "and its columns would unpack to more, at most" in error_of(repeated)
    plain = write_parquet(
        tmp_path / "plain.parquet", {"question": ["a" * 2_000_000], "answer": ["a"]}, compression="zstd"
    )
    assert "and its columns would unpack to 2,000," in error_of(plain)
    monkeypatch.setattr(limits, "MAX_COLUMNS", 2)
    assert "has 3 columns, at most 2 are read" in error_of(
        write_parquet(tmp_path / "a.parquet", {"question": ["a"], "answer": ["a"]})
    )


def test_parquet_is_unpacked_in_batches_with_the_same_rows(tmp_path, monkeypatch):
    columns = {"question": [f"Who is {i}?" for i in range(1000)], "answers": [["a", f"b{i}"] for i in range(1000)]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    rows = [row.content for row in read_rows(open_source(path))]
    assert [row["question"] for row in rows] == columns["question"]
    assert [row["answers"] for row in rows] == columns["answers"]
    monkeypatch.setattr(limits, "MAX_BATCH_BYTES", 100)
    assert [row.content for row in read_rows(open_source(path))] == rows


def test_rows_cells_and_columns_of_text_files_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ROW_CHARS", 200_000)
    cell = "a" * 150_000  # more than the limit of the library, 131,072
    assert validate_source(write(tmp_path / "a.csv", f"{HEADER}P19,Where was Ada born?,{cell}\n")).questions[
        0
    ].answers == (cell,)
    for text in (f"P19,{cell * 2},x\n", f'P19,"{cell}\n{cell}",x\n', f'P19,x,"{cell}\n{cell}\n', "," * 200_001):
        assert ": the row has more than 200,000 characters, which is the limit; look for a quote" in error_of(
            write(tmp_path / "a.csv", HEADER + text)
        )
    assert "a.jsonl, line 2: the row has more than 200,000 characters" in error_of(
        write(tmp_path / "a.jsonl", json.dumps(ROW) + "\n" + json.dumps({**ROW, "note": cell * 2}))
    )
    assert "a.csv has 100,000 columns, at most 10,000 are read" in error_of(write(tmp_path / "a.csv", "," * 99_999))


@pytest.mark.parametrize("column", ["relation", "question", "answer", "answers", "subject"])
def test_too_long_text_is_a_bad_row(tmp_path, monkeypatch, column):
    monkeypatch.setattr(limits, "MAX_TEXT_CHARS", 100)
    long = "a" * 101
    row = {**ROW, column: f'["{long}"]' if column == "answers" else long}
    row = row if column != "answer" else {name: value for name, value in row.items() if name != "answers"}
    message = first_bad_row_message(write(tmp_path / "a.jsonl", json.dumps(row)))
    assert "characters, expected at most 100; shorten it or remove the row" in message
    assert message.startswith(f"{tmp_path / 'a.jsonl'}, line 1: {column} ")


def test_size_of_a_json_document_is_limited(tmp_path, monkeypatch):
    folder = tmp_path / "eq" / "train"
    folder.mkdir(parents=True)
    write(folder / "P19.train.json", json.dumps([ROW] * 3))
    monkeypatch.setattr(limits, "MAX_DOCUMENT_BYTES", 100)
    assert "at most 100 are read; write the questions as .jsonl" in error_of(str(tmp_path / "eq"))


def nested_lists(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"note": ' + nested_lists(100) + "}", "found JSON nested too deeply, expected at most 100 lists"),
        ('{"note": ' + nested_lists(100_000) + "}", "found JSON nested too deeply, expected at most 100 lists"),
        ("[" * 100_000, "found JSON nested too deeply"),
        ('{"answers": ["a"], "answers": ["b"]}', "found answers more than once in the object, expected each once"),
        ('{"relation": "P19", "question": "Who?", "answer": ' + "1" * 5000 + "}", "answer is Decimal('1111"),
        ('{"relation": "P19", "question": NaN, "answer": "a"}', "question is nan (float), expected a string"),
        ('{"relation": "P19", "question": "a\\ud800", "answer": "a"}', "half a surrogate pair"),
        ('{"relation": "P19", "question": "a\\u0000", "answer": "a"}', "holds a NUL character, expected text"),
        (json.dumps({**ROW, "answers": nested_lists(200)}), "found JSON nested too deeply"),
        (json.dumps({**ROW, "answers": "['a'" + " " * 500_000 + "x]"}), "begins like a list but is not one"),
    ],
    ids=["deep", "deeper", "open", "twice", "digits", "nan", "surrogate", "nul", "deep cell", "spaces"],
)
def test_invalid_json_row_is_one_message(tmp_path, row, message):
    assert message in first_bad_row_message(write(tmp_path / "a.jsonl", row + "\n"))
    folder = tmp_path / "eq" / "train"
    folder.mkdir(parents=True)
    write(folder / "P19.train.json", f"[{row}]")
    location = str(tmp_path / "eq")
    try:
        error_message = first_bad_row_message(location)
    except DataError as error:
        error_message = str(error)
    assert "train/P19.train.json, row 1: " in error_message
    assert message in error_message


@pytest.mark.parametrize("text", ["[1,]", "[,1]", "[1 2]", "[1]]", "[1", "[", '[{"a": 1},\n{"b"}]', "[1] x", "[1}"])
def test_list_items_are_parsed_as_strictly_as_json(tmp_path, text):
    folder = tmp_path / "train"
    folder.mkdir()
    write(folder / "P19.train.json", text)
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    assert "train/P19.train.json is not whole JSON: " in error_of(str(tmp_path))


@pytest.mark.parametrize("text", ["[]", " [ ] ", '\r\n[ {"a": [1, {}]}\t, 2 , "x"\n] \n', "[null]"])
def test_list_items_equal_those_of_the_json_parser(tmp_path, text):
    folder = tmp_path / "train"
    folder.mkdir()
    write(folder / "P19.train.json", text)
    rows = [
        {k: v for k, v in row.content.items() if k != "relation"} if isinstance(row.content, dict) else row.content
        for row in read_rows(open_source(str(tmp_path)))
    ]
    assert rows == json.loads(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nested_lists(100_000), "found JSON nested too deeply"),
        (nested_lists(101), "found JSON nested too deeply"),
        ('{"P1": 1, "P1": 2}', "found the key 'P1' more than once in one object"),
        ('{"P1": ' + "1" * 5000 + "}", "found a number of 5,000 digits, expected at most 1,000"),
        ('{"P1": NaN}', "found NaN, which is not JSON"),
        ('{"P1": "\\ud800"}', "found half a surrogate pair, expected valid Unicode"),
        (b'{"P1": "\xff"}', "is not UTF-8 JSON"),
        ("{", "is not UTF-8 JSON"),
        (" " * 1001, "has 1,001 bytes, at most 1,000 are read"),
    ],
    ids=["deeper", "deep", "twice", "digits", "nan", "surrogate", "bytes", "cut", "large"],
)
def test_other_json_files_are_parsed_strictly(tmp_path, monkeypatch, content, message):
    if "1,000 are read" in message:
        monkeypatch.setattr(limits, "MAX_SETTINGS_BYTES", 1000)
    source = tmp_path / "eq" / "train"
    source.mkdir(parents=True)
    write(source / "P19.train.json", json.dumps([ROW]))
    templates = write(tmp_path / "eq" / "relation_query_templates.json", content)
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path / "eq"))
    assert templates in str(caught.value)
    assert message in str(caught.value)
    with pytest.raises(DataError) as caught:
        load_relations(write(tmp_path / "relations.json", content))
    assert message in str(caught.value)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train/P19.train.json", json.dumps([ROW]))
        archive.writestr("relation_query_templates.json", content)
    with pytest.raises(DataError, match=r"relation_query_templates\.json") as caught:
        open_source(str(tmp_path / "a.zip"))
    assert message in str(caught.value)
    model = tmp_path / "model"
    model.mkdir()
    write(model / "config.json", content)
    write(model / "model.safetensors", "")
    if "NaN" not in message and "more than once" not in message:  # transformers accepts both
        with pytest.raises(ModelError) as raised:
            context_length(str(model))
        assert message in str(raised.value)


def test_size_of_a_weights_header_is_limited(tmp_path, monkeypatch):
    write(tmp_path / "config.json", '{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8}')
    header = nested_lists(100_000).encode()
    write(tmp_path / "model.safetensors", len(header).to_bytes(8, "little") + header + b" ")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be loaded: it is not a safetensors file"):
        context_length(str(tmp_path))
    monkeypatch.setattr(limits, "MAX_SETTINGS_BYTES", 1000)
    with pytest.raises(
        ModelError, match=r"the header of .*model\.safetensors has 200,000 bytes, at most 1,000 are read"
    ):
        context_length(str(tmp_path))


def test_bad_rows_beyond_the_limit_are_counted_only(tmp_path, monkeypatch, capsys):
    rows = [json.dumps(ROW), *(json.dumps({**ROW, "answers": [], "note": "n" * 200}) for _ in range(50))]
    config = QuestionsConfig(
        questions=write(tmp_path / "a.jsonl", "\n".join(rows)), filter="none", rejects=str(tmp_path / "rejects.jsonl")
    )
    for limit, value, kept in (("MAX_REJECTED_ROWS", 3, 3), ("MAX_REJECTED_CHARS", 1000, 4)):
        with monkeypatch.context() as patch:
            patch.setattr(limits, limit, value)
            manifest = prepare_questions(Folder(str(tmp_path / limit)), config)
            with pytest.raises(DataError, match=r"In all 50 rows are bad: 50 x no answer"):
                raise first_row_error(validate_source(config.questions))
        assert (manifest.counts["rejected"], manifest.counts["rows"]) == (50, 51)
        assert manifest.counts["reasons"] == {"no answer": 50}
        assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == kept
        assert f"rejects.jsonl holds the first {kept} of 50 bad rows" in capsys.readouterr().out
    monkeypatch.setattr(limits, "MAX_REJECTED_ROW_CHARS", 20)
    content = validate_source(config.questions).rejected[0].raw.content
    assert content.startswith('{"relation": "P19", ')
    assert content.endswith("... (281 characters in all)")


def test_source_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps(ROW))
    source = open_source(path)
    write(tmp_path / "a.jsonl", json.dumps({**ROW, "answers": ["Paris"]}) + "\n")
    for read in (lambda: source.fingerprint, lambda: list(read_rows(source))):
        with pytest.raises(DataError, match=r"a\.jsonl changed while it was read; run the command again"):
            read()
    zipped = write_zip(tmp_path / "a.zip", {"a.jsonl": json.dumps(ROW)})
    source = open_source(zipped)
    write_zip(tmp_path / "a.zip", {"a.jsonl": json.dumps(ROW) + "\n"})
    with pytest.raises(DataError, match="changed while it was read"):
        list(read_rows(source))


def test_invalid_byte_is_located_anywhere_in_a_file(tmp_path):
    line = json.dumps(ROW).encode() + b"\n"
    for num in (1, 40_000):  # in the first block and in a later one
        path = write(tmp_path / "a.jsonl", line * num + "ü".encode() + b"\xff")
        offset = len(line) * num + 2
        assert f"is not UTF-8: byte 0xff at offset {offset} (line {num + 1}); convert it" in error_of(path)
    assert "byte 0xc3 at offset" in error_of(write(tmp_path / "a.csv", HEADER.encode() + b"P19,x,\xc3"))


def test_graded_sheets_are_limited(tmp_path, monkeypatch):
    sheet = b"sheet,answer_id,grade,note\ns,1,wrong," + b"x" * 200_000 + b"\n"
    assert parse_grading_sheet(sheet, "a.csv").grades == {"1": "wrong"}
    with pytest.raises(DataError, match=r"a\.csv is not UTF-8: byte 0xff at offset 3 \(line 1\)"):
        parse_grading_sheet(b"abc\xff", "a.csv")
    monkeypatch.setattr(limits, "MAX_ROW_CHARS", 1000)
    with pytest.raises(DataError, match=r"a\.csv, line 2: the row has more than 1,000 characters"):
        parse_grading_sheet(sheet, "a.csv")
    monkeypatch.setattr(limits, "MAX_SETTINGS_BYTES", 1000)
    with pytest.raises(DataError, match=r"a\.csv has 200,\d+ bytes, at most 1,000 are read"):
        parse_grading_sheet(sheet, "a.csv")
    path = write(tmp_path / "a.csv", sheet)
    monkeypatch.setattr(Folder, "read_bytes", None)  # the size is checked before the file is read
    with pytest.raises(DataError, match=r"--graded .*a\.csv has 200,\d+ bytes, at most 1,000 are read"):
        read_grading_sheets(Folder(str(tmp_path / "report")), path)


_CHILD = """
import json, sys, time
from slick.errors import DataError
from slick.datasets.relations import load_relations
from slick.datasets.sources import open_source, read_rows
from slick.datasets.validate import ValidationRules, validate_rows

relations = load_relations()

def memory(kind):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(kind))
    return int(line.split()[1]) / 1024

results = {}
for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    before, began = memory("VmRSS"), time.monotonic()
    try:
        source = open_source(path)
        source.fingerprint
        checked = validate_rows(read_rows(source), ValidationRules(relations=relations))
        message = f"{checked.reasons.total()} bad rows"
    except DataError as error:
        message = str(error)
    results[path] = [message, memory("VmHWM") - before, time.monotonic() - began]
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports peak memory")
def test_decompression_bombs_take_little_memory(tmp_path):
    same = pa.DictionaryArray.from_arrays(np.zeros(2_000_000, np.int32), ["x"])
    pq.write_table(pa.table({"relation": same, "question": same, "answer": same}), tmp_path / "rows.parquet")
    files = {
        "rows or values in": str(tmp_path / "rows.parquet"),
        "would unpack to 300,": write_parquet(
            tmp_path / "text.parquet", {"question": ["a" * 300_000_000], "answer": ["a"]}, compression="zstd"
        ),
        "would unpack to 100,000,000": write_zip(tmp_path / "ratio.zip", {"a.jsonl": b" " * 100_000_000}),
        "it is damaged": write(tmp_path / "understated.zip", understated()),
        "compressed by bzip2": write_zip(tmp_path / "bz.zip", {"a.jsonl": b" " * 900_000}, zipfile.ZIP_BZIP2),
        "compressed by LZMA": write_zip(tmp_path / "lz.zip", {"a.jsonl": b" " * 900_000}, zipfile.ZIP_LZMA),
        "nested too deeply": write_zip(tmp_path / "deep.zip", {"train/P19.train.json": "[" * 1_000_000}),
        "300000 bad rows": write_zip(tmp_path / "empty.zip", {"train/P19.train.json": f"[{'{},' * 299_999}{{}}]"}),
        "the row has more than": write(tmp_path / "quote.csv", HEADER + 'P19,"' + "a\n" * 30_000_000),
        "100,000 columns": write(tmp_path / "columns.csv", "," * 99_999),
        "line 1: the row has more": write(tmp_path / "line.jsonl", "[" * 100_000_000),
    }
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, *files.values()],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    print("\n".join(f"{path.rpartition('/')[2]}: {mb:.0f} MB, {s:.1f} s" for path, (_, mb, s) in results.items()))
    for message, path in files.items():
        assert message in results[path][0], path
        assert results[path][1] < 150, f"{path} took {results[path][1]:.0f} MB"
