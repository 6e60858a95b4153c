"""Containers of fine-tuning rows: round trips, edits, damage, and writes that leave nothing behind."""

import csv
import gzip
import hashlib
import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slick import limits
from slick.curation.files import RowEdit, open_data
from slick.curation.formats import ROW_FORMATS, ColumnNames, detect_format
from slick.curation.json_text import edit_object
from slick.errors import DataError, SettingsError
from slick.storage import Folder

settings.register_profile(
    "curation",
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("curation")

NEW = {"slick_category": pa.string(), "slick_p_correct": pa.float64()}
ROWS = [
    {"prompt": "Capital of France?", "completion": "Paris", "id": "1"},
    {"prompt": "Line\nbreak, 'quotes' and \"more\"", "completion": "Zürich 🏔", "id": "2"},
    {"prompt": "q3", "completion": "a3", "id": "3"},
]
EDITS = [
    RowEdit(index=0, columns={"slick_category": "HighlyKnown", "slick_p_correct": 1.0}),
    RowEdit(index=1, row={"completion": "I don't know, é"}, columns={"slick_category": "Unknown"}, repeat=2),
    RowEdit(index=2, repeat=0),
]
EDITED = [
    {**ROWS[0], "slick_category": "HighlyKnown", "slick_p_correct": 1.0},
    *[{**ROWS[1], "completion": "I don't know, é", "slick_category": "Unknown", "slick_p_correct": None}] * 2,
]
SUFFIXES = [".jsonl", ".ndjson", ".json", ".list.json", ".csv", ".tsv", ".parquet"]


def encode(rows, suffix):
    """The bytes of a file of these rows."""
    if suffix == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    if suffix in (".csv", ".tsv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    if suffix == ".list.json":
        return json.dumps(rows, indent=2).encode()
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def save(folder, rows, suffix, name="data", *, zipped=False):
    """A file of these rows."""
    path, content = Path(folder) / f"{name}{suffix}{'.gz' if zipped else ''}", encode(rows, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if zipped else content)
    return str(path)


def read(path):
    return [row for _, row in open_data(path).rows()]


def as_cells(rows):
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_edits_are_written_in_the_same_container(suffix, zipped, tmp_path):
    data = open_data(save(tmp_path, ROWS, suffix, zipped=zipped))
    assert (data.columns, data.num_rows) == (("prompt", "completion", "id"), 3)
    assert data.first_rows(2) == ROWS[:2]
    copy = str(tmp_path / f"copy{suffix}{'.gz' if zipped else ''}")
    data.write(copy, EDITS, NEW)
    assert open_data(copy).container == data.container
    assert read(copy) == (as_cells(EDITED) if suffix in (".csv", ".tsv") else EDITED)
    again = str(tmp_path / f"again{suffix}")
    open_data(copy).write(again, [RowEdit(index=1, columns={"slick_category": "MaybeKnown"})], NEW)
    assert [(list(row), row["slick_category"]) for row in read(again)] == [
        ([*ROWS[0], *NEW], "" if suffix in (".csv", ".tsv") else None),
        ([*ROWS[0], *NEW], "MaybeKnown"),
        ([*ROWS[0], *NEW], "" if suffix in (".csv", ".tsv") else None),
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_edits_and_columns_text_is_copied_and_tables_are_equal(suffix, tmp_path):
    source = save(tmp_path, ROWS, suffix)
    copy = tmp_path / f"copy{suffix}"
    open_data(source).write(str(copy), [], {})
    if suffix == ".parquet":
        assert pq.read_table(copy).equals(pq.read_table(source), check_metadata=True)
    else:
        assert copy.read_bytes() == Path(source).read_bytes()


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**200), 2**200),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.just("half \ud83d pair"),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
json_rows = st.lists(st.dictionaries(st.text(max_size=4), values, max_size=4), min_size=1, max_size=4)


def same_json(first, second):
    """Whether keys, their order, types and values are the same."""
    return json.dumps(first) == json.dumps(second)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@given(rows=json_rows, indent=st.sampled_from([None, 1]), separators=st.sampled_from([(",", ":"), (", ", ": ")]))
def test_json_keeps_values_types_order_and_missing_keys(suffix, rows, indent, separators):
    with tempfile.TemporaryDirectory() as folder:
        source, copy = Path(folder, f"data{suffix}"), Path(folder, f"copy{suffix}")
        if suffix == ".json":
            source.write_text(json.dumps(rows, indent=indent, separators=separators))
        else:
            source.write_text("\n".join(json.dumps(row, separators=separators) for row in rows))
        data = open_data(str(source))
        assert same_json([row for _, row in data.rows()], rows)
        edits = [RowEdit(index=i, columns={"slick_category": f"{i}"}) for i in range(len(rows))]
        data.write(str(copy), edits, NEW)
        expected = [row | {"slick_category": f"{i}", "slick_p_correct": None} for i, row in enumerate(rows)]
        assert same_json(read(str(copy)), expected)


@given(values, values, st.booleans())
def test_edited_text_of_an_object_has_the_new_value_and_nothing_else_changes(old, new, ascii_only):
    row = {"first": 1, "x": {"inner": old, "other": [1, old]}, "last": "é"}
    text = json.dumps(row) if ascii_only else f'{{"first":1,  "x":{json.dumps(row["x"])}, "last": "é"}}'
    changed = {"inner": new, "other": [1, old]}
    edited = edit_object(text, row, {"x": changed})
    assert same_json(json.loads(edited), {**row, "x": changed})
    assert edited.startswith(text[:12])
    assert edited.endswith(text[-14:])


def test_json_numbers_and_escapes_that_are_not_edited_keep_their_characters(tmp_path):
    source = tmp_path / "data.jsonl"
    line = '{"a": 1.500, "b": 1e400, "c": NaN, "m": [{"w": 1.0, "t": "\\u00e9"}], "d": %s}' % ("9" * 2000)
    source.write_text(line + "\r\n")
    copy = tmp_path / "copy.jsonl"
    edit = RowEdit(index=0, row={"m": [{"w": 1.0, "t": "è"}]}, columns={"slick_category": "Unknown"})
    open_data(str(source)).write(str(copy), [edit], {"slick_category": pa.string()})
    expected = line.replace("\\u00e9", "\\u00e8").removesuffix("}") + ', "slick_category": "Unknown"}\r\n'
    assert copy.read_bytes() == expected.encode()


cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)


