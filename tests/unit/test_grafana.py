"""The Grafana dashboard: what it asks for is published under that name, and Prometheus takes every question."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOARD = json.loads((ROOT / "jobs" / "grafana.json").read_text())
CHARTS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUESTIONS = [(panel["title"], target["expr"]) for panel in CHARTS for target in panel["targets"]]


def published() -> dict[str, str]:
    """Name -> kind of every metric that the program makes."""
    found: dict[str, str] = {}
    for module in ("slick/annotation/worker", "tuning/worker", "tuning/progress_table"):
        tree = ast.parse((ROOT / f"{module}.py").read_text())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            kind = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if kind in ("Gauge", "Counter") and call.args and isinstance(call.args[0], ast.Constant):
                found[call.args[0].value] = kind
    from slick.annotation.worker import METRICS

    return found | {f"slick_annotate_{name}": "Counter" for name in METRICS}


def names(question: str) -> Iterator[str]:
    yield from re.findall(r"\bray_(slick_\w+)", question)


@pytest.mark.parametrize(
    ("title", "question"), QUESTIONS, ids=[f"{title}: {i}" for i, (title, _) in enumerate(QUESTIONS)]
)
def test_every_chart_asks_for_what_is_published(title: str, question: str) -> None:
    metrics = published()
    for asked in names(question):
        name = asked.removesuffix("_total")
        assert name in metrics, f"{title} asks for {asked}; published are {sorted(metrics)}"
        assert asked.endswith("_total") == (metrics[name] == "Counter"), f"{title}: Ray adds _total to counters alone"


def test_every_metric_of_the_program_is_shown() -> None:
    shown = {name.removesuffix("_total") for _, question in QUESTIONS for name in names(question)}
    assert shown | {"slick_train_tokens"} == set(published())


def test_charts_do_not_overlap_and_are_numbered_apart() -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool of Prometheus is not here")
def test_prometheus_takes_every_question(tmp_path: Path) -> None:
    rules = [{"record": f"slick:{i}", "expr": q.replace("$run_id", ".*")} for i, (_, q) in enumerate(QUESTIONS)]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "slick", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
