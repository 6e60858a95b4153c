"""With HF_HUB_OFFLINE, the Hugging Face Hub is never contacted: only its cache is read."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40
RESOLVE = """
import sys
from slick.curation.hub import download_data
from slick.errors import SlickError
from slick.models import resolve_model

for name in sys.argv[1:]:
    try:
        print((download_data if name.startswith("hf://") else resolve_model)(name))
    except SlickError as error:
        print("refused:", " ".join(str(error).split()))
"""


class CountingServer(ThreadingHTTPServer):
    """A Hub without models, that counts connections."""

    num_connections = 0

    def verify_request(self, request: object, client_address: object) -> bool:
        self.num_connections += 1
        return True


class NotFound(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[CountingServer]:
    with CountingServer(("127.0.0.1", 0), NotFound) as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield started
        started.shutdown()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A cache of Hugging Face with the model `org/cached`."""
    repository = tmp_path / "hub" / "models--org--cached"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (snapshot / "model.safetensors").write_bytes(b"")
    return tmp_path


def resolve(server: CountingServer, home: Path, *names: str, **environ: str) -> list[str]:
    """One line per name of a model or data set: where its files are, or the message."""
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home)}
    output = subprocess.check_output(
        [sys.executable, "-c", RESOLVE, *names], env=inherited | hub | environ, cwd=Path(__file__).parents[2], text=True
    )
    return output.splitlines()


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_reads_the_cache_and_refuses_the_rest_without_a_connection(
    server: CountingServer, home: Path, variable: str
) -> None:
    cached, missing, data = resolve(
        server, home, "org/cached", "org/missing", "hf://datasets/org/facts", **{variable: "1"}
    )
    assert f"snapshots/{COMMIT}" in cached
    for message, kind in ((missing, "model"), (data, "data set")):
        assert message.startswith("refused: ")
        assert f"{variable} is set, so the {kind} is only read from the cache {home}/hub: unset {variable}" in message
    assert server.num_connections == 0


def test_online_the_hub_is_asked_and_the_advice_is_another(server: CountingServer, home: Path) -> None:
    (message,) = resolve(server, home, "org/missing")
    assert "check the spelling, the network, and for a gated model HF_TOKEN" in message
    assert "OFFLINE" not in message
    assert server.num_connections > 0
