"""Experiments added to a study one after another: each time only what is missing is done."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.local.cli import run_slick


def run_study(out: Path, experiments: str) -> str:
    result = run_slick("study", "smoke", "--experiments", experiments, "--out", str(out), *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


SMALL = ("--sweep.grid.epochs", "1", "--sweep.grid.policies", "fixed", "--sweep.train.epochs", "1")


def modification_times(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob("**/manifest.json")}


def reasons(out: Path) -> dict[str, str]:
    return {row["id"]: row["why"] for row in json.loads((out / "report" / "outcomes.json").read_text())}


def variants(out: Path) -> set[str]:
    return set(pq.read_table(out / "sweep" / "points.parquet")["variant"].to_pylist())


@pytest.mark.slow
def test_experiments_can_be_added_to_a_finished_study(tmp_path: Path) -> None:
    out = tmp_path / "study"
    run_study(out, "idk")
    before = modification_times(out)
    assert variants(out) == {"unknown-050", "idk-050"}
    assert len(list((out / "variants").glob("*.parquet"))) == 5, "all sets are drawn"
    assert "not requested" not in reasons(out)["E22"]
    assert reasons(out)["E14"] == "not requested: add --experiments categories"
    assert reasons(out)["E3"] == "not requested: add --experiments unknown_ratio"

    run_study(out, "ood,counts")
    after = modification_times(out)
    trained = {name for name in after.keys() - before.keys() if name.startswith("runs")}
    assert trained == {"runs/unknown-000-seed0/manifest.json", "runs/unknown-100-seed0/manifest.json"}
    redone = {name.split("/")[0] for name, stamp in before.items() if after[name] != stamp}
    assert redone == {"sweep", "report"}, "points are computed again; nothing is trained or annotated twice"
    assert variants(out) == {"unknown-000", "unknown-050", "unknown-100", "idk-050"}, "finished sets keep their points"
    assert json.loads((out / "study.json").read_text())["settings"]["experiments"] == ["counts", "ood", "idk"]

    sets = {path.name: path.read_bytes() for path in (out / "variants").glob("*.parquet")}
    before = modification_times(out)
    output = run_study(out, "concentration")
    assert "6 sets, 1 of them new" in output
    after = modification_times(out)
    assert after.keys() - before.keys() == {"runs/concentrated-050-seed0/manifest.json"}
    redone = {name.split("/")[0] for name, stamp in before.items() if after[name] != stamp}
    assert redone == {"variants", "sweep", "report"}
    assert {name: (out / "variants" / name).read_bytes() for name in sets} == sets
    tables = [path.name for path in (out / "report" / "tables").glob("concentration*.csv")]
    assert tables, "the report must include the experiment"

    before = modification_times(out)
    run_study(out, "remedies")
    after = modification_times(out)
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {
        "known-050-seed0",
        "p-correct-050-seed0",
        "unknown-050-seed0-distill_weight=1.0",
        "unknown-050-seed0-replay_known=64-epochs1",
        "unknown-050-seed0-trainable=attention",
        "unknown-050-seed0-trainable=ffn",
        "unknown-050-seed0-lora_rank=8-learning_rate=0.0022",
    }
    with (out / "report" / "tables" / "remedies.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 9, "no remedy, then one line for each"
    assert {row["learned"] for row in rows if row["remedy"] == "Unknown rows dropped"} == {"not trained"}
    assert {row["verdict"] for row in rows[1:]} == {"inconclusive"}, "8 Unknown rows decide nothing"

    before = modification_times(out)
    run_study(out, "idk")
    after = modification_times(out)
    assert {name for name, stamp in after.items() if before.get(name) != stamp} <= {"report/manifest.json"}
    assert "concentrated-050" in variants(out), "experiments requested before are kept"
    kept = set(pq.read_table(out / "sweep" / "points.parquet")["settings"].to_pylist())
    assert len(kept) == 1 + 5, "and so are their further settings"
    settings = json.loads((out / "study.json").read_text())["settings"]
    assert settings["experiments"] == ["counts", "ood", "idk", "concentration", "remedies"], (
        "requested experiments accumulate"
    )
    assert settings["variants"]["concentrated_shares"] == [0.5]
