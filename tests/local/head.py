"""A Ray head of one's own on loopback: free ports, its own folder and home, ended without touching any other Ray."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-this-test-0123456789abcdef0123456789abcdef"
PORTS = ("dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "ray-client-server-port")
PORTS += ("metrics-export-port", "runtime-env-agent-port", "node-manager-port", "object-manager-port", "port")


def free_ports(num: int) -> list[int]:
    """Ports that nobody listens on; all are held until all are known."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a shell with the virtual environment active and Ray's settings unset."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return kept | {"HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


@contextmanager
def started_head(home: Path) -> Iterator[str]:
    """A head with token authentication; its address."""
    folder = tempfile.mkdtemp(prefix="slick-head-", dir="/tmp")  # short: Ray's sockets lie in it
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=4"]
    command += ["--object-store-memory=120000000", *(f"--{name}={port}" for name, port in ports.items())]
    log = Path(folder, "start.log")
    with log.open("w") as file:
        head = subprocess.Popen(
            command,
            env=environment(home, RAY_AUTH_MODE="token", SLICK_TEST_HEAD=folder),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        wait_for(lambda: answers(address), 90, lambda: log.read_text())
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(5)
        except subprocess.TimeoutExpired:
            head.kill()
        for process in processes_of(folder):
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    """True when the job server is up; that it wants a token is an answer."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


def wait_for(done: object, seconds: float, explain: object) -> None:
    """Ask until the answer is yes."""
    assert callable(done)
    assert callable(explain)
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, explain()
        time.sleep(0.3)


def processes_of(folder: str) -> list[int]:
    """Processes of the head with this folder, drivers and workers too: Ray renames them, their environment stays."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"SLICK_TEST_HEAD={folder}".encode() in words:
                found.append(int(entry.name))
    return found
