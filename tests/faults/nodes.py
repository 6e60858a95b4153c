"""Run work on a local cluster of several nodes, of which one is killed; helpers for drivers in other processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from slick.storage import Folder
from tests.environment import environment_without_ray
from tests.faults.hold import holdable, release
from tests.waiting import TIMEOUT_S, wait_for

ROOT = Path(__file__).parents[2]
# Ray detects a lost node within seconds.
FAST_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}

WORKER_CLASSES = ("AnnotationWorker", "TrainWorker", "ImplicitFunc")
"""Parts of the class names of the actors that do the work of a study."""


def live_actors(name: str) -> list[Any]:
    """Live actors of the driver's cluster whose class name contains `name`; this machine may run other clusters."""
    import ray
    from ray.util.state import list_actors

    cluster = ray.get_runtime_context().gcs_address
    return [a for a in list_actors(cluster, filters=[("state", "=", "ALIVE")]) if name in a.class_name]


@contextmanager
def beside_another_cluster() -> Iterator[None]:
    """Simulate a node of another cluster on this machine by a process with the name of one."""
    command = ["raylet", "-c", f"import time; time.sleep({TIMEOUT_S})", "--gcs-address=127.0.0.1:1"]
    raylet = subprocess.Popen(command, executable=sys.executable)
    try:
        yield
    finally:
        raylet.kill()
        raylet.wait()


def send_preemption_notice(address: str, node_id: str, seconds: float) -> None:
    """Announce the preemption of a node in some seconds, as `ray drain-node` does, without starting a process.

    A later notice replaces an earlier one.
    """
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + seconds) * 1000)
    accepted, reason_refused = GcsClient(address=address).drain_node(
        node_id, reason, "spot instance reclaimed", deadline_ms
    )
    assert accepted, reason_refused


def announce_reclaim(node_id: str, seconds: float) -> None:
    """Let `jobs.drain_on_notice` see a notice of AWS for a node of this machine, which it then drains."""
    lost_at = datetime.fromtimestamp(time.time() + seconds, UTC)
    notice = json.dumps({"action": "terminate", "time": lost_at.isoformat(timespec="seconds")}).encode()

    class Metadata(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"token" if self.command == "PUT" else notice)

        do_GET = do_PUT = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        command = [sys.executable, "-m", "jobs.drain_on_notice", "--cloud", "aws", "--metadata", address]
        watcher = subprocess.run(
            [*command, "--node-id", node_id], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        server.shutdown()
    assert watcher.returncode == 0, watcher.stdout + watcher.stderr


def run_and_kill_node(
    study: Folder,
    work: Callable[[], Any],
    is_time: Callable[[], object],
    actor: str,
    *,
    head_cpus: int,
    node_cpus: int,
    after_notice: Callable[[], object] | None = None,
    at_loss: Callable[[], object] = lambda: None,
) -> tuple[int, Any]:
    """Run work on a cluster of a head and two nodes, and kill a node that runs an actor; call it in a subprocess.

    Args:
        study: the study of the work; a hold (see `hold`) must pause the work, and is released after the node is killed.
        is_time: the node is killed, or gets a notice, as soon as this is true; the work must not have ended by then.
        actor: part of the name of the actor's class.
        after_notice: the node gets a preemption notice and is killed as soon as this is true. None: no notice.
        at_loss: called just before the node is killed.

    Returns:
        The number of such actors at that time, and the result of the work.
    """
    import ray
    from ray.cluster_utils import Cluster

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # the cluster of the test run uses the default port
    head = {
        "num_cpus": head_cpus,
        "include_dashboard": True,
        "dashboard_port": port,
        "_system_config": FAST_HEALTH_CHECKS,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=node_cpus) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    future = ThreadPoolExecutor().submit(_run_holdable, work)
    wait_for(lambda: future.done() or is_time())
    assert not future.done(), future.exception() or "the work ended before the node was killed"
    actors = live_actors(actor)
    (lost, *_) = [node for node in nodes if node.node_id in {live.node_id for live in actors}]
    if after_notice:
        announce_reclaim(lost.node_id, TIMEOUT_S)  # the test decides when the node is killed
        wait_for(lambda: future.done() or after_notice())
        assert not future.done(), future.exception() or "the work ended before the node was killed"
    at_loss()
    if after_notice:  # Ray treats the loss of a node before its deadline as a failure
        send_preemption_notice(cluster.address, lost.node_id, 0)
    cluster.remove_node(lost, allow_graceful=False)
    release(study)
    result = future.result(TIMEOUT_S)
    ray.shutdown()
    cluster.shutdown()
    return len(actors), result


def _run_holdable(work: Callable[[], Any]) -> Any:
    with holdable():
        return work()


def run_in_subprocess(code: str) -> str:
    """The output of Python code in another process, which must succeed."""
    completed = subprocess.run(
        [sys.executable, "-c", code],
        env=environment_without_ray() | {"RAY_AUTH_MODE": "disabled"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stdout


def second_driver_environment() -> dict[str, str]:
    """Environment variables with which another process joins the cluster that `connect` started here."""
    import ray
    from ray._raylet import AuthenticationTokenLoader

    header = AuthenticationTokenLoader.instance().get_token_for_http_header()["authorization"]
    return {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": header.removeprefix("Bearer "),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray replaces the loopback address by that of the host name
    }


_DRIVER = """
import sys
from tests.faults.hold import holdable
code = sys.argv.pop(1)
with holdable():
    exec(code)
"""


def start_and_kill_driver(
    code: str, *arguments: str, when: Callable[[], object], by: signal.Signals = signal.SIGKILL
) -> int:
    """Run Python code as another driver on this process's cluster, and kill it at a given point.

    The code runs within `holdable`. On return its actors have ended too.

    Returns:
        The exit status of the driver.
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, code, *arguments],
        env={**os.environ, **second_driver_environment()},
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: when() or driver.poll() is not None)
        driver.send_signal(by)
        status = driver.wait(TIMEOUT_S)
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not any(live_actors(name) for name in WORKER_CLASSES))
    return status
