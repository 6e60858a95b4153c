"""Drain this Ray node when its cloud announces that the machine will be reclaimed.

python -m jobs.drain_on_notice --cloud aws        # or gcp, azure; runs until the notice, beside `ray start`

Ray then schedules nothing more on the node, and trainings save their state before it is lost. The file needs Python's
standard library and the command `ray` alone, so that cluster.yaml can copy it to nodes without this program.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

POLL_S = 5.0
"""Seconds between two requests, as AWS recommends."""
TIMEOUT_S = 2.0
DEFAULT_NOTICE_S = {"aws": 120.0, "gcp": 30.0, "azure": 30.0}
"""Seconds from a notice without a time to the loss of the machine, by cloud."""
METADATA = "http://169.254.169.254"
"""The clouds' metadata service, which only the machine itself can reach."""

# A proxy of the environment cannot reach the metadata service.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(url: str, headers: Mapping[str, str], method: str = "GET") -> str | None:
    """The body of an answer; None if the page does not exist.

    Raises:
        OSError: the server cannot be reached, or answers another error.
    """
    try:
        with _OPENER.open(
            urllib.request.Request(url, headers=dict(headers), method=method), timeout=TIMEOUT_S
        ) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def aws_notice(metadata: str) -> datetime | None:
    """The time at which AWS stops this spot instance; None without a notice. IMDSv2."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = request(f"{metadata}/latest/api/token", lifetime, "PUT") or ""
    text = request(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    return datetime.fromisoformat(json.loads(text)["time"]) if text else None


def gcp_notice(metadata: str) -> datetime | None:
    """The time at which GCP stops this spot VM, which it does not tell, so the least; None without a notice."""
    text = request(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return _in_least_time("gcp") if (text or "").strip().upper() == "TRUE" else None


def azure_notice(metadata: str) -> datetime | None:
    """The earliest time at which Azure preempts or deletes this VM; None without a notice."""
    headers = {"Metadata": "true"}
    text = request(f"{metadata}/metadata/scheduledevents?api-version=2020-07-01", headers)
    events = json.loads(text or "{}").get("Events", [])
    lost = [event for event in events if event["EventType"] in ("Preempt", "Terminate")]
    if not lost:
        return None
    page = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    name = (request(f"{metadata}{page}", headers) or "").strip()
    # The list has the events of other machines of the group, too. A time is empty once the event has begun.
    own = [event["NotBefore"] for event in lost if name in event["Resources"]]
    return min((parsedate_to_datetime(time) if time else _in_least_time("azure") for time in own), default=None)


NOTICES: dict[str, Callable[[str], datetime | None]] = {"aws": aws_notice, "gcp": gcp_notice, "azure": azure_notice}


def _in_least_time(cloud: str) -> datetime:
    return datetime.fromtimestamp(time.time() + DEFAULT_NOTICE_S[cloud], UTC)


def wait_for_notice(cloud: str, metadata: str, poll_s: float) -> float:
    """Wait for a notice.

    Returns:
        The seconds until the machine is lost.
    """
    is_reached = True
    while True:
        try:
            lost_at = NOTICES[cloud](metadata)
            is_reached = True
        except (OSError, ValueError, KeyError, TypeError) as error:
            if is_reached:
                _log(f"the metadata service of {cloud} at {metadata} does not answer as expected ({error!r}); retrying")
            is_reached, lost_at = False, None
        if lost_at is not None:
            left = (lost_at if lost_at.tzinfo else lost_at.replace(tzinfo=UTC)).timestamp() - time.time()
            return max(0.0, left)
        time.sleep(poll_s)


def find_node(node_id: str | None) -> tuple[str, str] | None:
    """Id and head address of the Ray node on this machine; None if it does not run.

    Args:
        node_id: the node, if there are several; None: any.
    """
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            program, *arguments = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended
        flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
        found = flags.get("node_id"), flags.get("gcs-address")
        if os.path.basename(program) == "raylet" and all(found) and node_id in (None, found[0]):
            return str(found[0]), str(found[1])
    return None


def drain(node_id: str | None, seconds: float, reason: str) -> bool:
    """Announce the loss of this machine's Ray node to its cluster; False if that failed.

    Args:
        node_id: see `find_node`.
        seconds: until the machine is lost.
        reason: for Ray's logs.
    """
    node = find_node(node_id)
    if node is None:
        _log(f"no Ray node runs on this machine{f' with id {node_id}' if node_id else ''}")
        return False
    program = Path(sys.executable).parent / "ray"
    command = [str(program) if program.exists() else "ray", "drain-node", "--node-id", node[0], "--address", node[1]]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", reason]
    command += ["--deadline-remaining-seconds", str(int(seconds))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = (result.stderr + result.stdout).strip().splitlines()
        _log(f"ray drain-node failed: {lines[-1] if lines else f'status {result.returncode}'}")
    return not result.returncode


def _log(message: str) -> None:
    print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {message}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Wait for a notice and drain the node; ends at once if another process of this user does so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cloud", choices=sorted(NOTICES), required=True)
    parser.add_argument("--node-id", help="the Ray node, if several run on this machine")
    parser.add_argument("--metadata", default=METADATA, help="address of the metadata service (default: %(default)s)")
    parser.add_argument("--poll-s", type=float, default=POLL_S, help="seconds between two requests")
    options = parser.parse_args(argv)
    name = f"slick-drain-{os.getuid()}-{options.node_id or 'any'}.lock"
    with open(os.path.join(tempfile.gettempdir(), name), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        seconds = wait_for_notice(options.cloud, options.metadata.rstrip("/"), options.poll_s)
        end = time.monotonic() + seconds
        _log(f"{options.cloud} reclaims this machine in {seconds:.0f} s")
        while not drain(options.node_id, max(0.0, end - time.monotonic()), f"reclaimed by {options.cloud}"):
            if time.monotonic() > end:
                return 1
            time.sleep(1.0)
    _log("the node is draining")
    return 0


if __name__ == "__main__":
    sys.exit(main())
