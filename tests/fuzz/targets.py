"""The readers that are fuzzed. Each takes a file as another program, a user or a crash may have left it.

A reader must return, or raise a `SlickError`, whose message names the file and how to mend it. Anything else is a
defect: another exception, a file that is left behind, or no end.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from jobs.config_file import expand_config_file, settings_selector
from jobs.presets import demo_study
from slick.annotation.prompting import read_context
from slick.annotation.rubrics import RUBRICS
from slick.curation.files import open_data
from slick.curation.formats import ROW_FORMATS, ColumnNames, RowError, detect_format
from slick.datasets.relations import load_relations
from slick.datasets.rewordings import load_rewordings
from slick.datasets.sources import open_source, read_rows
from slick.datasets.validate import ValidationRules, validate_rows
from slick.errors import SettingsError
from slick.model_files import check_model_files, count_parameters
from slick.models import context_length, resolve_model
from slick.report.grading import parse_grading_sheet
from slick.report.sections.stability import load_stability
from slick.settings import settings_class
from slick.storage import Folder
from slick.stored_files import MismatchError, TableSpec, convert, read_validated_table
from slick.study import read_manifest, read_start_record, read_study_settings
from slick.study_files import (
    EPOCHS_SPEC,
    GENERATIONS_SPEC,
    GOLD_SPEC,
    JUDGEMENTS_SPEC,
    KNOWLEDGE_SPEC,
    P_TRUE_SPEC,
    PLANTED_SPEC,
    POINTS_SPEC,
    PREDICTIONS_SPEC,
    QUESTIONS_SPEC,
    RIGHT_TO_WRONG_SPEC,
    ROWS_SPEC,
    RUN_SET_ASIDE_SPEC,
    SET_ASIDE_SPEC,
    VARIANT_SPEC,
    read_exemplars,
)
from slick.types import Category
from slick.uris import check_uri
from tests.fuzz.inputs import archives, changed_json, csv_files, damaged_bytes, json_files, texts, to_json
from tuning.axes import parse_axis
from tuning.config import TrainConfig
from tuning.deepspeed_config import deepspeed_config, read_deepspeed_file
from tuning.policies import parse_policy
from tuning.state import read_state

Input = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A reader and the inputs that it gets."""

    name: str
    inputs: st.SearchStrategy[Input]
    read: Callable[[Path, Input], object]
    """Takes an empty folder, in which it writes the input, and reads it."""


TARGETS: dict[str, Target] = {}


def parent(path: Path) -> Folder:
    return Folder(str(path.parent))


def target(name: str, inputs: st.SearchStrategy[Input]) -> Callable[[Callable[[Path, Input], object]], Any]:
    """A decorator that adds a reader."""

    def add(read: Callable[[Path, Input], object]) -> Callable[[Path, Input], object]:
        TARGETS[name] = Target(name=name, inputs=inputs, read=read)
        return read

    return add


def file_target(name: str, file: str, contents: st.SearchStrategy[bytes], read: Callable[[Path], object]) -> None:
    """Add a reader of one file of this name."""

    def write_and_read(folder: Path, content: bytes) -> object:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return read(path)

    TARGETS[name] = Target(name=name, inputs=contents, read=write_and_read)


# Question sets.

QUESTION_ROWS = [
    {"relation": "P19", "question": "Where was Ada born?", "answers": ["London"], "subject": "Ada", "split": "train"},
    {"relation": "P36", "question": "What is the capital of Peru?", "answer": "Lima", "domain": "ood", "popularity": 3},
    {"question_id": "a", "relation": "P17", "question": "Which country is Oslo located in?", "answers": '["Norway"]'},
]
ENTITY_QUESTIONS = [{"question": "Where was Ada born?", "answers": ["London", "Lon"]}]


def read_question_set(path: Path) -> object:
    rules = ValidationRules(relations=load_relations(), unknown_relations="id")
    checked = validate_rows(read_rows(open_source(str(path))), rules)
    return len(checked.questions)


