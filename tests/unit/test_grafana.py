"""The Grafana dashboard queries exported metrics, and its queries are valid PromQL."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "jobs" / "grafana.json").read_text())
CHARTS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in CHARTS for target in panel["targets"]]


def exported_metrics() -> dict[str, str]:
    """Name -> kind of every metric that the program exports."""
    kinds: dict[str, str] = {}
    for module in ("slick/annotation/worker", "tuning/worker", "tuning/progress_table"):
        tree = ast.parse((ROOT / f"{module}.py").read_text())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            kind = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if kind in ("Gauge", "Counter") and call.args and isinstance(call.args[0], ast.Constant):
                kinds[call.args[0].value] = kind
    from slick.annotation.worker import METRICS

    return kinds | {f"slick_annotate_{name}": "Counter" for name in METRICS}


def metric_names(query: str) -> Iterator[str]:
    yield from re.findall(r"\bray_(slick_\w+)", query)


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[f"{title}: {i}" for i, (title, _) in enumerate(QUERIES)])
def test_charts_query_exported_metrics(title: str, query: str) -> None:
    metrics = exported_metrics()
    for metric in metric_names(query):
        name = metric.removesuffix("_total")
        assert name in metrics, f"{title} queries {metric}; exported are {sorted(metrics)}"
        assert metric.endswith("_total") == (metrics[name] == "Counter"), f"{title}: Ray adds _total to counters only"


def test_every_exported_metric_has_a_chart() -> None:
    shown = {name.removesuffix("_total") for _, query in QUERIES for name in metric_names(query)}
    assert shown | {"slick_train_tokens"} == set(exported_metrics())


def test_charts_do_not_overlap_and_have_distinct_ids() -> None:
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool of Prometheus is not installed")
def test_queries_are_valid(tmp_path: Path) -> None:
    rules = [{"record": f"slick:{i}", "expr": q.replace("$run_id", ".*")} for i, (_, q) in enumerate(QUERIES)]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"groups": [{"name": "slick", "rules": rules}]}))  # JSON is YAML
    completed = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
