"""Data that is not a single file: objects in memory, folders of the package `datasets`, and the Hugging Face Hub."""

import csv
import gzip
import hashlib
import io
import json
import threading
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slick.curation.data import MemoryData
from slick.curation.files import RowEdit, open_data
from slick.curation.hub import parse_hub_uri
from slick.errors import DataError, SettingsError

NEW = {"slick_category": pa.string(), "slick_p_correct": pa.float64()}
ROWS = [{"q": f"q{i}", "a": f"a{i}", "messages": [{"role": "user", "content": f"q{i}"}]} for i in range(4)]
EDITS = [
    RowEdit(index=0, columns={"slick_category": "HighlyKnown", "slick_p_correct": 1.0}),
    RowEdit(index=1, repeat=0),
    RowEdit(index=2, row={"a": "new", "messages": [{"role": "user", "content": "é"}]}, repeat=2),
]
NULLS = dict.fromkeys(NEW)
EDITED = [
    {**ROWS[0], "slick_category": "HighlyKnown", "slick_p_correct": 1.0},
    *[{**ROWS[2], **EDITS[2].row, **NULLS}] * 2,
    {**ROWS[3], **NULLS},
]


def encode(rows, name):
    """The bytes of a file of these rows."""
    if name.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    if name.endswith((".csv", ".tsv")):
        text = io.StringIO()
        sign = "\t" if name.endswith(".tsv") else ";" if name == "semicolons.csv" else ","
        csv.writer(text, delimiter=sign).writerows([list(rows[0]), *(list(row.values()) for row in rows)])
        return text.getvalue().encode()
    return json.dumps(rows).encode() if name == "list.json" else "\n".join(map(json.dumps, rows)).encode()


def read(source):
    return [row for _, row in open_data(source).rows()]


def test_list_of_dicts_returns_a_list(tmp_path):
    rows = [*ROWS[:3], {**ROWS[3], "only here": 2**70}]
    data = open_data(rows)
    assert isinstance(data, MemoryData)
    assert (data.columns, data.num_rows, data.suffix) == (("q", "a", "messages", "only here"), 4, ".jsonl")
    assert next(data.rows(["a", "only here"])) == ("the list of rows, index 0", {"a": "a0"})
    edited = data.edited(EDITS, NEW)
    assert edited == [*EDITED[:3], {**EDITED[3], "only here": 2**70}]
    assert rows[0] == ROWS[0], "the input is unchanged"
    data.write(str(tmp_path / "copy.jsonl"), EDITS, NEW)
    assert read(tmp_path / "copy.jsonl") == edited
    assert open_data(list(rows)).fingerprint == data.fingerprint != open_data(rows[:2]).fingerprint


def test_table_returns_a_table(tmp_path):
    table = pa.Table.from_pylist(ROWS).replace_schema_metadata({"origin": "test"})
    data = open_data(table)
    edited = data.edited(EDITS, NEW)
    assert edited.to_pylist() == EDITED
    assert edited.schema.metadata == {b"origin": b"test"}
    assert edited.schema.remove(4).remove(3).equals(table.schema)
    data.write(str(tmp_path / "copy.parquet"), EDITS, NEW)
    assert pq.read_table(tmp_path / "copy.parquet").to_pylist() == EDITED
    assert (
        data.fingerprint
        == open_data(pa.concat_tables([table[:1], table[1:]])).fingerprint
        == open_data(ROWS).fingerprint
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the list of rows is empty"),
        ([{"a": 1}, 7], "index 1 is 7 .int., expected a dict"),
        ([{1: "a"}], "expected a dict with text as keys"),
        (pa.table({"a": pa.array([], pa.string())}), "the table is empty"),
        (7, "the data is a int, expected a path, a list of dicts"),
    ],
)
def test_other_objects_are_refused(source, message):
    with pytest.raises(DataError, match=message):
        list(open_data(source).rows())


def test_values_that_are_not_json_are_refused_when_they_are_written(tmp_path):
    with pytest.raises(DataError, match="row 1 of the copy is not JSON"):
        open_data([{"a": date(2026, 1, 1)}]).write(str(tmp_path / "copy.jsonl"), [], NEW)
    assert list(tmp_path.iterdir()) == []


def make_dataset(datasets):
    rows = [{**row, "label": i % 2, "time": f"2026-01-0{i + 1}"} for i, row in enumerate(ROWS)]
    features = datasets.Features(
        {
            "q": datasets.Value("string"),
            "a": datasets.Value("large_string"),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "time": datasets.Value("string"),
        }
    )
    dataset = datasets.Dataset.from_list(rows, features=features, split="train")
    dataset.info.description = "Facts."
    return dataset