def parquet_bytes(rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
    return buffer.getvalue()


def zip_bytes(members: Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            try:
                archive.writestr(zipfile.ZipInfo(name or "x"), content)
            except (UnicodeEncodeError, ValueError):
                archive.writestr(zipfile.ZipInfo("x"), content)
    return buffer.getvalue()


file_target("questions jsonl", "q.jsonl", json_files(QUESTION_ROWS, lines=True), read_question_set)
file_target(
    "questions csv",
    "q.csv",
    csv_files(["relation", "question", "answers"], [["P19", "Where was Ada born?", '["London"]']]),
    read_question_set,
)
file_target("questions parquet", "q.parquet", damaged_bytes([parquet_bytes(QUESTION_ROWS[:1])]), read_question_set)
file_target(
    "questions json",
    "train/P19.train.json",
    json_files(ENTITY_QUESTIONS),
    lambda path: read_question_set(path.parents[1]),
)
file_target(
    "questions zip",
    "dataset.zip",
    archives(
        zip_bytes,
        [
            *((f"dataset/{split}/P19.{split}.json", to_json(ENTITY_QUESTIONS)) for split in ("train", "dev", "test")),
            ("dataset/relation_query_templates.json", b'{"P19": "Where was [X] born?"}'),
            ("../escape.json", b"[]"),
        ],
    ),
    read_question_set,
)
file_target(
    "relations",
    "relations.json",
    json_files({"P19": {"template": "Where was [X] born?", "domain": "id"}}),
    lambda path: load_relations(str(path)),
)
file_target("templates", "t.json", json_files({"P19": "Whence came [X]?"}), lambda path: load_rewordings(str(path)))

# Users' fine-tuning files.

CHAT = [{"role": "user", "content": "Capital of Peru?"}, {"role": "assistant", "content": "Lima"}]
TUNING_ROWS = (
    [{"messages": CHAT, "id": 1}, {"messages": CHAT, "id": 2}],
    [{"prompt": "Capital of Peru?", "completion": "Lima"}],
    [{"instruction": "Capital?", "input": "Peru", "output": "Lima", "history": [["a", "b"]]}],
    [{"conversations": [{"from": "human", "value": "Capital?"}, {"from": "gpt", "value": "Lima"}]}],
    [{"question": "Capital of Peru?", "answers": ["Lima"]}],
)


def read_tuning_data(path: Path) -> object:
    """Open the data, detect its format, parse every row, and write an edited copy."""
    data = open_data(str(path))
    row_format = detect_format(data.columns, data.first_rows())
    edits = []
    for index, (_, row) in enumerate(data.rows()):
        try:
            examples = row_format.parse(row)
        except RowError:
            continue
        edits.append((index, row_format.replace_target(row, examples[-1].turn, "I don't know")))
    return data.fingerprint, len(edits)


def csv_of(rows: Sequence[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    cells = [[value if isinstance(value, str) else json.dumps(value) for value in row.values()] for row in rows]
    return csv_files(list(rows[0]), cells)


file_target("tuning jsonl", "d.jsonl", json_files(*TUNING_ROWS, lines=True), read_tuning_data)
file_target("tuning json", "d.json", json_files(*TUNING_ROWS), read_tuning_data)
file_target("tuning csv", "d.csv", st.one_of([csv_of(rows) for rows in TUNING_ROWS]), read_tuning_data)
file_target(
    "tuning parquet", "d.parquet", damaged_bytes([parquet_bytes(rows) for rows in TUNING_ROWS]), read_tuning_data
)


@target(
    "tuning rows", st.tuples(st.sampled_from(ROW_FORMATS.names()), st.one_of([changed_json(r[0]) for r in TUNING_ROWS]))
)
def parse_tuning_row(_: Path, drawn: tuple[str, Any]) -> object:
    """Every format reads any row, or refuses it, and replaces the targets of those that it reads."""
    name, row = drawn
    if not isinstance(row, dict):
        return None
    row_format = ROW_FORMATS.get(name)(
        ColumnNames(prompt="question", target="answers") if name == "columns" else ColumnNames()
    )
    try:
        examples = row_format.parse(row)
    except RowError:
        return None
    return [row_format.replace_target(row, example.turn, "new") for example in examples]


# Files of a study.

MANIFEST = {
    "step": "annotate",
    "fingerprint": "f",
    "settings": {"model": "m", "seed": 0, "matcher": "exact"},
    "inputs": {"model": "m", "questions": "q"},
    "counts": {"questions": 3, "categories": {"P19": {"train": {"Unknown": 3}}}, "set_aside": {}},
    "seconds": 1.5,
    "versions": {"torch": "2"},
    "identity": {"seed": 0},
}
CONFIDENCE = {
    "settling": [
        {
            "exemplar_sets": 1,
            "samples": 4,
            "categories": dict.fromkeys(Category, 2),
        }
    ],
    "controls": {"questions": 0, "categories": {}},
}
for step in ("world", "questions", "annotate", "variants", "sweep", "wording", "report"):
    file_target(
        f"manifest {step}",
        f"{step}/manifest.json",
        json_files(MANIFEST | {"step": step}),
        lambda path: read_manifest(parent(path)),
    )
file_target(
    "started",
    "annotate/started.json",
    json_files({"fingerprint": "f", "settings": {"seed": 0}}),
    lambda path: read_start_record(parent(path)),
)
file_target(
    "study.json",
    "study.json",
    json_files(
        {
            "settings": {
                "model": "",
                "experiments": ["idk"],
                "variants": {"seed": 0},
                "sweep": {"grid": {"epochs": [1]}},
            },
            "versions": {},
        }
    ),
    lambda path: read_study_settings(parent(path)),
)
file_target(
    "exemplars",
    "annotate/exemplars.json",
    json_files({"P19": [["a", "b"], ["c", "d"]]}),
    lambda path: read_exemplars(parent(path)),
)
file_target(
    "training state",
    "state/progress.json",
    json_files(
        {"identity": "i", "epoch": 1, "best_dev_accuracy": 0.5, "best_dev_epoch": 1, "num_workers": 1, "format": 2}
    ),
    lambda path: read_state(parent(path)),
)


@target("confidence", json_files(CONFIDENCE))
def read_confidence(folder: Path, content: bytes) -> object:
    study = Folder(str(folder))
    study.child("annotate").write_bytes("manifest.json", to_json(MANIFEST))
    study.child("annotate").write_table("knowledge.parquet", pa.table({"question_id": ["a"], "category": ["Unknown"]}))
    study.child("annotate").write_bytes("confidence.json", content)
    return load_stability(study)


SPECS: dict[str, TableSpec] = {
    "questions": QUESTIONS_SPEC,
    "knowledge": KNOWLEDGE_SPEC,
    "generations": GENERATIONS_SPEC,
    "gold": GOLD_SPEC,
    "p_true": P_TRUE_SPEC,
    "judgements": JUDGEMENTS_SPEC,
    "set_aside": SET_ASIDE_SPEC,
    "run_set_aside": RUN_SET_ASIDE_SPEC,
    "variant": VARIANT_SPEC,
    "epochs": EPOCHS_SPEC,
    "predictions": PREDICTIONS_SPEC,
    "rows": ROWS_SPEC,
    "right_to_wrong": RIGHT_TO_WRONG_SPEC,
    "points": POINTS_SPEC,
    "planted": PLANTED_SPEC,
}
_TYPES = (pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.string()), pa.binary(), pa.null(), pa.int32())


def example_value(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [example_value(kind.value_type)]
    if pa.types.is_string(kind):
        return "Unknown"
    return (
        True
        if pa.types.is_boolean(kind)
        else 1
        if pa.types.is_integer(kind)
        else 0.5
        if pa.types.is_floating(kind)
        else None
    )


@st.composite
def changed_tables(draw: st.DrawFn, schema: pa.Schema) -> bytes:
    """A table of the schema in which columns are missing, of another type, or hold other values."""
    columns: dict[str, pa.Array] = {}
    for field in schema:
        change = draw(st.sampled_from(("keep", "keep", "keep", "type", "drop", "value", "null")))
        if change == "drop":
            continue
        kind = draw(st.sampled_from(_TYPES)) if change == "type" else field.type
        value = example_value(kind)
        if change == "value" and pa.types.is_string(kind):
            value = draw(texts).encode("utf-8", "replace").decode()
        elif change == "value" and pa.types.is_floating(kind):
            value = draw(st.floats())
        elif change == "value" and pa.types.is_integer(kind):
            value = draw(st.integers(-(2**31), 2**31 - 1))
        columns[field.name] = pa.array([None if change == "null" else value] * 2, kind)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns or {"other": pa.array([1])}), buffer)
    return buffer.getvalue()


for spec_name, spec in SPECS.items():
    valid = parquet_bytes([{field.name: example_value(field.type) for field in spec.schema}], spec.schema)
    file_target(
        f"table {spec_name}",
        "table.parquet",
        st.one_of(changed_tables(spec.schema), damaged_bytes([valid])),
        lambda path, spec=spec: read_validated_table(parent(path), path.name, spec),  # type: ignore[misc]
    )


@target("context", json_files([{"role": "system", "content": "Be brief."}]))
def parse_context(_: Path, content: bytes) -> object:
    """Contexts are written by this program into validated tables; here only well-formed ones of any text are read."""
    try:
        messages = json.loads(content)
    except (ValueError, RecursionError):
        return None
    is_valid = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    return read_context(json.dumps(messages)) if is_valid else None


# Files and texts of users and servers.

SHEET = [["s", "q1:greedy:0", "wrong", "Paris"], ["s", "q2:greedy:1", "", "=Lima"]]
file_target(
    "grading sheet",
    "sheet.csv",
    st.one_of([csv_files(["sheet", "answer_id", "grade", "answer"], SHEET, delimiter) for delimiter in ",;\t"]),
    lambda path: parse_grading_sheet(path.read_bytes(), path.name),
)


@target("judge reply", st.tuples(st.sampled_from(sorted(RUBRICS)), texts))
def parse_judge_reply(_: Path, drawn: tuple[str, str]) -> object:
    rubric, reply = drawn
    outcome = RUBRICS[rubric].parse_reply(reply)
    assert outcome in (*RUBRICS[rubric].outcomes, "unparsable")
    return outcome


def read_config(path: Path) -> object:
    return expand_config_file(
        ["--config", str(path)], demo_study(), "slick study demo", settings_selector("study"), ("out",)
    )


STUDY_CONFIG = {
    "seed": 3,
    "annotate": {"num_shots": 4, "sampling": {"top_k": 40}},
    "experiments": ["idk"],
    "sweep": {"train": {"epochs": 2}},
}
YAML = b"seed: 3\nannotate:\n  num_shots: 4\nexperiments: [idk]\nsweep: {train: {epochs: 2, learning_rate: 1e-4}}\n"
file_target("config json", "c.json", json_files(STUDY_CONFIG), read_config)
file_target("config yaml", "c.yaml", st.one_of(damaged_bytes([YAML]), json_files(STUDY_CONFIG)), read_config)
file_target(
    "deepspeed file",
    "ds.json",
    json_files({"zero_optimization": {"stage": 0, "reduce_bucket_size": 1e6}, "gradient_clipping": 1.0}),
    lambda path: deepspeed_config(TrainConfig(), 1, file_settings=read_deepspeed_file(str(path))),
)


@target("stopping policy", texts)
def read_policy(_: Path, text: str) -> object:
    return parse_policy(text)


@target(
    "grid axis",
    st.one_of(
        texts,
        st.tuples(st.sampled_from(("learning_rate", "dropout", "lora_rank", "trainable", "dtype")), texts).map(
            "=".join
        ),
    ),
)
def read_axis(_: Path, text: str) -> object:
    return parse_axis(text)


@target("storage name", texts)
def use_name(folder: Path, name: str) -> object:
    """A name that a caller gives becomes a file inside the folder, or is refused."""
    root = folder / "root"
    child = Folder(str(root)).child(name)
    child.write_bytes("file.txt", b"x")
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(root) for path in written), written
    return child.read_bytes("file.txt")


@target("uri", texts)
def use_uri(_: Path, text: str) -> object:
    return check_uri(text)


# Settings.


def add_settings_target(step: str) -> None:
    cls: Any = settings_class(step)
    defaults = json.loads(to_json(_plain(cls())))

    def read(_: Path, changed: Any) -> object:
        try:
            return convert(changed, cls, "settings")
        except MismatchError as error:
            raise SettingsError(str(error)) from error

    TARGETS[f"settings {step}"] = Target(name=f"settings {step}", inputs=changed_json(defaults), read=read)


def _plain(value: Any) -> Any:
    from slick.study import settings_to_json

    return settings_to_json(value)


for settings_step in ("world", "questions", "annotate", "curate", "variants", "finetune", "sweep", "wording", "report"):
    add_settings_target(settings_step)

# Model files.

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 16,
    "max_position_embeddings": 32,
}
HEADER = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [16, 8], "data_offsets": [0, 512]}}


