"""A judge for tests: a real HTTP server with the replies of a function."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from slick.annotation.judge_client import JudgeConfig

Reply = str | tuple[int, dict[str, str], bytes]
"""The text of a chat completion, or a status with headers and a body."""


class JudgeServer(ThreadingHTTPServer):
    """An OpenAI-compatible server whose replies a function determines from the answer to grade, or the prompt."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], reply: Callable[[str], Reply]) -> None:
        super().__init__(address, _Handler)
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def config(self) -> JudgeConfig:
        """Settings of a judge at this server."""
        return JudgeConfig(
            url=f"http://127.0.0.1:{self.server_port}/v1", served_model="small", concurrency=4, min_control_accuracy=0
        )

    @property
    def answers(self) -> Counter[str]:
        """The answers, or prompts, of first requests."""
        return Counter(answer_of(request) for request in self.requests if len(request["messages"]) == 1)

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


def answer_of(request: dict[str, Any]) -> str:
    """The answer, or the prompt, that a request asks about."""
    lines = request["messages"][0]["content"].splitlines()
    text = next(line.partition(": ")[2] for line in lines if line.startswith(("Proposed answer: ", "Prompt: ")))
    answer: str = json.loads(text)
    return answer


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request | {"path": self.path})
        self.server.headers.append(dict(self.headers))
        reply = self.server.reply(answer_of(request))
        if isinstance(reply, str):
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]}).encode()
            reply = (200, {}, body)
        status, headers, body = reply
        if status == 0:  # close the connection without an answer
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError):  # the client has given up
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
