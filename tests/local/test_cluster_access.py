"""Access to a local cluster: listening addresses, token authentication, and the modules that workers import."""

import json
import os
import re
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.environment import environment_without_ray
from tests.faults.nodes import ROOT
from tests.local.head import processes_of
from tests.waiting import TIMEOUT_S, wait_for

pytestmark = pytest.mark.local

LOOPBACK = re.compile(r"0100007F|0{24}01000000|0{16}FFFF00000100007F")
"""127.0.0.1, ::1 and ::ffff:127.0.0.1, as /proc/net/tcp and tcp6 write them."""

SHADOWED = ("json", "numpy", "pickle", "socket", "torch")
"""Modules that the working folder shadows; they must not be imported from there."""
HOSTILE = "import pathlib; (pathlib.Path(__file__).parent / 'EXECUTED').touch(); raise ImportError('from ' + __file__)"

# Ray is imported before `connect` is called, as a notebook may do. The training runs until the file `end` exists.
STEP = """
import os, sys
from pathlib import Path
import ray
from jobs.common import run_main
from slick.cluster import connect

FOLDER = Path(sys.argv[1])

def work(_):
    import time, torch
    group = torch.ones(2)
    torch.distributed.all_reduce(group)
    (FOLDER / "training").touch()
    while not (FOLDER / "end").exists():
        time.sleep(0.05)

def main(argv):
    import json
    before = set(os.environ)
    connect()
    set_by_connect = sorted(name for name in set(os.environ) - before if "AUTH" in name or "CLUSTER" in name)

    @ray.remote
    def imported():
        import json, numpy, slick, torch
        return [module.__file__ for module in (json, numpy, slick, torch)]

    node = ray._private.worker.global_worker.node
    cluster = {"gcs": node.gcs_address, "dashboard": node.address_info["webui_url"], "logs": node.get_logs_dir_path()}
    cluster |= {"modules": ray.get(imported.remote()), "set_by_connect": set_by_connect}
    (FOLDER / "cluster.json.part").write_text(json.dumps(cluster))
    (FOLDER / "cluster.json.part").rename(FOLDER / "cluster.json")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from tuning.distributed import ProcessGroupSettings
    TorchTrainer(
        work,
        torch_config=ProcessGroupSettings(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="train", storage_path=str(FOLDER)),
    ).fit()

run_main(main, [])
"""


@dataclass
class WaitingProcess:
    """A process with its own cluster, in which a training worker waits."""

    process: subprocess.Popen[str]
    folder: Path
    home: Path
    gcs: str
    dashboard: str
    logs: str
    modules: list[str]
    set_by_connect: list[str]
    token_file: Path = Path()

    def stop(self) -> str:
        """End the training and the process; returns its stderr."""
        (self.folder / "end").touch()
        return self.process.communicate(timeout=TIMEOUT_S)[1]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WaitingProcess]:
    folder = tmp_path_factory.mktemp("access")
    for name in ("home", "bin", "hostile"):
        (folder / name).mkdir()
    for name in SHADOWED:
        (folder / "hostile" / f"{name}.py").write_text(HOSTILE)
    script = folder / "bin" / "step"  # in its own folder, as the console script `slick`
    script.write_text(STEP)
    environment = environment_without_ray() | {"HOME": str(folder / "home"), "SLICK_TEST_HEAD": str(folder)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder / "hostile",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: (folder / "training").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        cluster = WaitingProcess(process, folder, folder / "home", **json.loads((folder / "cluster.json").read_text()))
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(rf"Ray dashboard: http://{cluster.dashboard} \(log in with the token in (\S+)\)\n", line)
        assert match, line
        cluster.token_file = Path(match[1])
        yield cluster
        cluster.stop()
    finally:
        process.kill()


def listening_addresses(processes: list[int]) -> dict[tuple[int, str], str]:
    """Hexadecimal local addresses of the listening TCP sockets of processes, by process and inode."""
    addresses = {}
    for table in ("tcp", "tcp6"):
        for row in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = row.split()[:10]
            if state == "0A":
                addresses[f"socket:[{inode}]"] = address
    listening = {}
    for process in processes:
        with suppress(OSError):  # the process has ended
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):  # the descriptor is closed
                    inode = os.readlink(f"/proc/{process}/fd/{descriptor}")
                    if inode in addresses:
                        listening[process, inode] = addresses[inode]
    return listening


