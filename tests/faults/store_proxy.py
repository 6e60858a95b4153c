"""An HTTP proxy in front of a local object store that can fail for some time: errors, latency and cut connections."""

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ERRORS, LATENCY, CUT = "errors", "latency", "cut"
_STATUSES = {500: "InternalError", 503: "SlowDown", 429: "TooManyRequests"}
_DELAYS_S = (0.5, 6.0)
"""Range of the delay of a request in seconds; the S3 client gives up a connection after 3 s without an answer."""
_TIMEOUT_S = 60.0
_HOP_HEADERS = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")


@dataclass
class StoreProxy:
    """Passes requests to a server; while it is disturbed, it delays them, answers errors, or cuts connections."""

    target: str
    """Address of the server, such as http://127.0.0.1:5000."""
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    num_disturbed: int = 0
    """Requests that were disturbed so far."""
    address: str = ""
    _fault: str = ""
    _share: float = 1.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def disturb(self, fault: str, share: float = 1.0) -> None:
        """Begin to disturb requests.

        Args:
            fault: `ERRORS` (statuses 429, 500 and 503), `LATENCY`, or `CUT` (in the middle of a request or an answer).
            share: the share of requests that are disturbed.
        """
        with self._lock:
            self._fault, self._share = fault, share

    def recover(self) -> None:
        """Pass all requests from now on."""
        with self._lock:
            self._fault = ""

    def draw_action(self) -> tuple[str, float]:
        """What happens to the next request, and a number from 0 to 1; an empty string: it is passed."""
        with self._lock:
            if not self._fault or self.rng.random() >= self._share:
                return "", 0.0
            self.num_disturbed += 1
            return self._fault, self.rng.random()


@contextmanager
def running_proxy(target: str, rng: random.Random) -> Iterator[StoreProxy]:
    """Start a proxy in threads of this process, on a free port of the loopback interface."""
    proxy = StoreProxy(target, rng)

    class Handler(_Handler):
        store = proxy

    server = _Server(("127.0.0.1", 0), Handler)
    proxy.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the client has closed, or that were cut here."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    store: StoreProxy

    def handle_any(self) -> None:
        """Answer one request."""
        action, number = self.store.draw_action()
        if action == CUT and number < 0.5:  # the server never gets the request
            if self.command in ("PUT", "POST"):
                self.rfile.read1(1 << 16)  # a part of the body
            self._reset()
            return
        body = self._read_body()
        if action == LATENCY:
            time.sleep(_DELAYS_S[0] + number * (_DELAYS_S[1] - _DELAYS_S[0]))
        is_passed = action != ERRORS or number < 0.25  # the server may have done what it reports as an error
        answer = self._pass(body) if is_passed else None
        if action == ERRORS or answer is None:
            self._answer_error(int(number * 997))
        elif action == CUT:
            self._answer(*answer, num_sent=int(len(answer[2]) * (number * 2 - 1)))
            self._reset()
        else:
            self._answer(*answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return body

    def _pass(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes] | None:
        """Status, headers and body of the server's answer; None if it does not answer."""
        connection = HTTPConnection(urlsplit(self.store.target).netloc, timeout=_TIMEOUT_S)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS[:3]}
        with suppress(OSError, HTTPException):
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        return None

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, num_sent: int | None = None) -> None:
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP_HEADERS:
                self.send_header(name, value)
        # The answer to HEAD has the length of the object, and no body.
        self.send_header("Content-Length", lengths[0] if self.command == "HEAD" and lengths else str(len(body)))
        self.end_headers()
        self.wfile.write(body[:num_sent])

    def _answer_error(self, number: int) -> None:
        status, code = list(_STATUSES.items())[number % len(_STATUSES)]
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>simulated</Message></Error>".encode()
        self._answer(status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else body)

    def _reset(self) -> None:
        """Close the connection so that the client gets `connection reset`."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
