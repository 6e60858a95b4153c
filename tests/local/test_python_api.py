"""The whole Python example of the README, on the small model of a world."""

import json
from pathlib import Path
from typing import Any

import pytest

import slick
from tests.unit.readme_snippet import statements


@pytest.mark.slow
def test_readme_example_runs(study: Path, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(study / "world" / "model")
    rows = slick.read_questions(study, ["relation", "domain", "split", "question", "answers"]).to_pylist()
    monkeypatch.chdir(tmp_path)
    rows = [row for row in rows if row.pop("domain") == "id"]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names: dict[str, Any] = {}
    for line in statements(ID_OR_PATH=model, **{"epochs=10": "epochs=1"}).values():
        exec(line, names)
    assert len(names["labels"]) == sum(row["split"] != "dev" for row in rows)
    assert (tmp_path / "studies/mine/runs/unknown-050-seed0/epochs.parquet").exists()
    assert (tmp_path / "studies/mine/report/index.html").exists()