def test_dataset_returns_a_dataset_with_its_features():
    import datasets

    dataset = make_dataset(datasets).select([3, 2, 1, 0]).with_format("numpy")
    data = open_data(dataset)
    assert [row["q"] for _, row in data.rows()] == ["q3", "q2", "q1", "q0"]
    assert next(data.rows(["label"])) == ("the data set, row 1", {"label": 1})
    edited = data.edited([RowEdit(index=3, columns={"slick_category": "Unknown"})], NEW)
    assert {name: edited.features[name] for name in dataset.features} == dataset.features
    assert edited.features["slick_p_correct"] == datasets.Value("float64")
    assert edited.column_names == [*dataset.column_names, *NEW]
    assert (edited.info.description, edited.split) == ("Facts.", "train")
    assert edited["slick_category"][:] == [None, None, None, "Unknown"]
    again = open_data(edited).edited([RowEdit(index=0, repeat=0)], NEW)
    assert (again.column_names, again.num_rows, again["slick_category"][:]) == (edited.column_names, 3, [None] * 3)
    with pytest.raises(DataError, match="is a IterableDatasetDict, expected"):
        open_data(datasets.IterableDatasetDict())


@pytest.mark.parametrize("has_splits", [False, True])
def test_saved_dataset_is_written_with_save_to_disk(has_splits, tmp_path, capfd):
    import datasets

    dataset = make_dataset(datasets)
    whole = datasets.DatasetDict(train=dataset.select([0, 1]), test=dataset.select([2, 3])) if has_splits else dataset
    whole.save_to_disk(str(tmp_path / "saved"))
    capfd.readouterr()
    data = open_data(tmp_path / "saved")
    places = [place for place, _ in data.rows()]
    assert places[2] == f"{tmp_path}/saved, " + ("split test, row 1" if has_splits else "row 3")
    assert (data.num_rows, data.suffix, isinstance(data, MemoryData)) == (4, "", False)
    copy = tmp_path / "copy"
    data.write(str(copy), EDITS, NEW)
    assert capfd.readouterr().err == "", "no progress bar is left on the screen"
    extra = [("label", "time")]
    rows = [{name: value for name, value in row.items() if name not in extra[0]} for row in read(copy)]
    assert rows == EDITED
    result = datasets.load_from_disk(str(copy))
    parts = [result["train"], result["test"]] if has_splits else [result]
    assert [part.num_rows for part in parts] == ([1, 3] if has_splits else [4])
    assert all(part.features["label"] == dataset.features["label"] for part in parts)
    assert data.loading_code("x") == "load_from_disk('x')"
    with pytest.raises(SettingsError, match="exists; give another name"):
        data.write(str(copy), EDITS, NEW)
    data.write(str(copy), [], NEW, overwrite=True)
    assert open_data(copy).num_rows == 4
    with pytest.raises(SettingsError, match="would replace the data"):
        data.write(str(tmp_path / "saved"), EDITS, NEW, overwrite=True)
    with pytest.raises(ValueError, match="expected fewer than 4 rows"):
        data.write(str(tmp_path / "failed"), [RowEdit(index=9)], NEW)
    next((tmp_path / "saved").rglob("*.arrow")).write_bytes(b"")
    for use in (lambda: data.write(str(tmp_path / "failed"), [], NEW), lambda: next(data.rows())):
        with pytest.raises(DataError, match="changed since it was opened"):
            use()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "saved"]
    with pytest.raises(DataError, match="is not a whole folder of save_to_disk"):
        open_data(tmp_path / "saved")


def test_without_the_package_a_saved_dataset_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "dataset_dict.json").write_text('{"splits": []}')
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match="`pip install datasets`"):
        open_data(tmp_path)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://datasets/org/name", ("org/name", None, "")),
        ("hf://datasets/org/name/", ("org/name", None, "")),
        ("hf://datasets/org/name@v1.0", ("org/name", "v1.0", "")),
        ("hf://datasets/org/name@refs/convert/parquet/default/train/0.parquet", None),
        ("hf://datasets/org/name/data/train.jsonl.gz", ("org/name", None, "data/train.jsonl.gz")),
        ("hf://datasets/squad", ("squad", None, "")),
        ("hf://datasets/squad/train.parquet", ("squad", None, "train.parquet")),
        ("hf://datasets/squad@main/plain/train.parquet", ("squad", "main", "plain/train.parquet")),
    ],
)
def test_hub_addresses_are_parsed(uri, expected):
    expected = expected or ("org/name", "refs/convert/parquet", "default/train/0.parquet")
    assert parse_hub_uri(uri) == expected


