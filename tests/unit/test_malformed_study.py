"""A study with one damaged file: every command succeeds or prints one message, and changes no file."""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import status
from slick.errors import SlickError, StudyError
from slick.report import compare_studies
from slick.report.answers import collected
from slick.report.convergence import final_train_accuracies
from slick.report.loading import load_study
from slick.report.provenance import provenance_section, read_manifests, read_provenance
from slick.report.sections.categories import load_famous_rivals
from slick.report.sections.concentration import load_test_ids
from slick.report.sections.error_audit import collect_error_audit
from slick.report.sections.forgetting import load_forgetting
from slick.report.sections.planted import load_planted
from slick.report.sections.stability import load_stability
from slick.report.sections.time_to_fit import load_time_to_fit
from slick.report.statistics.p_true import load_p_true, load_prefix_labels
from slick.report.statistics.popularity import load_popularity
from slick.report.step import requested_experiments
from slick.report.summary import summarize
from slick.storage import Folder
from slick.study import read_manifest
from slick.variants import VariantsConfig, draw_variants
from tests.study_builder import SMALL, finish_step, write_labelled_study
from tests.unit.report_study import RELATIONS, epoch_row
from tests.unit.report_study import write_study as write_reported
from tuning.config import TrainConfig
from tuning.data import SPLITS
from tuning.grid import GridConfig, Trajectory
from tuning.run_status import DriverStatus, write_driver_status, write_planned
from tuning.runs import plan_runs
from tuning.sweep import SweepConfig, points_table, resolve_sweep_precision

RUN = "runs/unknown-050-seed0"
TRAINED = "unknown-050"
SETTINGS = {
    "model": "",
    "experiments": ["counts", "unknown_ratio"],
    "annotate": {"p_true": True},
    "variants": {"unknown_shares": [0, 0.5, 1]},
    "sweep": {"grid": {"variants": [TRAINED], "seeds": [0], "epochs": [3]}},
}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study for reports, comparisons and the status: all steps are finished, and the sweep has a driver status."""
    root = tmp_path_factory.mktemp("malformed") / "reported"
    study = write_reported(root, num_test=24, num_epochs=3, world=True)
    study.write_json("study.json", {"settings": SETTINGS, "versions": {}})
    study.child("annotate").write_json("exemplars.json", {relation: [["q000000"]] for relation in RELATIONS})
    sweep = study.child("sweep")
    write_planned(sweep, [Trajectory(variant=TRAINED, seed=0, epochs=3)])
    write_driver_status(sweep, DriverStatus(at="2026-01-01T00:00:00+00:00", has_ended=True))
    lost = {"question_id": "q000001", "split": "test", "category": "Unknown", "text_before": "a", "text_after": "b"}
    study.child("runs", "unknown-050-seed0").write_table("right_to_wrong.parquet", pa.Table.from_pylist([lost]))
    for path in (root / "runs").iterdir():
        if path.name not in ("unknown-000-seed0", "unknown-050-seed0", "unknown-100-seed0", "idk-050-seed0"):
            shutil.rmtree(path)
    for name in ("unknown-000", TRAINED, "unknown-100"):
        row = {"question_id": "q000000", "category": "Unknown", "prompt": "p", "target": "t"}
        study.child("variants").write_table(f"{name}.parquet", pa.Table.from_pylist([row]))
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study for planning: its variants are drawn and one training is finished."""
    root = tmp_path_factory.mktemp("malformed") / "drawn"
    study = write_labelled_study(root, SMALL)
    dev = {"question_id": ["dev-0"], "relation": ["P17"], "domain": ["id"], "split": ["dev"], "subject": ["s"]}
    questions = study.child("questions")
    part = questions.read_table("part-00000.parquet")
    subject = part.schema.get_field_index("subject")
    questions.write_table("part-00000.parquet", part.set_column(subject, "subject", part["question_id"]))
    answers = pa.array([["gold"]], pa.list_(pa.string()))
    questions.write_table(
        "part-00001.parquet",
        pa.table({**dev, "question": ["Who?"], "answers": answers}).select(
            questions.read_table("part-00000.parquet").column_names
        ),
    )
    draw_variants(study, DRAWN_VARIANTS)
    root.with_name("model.gguf").write_bytes(b"GGUF")
    (plan_of_run,) = plan_runs(study, training_configs(study))
    run = study.child("runs", plan_of_run.run_id)
    run.write_table(
        "epochs.parquet",
        pa.Table.from_pylist(
            [
                epoch_row(plan_of_run.run_id, epoch, split, "all", 4, epoch, 1.0)
                for epoch in (1, 2, 3)
                for split in SPLITS
            ]
        ),
    )
    finish_step(run, "finetune", counts={"epochs": 2, "converged": False})
    record = {**run.read_json("manifest.json"), "fingerprint": plan_of_run.identity}
    run.write_json("manifest.json", record)
    run.write_json("started.json", {"fingerprint": plan_of_run.identity, "settings": {}})
    return root