@given(
    rows=st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=4),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_csv_keeps_cells_delimiter_quotes_line_ends_and_byte_order_mark(rows, delimiter, quoting, line_end, mark):
    with tempfile.TemporaryDirectory() as folder:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
        writer.writerows([["q", "a"], *rows])
        content = ("\ufeff" * mark + text.getvalue()).encode()
        source, copy = Path(folder, "data.csv"), Path(folder, "copy.csv")
        source.write_bytes(content)
        data = open_data(str(source))
        assert [list(row.values()) for _, row in data.rows()] == rows
        data.write(
            str(copy),
            [RowEdit(index=0, row={"a": rows[0][1] + "!"}, columns={"new": rows[0][0]})],
            {"new": pa.string()},
        )
        result = copy.read_bytes().decode()
        assert result.startswith("\ufeff") == mark
        with io.StringIO(result.removeprefix("\ufeff"), newline="") as stream:
            parsed = list(csv.reader(stream, delimiter=delimiter))
        first = [rows[0][0], rows[0][1] + "!", rows[0][0]]
        assert parsed == [["q", "a", "new"], first, *([*row, ""] for row in rows[1:])]
        if quoting == csv.QUOTE_ALL:
            assert result.removeprefix("\ufeff").startswith(f'"q"{delimiter}"a"{delimiter}"new"{line_end}')


arrow_columns = {
    "text": (pa.string(), st.text(st.characters(exclude_categories=("Cs",)), max_size=6)),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b", "ü"])),
    "large": (pa.large_string(), st.sampled_from(["x", ""])),
    "integer": (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    "unsigned": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "float": (pa.float32(), st.floats(width=32, allow_nan=False)),
    "boolean": (pa.bool_(), st.booleans()),
    "binary": (pa.binary(), st.binary(max_size=4)),
    "decimal": (pa.decimal128(10, 2), st.decimals(-100, 100, places=2)),
    "time": (pa.timestamp("us", tz="UTC"), st.integers(0, 2**40)),
    "messages": (
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text("abé", max_size=3)}), max_size=2),
    ),
}


