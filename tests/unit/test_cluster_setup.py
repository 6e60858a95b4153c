"""Checks before Ray starts or is joined: each problem is one message."""

import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from slick import cluster_setup
from slick.cluster_setup import (
    MIN_OBJECT_STORE_BYTES,
    check_address_format,
    check_reachable,
    check_token,
    choose_temp_folder,
    object_store_bytes,
    private_tmpdir,
)
from slick.errors import ClusterError


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "https://head:8265", "s3://head"])
def test_address_of_another_kind_is_rejected_with_advice(address: str) -> None:
    with pytest.raises(ClusterError, match="slick submit STEP PRESET --address http://head:8265") as caught:
        check_address_format(address)
    assert address in str(caught.value)


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "auto", "head:6379", "[::1]:6379"])
def test_address_of_a_head_is_accepted(address: str) -> None:
    check_address_format(address)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that answers a client with the given bytes, or with None does not answer."""
    answer: bytes | None = request.param
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                if answer is not None:
                    connection.recv(64)
                    connection.sendall(answer)
                done.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        done.set()
        thread.join()


HTTP_2 = [bytes(3) + b"\x04" + bytes(5)]


@pytest.mark.parametrize("server", HTTP_2, indirect=True)
def test_grpc_server_is_accepted(server: int) -> None:
    check_reachable("127.0.0.1", server, f"127.0.0.1:{server}")


@pytest.mark.parametrize(
    "server", [b"HTTP/1.0 400 Bad request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"-ERR\r\n", b"", None], indirect=True
)
def test_other_server_is_rejected(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_setup, "SOCKET_TIMEOUT_S", 0.5)
    with pytest.raises(ClusterError, match="the server there is not the head of a Ray cluster") as caught:
        check_reachable("127.0.0.1", server, f"127.0.0.1:{server}")
    assert f"RAY_ADDRESS=127.0.0.1:{server}" in str(caught.value)
    assert "ray start --head" in str(caught.value)


@pytest.mark.parametrize("server", [None], indirect=True)
def test_encrypted_cluster_is_checked_by_connecting_only(server: int) -> None:
    check_reachable("127.0.0.1", server, "head", is_tls=True)


def test_unreachable_address_and_unknown_host_are_errors_with_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS=127.0.0.1:{port}: no Ray cluster.*unset RAY_ADDRESS"):
        check_reachable("127.0.0.1", port, f"127.0.0.1:{port}")
    with pytest.raises(
        ClusterError, match=r"the host name no\.such\.host\.invalid does not resolve.*unset RAY_ADDRESS"
    ):
        check_reachable("no.such.host.invalid", 6379, "no.such.host.invalid:6379")


def test_required_token_must_exist(tmp_path: Path) -> None:
    check_token({})
    check_token({"RAY_AUTH_MODE": "disabled"})
    check_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"})
    file = tmp_path / "token"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    with pytest.raises(ClusterError, match=f"{file} cannot be read.*ray get-auth-token"):
        check_token(environment)
    file.write_text("\n")
    with pytest.raises(ClusterError, match=f"{file} is empty"):
        check_token(environment)
    file.write_text("secret\n")
    check_token(environment)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, unlike that of `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="slick-", dir="/tmp") as folder:
        yield Path(folder)


def test_temporary_folder_is_that_of_ray(short_folder: Path) -> None:
    first, second = short_folder / "1", short_folder / "2"
    assert choose_temp_folder({"RAY_TMPDIR": str(first), "TMPDIR": str(second)}) == str(first)
    assert choose_temp_folder({"TMPDIR": str(second)}) == str(second)
    assert choose_temp_folder({"RAY_TMPDIR": "", "TMPDIR": ""}) == "/tmp"


def test_path_too_long_for_sockets_is_replaced_or_rejected(tmp_path: Path) -> None:
    long = str(tmp_path / ("x" * 100))
    assert choose_temp_folder({"TMPDIR": long}) == "/tmp"
    with pytest.raises(ClusterError, match=f"RAY_TMPDIR={long} has .* at most [34][0-9] bytes"):
        choose_temp_folder({"RAY_TMPDIR": long})
    assert not os.path.exists(long)


def test_sockets_of_the_dashboard_fit(short_folder: Path) -> None:
    socket_path = f"ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/dash_MetricsHead"
    fits = short_folder / ("x" * (107 - len(f"{short_folder}//{socket_path}")))
    assert choose_temp_folder({"TMPDIR": str(fits)}) == str(fits)
    assert choose_temp_folder({"TMPDIR": f"{fits}x"}) == "/tmp"


def test_python_sockets_use_a_short_temporary_folder(monkeypatch: pytest.MonkeyPatch, short_folder: Path) -> None:
    fits = short_folder / ("x" * (107 - len(f"{short_folder}//slick-ray-12345678/pymp-12345678/listener-12345678")))
    for folder, parent in ((fits, fits), (Path(f"{fits}x"), short_folder)):
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        private = Path(private_tmpdir(str(short_folder)))
        assert private.parent == parent
        assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_unwritable_temporary_folder_is_rejected(short_folder: Path) -> None:
    file = short_folder / "f"
    file.touch()
    with pytest.raises(ClusterError, match=f"RAY_TMPDIR={file} .*set RAY_TMPDIR to a folder"):
        choose_temp_folder({"RAY_TMPDIR": str(file)})


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_full_disk_for_ray_is_rejected(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(3 * 2**20))
    with pytest.raises(ClusterError, match="3 MiB are free, at least 100 MiB are needed"):
        choose_temp_folder({"RAY_TMPDIR": str(short_folder)})


def test_object_store_size_fits_into_shared_memory_or_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"/tmp": 2**40, str(tmp_path): 2**50}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(free[path]))
    shared = str(tmp_path)
    assert object_store_bytes("/tmp", shared) is None, "the default of Ray if there is space"
    free[shared] = 500 * 2**20
    assert object_store_bytes("/tmp", shared) == 450 * 2**20
    free[shared] = 64 * 2**20  # the default of Docker
    assert object_store_bytes("/tmp", shared) == MIN_OBJECT_STORE_BYTES
    free["/tmp"] = 150 * 2**20
    with pytest.raises(ClusterError, match="--shm-size"):
        object_store_bytes("/tmp", shared)
    assert object_store_bytes("/tmp", str(tmp_path / "absent")) is None, "a system without a folder of shared memory"
