"""Who may use a cluster that starts on this machine: processes of this machine that hold its token.

Ray by itself listens on every network interface, and takes tasks from whoever connects. Here its node gets the loopback
address, so that nothing listens anywhere else, and a random token, without which neither the cluster nor its dashboard
answers: other users of the machine reach its loopback interface too.
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
"""What has to be on the import path for `import slick`."""


@contextmanager
def local_cluster_auth(temp_folder: str) -> Iterator[str]:
    """Settings under which `ray.init` starts a cluster on loopback that requires a token.

    They reach Ray's processes by their environment. This process keeps what Ray has read; its own environment is what
    it was when the block ends, so that a later `ray start` or `slick submit` is not affected.

    Args:
        temp_folder: holds a private folder with the token until this process ends.

    Yields:
        Where the token is, for the user to log in to the dashboard.

    Raises:
        ClusterError: the user has named a token that cannot be read.
    """
    settings = {
        "RAY_AUTH_MODE": "token",
        # Without support for clusters of several machines, Ray gives its node the address 127.0.0.1, and every server
        # of the node listens on its node's address alone. `_node_ip_address` of `ray.init` does not have that effect.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Ray's helper processes are started as `python -c`, which would import modules from the working folder first.
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
    """Refuse a cluster whose node has an address that other machines can reach.

    Args:
        address: IP address of the node.

    Raises:
        ClusterError: it is no loopback address.
    """
    if not ipaddress.ip_address(address).is_loopback:
        raise ClusterError(
            f"the Ray cluster that was to start on loopback listens on {address}, where other machines can reach it, "
            "and was ended; this release of Ray ignores RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0: install the one that "
            "pyproject.toml names"
        )


def job_config() -> Any:
    """Ray's settings of a job, by which workers import modules from where the driver does.

    Ray puts the driver's working folder first on the import path of workers: a torch.py that lies there would be run
    as torch. Here it is there only if the driver itself imports from it, as `python -m` and notebooks do.
    """
    from ray.job_config import JobConfig

    class DriverJobConfig(JobConfig):  # type: ignore[misc]
        _py_driver_sys_path: list[str]

        def _serialize(self) -> Any:  # called when Ray has extended the path; checked with Ray 2.60
            self._py_driver_sys_path = worker_import_path(self._py_driver_sys_path)
            return super()._serialize()

    return DriverJobConfig()


def worker_import_path(added: list[str]) -> list[str]:
    """Folders that workers search for modules before all others.

    Args:
        added: those that Ray would have them search.

    Returns:
        These without the working folder, unless this process searches it too; with the folder of this program, where
        it is not installed.
    """
    working_folder = os.path.abspath(os.curdir)
    searched = {os.path.abspath(folder) for folder in sys.path}  # an empty entry is the working folder
    if working_folder in searched or working_folder not in added:
        return added
    kept = [folder for folder in added if folder != working_folder]
    is_installed = os.path.basename(_PACKAGE_FOLDER) in ("site-packages", "dist-packages")
    return kept if is_installed or _PACKAGE_FOLDER in kept else [*kept, _PACKAGE_FOLDER]


def _new_token(temp_folder: str) -> str:
    """Write a random token into a folder that only this user can open; the path of its file."""
    folder = tempfile.mkdtemp(prefix="slick-token-", dir=temp_folder)
    atexit.register(_remove, folder, os.getpid())
    path = os.path.join(folder, "token")
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked process runs the exit functions of its parent too
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
