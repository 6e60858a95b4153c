"""A local AWS mock (moto): S3 for studies, EC2 for `ray up`."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.local.head import free_ports
from tests.waiting import TIMEOUT_S, wait_for

SECRET = "this-key-is-not-to-be-seen-anywhere"


@contextmanager
def running_aws(log: Path) -> Iterator[dict[str, str]]:
    """Start the mock; yields the environment variables that point AWS clients and pyarrow to it."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    variables = {"AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-west-2"}
    variables |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: server.poll() is not None or _is_up(address), log.read_text)
        assert server.poll() is None, log.read_text()
        yield variables
    finally:
        server.terminate()
        server.wait(TIMEOUT_S)


def make_bucket(address: str, name: str) -> None:
    """Create an empty bucket; the mock accepts unsigned requests."""
    urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT"), timeout=TIMEOUT_S).close()


def _is_up(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/moto-api/", timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True