@given(data=st.data())
def test_parquet_keeps_types_values_order_metadata_and_row_groups(data):
    num = data.draw(st.integers(1, 9))
    columns = {
        name: pa.array(data.draw(st.lists(st.one_of(st.none(), cell), min_size=num, max_size=num)), kind)
        for name, (kind, cell) in arrow_columns.items()
    }
    table = pa.table(columns).replace_schema_metadata({"origin": "test"})
    with tempfile.TemporaryDirectory() as folder:
        source, copy = f"{folder}/data.parquet", f"{folder}/copy.parquet"
        pq.write_table(table, source, row_group_size=4, compression="zstd")
        new_messages = [{"role": "user", "content": "new"}]
        edit = RowEdit(
            index=num - 1, row={"messages": new_messages, "dictionary": "new"}, columns={"slick_p_correct": 0.5}
        )
        open_data(source).write(copy, [edit], NEW)
        result, before = pq.read_table(copy), pq.read_table(source)
        assert result.schema.metadata == before.schema.metadata
        assert result.column_names == [*before.column_names, *NEW]
        for name in before.column_names:
            assert result.schema.field(name).equals(before.schema.field(name), check_metadata=True)
            kept = num - 1 if name in edit.row else num
            assert result.column(name)[:kept].to_pylist() == before.column(name)[:kept].to_pylist()
        last = result.slice(num - 1).to_pylist()[0]
        assert (last["messages"], last["dictionary"], last["slick_p_correct"]) == (new_messages, "new", 0.5)
        groups = [pq.read_metadata(path) for path in (source, copy)]
        sizes = [[group.row_group(i).num_rows for i in range(group.num_row_groups)] for group in groups]
        assert sizes[0] == sizes[1]
        assert groups[1].row_group(0).column(0).compression == "ZSTD"


def test_large_rows_are_written_in_several_row_groups_and_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("slick.curation.containers.parquet_files._MAX_GROUP_BYTES", 40_000)
    monkeypatch.setattr(limits, "MAX_BATCH_BYTES", 10_000)
    table = pa.table({"q": [f"{i:04}" * 250 for i in range(100)], "a": ["x"] * 100})
    pq.write_table(table, tmp_path / "data.parquet")
    copy = tmp_path / "copy.parquet"
    open_data(tmp_path / "data.parquet").write(str(copy), [RowEdit(index=50, row={"a": "y"})], {})
    assert pq.read_metadata(copy).num_row_groups == 3
    assert pq.read_table(copy).column("q").equals(table.column("q"))
    assert [i for i, value in enumerate(pq.read_table(copy).column("a").to_pylist()) if value == "y"] == [50]


def test_features_of_hugging_face_get_the_new_columns(tmp_path):
    features = {"info": {"features": {"q": {"dtype": "string", "_type": "Value"}}}}
    table = pa.table({"q": ["a"]}).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "data.parquet")
    open_data(tmp_path / "data.parquet").write(str(tmp_path / "copy.parquet"), [], NEW)
    metadata = json.loads(pq.read_schema(tmp_path / "copy.parquet").metadata[b"huggingface"])
    assert list(metadata["info"]["features"]) == ["q", *NEW]
    assert metadata["info"]["features"]["slick_p_correct"] == {"dtype": "float64", "_type": "Value"}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".jsonl.gz"])
def test_folder_of_shards_is_written_as_a_folder_of_the_same_names(suffix, tmp_path):
    kind, zipped = suffix.removesuffix(".gz"), suffix.endswith(".gz")
    for i, name in enumerate(("data/train-0", "data/train-1", "test-0")):
        save(tmp_path / "shards", [ROWS[i]], kind, name, zipped=zipped)
    (tmp_path / "shards/README.md").write_text("# Card")
    (tmp_path / "shards/dataset_info.json").write_text("{}")
    (tmp_path / "shards/.cache").mkdir()
    (tmp_path / "shards/.cache/x.csv").write_text("q")
    data = open_data(str(tmp_path / "shards"))
    assert [row for _, row in data.rows()] == ROWS
    assert next(data.rows())[0].startswith(f"{tmp_path}/shards: data/train-0{suffix}, ")
    copy = tmp_path / "copy"
    data.write(str(copy), EDITS, NEW)
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*.*")) == [
        f"data/train-0{suffix}",
        f"data/train-1{suffix}",
        f"test-0{suffix}",
    ]
    assert [row["slick_category"] for row in read(str(copy / "data"))] == ["HighlyKnown", "Unknown", "Unknown"]
    data.write(str(copy), EDITS, NEW, overwrite=True)
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"holds files that are not an earlier copy: notes\.txt"):
        data.write(str(copy), EDITS, NEW, overwrite=True)


