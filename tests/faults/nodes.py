"""A cluster of several nodes on this machine, of which one is lost; and a process of its own to do that in."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# A node that is gone is noticed within seconds.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


def wait_for(condition: Callable[[], object], limit_s: float = 90) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(name: str) -> list[Any]:
    """Actors of the driver's own cluster that live and have `name` in that of their class; there may be others here."""
    import ray
    from ray.util.state import list_actors

    cluster = ray.get_runtime_context().gcs_address
    return [a for a in list_actors(cluster, filters=[("state", "=", "ALIVE")]) if name in a.class_name]


def give_notice(address: str, node_id: str, seconds: float) -> None:
    """Say that a node will be taken back after so many seconds: `ray drain-node`, without the start of its process."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + seconds) * 1000)
    accepted, why_not = GcsClient(address=address).drain_node(node_id, reason, "the cloud wants it back", deadline_ms)
    assert accepted, why_not


def lose_a_node(
    work: Callable[[], Any],
    is_time: Callable[[], bool],
    actor: str,
    *,
    head_cpus: int,
    node_cpus: int,
    notice_s: float = 0,
    at_loss: Callable[[], object] = lambda: None,
) -> tuple[int, Any]:
    """Work on a cluster of a head and two nodes, and kill a node on which an actor runs; for a process of its own.

    Args:
        is_time: the node is lost as soon as this is true; the work must not have ended by then.
        actor: part of the name of the actor's class.
        notice_s: seconds that the node is told it has; it gets half a second less. 0: it is told nothing.
        at_loss: called just before the node is killed.

    Returns:
        How many such actors there were then, and what the work returned.
    """
    import ray
    from ray.cluster_utils import Cluster

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # the test run's own cluster has the usual one
    head = {"num_cpus": head_cpus, "include_dashboard": True, "dashboard_port": port, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=node_cpus) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    running = ThreadPoolExecutor().submit(work)
    wait_for(lambda: running.done() or is_time(), 180)
    assert not running.done(), running.exception() or "the node had nothing left to do"
    actors = alive(actor)
    (lost, *_) = [node for node in nodes if node.node_id in {found.node_id for found in actors}]
    if notice_s:
        give_notice(cluster.address, lost.node_id, notice_s)
        time.sleep(notice_s - 0.5)
        assert not running.done(), running.exception() or "the node had nothing left to do"
    at_loss()
    cluster.remove_node(lost, allow_graceful=False)
    result = running.result(240)
    ray.shutdown()
    cluster.shutdown()
    return len(actors), result


def without_ray() -> dict[str, str]:
    """The environment without what this process told its own cluster, of one machine."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def apart(code: str, *, limit_s: float = 280) -> str:
    """What Python code prints in a process of its own, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=without_ray() | {"RAY_AUTH_MODE": "disabled"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def start_and_kill_driver(
    code: str, *arguments: str, when: Callable[[], object], by: signal.Signals = signal.SIGKILL
) -> int:
    """Run Python code on this process's cluster as a driver of its own, and end that as soon as it is time.

    Returns:
        Its exit status.
    """
    import ray

    cluster = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "disabled"}
    driver = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **cluster},
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: when() or driver.poll() is not None)
        driver.send_signal(by)
        status = driver.wait(60)
    finally:
        driver.kill()
        driver.wait()
    time.sleep(3)  # its actors end with it; what they are writing is whole or absent
    return status
