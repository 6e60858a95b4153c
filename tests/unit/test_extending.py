"""Each example of docs/extending.md, read from that page, works without an edit of any other file."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slick.errors import SettingsError
from slick.report import ReportConfig, make_report
from slick.settings import COMPARISON, fields_affecting, filter_settings
from tests.unit.report_study import write_study
from tuning.config import TrainConfig
from tuning.probe import cost_class

ROOT = Path(__file__).parents[2]


def example(heading: str) -> str:
    """The first ```python block under a heading of docs/extending.md."""
    page = (ROOT / "docs" / "extending.md").read_text()
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None, f"no example under {heading!r}"
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 12, f"the example of {heading!r} is long"
    return block[1]


def run_with_component(component: str, code: str, folder: Path, *arguments: str) -> Any:
    """Run code in a new process in which a distribution with the component is installed.

    Args:
        component: source of its only module, which an entry point of the group `slick.components` names.
        code: its last line prints JSON.
        folder: where the distribution is installed.
        arguments: `sys.argv[1:]` of the process.

    Returns:
        The printed JSON.
    """
    (folder / "my_component.py").write_text(component)
    metadata = folder / "my_distribution-1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-distribution\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[slick.components]\nmine = my_component\n")
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_added_reader_prepares_questions(tmp_path: Path) -> None:
    questions = tmp_path / "questions"
    questions.mkdir()
    header = "relation\tquestion\tanswer\tnote\n"
    (questions / "train.TSV").write_text(header + "P19\tWhere was Ada born?\tLondon\t\n")
    (questions / "test.tsv").write_text(header + "P19\tWhere was Bo born?\tOslo\tx, y\n")
    (questions / "bad.tsv").write_bytes(b"relation\tquestion\nP19\t\xff\n")
    (tmp_path / "a.txt").write_text("x")
    code = """
import json, sys
import slick

study, folder, unsupported = sys.argv[1:]
errors = []
for location in (f"{folder}/bad.tsv", unsupported):
    try:
        slick.prepare_questions(study, slick.QuestionsConfig(questions=location, filter="none"))
    except slick.DataError as error:
        errors.append(str(error))
import pathlib; pathlib.Path(folder, "bad.tsv").unlink()
slick.prepare_questions(study, slick.QuestionsConfig(questions=folder, filter="none"))
print(json.dumps([errors, slick.read_questions(study, ["split", "question", "answers"]).to_pylist()]))
"""
    folders = [str(tmp_path / "study"), str(questions), str(tmp_path / "a.txt")]
    errors, rows = run_with_component(example("A question reader"), code, tmp_path, *folders)
    assert rows == [
        {"split": "test", "question": "Where was Bo born?", "answers": ["Oslo"]},
        {"split": "train", "question": "Where was Ada born?", "answers": ["London"]},
    ]
    assert "bad.tsv is not UTF-8: byte 0xff at offset 22 (line 2)" in errors[0]
    assert "or a question set as .csv, .jsonl, .parquet or .tsv with columns" in errors[1]


def test_added_row_format_parses_and_replaces_targets(tmp_path: Path) -> None:
    code = """
import json
from slick.curation.formats import RowError, detect_format

row = {"query": "Capital?", "response": "Paris"}
found = detect_format([*row], [row])
example = found.parse(row)[0]
try:
    found.parse({**row, "response": ""})
except RowError as error:
    print(json.dumps([found.name, example.target, found.replace_target(row, 0, "x"), str(error)]))
"""
    result = run_with_component(example("A fine-tuning row format"), code, tmp_path)
    assert result[:3] == ["response", "Paris", {"query": "Capital?", "response": "x"}]
    assert result[3] == "response is empty (''), expected text; fill it in or remove it"


def test_added_container_reads_and_writes_rows(tmp_path: Path) -> None:
    code = """
import json, sys
import pyarrow as pa
from pyarrow import feather
from slick.curation.files import RowEdit, open_data

source, copy = sys.argv[1:]
feather.write_feather(pa.table({"q": ["a", "b"]}), source)
edits = [RowEdit(index=0, repeat=0), RowEdit(index=1, row={"q": "c"}, columns={"new": "d"})]
open_data(source).write(copy, edits, {"new": pa.string()})
print(json.dumps([row for _, row in open_data(copy).rows()]))
"""
    arguments = (str(tmp_path / "a.feather"), str(tmp_path / "b.feather"))
    result = run_with_component(example("A fine-tuning container"), code, tmp_path, *arguments)
    assert result == [{"q": "c", "new": "d"}]


def test_added_stopping_policy_is_evaluated(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", num_test=24, num_epochs=3, world=False)
    code = """
import json, sys
from slick.storage import Folder
from tuning.config import TrainConfig
from tuning.grid import GridConfig, SweepConfig
from tuning.sweep import points_table
from tuning.policies import AccuracyCurve, apply_policy, parse_policy, policy_signature

policy = parse_policy("target_dev(0.25)")
decision = apply_policy(policy, AccuracyCurve(dev_accuracy=(0.1, 0.3, 0.2)))
grid = GridConfig(variants=("unknown-050",), epochs=(2, 3), policies=("target_dev(0.0)", "target_dev(1.0)"))
live = SweepConfig(grid=grid, train=TrainConfig(dtype="float32"), stop="live").stop_policies
rows = points_table(Folder(sys.argv[1]), grid, TrainConfig(), shared=True).to_pylist()
points = [[row["policy"], row["epochs"], row["stop_epoch"]] for row in rows]
print(json.dumps([policy_signature("target_dev"), decision.stop_epoch, live, points]))
"""
    signature, stop_epoch, live, points = run_with_component(example("A stopping policy"), code, tmp_path, study.uri)
    assert signature == "target_dev(share)"
    assert stop_epoch == 2
    assert live == [["target_dev(0.0)", 2], ["target_dev(0.0)", 3], ["target_dev(1.0)", 2], ["target_dev(1.0)", 3]]
    first = {("target_dev(0.0)", 2): 1, ("target_dev(0.0)", 3): 1, ("target_dev(1.0)", 2): 2, ("target_dev(1.0)", 3): 3}
    assert {(policy, epochs): stop for policy, epochs, stop in points} == first


def test_added_training_setting_is_validated_and_part_of_the_identity() -> None:
    example_names: dict[str, Any] = {}
    exec(compile(example("A training setting"), "docs/extending.md", "exec"), example_names)
    config_class: type[TrainConfig] = example_names["MyTrainConfig"]
    default, smoothed = config_class(), config_class(label_smoothing=0.1)
    assert smoothed.identity() == default.identity() | {"label_smoothing": 0.1}
    assert filter_settings(config_class, dataclasses.asdict(smoothed), COMPARISON)["label_smoothing"] == 0.1
    assert cost_class(smoothed) == cost_class(default) == cost_class(TrainConfig())
    assert "label_smoothing" in fields_affecting(config_class, "result")
    with pytest.raises(SettingsError, match=r"label_smoothing is a share in \[0, 1\), got 1.0"):
        config_class(label_smoothing=1.0)
    with pytest.raises(SettingsError, match="epochs must be 1 or more"):
        config_class(epochs=0)


def test_added_engine_and_matcher_annotate(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    code = """
import json, sys
import pyarrow as pa
from slick.annotation import AnnotateConfig, RescoreConfig, annotate, read_knowledge, rescore
from slick.errors import SettingsError
from slick.inference.base import SamplingConfig
from slick.storage import Folder
from tests.local.tiny import write_birthplace_questions

study = Folder(sys.argv[1])
write_birthplace_questions(study, num_train=3, num_dev=3, num_test=1)
questions = study.child("questions").read_table("part-00000.parquet")
answers = [["10 December 1815" if split == "dev" else "1815"] for split in questions["split"].to_pylist()]
column = questions.column_names.index("answers")
questions = questions.set_column(column, "answers", pa.array(answers, questions.schema.field("answers").type))
study.child("questions").write_table("part-00000.parquet", questions)

settings = dict(model=sys.argv[2], engine="copy", num_exemplar_sets=2, num_shots=1, max_actors=1)
annotate(study, AnnotateConfig(sampling=SamplingConfig(num_samples=3), dtype="float32", **settings))
before = read_knowledge(study)["category"].to_pylist()
rescore(study, RescoreConfig(matcher="year"))
after = read_knowledge(study)["category"].to_pylist()
try:
    AnnotateConfig(mode="labels", **settings)
except SettingsError as error:
    print(json.dumps([before, after, str(error), "torch" in sys.modules]))
"""
    components = example("An engine") + example("A matcher")
    before, after, message, loads_torch = run_with_component(
        components, code, tmp_path, str(tmp_path / "s"), str(model)
    )
    assert before == ["Unknown"] * 9, "the engine copies dates, which are not equal to years"
    assert after == ["HighlyKnown"] * 9, "the dates contain the years"
    assert message == "--engine copy does not support --mode labels; use --engine transformers or vllm"
    assert not loads_torch


def test_added_finding_and_section_are_in_the_report(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", num_test=24, num_epochs=3, world=False)
    make_report(study, ReportConfig())
    assert 'id="relations"' not in study.child("report").read_bytes("index.html").decode()
    code = """
import json, sys
import slick

slick.make_report(sys.argv[1], slick.ReportConfig())
print(json.dumps(None))
"""
    components = example("A finding") + example("A report section")
    run_with_component(components, code, tmp_path, study.uri)
    report = study.child("report")
    page = report.read_bytes("index.html").decode()
    section = page.split('<section id="relations">')[1].split("</section>")[0]
    assert "<h2>Questions by relation</h2>" in section
    assert "Beyond the paper" in section
    rows = report.child("tables").read_bytes("relations.csv").decode().splitlines()
    assert rows == ["relation,questions", "<script>alert(1)</script>,24", "P17,24", "P19,24"]
    outcome = json.loads(report.read_bytes("outcomes.json"))[-1]
    assert outcome["id"] == "X1"
    assert outcome["paper"] == "1.7 points"
    assert outcome["holds"] == (outcome["own"] < 5)
    assert outcome["why"].startswith("D_Natural loses ")
    assert "The natural mix of categories loses less than 5 points" in page

    run_with_component(components.replace("All splits.", "Every split."), code, tmp_path, study.uri)
    assert "Every split." in report.read_bytes("index.html").decode(), "a changed component must rebuild the report"
