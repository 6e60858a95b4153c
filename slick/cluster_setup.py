"""What a Ray cluster needs before it is started or joined: checks, and access control.

The checks refuse conditions in which Ray hangs or aborts, with a ClusterError. They use only sockets with timeouts and
the file system, not Ray.

By default Ray listens on all network interfaces and accepts tasks from everyone. A cluster that starts on this machine
has the loopback address instead, so that it is not reachable from other machines. A random token protects it and its
dashboard from other users of this machine.
"""

import atexit
import ipaddress
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slick import compat
from slick.cluster_reaper import start_reaper
from slick.errors import ClusterError
from slick.private_folders import new_private_folder

SOCKET_TIMEOUT_S = 5.0
"""Timeout of a TCP connection and of its first answer."""
MIN_TEMP_BYTES = 100 * 2**20
"""Space for Ray's logs, sockets and small objects in its temporary folder."""
MIN_OBJECT_STORE_BYTES = 100 * 2**20
"""Ray requires 75 MiB; a study stores only its lists of questions there."""
_SHM_PATH = "/dev/shm"
_DEFAULT_TMPDIR = "/tmp"
_MAX_SOCKET_PATH = (104 if sys.platform == "darwin" else 108) - 1
_RAY_SOCKET_PATH = f"ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/dash_MetricsHead"
"""The longest path that Ray, including its dashboard, appends to its temporary folder."""
_PREFIX = "slick-ray-"
_PYTHON_SOCKET = f"{_PREFIX}12345678/pymp-12345678/listener-12345678"
"""The longest path in TMPDIR of a socket of Python's multiprocessing, which Ray's dashboard uses."""

# RFC 9113, section 3.4: a client's first bytes, and an empty SETTINGS frame. The server answers with its own SETTINGS.
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_HTTP2_SETTINGS = 4

START_HINT = "start a cluster on this machine with `ray start --head`, or unset RAY_ADDRESS to start one automatically"

_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_PACKAGE_FOLDER = str(Path(__file__).parents[1])
"""The folder on the import path that contains `slick`."""


def check_address_format(address: str) -> None:
    """Check the format of RAY_ADDRESS.

    Raises:
        ClusterError: it is an address of Ray Client or of a dashboard.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return
    where = rest.partition(":")[0] or "HEAD"
    if scheme == "ray":
        kind = "an address of Ray Client, whose driver is not part of the cluster"
    elif scheme in ("http", "https"):
        kind = "the address of a dashboard"
    else:
        kind = f"an address with the unknown scheme {scheme}://"
    raise ClusterError(
        f"RAY_ADDRESS={address} is {kind}; expected HOST:PORT of the head (usually port 6379). To run a step on that "
        f"cluster, submit it: slick submit STEP PRESET --address http://{where}:8265; or unset RAY_ADDRESS"
    )


def check_reachable(host: str, port: int, address: str, *, is_tls: bool = False) -> None:
    """Check that a gRPC server, such as the head of a Ray cluster, answers at an address.

    Args:
        host: the host that Ray will connect to.
        port: the port that Ray will connect to.
        address: the address as the user gave it, for messages.
        is_tls: whether connections are encrypted; then only the TCP connection is checked.

    Raises:
        ClusterError: the name does not resolve, nothing listens, or the server is not gRPC.
    """
    place = f"RAY_ADDRESS={address}" if address == f"{host}:{port}" else f"RAY_ADDRESS={address} ({host}:{port})"
    try:
        connection = socket.create_connection((host, port), timeout=SOCKET_TIMEOUT_S)
    except socket.gaierror as error:
        raise ClusterError(
            f"{place}: the host name {host} does not resolve ({error.strerror}); correct it, or {START_HINT}"
        ) from error
    except OSError as error:
        raise ClusterError(
            f"{place}: no Ray cluster answers there ({error.strerror or error}); correct the address, or {START_HINT}"
        ) from error
    if is_tls:
        connection.close()
        return
    with connection:
        answer = _first_bytes(connection)
    if len(answer) < 4 or answer[3] != _HTTP2_SETTINGS:
        behavior = f"it answers {answer[:20]!r}" if answer else f"no answer within {SOCKET_TIMEOUT_S:.0f} s"
        raise ClusterError(
            f"{place}: the server there is not the head of a Ray cluster ({behavior}); expected the head's port, "
            f"usually 6379. Correct the address, or {START_HINT}"
        )


def _first_bytes(connection: socket.socket) -> bytes:
    """The first bytes that a server sends to an HTTP/2 client; empty if it sends none in time."""
    answer = b""
    try:
        connection.settimeout(SOCKET_TIMEOUT_S)
        connection.sendall(_HTTP2_PREFACE)
        while len(answer) < 4 and (more := connection.recv(64)):
            answer += more
    except OSError:
        return answer
    return answer


def check_token(environment: Mapping[str, str]) -> None:
    """Check that token authentication has a token; without one, Ray aborts the process.

    Raises:
        ClusterError: the environment requires a token, and there is none.
    """
    if environment.get("RAY_AUTH_MODE", "").lower() != "token" or environment.get("RAY_AUTH_TOKEN"):
        return
    path = os.path.expanduser(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    try:
        token = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(
            f"RAY_AUTH_MODE=token, but the token's file {path} cannot be read ({error}); put the cluster's token there "
            "or into RAY_AUTH_TOKEN (on the head `ray get-auth-token` shows it), or unset RAY_AUTH_MODE"
        ) from error
    if not token:
        raise ClusterError(
            f"RAY_AUTH_MODE=token, but the token's file {path} is empty; put the cluster's token there or into "
            "RAY_AUTH_TOKEN (on the head `ray get-auth-token` shows it), or unset RAY_AUTH_MODE"
        )


def choose_temp_folder(environment: Mapping[str, str]) -> str:
    """The folder for logs and sockets of a local cluster: RAY_TMPDIR, TMPDIR or /tmp, as in Ray.

    If the path of TMPDIR is too long for sockets, /tmp is used. For RAY_TMPDIR this is an error.

    Raises:
        ClusterError: the path is too long, cannot be written, or has too little space.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if environment.get(name)), "")
    folder = os.path.abspath(environment[name]) if name else _DEFAULT_TMPDIR
    if _socket_length(folder) > _MAX_SOCKET_PATH:
        if name == "RAY_TMPDIR" or _socket_length(_DEFAULT_TMPDIR) > _MAX_SOCKET_PATH:
            limit = _MAX_SOCKET_PATH - (_socket_length(folder) - len(os.fsencode(folder)))
            raise ClusterError(
                f"{name}={folder} has {len(os.fsencode(folder))} bytes, too many for Ray's sockets in it; "
                f"give a folder whose path has at most {limit} bytes: RAY_TMPDIR={_DEFAULT_TMPDIR}"
            )
        folder, name = _DEFAULT_TMPDIR, ""
    _check_writable(folder, name)
    return folder


