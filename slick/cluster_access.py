"""Access control of a cluster that starts on this machine: loopback only, and with a token.

By default Ray listens on all network interfaces and accepts tasks from everyone. Here the node has the loopback
address, so that it is not reachable from other machines. A random token protects the cluster and its dashboard from
other users of this machine.
"""

import atexit
import ipaddress
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slick import compat
from slick.cluster_checks import check_token, short_tmpdir_env
from slick.errors import ClusterError

_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_PACKAGE_FOLDER = str(Path(__file__).parents[1])
"""The folder on the import path that contains `slick`."""


@contextmanager
def local_cluster_auth(temp_folder: str) -> Iterator[str]:
    """Environment in which `ray.init` starts a cluster on loopback that requires a token.

    Ray's processes inherit the environment. It is restored when the block ends, so that a later `ray start` or
    `slick submit` is not affected.

    Args:
        temp_folder: parent of a private folder with the token, which is deleted when this process ends.

    Yields:
        Where the user finds the token for the dashboard.

    Raises:
        ClusterError: the user's token cannot be read.
    """
    settings = {
        "RAY_AUTH_MODE": "token",
        # Without support for clusters of several machines, the node has the address 127.0.0.1, and its servers listen
        # only there. `_node_ip_address` of `ray.init` does not have this effect.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Ray starts helper processes with `python -c`, which would import modules from the working folder first.
        "PYTHONSAFEPATH": "1",
        **short_tmpdir_env(temp_folder),
    }
    named = next((name for name in _TOKEN_VARIABLES if os.environ.get(name)), None)
    if named is None:
        settings["RAY_AUTH_TOKEN_PATH"] = _new_token(temp_folder)
    with _patched_environ(settings):
        check_token(os.environ)
        compat.reload_ray_authentication()
        with compat.ray_multi_node_disabled():
            yield "of RAY_AUTH_TOKEN" if named == "RAY_AUTH_TOKEN" else f"in {os.environ['RAY_AUTH_TOKEN_PATH']}"


def check_loopback(address: str) -> None:
    """Check that the node of a cluster has a loopback address.

    Args:
        address: IP address of the node.

    Raises:
        ClusterError: other machines can reach the address.
    """
    if not ipaddress.ip_address(address).is_loopback:
        raise ClusterError(
            f"the Ray cluster listens on {address} and not on loopback, so that other machines could reach it; it was "
            "stopped. This release of Ray ignores RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0: install the one that "
            "pyproject.toml names"
        )


def job_config() -> Any:
    """The job configuration of Ray, with the driver's import path for workers.

    Ray puts the driver's working folder first on the import path of workers, where a file torch.py would be imported
    as torch. Here it is on the path only if the driver imports from it, as `python -m` and notebooks do.
    """
    from ray.job_config import JobConfig

    class DriverJobConfig(JobConfig):  # type: ignore[misc]
        _py_driver_sys_path: list[str]

        def _serialize(self) -> Any:  # called when Ray has extended the path; checked with Ray 2.60
            self._py_driver_sys_path = worker_import_path(self._py_driver_sys_path)
            return super()._serialize()

    return DriverJobConfig()


def worker_import_path(added: list[str]) -> list[str]:
    """The folders that are put before the import path of workers.

    Args:
        added: the folders that Ray would add.

    Returns:
        `added` without the working folder, unless it is on the import path of this process; with the folder of this
        program, unless it is installed.
    """
    working_folder = os.path.abspath(os.curdir)
    searched = {os.path.abspath(folder) for folder in sys.path}  # an empty entry is the working folder
    if working_folder in searched or working_folder not in added:
        return added
    kept = [folder for folder in added if folder != working_folder]
    is_installed = os.path.basename(_PACKAGE_FOLDER) in ("site-packages", "dist-packages")
    return kept if is_installed or _PACKAGE_FOLDER in kept else [*kept, _PACKAGE_FOLDER]


def _new_token(temp_folder: str) -> str:
    """Write a random token to a private folder, and return the path of its file."""
    folder = tempfile.mkdtemp(prefix="slick-token-", dir=temp_folder)
    atexit.register(_remove, folder, os.getpid())
    path = os.path.join(folder, "token")
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # forked processes inherit exit functions
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _patched_environ(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the duration of the block."""
    previous = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
