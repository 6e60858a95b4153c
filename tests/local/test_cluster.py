"""A command joins the cluster that RAY_ADDRESS names or starts its own; failures to connect are one message."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

from tests.environment import environment_without_ray
from tests.faults.nodes import ROOT, run_in_subprocess
from tests.waiting import TIMEOUT_S

pytestmark = pytest.mark.local

BESIDE_ANOTHER = """
import os
import ray
from ray.cluster_utils import Cluster
from slick.cluster import connect

other = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
os.environ.pop("RAY_ADDRESS", None)
if NAMED:
    os.environ["RAY_ADDRESS"] = "auto"
connect()
print("JOINED" if ray.get_runtime_context().gcs_address == other.address else "OWN CLUSTER")
ray.shutdown()
other.shutdown()
"""


@pytest.mark.parametrize(
    ("named", "expected"), [pytest.param(True, "JOINED", marks=pytest.mark.slow), (False, "OWN CLUSTER")]
)
def test_local_cluster_is_joined_only_if_named(named: bool, expected: str) -> None:
    printed = run_in_subprocess(BESIDE_ANOTHER.replace("NAMED", str(named)))
    assert printed.split("\n")[-2] == expected, printed


STEP = """
import sys
from jobs.common import run_main
from slick.cluster import connect

def main(argv):
    connect()
    import ray

    @ray.remote(runtime_env={"env_vars": {"ANY": "1"}})
    def interpreter():
        return sys.executable

    print("STARTED", ray.get(interpreter.remote()))
    ray.shutdown()

run_main(main, [])
"""


def run_step(code: str = STEP, python: str = sys.executable, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a step that only connects, in a subprocess; only a hang reaches the time limit."""
    env = environment_without_ray() | {"PYTHONPATH": str(ROOT)} | environ
    return subprocess.run(
        [python, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )


def test_unreachable_address_is_one_message() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    result = run_step(RAY_ADDRESS=address)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"slick: RAY_ADDRESS={address}")
    assert "ray start --head" in line
    assert "unset RAY_ADDRESS" in line


def test_server_other_than_ray_is_one_message() -> None:
    import grpc

    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('0.0.0.0:0')}"
    server.start()
    try:
        result = run_step(RAY_ADDRESS=address)
    finally:
        server.stop(None)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"slick: the Ray cluster at RAY_ADDRESS={address} cannot be joined: ")


def test_workers_start_with_spaces_in_paths_and_a_long_temporary_folder(tmp_path: Path) -> None:
    folder = tmp_path / "it's my (own) folder"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    shared = Path(ray.__file__).parents[1]
    (packages / "shared.pth").write_text(f"import site; site.addsitedir({str(shared)!r})\n")
    python = str(folder / "bin" / "python")
    temporary = tmp_path / ("too long for a socket " * 4)
    temporary.mkdir()
    result = run_step(python=python, TMPDIR=str(temporary))
    assert result.returncode == 0, result.stderr
    assert f"STARTED {python}" in result.stdout
