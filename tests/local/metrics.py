"""Read metrics from the Prometheus endpoint of the local Ray node."""

import re
import urllib.request
from collections.abc import Iterator

from tests.waiting import TIMEOUT_S


def exported_metrics(prefix: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name after the prefix, tags and value of every metric whose name starts with `ray_` and the prefix."""
    import ray

    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=TIMEOUT_S).read().decode()
    for name, labels, value in re.findall(rf"^ray_{prefix}(\w+)\{{([^}}]*)\}} (\S+)$", text, re.MULTILINE):
        yield name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)