def _socket_length(folder: str) -> int:
    return len(os.fsencode(os.path.join(folder, _RAY_SOCKET_PATH)))


def private_tmpdir(temp_folder: str) -> str:
    """A new private folder for the token and the temporary files of a local cluster.

    It is deleted when this process ends, even if it is killed. Ray kills its processes, so they cannot delete their own
    files.

    Args:
        temp_folder: where the folder is if the path of TMPDIR is too long for sockets; see `choose_temp_folder`.
    """
    parent = tempfile.gettempdir()  # this process keeps its TMPDIR from here on
    if len(os.fsencode(os.path.join(parent, _PYTHON_SOCKET))) > _MAX_SOCKET_PATH:
        parent = temp_folder
    folder = new_private_folder(_PREFIX, parent)
    start_reaper(folder)
    atexit.register(_end_cluster, folder, os.getpid())
    return folder


def _check_writable(folder: str, name: str) -> None:
    origin = f"{name}={folder}" if name else folder
    advice = "set RAY_TMPDIR to a folder with a short path that is writable and has space"
    try:
        inside = os.path.join(folder, "ray")
        os.makedirs(inside, exist_ok=True)
        with tempfile.TemporaryFile(dir=inside):
            free = shutil.disk_usage(inside).free
    except OSError as error:
        raise ClusterError(f"Ray cannot keep its temporary files in {origin} ({error}); {advice}") from error
    if free < MIN_TEMP_BYTES:
        raise ClusterError(
            f"Ray cannot keep its temporary files in {origin}: {free / 2**20:.0f} MiB are free, at least "
            f"{MIN_TEMP_BYTES / 2**20:.0f} MiB are needed; delete files there, or {advice}"
        )


def object_store_bytes(temp_folder: str, shared_memory: str = _SHM_PATH) -> int | None:
    """Size of the object store in shared memory; None if Ray's default, 30 % of the memory, fits.

    If less than the minimum is free (Docker's default is 64 MiB), Ray places a store of the minimum size in its
    temporary folder.

    Raises:
        ClusterError: neither has enough space.
    """
    if not os.path.isdir(shared_memory):
        return None
    free = int(0.9 * shutil.disk_usage(shared_memory).free)
    if free >= 0.3 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return None
    if free >= MIN_OBJECT_STORE_BYTES:
        return free
    needed = MIN_TEMP_BYTES + MIN_OBJECT_STORE_BYTES
    left = shutil.disk_usage(temp_folder).free
    if left < needed:
        raise ClusterError(
            f"Ray's object store fits neither into {shared_memory} ({free / 2**20:.0f} MiB free) nor into "
            f"{temp_folder} ({left / 2**20:.0f} MiB free, {needed / 2**20:.0f} MiB needed); give the container more "
            "shared memory (docker run --shm-size=1g), or set RAY_TMPDIR to a folder with space"
        )
    return MIN_OBJECT_STORE_BYTES


@contextmanager
def local_cluster_auth(temp_folder: str) -> Iterator[tuple[str, str]]:
    """Environment in which `ray.init` starts a cluster on loopback that requires a token.

    Ray's processes inherit the environment. It is restored when the block ends, so that a later `ray start` or
    `slick submit` is not affected.

    Args:
        temp_folder: see `private_tmpdir`, which holds the token and is the TMPDIR of Ray's processes.

    Yields:
        Where the user finds the token for the dashboard, and the private folder.

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
        # Compiled kernels are kept: torch's default is a folder in TMPDIR.
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or _kernel_cache(),
    }
    private = settings["TMPDIR"] = private_tmpdir(temp_folder)
    named = next((name for name in _TOKEN_VARIABLES if os.environ.get(name)), None)
    if named is None:
        settings["RAY_AUTH_TOKEN_PATH"] = _new_token(private)
    with _patched_environ(settings):
        check_token(os.environ)
        compat.reload_ray_authentication()
        with compat.ray_multi_node_disabled():
            place = "of RAY_AUTH_TOKEN" if named == "RAY_AUTH_TOKEN" else f"in {os.environ['RAY_AUTH_TOKEN_PATH']}"
            yield place, private


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


def _new_token(folder: str) -> str:
    """Write a random token to a private folder, and return the path of its file."""
    path = os.path.join(folder, "token")
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def _kernel_cache() -> str:
    return os.path.join(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")


def _end_cluster(folder: str, owner: int) -> None:
    """End this process's cluster, whose processes write to the folder, and delete the folder."""
    if os.getpid() == owner:  # forked processes inherit exit functions
        import ray

        ray.shutdown()
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
