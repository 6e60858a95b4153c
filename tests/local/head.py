"""A Ray head on loopback for one test: free ports, its own folder and home, and no effect on other Ray processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.environment import environment_without_ray
from tests.waiting import TIMEOUT_S, wait_for

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-this-test-0123456789abcdef0123456789abcdef"
SECRET = "hf_this_value_is_not_to_be_seen"
PORTS = ("dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "ray-client-server-port")
HEAD_ID = "f" * 51 + "00000"
"""Node id of the head in the simulated cloud; as long as Ray's ids."""
PORTS += ("metrics-export-port", "runtime-env-agent-port", "node-manager-port", "object-manager-port", "port")


def free_ports(num: int) -> list[int]:
    """Distinct free ports."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [int(free.getsockname()[1]) for free in sockets]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Environment of a shell with the virtual environment active and no settings of Ray."""
    kept = environment_without_ray()
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return kept | {"HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


@contextmanager
def running_head(home: Path, node_types: dict[str, object] | None = None, **changed: str) -> Iterator[str]:
    """A head with token authentication; yields its address.

    Args:
        home: home folder of the processes, with a token in .ray/auth_token.
        node_types: node types of the autoscaler, as in cluster.yaml; the head then runs no tasks, and new nodes are
            processes on this machine.
        changed: environment variables, such as the PATH of a shell without the virtual environment.
    """
    for _ in range(10):
        with _head(home, node_types, **changed) as address:
            if address:
                yield address
                return
    raise AssertionError("no head started within Ray's own time limit in ten attempts")


@contextmanager
def _head(home: Path, node_types: dict[str, object] | None, **changed: str) -> Iterator[str]:
    """Start a head; yields its address, or "" if a busy machine did not start it within Ray's limit of 30 s."""
    folder = tempfile.mkdtemp(prefix="slick-head-", dir="/tmp")  # short: Ray's sockets lie in it
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    more: dict[str, str] = {}
    if node_types is None:
        command.append("--num-cpus=4")
    else:
        config = Path(folder, "autoscaling.json")
        config.write_text(json.dumps(autoscaling_config(node_types, f"127.0.0.1:{ports['port']}")))
        command += ["--num-cpus=0", f"--autoscaling-config={config}"]
        more = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
        more |= dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), HEAD_ID)
    command += ["--object-store-memory=120000000", *(f"--{name}={port}" for name, port in ports.items())]
    log = Path(folder, "start.log")
    with log.open("w") as file:
        head = subprocess.Popen(
            command,
            env=environment(home, RAY_AUTH_MODE="token", SLICK_TEST_HEAD=folder, **more, **changed),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        agent = f"http://127.0.0.1:{ports['dashboard-agent-listen-port']}"  # without it the head accepts no jobs
        wait_for(lambda: head.poll() is not None or accepts_jobs(address, agent), log.read_text)
        timed_out = head.poll() is not None and "timed out during startup" in log.read_text()
        assert timed_out or head.poll() is None, log.read_text()
        yield "" if timed_out else address
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(5)
        except subprocess.TimeoutExpired:
            head.kill()
        for process in processes_of(folder):
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def autoscaling_config(node_types: dict[str, object], gcs_address: str) -> dict[str, object]:
    """Settings of an autoscaler whose nodes are processes on this machine and are removed after some idle seconds."""
    return {
        "cluster_name": "test",
        "max_workers": 8,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": gcs_address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **node_types,
        },
        **{key: {} for key in ("file_mounts",)},
        **{key: [] for key in ("cluster_synced_files", "initialization_commands", "setup_commands")},
        **{key: [] for key in ("head_setup_commands", "worker_setup_commands")},
        **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
    }


def accepts_jobs(address: str, agent: str) -> bool:
    """True if the job server accepts the token and the agent that starts jobs is up."""
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
        urllib.request.urlopen(f"{agent}/api/version", timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return error.url.startswith(agent)  # an agent that lacks the page or requires a token is up
    except OSError:
        return False
    return True


def processes_of(folder: str) -> list[int]:
    """Process ids of a head, its drivers and workers, found by their environment, because Ray renames processes."""
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"SLICK_TEST_HEAD={folder}".encode() in variables:
                processes.append(int(entry.name))
    return processes


@dataclass(frozen=True)
class HeadCluster:
    """A running head and a home folder with its token in ~/.ray."""

    address: str
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        return environment(self.home, SLICK_TEST_SECRET=SECRET, **more)

    def slick(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.cli", *arguments, "--address", self.address]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment(**environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    def get(self, path: str) -> str:
        request = urllib.request.Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return str(response.read().decode())


@contextmanager
def running_cluster(home: Path, node_types: dict[str, object] | None = None, **changed: str) -> Iterator[HeadCluster]:
    """Write a token into `home` and start a head as `running_head` does."""
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    with running_head(home, node_types, **changed) as address:
        yield HeadCluster(address, home)