def test_fingerprints_depend_on_content_alone(tmp_path):
    first = open_data(save(tmp_path, ROWS, ".jsonl", "first")).fingerprint
    assert open_data(save(tmp_path, ROWS, ".jsonl", "second")).fingerprint == first
    assert open_data(save(tmp_path, ROWS, ".jsonl", zipped=True)).fingerprint == first
    assert open_data(save(tmp_path, ROWS[:2], ".jsonl", "third")).fingerprint != first


@pytest.mark.parametrize("suffix", [".jsonl", ".list.json", ".parquet"])
def test_only_the_given_columns_are_read(suffix, tmp_path):
    data = open_data(save(tmp_path, ROWS, suffix))
    assert [row for _, row in data.rows(["id", "prompt"])] == [
        {name: row[name] for name in ("id", "prompt")} for row in ROWS
    ]


DAMAGED = [
    ("a.jsonl", b'{"a": 1}\n{"a": 2', r"a\.jsonl, line 2: found no whole JSON object"),
    ("a.jsonl", b'{"a": 1}\n\n[1]\n', r"a\.jsonl, line 3: found a JSON list, expected an object"),
    ("a.jsonl", b'{"a": 1, "a": 2}\n', r"line 1: found a more than once"),
    ("a.jsonl", b'{"m": [{"role": "user", "role": "x"}]}\n', r"line 1: found role more than once"),
    ("a.jsonl", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "nested too deeply"),
    ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', r"is not UTF-8: byte 0xff at offset 16 \(line 2\)"),
    ("a.json", b'[{"a": 1}, {"a": 2', r"a\.json is not whole JSON: .* at line 1, column"),
    ("a.json", b'[{"a": 1}, 7]', r"a\.json, row 2: found a JSON number, expected an object"),
    ("a.json", b'[{"a": 1}, {"a": 1, "a": 2}]', r"row 2: found a more than once"),
    ("a.json", b'[{"a": 1}] x', "is not whole JSON: Extra data"),
    ("a.json", b"[]", "holds no row"),
    ("a.json", b'{"data": [\n1]}', r"line 1: found no whole JSON object"),
    ("a.csv", b"q,a\n1\n", r"line 2: found 1 cells, expected 2 as in the header"),
    ("a.csv", b"q,q\n1,2\n", "line 1: found the column 'q' more than once"),
    ("a.csv", b'q,a\n"1,2\n', "is not whole CSV"),
    ("a.csv", b"q,a\n\xe9,2\n", r"is not UTF-8: byte 0xe9 at offset 4 \(line 2\)"),
    ("a.csv", b"q,a\n", "holds no row"),
    ("a.parquet", b"PAR1 something", "is not a complete Parquet file"),
    ("a.jsonl.gz", b"not gzip", "is not a whole gzip file"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], "is not a whole gzip file"),
    ("a.jsonl", b" \n", "is empty"),
    ("a.xlsx", b"x", "has an unsupported file format; expected a file that ends with .csv, .json, .jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED)
def test_damaged_file_is_an_error_with_its_location(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(open_data(str(tmp_path / name)).rows())


def test_unpacked_bytes_are_limited(tmp_path, monkeypatch):
    rows = [{"system": "Be brief. " * 1000, "q": hashlib.sha256(b"%d" % i).hexdigest()} for i in range(500)]
    sources = [save(tmp_path, rows, ".jsonl", zipped=True), save(tmp_path, rows, ".parquet")]
    assert all(limits.MAX_UNPACK_RATIO * Path(source).stat().st_size < 4_000_000 for source in sources)
    assert all(open_data(source).num_rows == 500 for source in sources), "long system messages repeat"
    monkeypatch.setattr(limits, "MAX_REPEATED_RATIO", 1)
    for source in sources:
        with pytest.raises(DataError, match="1,048,576"):
            list(open_data(source).rows())


def test_number_of_columns_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_COLUMNS", 3)
    source = save(tmp_path, [{"a": 1, f"key {i}": 2} for i in range(4)], ".jsonl")
    with pytest.raises(DataError, match="line 3: up to here the data has 4 columns, at most 3 are read"):
        _ = open_data(source).columns


def test_size_of_gzipped_parquet_is_limited(tmp_path, monkeypatch):
    path = save(tmp_path, ROWS, ".parquet", zipped=True)
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(DataError, match="uncompresses to more than 100 bytes"):
        list(open_data(path).rows())


def test_repeated_parquet_column_names_are_refused(tmp_path):
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], ["q", "q"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="has the column 'q' more than once"):
        list(open_data(str(tmp_path / "twice.parquet")).rows())


class OwnType(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.binary(), "slick.test.own")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls()


def test_parquet_columns_of_extension_types_are_refused(tmp_path):
    pa.register_extension_type(OwnType())
    try:
        own = pa.ExtensionArray.from_storage(OwnType(), pa.array([b"x"]))
        pq.write_table(pa.table({"q": ["a"], "own": own}), tmp_path / "own.parquet")
        with pytest.raises(DataError, match="has columns of an extension type, which can hold pickles: own"):
            list(open_data(str(tmp_path / "own.parquet")).rows())
    finally:
        pa.unregister_extension_type("slick.test.own")


def test_missing_and_mixed_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_data(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="the data has no name"):
        open_data(" ")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="holds no data file, found nothing"):
        open_data(str(tmp_path / "folder"))
    save(tmp_path / "folder", ROWS, ".jsonl", "a")
    save(tmp_path / "folder", ROWS, ".csv", "b")
    with pytest.raises(DataError, match=r"holds files of several containers: a\.jsonl \(jsonl\) and b\.csv \(csv\)"):
        open_data(str(tmp_path / "folder"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failed_write_leaves_nothing_and_keeps_the_old_copy(suffix, tmp_path):
    data = open_data(save(tmp_path / "in", ROWS, suffix))

    def failing():
        yield EDITS[0]
        raise KeyError("interrupted")

    (tmp_path / "out").mkdir()
    copy = tmp_path / "out" / f"copy{suffix}"
    with pytest.raises(KeyError):
        data.write(str(copy), failing(), NEW)
    assert list((tmp_path / "out").iterdir()) == []
    copy.write_bytes(b"old")
    with pytest.raises(KeyError):
        data.write(str(copy), failing(), NEW, overwrite=True)
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()] == [(copy.name, b"old")]


def test_failed_write_of_a_folder_leaves_nothing(tmp_path):
    for i in range(3):
        save(tmp_path / "in", [ROWS[i]], ".jsonl", f"{i}")
    with pytest.raises(ValueError, match="there is an edit of row 9, expected fewer than 3 rows"):
        open_data(str(tmp_path / "in")).write(str(tmp_path / "out"), [RowEdit(index=9)], NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_edits_out_of_order_are_refused(tmp_path):
    data = open_data(save(tmp_path, ROWS, ".jsonl"))
    with pytest.raises(ValueError, match="the edit of row 0 follows"):
        data.write(str(tmp_path / "copy.jsonl"), [EDITS[1], EDITS[0]], NEW)
    with pytest.raises(ValueError, match="names the column 'other', which"):
        open_data(save(tmp_path, ROWS, ".csv")).write(
            str(tmp_path / "copy.csv"), [RowEdit(index=0, row={"other": "x"})], NEW
        )


def test_data_and_other_files_are_never_overwritten(tmp_path):
    source = save(tmp_path, ROWS, ".jsonl")
    data, content = open_data(source), Path(source).read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    for target in (source, f"{tmp_path}/./data.jsonl", str(tmp_path / "link.jsonl")):
        with pytest.raises(SettingsError, match="would replace the data"):
            data.write(target, EDITS, NEW, overwrite=True)
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(SettingsError, match=r"there\.jsonl exists; give another name, or replace it with --overwrite"):
        data.write(str(tmp_path / "there.jsonl"), EDITS, NEW)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(SettingsError, match="is a folder, expected the name of a file"):
        data.write(str(tmp_path / "folder.jsonl"), EDITS, NEW, overwrite=True)
    with pytest.raises(SettingsError, match=r"copy\.csv is to hold .*expected a name that ends with \.jsonl"):
        data.write(str(tmp_path / "copy.csv"), EDITS, NEW)
    assert Path(source).read_bytes() == content
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    shards = save(tmp_path / "shards", ROWS, ".jsonl")
    for target in (tmp_path / "shards", tmp_path / "shards/copy", tmp_path):
        with pytest.raises(SettingsError, match=r"would replace the data .* or lie in it"):
            open_data(Path(shards).parent).write(str(target), EDITS, NEW, overwrite=True)


def test_data_that_changes_after_it_was_opened_is_refused(tmp_path):
    source = save(tmp_path, ROWS, ".jsonl")
    data = open_data(source)
    save(tmp_path, ROWS[:2], ".jsonl")
    for use in (lambda: list(data.rows()), lambda: data.fingerprint, lambda: data.write(f"{source}.jsonl", [], NEW)):
        with pytest.raises(DataError, match="changed since it was opened"):
            use()
    assert not Path(f"{source}.jsonl").exists()


def test_values_that_do_not_fit_are_refused(tmp_path):
    source = save(tmp_path, ROWS, ".parquet")
    with pytest.raises(DataError, match=r"column prompt \(string\): a new value cannot be stored"):
        open_data(source).write(str(tmp_path / "copy.parquet"), [RowEdit(index=0, row={"prompt": 7})], NEW)
    assert not (tmp_path / "copy.parquet").exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_data_in_an_object_store_is_read_and_written(suffix, monkeypatch):
    store = pafs._MockFileSystem()
    store.create_dir("bucket/folder")
    local = Folder._open
    in_store = lambda self: (store, self.uri.removeprefix("memory://")) if "://" in self.uri else local(self)  # noqa: E731
    monkeypatch.setattr(Folder, "_open", in_store)
    kind, zipped = suffix.removesuffix(".gz"), suffix.endswith(".gz")
    content = encode(ROWS, kind)
    Folder("memory://bucket/folder").write_bytes(f"data{suffix}", gzip.compress(content) if zipped else content)
    for source, copy in ((f"folder/data{suffix}", f"copy{suffix}"), ("folder", "copies")):
        data = open_data(f"memory://bucket/{source}")
        assert [row for _, row in data.rows()] == ROWS
        store.create_dir("bucket/copies")  # a bucket needs no folders, this file system does
        data.write(f"memory://bucket/{copy}", EDITS, NEW)
        assert read(f"memory://bucket/{copy}") == EDITED
        with pytest.raises(SettingsError, match="exists; give another name"):
            data.write(f"memory://bucket/{copy}", EDITS, NEW)
        with pytest.raises(SettingsError, match="would replace the data"):
            data.write(f"memory://bucket/{source}", EDITS, NEW, overwrite=True)


def format_rows(name, prompt, target):
    """A row of a format."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": target}]
    return {
        "messages": {"messages": messages},
        "sharegpt": {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": target}]},
        "prompt_completion": {"prompt": prompt, "completion": target},
        "alpaca": {"instruction": prompt, "input": "", "output": target},
        "qa": {"question": prompt, "answers": json.dumps([target, "other"])},
        "columns": {"ask": prompt, "reply": target},
    }[name]


line = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=9).filter(
    str.strip
)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ROW_FORMATS.names())
@given(texts=st.lists(st.tuples(line, line), min_size=2, max_size=3), new_target=line)
@settings(max_examples=3)
def test_relabelled_rows_of_every_format_are_read_back_from_every_container(name, suffix, texts, new_target):
    if suffix in (".csv", ".tsv") and name in ("messages", "sharegpt"):
        return  # cells are text
    rows = [{"id": str(i), **format_rows(name, *pair)} for i, pair in enumerate(texts)]
    names = ColumnNames(prompt="ask", target="reply") if name == "columns" else None
    with tempfile.TemporaryDirectory() as folder:
        data = open_data(save(folder, rows, suffix))
        row_format = detect_format(data.columns, data.first_rows(), names=names)
        assert row_format.name == name
        edit = RowEdit(index=1, row=row_format.replace_target(data.first_rows()[1], 0, new_target))
        data.write(f"{folder}/copy{suffix}", [edit], NEW)
        examples = [row_format.parse(row)[0] for row in read(f"{folder}/copy{suffix}")]
    targets = [target for _, target in texts]
    assert [example.target for example in examples] == [targets[0], new_target, *targets[2:]]
    assert [example.messages[-1].content for example in examples] == [prompt for prompt, _ in texts]
