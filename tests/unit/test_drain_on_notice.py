"""Notices of clouds that reclaim a machine, from a local server in place of their metadata services."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs import drain_on_notice
from jobs.drain_on_notice import NOTICES, find_node, main, wait_for_notice

ROOT = Path(__file__).parents[2]
SOON = datetime.fromtimestamp(time.time() + 90, UTC).replace(microsecond=0)
AWS_TOKEN = ("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
AWS_NOTICE = ("GET", "/latest/meta-data/spot/instance-action", "X-aws-ec2-metadata-token", "secret")
GCP_NOTICE = ("GET", "/computeMetadata/v1/instance/preempted", "Metadata-Flavor", "Google")
AZURE_NOTICE = ("GET", "/metadata/scheduledevents?api-version=2020-07-01", "Metadata", "true")
AZURE_NAME = ("GET", "/metadata/instance/compute/name?api-version=2021-02-01&format=text", "Metadata", "true")


def azure_events(kind: str = "Preempt", machine: str = "node-3", time: str | None = None) -> str:
    when = format_datetime(SOON, usegmt=True) if time is None else time
    other = '{"EventType": "Freeze", "Resources": ["node-3"], "NotBefore": ""}'
    event = f'{{"EventType": "{kind}", "Resources": ["{machine}"], "NotBefore": "{when}"}}'
    return f'{{"DocumentIncarnation": 2, "Events": [{other}, {event}]}}'


@dataclass
class Metadata:
    """A metadata service: answers by method, path and a required header; 404 without an answer, 401 without header."""

    address: str = ""
    pages: dict[tuple[str, str, str, str], str] = field(default_factory=dict)
    num_requests: int = 0


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            service.num_requests += 1
            key = next((key for key in service.pages if key[:2] == (self.command, self.path)), None)
            status = 404 if key is None else 200 if self.headers.get(key[2]) == key[3] else 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(service.pages[key].encode() if key and status == 200 else b"")

        do_GET = do_PUT = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield service
    server.shutdown()
    server.server_close()
    thread.join()


NOTICE_PAGES: list[tuple[str, Mapping[tuple[str, str, str, str], str], float | None]] = [
    ("aws", {AWS_TOKEN: "secret"}, None),
    ("aws", {AWS_TOKEN: "secret", AWS_NOTICE: f'{{"action": "stop", "time": "{SOON:%Y-%m-%dT%H:%M:%SZ}"}}'}, 90),
    ("gcp", {GCP_NOTICE: "FALSE"}, None),
    ("gcp", {GCP_NOTICE: "TRUE\n"}, 30),
    ("azure", {AZURE_NOTICE: '{"DocumentIncarnation": 1, "Events": []}', AZURE_NAME: "node-3"}, None),
    ("azure", {AZURE_NOTICE: azure_events("Reboot"), AZURE_NAME: "node-3"}, None),
    ("azure", {AZURE_NOTICE: azure_events(machine="node-4"), AZURE_NAME: "node-3"}, None),
    ("azure", {AZURE_NOTICE: azure_events(), AZURE_NAME: "node-3"}, 90),
    ("azure", {AZURE_NOTICE: azure_events("Terminate", time=""), AZURE_NAME: "node-3"}, 30),
]


@pytest.mark.parametrize(("cloud", "pages", "seconds"), NOTICE_PAGES)
def test_notice_of_each_cloud(
    metadata: Metadata, cloud: str, pages: dict[tuple[str, str, str, str], str], seconds: float | None
) -> None:
    metadata.pages = dict(pages)
    lost_at = NOTICES[cloud](metadata.address)
    if seconds is None:
        assert lost_at is None
    else:
        assert lost_at is not None
        expected = SOON.timestamp() if seconds == 90 else time.time() + seconds
        assert lost_at.timestamp() == pytest.approx(expected, abs=5)


def test_errors_of_the_metadata_service_are_retried(metadata: Metadata, capsys: pytest.CaptureFixture[str]) -> None:
    metadata.pages = {(*GCP_NOTICE[:3], "other"): ""}  # answers 401

    def recover() -> None:
        while metadata.num_requests < 3:
            time.sleep(0.01)
        metadata.pages = {GCP_NOTICE: "TRUE"}

    thread = threading.Thread(target=recover)
    thread.start()
    assert wait_for_notice("gcp", metadata.address, 0.01) == pytest.approx(30, abs=5)
    thread.join()
    assert capsys.readouterr().out.count("does not answer as expected") == 1


RAY = """#!{python}
import json, sys
from pathlib import Path
calls = Path({calls!r})
calls.write_text(json.dumps(json.loads(calls.read_text()) + [sys.argv[1:]]))
sys.exit(1 if len(json.loads(calls.read_text())) == 1 else 0)
"""


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[str]:
    """The id of a node that consists of a process with a raylet's command line."""
    node_id = "a" * 56
    code = "import time; time.sleep(600)"
    command = ["/x/raylet", "-c", code, f"--node_id={node_id}", "--gcs-address=10.0.0.7:6379", "--labels="]
    process = subprocess.Popen(command, executable=sys.executable)
    yield node_id
    process.kill()
    process.wait()


def test_node_is_drained_after_the_notice(
    metadata: Metadata, raylet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, program = tmp_path / "calls.json", tmp_path / "ray"
    calls.write_text("[]")
    program.write_text(RAY.format(python=sys.executable, calls=str(calls)))
    program.chmod(0o755)
    monkeypatch.setattr(drain_on_notice.sys, "executable", str(tmp_path / "python"))
    metadata.pages = {GCP_NOTICE: "TRUE"}
    flags = ["--cloud", "gcp", "--metadata", metadata.address, "--node-id", raylet, "--poll-s", "0.01"]
    assert main(flags) == 0
    first, second = json.loads(calls.read_text())  # a failed call is repeated
    assert first[:-1] == second[:-1]
    assert second[:5] == ["drain-node", "--node-id", raylet, "--address", "10.0.0.7:6379"]
    assert second[5:9] == ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed by gcp"]
    assert second[9] == "--deadline-remaining-seconds"
    assert 0 < int(second[10]) <= 30
    assert "the node is draining" in capsys.readouterr().out


def test_only_the_given_node_is_found(raylet: str) -> None:
    assert find_node(raylet) == (raylet, "10.0.0.7:6379")
    assert find_node("b" * 56) is None


def test_file_runs_without_this_program(tmp_path: Path) -> None:
    """cluster.yaml copies the file alone."""
    copy = tmp_path / "drain_on_notice.py"
    copy.write_bytes((ROOT / "jobs" / "drain_on_notice.py").read_bytes())
    result = subprocess.run([sys.executable, "-I", "-S", copy, "--help"], capture_output=True, text=True, check=True)
    assert "--cloud {aws,azure,gcp}" in result.stdout
