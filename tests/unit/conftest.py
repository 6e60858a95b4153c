"""Fixtures of the unit tests."""

from collections.abc import Callable, Iterator

import pytest

from tests.judge_server import JudgeServer, Reply


@pytest.fixture
def serve() -> Iterator[Callable[..., JudgeServer]]:
    """Starts servers that stop at the end of the test."""
    servers: list[JudgeServer] = []

    def start(reply: Callable[[str], Reply], port: int = 0) -> JudgeServer:
        servers.append(JudgeServer(("127.0.0.1", port), reply))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