def training_configs(study: Folder) -> dict[str, TrainConfig]:
    config = TrainConfig(
        variant=TRAINED, model=f"{study.parent.uri}/model.gguf", epochs=3, dtype="float32", allow_other_model=True
    )
    return {f"{TRAINED}-seed0": config}


def plan(study: Folder) -> None:
    """Read what `slick sweep` and `slick finetune` read before training, and the points of the grid."""
    (config,) = training_configs(study).values()
    sweep = SweepConfig(grid=GridConfig(variants=(TRAINED,), epochs=(3,), policies=("fixed(3)",)), train=config)
    resolve_sweep_precision(study, sweep, other_run_ids=[f"{TRAINED}-seed0"])
    plan_runs(study, training_configs(study), [("best_dev", 3)])
    points_table(study, sweep.grid, config, shared=True)


def report(study: Folder) -> None:
    """Read everything that a report reads, without drawing figures, which takes seconds."""
    data = load_study(study)
    for load in (load_stability, load_planted, load_test_ids, load_p_true, load_prefix_labels):
        load(study)
    load_forgetting(study, data.runs)
    load_time_to_fit(study, data.runs, data.variants)
    load_popularity(study, data.variants)
    collected(data, collect_error_audit)
    manifests = read_manifests(study)
    summarize(data, manifests, read_provenance(manifests))
    final_train_accuracies(data)
    load_famous_rivals(study)
    assert provenance_section(manifests, requested_experiments(study)).exhibits


def show_status(study: Folder) -> None:
    status.main(["--out", study.uri])


def compare(study: Folder) -> None:
    compare_studies([study, Folder(f"{study.uri}-other")], Folder(f"{study.uri}-page"))


DRAWN_VARIANTS = VariantsConfig(unknown_shares=(0.0, 0.5, 1.0))


def draw(study: Folder) -> None:
    draw_variants(study, DRAWN_VARIANTS)


Command = Callable[[Folder], None]
COMMANDS: Mapping[str, Sequence[Command]] = {"reported": (report, show_status), "drawn": (draw, plan)}
"""Commands that read each study; `compare` reads a part of what `report` reads."""


def replace_by_text(content: str) -> Callable[[bytes], bytes]:
    return lambda _: content.encode()


def replace_field(value: Any, *path: str) -> Callable[[bytes], bytes]:
    """Damage: another value at a path of a JSON file."""

    def change(data: bytes) -> bytes:
        content = json.loads(data)
        inner = content
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        return json.dumps(content).encode()

    return change