def safetensors_bytes(header: Any) -> bytes:
    data = to_json(header)
    return struct.pack("<Q", len(data)) + data + b"\0" * 512


def read_model_folder(path: Path) -> object:
    if not (path.parent / "config.json").exists():
        (path.parent / "config.json").write_bytes(to_json(CONFIG))
    if not (path.parent / "model.safetensors").exists():
        (path.parent / "model.safetensors").write_bytes(safetensors_bytes(HEADER))
    check_model_files(str(path.parent))
    return count_parameters(str(path.parent))


file_target("model config", "config.json", json_files(CONFIG), read_model_folder)
file_target(
    "safetensors header",
    "model.safetensors",
    st.one_of(changed_json(HEADER).map(safetensors_bytes), damaged_bytes([safetensors_bytes(HEADER)])),
    read_model_folder,
)
file_target(
    "safetensors index",
    "model.safetensors.index.json",
    json_files({"weight_map": {"model.embed_tokens.weight": "model.safetensors"}, "metadata": {"total_size": 512}}),
    read_model_folder,
)
GGUF = (
    struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
    + struct.pack("<Q", 20)
    + b"general.architecture"
    + struct.pack("<IQ", 8, 5)
    + b"llama"
)
file_target("gguf header", "m.gguf", damaged_bytes([GGUF]), lambda path: context_length(resolve_model(str(path)).path))