@pytest.mark.parametrize(
    "uri", ["hf://org/name", "hf://datasets/", "hf://datasets/a/../b", "hf://user:key@datasets/a/b"]
)
def test_other_hub_addresses_are_refused(uri):
    with pytest.raises(DataError, match="expected hf://datasets/NAME"):
        open_data(uri)


SHA = "c" * 40
HUB_FILES = {
    "data/train-0.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS[:2]).encode(),
    "data/train-1.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS[2:]).encode(),
    "README.md": b"# Card",
    "dataset_infos.json": b"{}",
}


class Hub(BaseHTTPRequestHandler):
    """The requests of the Hugging Face Hub that a download makes, for one data set."""

    def do_GET(self):
        if self.path.startswith("/api/datasets/org/facts"):
            siblings = [{"rfilename": name} for name in HUB_FILES]
            self.reply(json.dumps({"id": "org/facts", "sha": SHA, "siblings": siblings}).encode())
        elif self.path.startswith("/datasets/org/facts/resolve/") and self.name in HUB_FILES:
            self.reply(HUB_FILES[self.name])
        else:
            self.reply(b"{}", 404)

    do_HEAD = do_GET

    @property
    def name(self):
        return self.path.split("/resolve/")[1].partition("/")[2]

    def reply(self, content, status=200):
        self.send_response(status)
        headers = {"Content-Length": len(content), "X-Repo-Commit": SHA, "Content-Type": "application/json"}
        if status == 404:
            headers["X-Error-Code"] = "EntryNotFound" if "/resolve/" in self.path else "RepoNotFound"
        for name, value in {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_data_of_the_hub_is_downloaded_and_single_files_are_read_again_offline(hub, tmp_path, monkeypatch):
    data = open_data("hf://datasets/org/facts")
    assert [row for _, row in data.rows()] == ROWS
    assert next(data.rows())[0] == "hf://datasets/org/facts: data/train-0.jsonl, line 1"
    data.write(str(tmp_path / "copy"), EDITS, NEW)
    assert read(tmp_path / "copy") == EDITED
    file = "hf://datasets/org/facts@main/data/train-1.jsonl"
    assert read(file) == ROWS[2:]
    assert read("hf://datasets/org/facts/data") == ROWS
    with pytest.raises(DataError, match=r"other\.jsonl cannot be downloaded .*check the spelling, the network"):
        open_data("hf://datasets/org/facts/other.jsonl")
    with pytest.raises(DataError, match=r"org/none cannot be downloaded"):
        open_data("hf://datasets/org/none")
    with pytest.raises(DataError, match=r"holds no data file, found data/train-0\.jsonl"):
        open_data("hf://datasets/org/facts/other")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert read(file) == ROWS[2:]
    with pytest.raises(DataError, match="cannot be downloaded from the Hugging Face Hub: OfflineModeIsEnabled"):
        open_data("hf://datasets/org/facts")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"cannot be downloaded .*check the spelling, the network"):
        open_data("hf://datasets/org/facts")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "list.json", "a.csv", "semicolons.csv", "a.tsv", "a.parquet"])
@pytest.mark.parametrize("kind", ["file", "gzip", "folder"])
def test_load_dataset_reads_what_is_written(name, kind, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"q": "Zürich?", "a": 'x, "y"; z'}, {"q": "second", "a": "b\nc"}]
    source = tmp_path / "in" / name
    source.parent.mkdir()
    source.write_bytes(encode(rows, name))
    if kind == "gzip":
        source = source.rename(f"{source}.gz")
        source.write_bytes(gzip.compress(source.read_bytes()))
    data = open_data(source.parent if kind == "folder" else source)
    copy = tmp_path / "out" if kind == "folder" else tmp_path / "out" / source.name
    edits = [RowEdit(index=0, row={"a": "é"}, columns={"slick_category": "Unknown", "slick_p_correct": 0.5})]
    data.write(str(copy), edits, NEW)
    if kind == "folder":
        (copy / "README.md").write_text("# Card")
    code = data.loading_code(str(copy))
    if (name, kind) == ("a.parquet", "gzip"):
        assert code is None, "the package does not uncompress Parquet"
        return
    loaded = eval(code, {"load_dataset": datasets.load_dataset})["train"]
    assert loaded.to_list() == [
        {"q": "Zürich?", "a": "é", "slick_category": "Unknown", "slick_p_correct": 0.5},
        {**rows[1], **NULLS},
    ]