JSON_DAMAGES = {
    "empty file": replace_by_text(""),
    "truncated": lambda data: data[: len(data) // 2],
    "list instead of object": replace_by_text("[]"),
    "list of numbers": replace_by_text("[1, 2]"),
    "text": replace_by_text('"text"'),
    "null": replace_by_text("null"),
    "object of other keys": replace_by_text('{"other": {"keys": 1}}'),
    "object of objects": replace_by_text('{"settings": 3, "fingerprint": {}, "categories": []}'),
    "nested 100,000 deep": replace_by_text('{"settings": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "nested 900 deep": replace_by_text('{"settings": ' + '{"a":' * 900 + "1" + "}" * 900 + "}"),
    "number of 5,000 digits": replace_by_text(
        '{"settings": {"seed": ' + "7" * 5000 + '}, "seconds": ' + "7" * 5000 + "}"
    ),
    "not a number": replace_by_text('{"settings": {"seed": NaN}}'),
    "invalid Unicode": lambda _: b'{"settings": "\xff\xfe"}',
    "a lone surrogate": replace_by_text('{"fingerprint": "\\ud800"}'),
    "a repeated name": replace_by_text('{"settings": {}, "settings": {}}'),
}
JSON_FILES = {
    "reported": (
        *("study.json", "annotate/exemplars.json", "annotate/confidence.json", "sweep/live.json", "sweep/planned.json"),
        *(
            f"{step}/manifest.json"
            for step in ("world", "questions", "annotate", "annotate/p_true", "variants", "sweep")
        ),
        *(f"{RUN}/manifest.json", "annotate/started.json"),
    ),
    "drawn": [f"{step}/manifest.json" for step in ("questions", "annotate", "variants", RUN)],
}

FILES_WITH_ALL_DAMAGES = ("study.json", "annotate/manifest.json")
COMMON_DAMAGES = ("truncated", "list of numbers", "null", "object of other keys", "nested 100,000 deep")
"""All files have the same parser, so two of them get all damages and the others only these."""

NOT_READ = {
    ("annotate/started.json", "object of other keys"),  # of a finished step, of which only the settings are read
    ("annotate/started.json", "a lone surrogate"),
    ("sweep/live.json", "object of objects"),
    ("sweep/live.json", "object of other keys"),  # another version may have added these fields
}


def without_column(column: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([column])


def with_column(column: str, change: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(column), column, change(table[column]))


def with_null(column: str) -> Callable[[pa.Table], pa.Table]:
    return with_column(column, lambda values: pa.array([None, *values.to_pylist()[1:]], values.type))


def all_null(column: str) -> Callable[[pa.Table], pa.Table]:
    return with_column(column, lambda values: pa.nulls(len(values)))


def with_value(column: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    return with_column(column, lambda values: pa.array([value, *values.to_pylist()[1:]]))


def as_text(column: str) -> Callable[[pa.Table], pa.Table]:
    return with_column(column, lambda values: pa.array([f"text {value}" for value in values.to_pylist()]))


def as_numbers(column: str) -> Callable[[pa.Table], pa.Table]:
    return with_column(column, lambda values: pa.array(range(len(values)), pa.int64()))


def no_rows(table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


def no_columns(table: pa.Table) -> pa.Table:
    return table.select([])


def column_damages(texts: Sequence[str], numbers: Sequence[str], **choices: str) -> dict[str, Callable]:
    """Damages of a table: of text columns, of numeric columns, and unknown values of columns with fixed choices."""
    damages: dict[str, Callable] = {"no columns": no_columns}
    for column in (*texts, *numbers):
        damages |= {f"{column} absent": without_column(column), f"{column} null": with_null(column)}
        damages |= {f"{column} all null": all_null(column)}
    damages |= {f"{column} as numbers": as_numbers(column) for column in texts}
    damages |= {f"{column} as text": as_text(column) for column in numbers}
    return damages | {f"{column} unknown": with_value(column, value) for column, value in choices.items()}


TABLES: dict[tuple[str, str], dict[str, Callable]] = {
    ("reported", "world/planted.parquet"): {
        "no rows": no_rows,
        **column_damages(["relation", "question", "answer"], ["num_gold"], strength="odd"),
    },
    ("reported", "questions/part-00000.parquet"): {
        "no rows": no_rows,
        **column_damages(["question_id", "question"], []),
        "answers as text": as_text("answers"),
        "an answer that is not a list item": with_value("answers", []),
        "other ids": with_value("question_id", "elsewhere"),
    },
    ("reported", "annotate/knowledge.parquet"): {
        "no rows": no_rows,
        **column_damages(["question_id", "relation"], ["p_correct_greedy"], category="Known?", domain="x", split="val"),
        "category absent": without_column("category"),
        "a share above 1": with_value("p_correct_greedy", 1.5),
        "a share that is not a number": with_value("p_correct_greedy", float("nan")),
        "other ids": with_value("question_id", "elsewhere"),
    },
    ("reported", "annotate/generations/part-000.parquet"): {
        **column_damages(["question_id"], []),
        "hits as text": as_text("greedy_hit"),
        "hits absent": without_column("sampled_hit"),
        "fewer texts than hits": with_value("greedy_text", ["one"]),
        "no exemplar sets": with_value("greedy_hit", []),
        "other ids": with_value("question_id", "elsewhere"),
    },
    ("reported", "annotate/p_true/part-000000.parquet"): column_damages(["question_id"], ["p_true", "p_a"]),
    ("reported", "variants/unknown-050.parquet"): {
        "no rows": no_rows,
        **column_damages(["question_id", "target"], [], category="Known?"),
        "other ids": with_value("question_id", "elsewhere"),
    },
    ("reported", f"{RUN}/epochs.parquet"): {
        "no rows": no_rows,
        **column_damages([], ["epoch", "num", "num_correct"], split="val", category="odd"),
        "an epoch without rows": with_value("num", 0),
        "more correct than rows": with_value("num_correct", 10**6),
        "an epoch missing": with_value("epoch", 7),
    },
    ("reported", f"{RUN}/predictions/epoch-003.parquet"): {
        "no rows": no_rows,
        **column_damages(["question_id"], ["hit"], category="odd", split="val"),
    },
    ("reported", f"{RUN}/rows.parquet"): {
        "no rows": no_rows,
        **column_damages(["question_id"], [], category="odd", split="val"),
        "an epoch as text": as_text("first_fit_epoch"),
        "an epoch after the last": with_value("first_fit_epoch", 99),
    },
    ("reported", f"{RUN}/right_to_wrong.parquet"): column_damages(
        ["question_id", "text_before", "text_after"], [], split="val"
    ),
    ("reported", "sweep/points.parquet"): {
        "no rows": no_rows,
        **column_damages(["variant", "policy", "run_id"], ["seed", "epochs", "stop_epoch", "cost_epochs"]),
        "test_all absent": without_column("test_all"),
        "test_all as text": as_text("test_all"),
        "a share above 1": with_value("test_all", 31.5),
    },
    ("drawn", "questions/part-00001.parquet"): {
        "no rows": no_rows,
        **column_damages(["question_id", "question"], [], domain="x", split="val"),
        "no answer": with_value("answers", []),
    },
    ("drawn", "annotate/knowledge.parquet"): {
        "no rows": no_rows,
        **column_damages(["question_id"], [], category="Known?"),
    },
    ("drawn", f"variants/{TRAINED}.parquet"): {
        "no rows": no_rows,
        **column_damages(["question_id", "prompt", "target"], [], category="Known?"),
        "other ids": with_value("question_id", "elsewhere"),
    },
    ("drawn", f"{RUN}/epochs.parquet"): {
        "no rows": no_rows,
        **column_damages([], ["epoch", "num", "num_correct"], split="val", category="odd"),
        "no dev questions": with_column("split", lambda values: pa.array(["ood"] * len(values))),
    },
}

FIELDS: dict[str, dict[str, list[tuple[Any, ...]]]] = {
    "reported": {
        "study.json": [
            *[(value, "settings") for value in ([], "text", None)],
            *[("text", "settings", "experiments"), ([1], "settings", "experiments"), (3, "settings", "model")],
            *[([], "settings", "sweep"), ({"grid": []}, "settings", "sweep"), ([], "settings", "annotate")],
            *[("a", "settings", "sweep", "grid", "seeds"), ([None], "settings", "sweep", "grid", "epochs")],
            *[({"unknown_shares": "all"}, "settings", "variants"), ([], "settings", "variants")],
            ("yes", "settings", "annotate", "p_true"),
        ],
        "annotate/manifest.json": [
            *[(value, name) for name in ("settings", "inputs", "counts", "versions") for value in ([], "text", None)],
            *[("long", "seconds"), (3, "fingerprint"), ("world", "step"), ({"model": 1}, "inputs")],
            *[([], "settings", "sampling"), ({"temperature": "warm"}, "settings", "sampling"), (1, "settings", "mode")],
            *[("many", "counts", "questions"), ({"gold": []}, "counts", "set_aside"), (1, "unknown field")],
            *[("text", "identity"), ([], "settings", "matcher"), (None, "seconds"), ({}, "settings", "seed")],
        ],
        "questions/manifest.json": [
            *[([], "counts", "kept"), ({"P17": 3}, "counts", "kept"), ("x", "counts", "rows")],
            *[({"rule": []}, "counts", "dropped"), ([], "counts", "audit"), ({"train": {}}, "counts", "audit")],
        ],
        "world/manifest.json": [([], "counts", "training"), ({"parameters": "2"}, "counts", "training")],
        "variants/manifest.json": [
            *[(value, "counts", TRAINED) for value in ([], "text", {"kind": "unknown"}, {"num": 3}, None)],
            *[("a", "counts", TRAINED, "num"), ("half", "counts", TRAINED, "requested_share")],
            *[([], "counts", TRAINED, "relations"), (3, "counts", TRAINED, "kind")],
        ],
        "sweep/manifest.json": [("five", "counts", "points"), ([], "counts", "trainings")],
        f"{RUN}/manifest.json": [
            *[("3", "counts", "epochs"), ([], "counts", "set_aside"), ({}, "counts", "training_seconds")],
            ("zero", "settings", "seed"),
        ],
        "sweep/live.json": [
            *[("yesterday", "at"), ("2026-01-01T00:00:00", "at"), (5, "at"), ("soon", "seconds_left")],
            *[("all", "running"), ([1], "running"), ([], "retries"), ({"a": "b"}, "retries"), ({"a": 1}, "failed")],
        ],
        "sweep/planned.json": [
            *[(value, "unknown-050-seed0") for value in ([], "text", {}, {"variant": "x"}, None)],
            ("9", "unknown-050-seed0", "epochs"),
        ],
        "annotate/exemplars.json": [("a", "P17"), ([1], "P17"), ([[1]], "P17"), ({}, "P17")],
    },
    "drawn": {
        "variants/manifest.json": [
            *[({}, "inputs"), ({"model": []}, "inputs"), ({"unknown_shares": "x"}, "settings")],
            *[({"seed": "a"}, "settings"), ([], "counts"), ({"x": 1}, "counts")],
        ],
        "annotate/manifest.json": [({}, "inputs"), ([], "inputs")],
        f"{RUN}/manifest.json": [({}, "counts"), ([], "counts", "epochs"), ("many", "counts", "epochs")],
    },
}


def damage_cases() -> list[Any]:
    """Parameters of all cases: study, file, damage of its bytes, whether a command must refuse it."""
    params = []
    for study, files in JSON_FILES.items():
        for file in files:
            for damage_name, damage in JSON_DAMAGES.items():
                if file not in FILES_WITH_ALL_DAMAGES and damage_name not in COMMON_DAMAGES:
                    continue
                params.append(
                    pytest.param(
                        study, file, damage, (file, damage_name) not in NOT_READ, id=f"{study}-{file}-{damage_name}"
                    )
                )
        for file, changes in FIELDS[study].items():
            for value, *path in changes:
                name = f"{study}-{file}-{'.'.join(path)}-{value}"
                params.append(pytest.param(study, file, replace_field(value, *path), True, id=name))
    for (study, file), damages in TABLES.items():
        for damage_name, change in damages.items():
            params.append(pytest.param(study, file, damage_table(change), True, id=f"{study}-{file}-{damage_name}"))
        for damage_name in ("empty file", "truncated", "text"):
            params.append(
                pytest.param(study, file, JSON_DAMAGES[damage_name], True, id=f"{study}-{file}-{damage_name}")
            )
    return params


def damage_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(change(pq.read_table(pa.BufferReader(data), use_threads=False)), sink)
        return sink.getvalue().to_pybytes()

    return damage


def file_contents(root: Path) -> dict[str, bytes]:
    """Contents of all files of a study, without those that commands may write."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] not in ("report", ".locks")
    }


@pytest.mark.parametrize(("study", "file", "damage", "is_refused"), damage_cases())
def test_damaged_file_is_one_message_without_changes(
    request: pytest.FixtureRequest,
    study: str,
    file: str,
    damage: Callable[[bytes], bytes],
    is_refused: bool,
) -> None:
    root: Path = request.getfixturevalue(study)
    path = root / file
    original = path.read_bytes()
    path.write_bytes(damage(original))
    before = file_contents(root)
    messages = []
    try:
        for command in COMMANDS[study]:
            with contextlib.suppress(SlickError):
                try:
                    command(Folder(str(root)))
                except SlickError as error:
                    messages.append(str(error))
                    raise
        after = file_contents(root)
    finally:
        path.write_bytes(original)
    assert after == before
    assert all("\n" not in message and len(message) < 1500 for message in messages), messages
    assert messages or not is_refused, f"{file} is damaged, but no command reports it"


def test_intact_studies_are_read_by_every_command(reported: Path, drawn: Path) -> None:
    for command in (report, show_status):
        command(Folder(str(reported)))
    plan(Folder(str(drawn)))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("questions/manifest.json", replace_field([], "counts", "kept")),
        ("annotate/manifest.json", replace_field("text", "settings")),
        (f"{RUN}/epochs.parquet", damage_table(as_text("num"))),
        ("sweep/points.parquet", damage_table(no_rows)),
    ],
)
def test_comparison_with_a_damaged_study_is_one_message(
    reported: Path, tmp_path: Path, file: str, damage: Callable[[bytes], bytes]
) -> None:
    for name in ("study", "study-other"):
        shutil.copytree(reported, tmp_path / name)
    path = tmp_path / "study" / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StudyError, match=file):
        compare(Folder(str(tmp_path / "study")))


def test_message_has_file_place_value_expected_and_fix(reported: Path, tmp_path: Path) -> None:
    shutil.copytree(reported, tmp_path / "study")
    folder = Folder(str(tmp_path / "study")).child("annotate")
    folder.write_bytes("manifest.json", replace_field("long", "seconds")(folder.read_bytes("manifest.json")))
    with pytest.raises(
        StudyError, match=r"manifest\.json: seconds is the text 'long', expected a number; .*run the step"
    ):
        read_manifest(folder)