def command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def processes_of_cluster(cluster: WaitingProcess) -> list[int]:
    """The process, its descendants, and all processes with its environment: Ray's renamed processes may lack either."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # the process has ended
            children.setdefault(parent, []).append(int(entry.name))
    processes = [cluster.process.pid]
    for process in processes:
        processes += children.get(process, [])
    return sorted({*processes, *processes_of(str(cluster.folder))})


SERVERS = ("gcs_server", "raylet", "dashboard", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::RayTrainWorker")


def test_every_socket_of_every_process_listens_on_loopback(running: WaitingProcess) -> None:
    def missing() -> list[str]:
        commands = " ".join(command_of(process) for process, _ in listening_addresses(processes_of_cluster(running)))
        return [part for part in SERVERS if part not in commands]

    wait_for(lambda: not missing(), missing)  # agents may still be starting
    elsewhere = {
        (command_of(process)[:60], address)
        for (process, _), address in listening_addresses(processes_of_cluster(running)).items()
        if not LOOPBACK.fullmatch(address.partition(":")[0])
    }
    assert not elsewhere


CLIENT = """
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
print("RAN A TASK", ray.get(ray.remote(lambda: "on it").remote()))
"""


def run_client(cluster: WaitingProcess, **authentication: str) -> str:
    """Run a task on the cluster from a subprocess; returns its output."""
    address = {"RAY_ADDRESS": cluster.gcs, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environment = environment_without_ray() | {"HOME": str(cluster.home)} | address | authentication
    completed = subprocess.run(
        [sys.executable, "-c", CLIENT],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    return completed.stdout + completed.stderr


def read_jobs(cluster: WaitingProcess, **headers: str) -> int:
    """HTTP status of a request for the dashboard's jobs."""
    request = urllib.request.Request(f"http://{cluster.dashboard}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_client_with_the_token_is_accepted(running: WaitingProcess) -> None:
    assert read_jobs(running, Authorization=f"Bearer {running.token_file.read_text()}") == 200
    output = run_client(running, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(running.token_file))
    assert "RAN A TASK on it" in output, output


def test_client_without_the_token_is_rejected(running: WaitingProcess) -> None:
    no_token, wrong_token = {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    with ThreadPoolExecutor() as pool:
        outputs = pool.map(lambda authentication: run_client(running, **authentication), (no_token, wrong_token))
    for output in outputs:
        assert "RAN A TASK" not in output
        assert "nauthenticated" in output, output
    assert read_jobs(running) == 401
    assert read_jobs(running, Authorization=f"Bearer {'0' * 64}") == 403


def test_token_is_readable_by_its_owner_only(running: WaitingProcess) -> None:
    token = running.token_file.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(running.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(running.token_file.parent.stat().st_mode) == 0o700
    assert not any(token in command_of(process) for process in processes_of_cluster(running))
    logs = [path for path in Path(running.logs).rglob("*") if path.is_file()]
    assert logs
    assert not [path for path in logs if token in path.read_text(errors="replace")]
    assert not (running.home / ".ray").exists(), "the user's own token is left alone"
    assert not running.set_by_connect, "a later `ray start` of this process is left alone"


def test_modules_in_the_working_folder_are_not_imported(running: WaitingProcess) -> None:
    assert str(ROOT / "slick" / "__init__.py") in running.modules
    assert not [path for path in running.modules if str(running.folder) in path]
    assert not (running.folder / "hostile" / "EXECUTED").exists()


def test_token_is_deleted_when_the_process_ends(running: WaitingProcess) -> None:
    stderr = running.stop()
    assert running.process.returncode == 0, stderr
    assert not running.token_file.parent.exists()
