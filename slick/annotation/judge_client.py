"""The settings of the matcher `judge`, and the client that gets grades from an OpenAI-compatible server. No Ray.

A request with a temporary failure (HTTP 408, 429 and 5xx, a time-out, a broken connection, a body that is not a chat
completion) is retried with exponential backoff. After a reply that names no outcome, it is repeated with a reminder.
"""

import http.client
import json
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from slick.annotation.rubrics import ANSWER_RUBRIC, Rubric
from slick.errors import EngineError, SettingsError
from slick.settings import check_settings, setting
from slick.strict_json import parse_json
from slick.study_files import UNPARSABLE
from slick.uris import check_uri

MAX_REPLY_CHARS = 1000
"""Characters of a reply that are stored."""
_MAX_RESPONSE_BYTES = 1 << 22
_MAX_ERROR_CHARS = 300
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0
"""Longest pause before a request is repeated. A server that demands a longer one ends the step."""
_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Settings of the matcher `judge`: a local model, or a model behind an OpenAI-compatible URL."""

    model: str = setting("", "content")
    """A folder, a Hugging Face Hub id or a .gguf file: compares the probabilities of the three outcomes."""
    url: str = setting("", "labels")
    """Instead of a local model, the base URL of an OpenAI-compatible server, such as http://localhost:8000/v1."""
    served_model: str = setting("", "labels")
    """The model's name at that server."""
    api_key_env: str = setting("OPENAI_API_KEY", "nothing")
    """Name of the environment variable with the API key of the server. The key itself is never stored or logged. If
    the variable is not set, no key is sent."""
    trust_remote_code: bool = setting(False, "nothing")
    """Run code that comes with the local model."""
    prompt_version: int = setting(ANSWER_RUBRIC.version, "labels", minimum=1, maximum=ANSWER_RUBRIC.version)
    """Version of the judge's prompt; see `slick.annotation.rubrics`."""
    max_new_tokens: int = setting(16, "labels", minimum=1)
    """Maximum number of tokens of a server's reply; reasoning models need more."""
    max_retries: int = setting(4, "nothing", minimum=0)
    """Number of retries of a request that fails, or whose reply names no outcome."""
    timeout_s: float = setting(60.0, "nothing", above=0)
    """Seconds to wait for a reply of the server."""
    concurrency: int = setting(8, "nothing", minimum=1, maximum=1024)
    """Maximum number of concurrent requests to the server."""
    max_unparsable_share: float = setting(0.01, "nothing", minimum=0, maximum=1)
    """A question whose category depends on an answer without an outcome is set aside: it gets no label. If their share
    of all questions exceeds this, the step stops before it writes labels."""
    min_control_accuracy: float = setting(0.8, "nothing", minimum=0, maximum=1)
    """Minimum share of gold answers and of answers to other questions that the judge must recognize before it grades;
    otherwise the step stops. 0 disables the check."""
    graded: str = setting("", "nothing")
    """With --rescore: a grading sheet of `slick report`, to compare the judge with a person's grades."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.model and self.url:
            raise SettingsError(
                f"--judge.model {self.model} and --judge.url {self.url} are two judges; give one of them"
            )
        if bool(self.url) != bool(self.served_model):
            raise SettingsError(
                "--judge.url and --judge.served-model belong together: the base URL of an OpenAI-compatible server and "
                f"the name of its model; got {self.url!r} and {self.served_model!r}"
            )
        if not _VARIABLE.fullmatch(self.api_key_env):
            raise SettingsError(
                "--judge.api-key-env expects the name of an environment variable, such as OPENAI_API_KEY, which holds "
                "the key; what was given is no such name, and is not repeated because it may be the key itself"
            )
        if self.url:
            check_uri(self.url, "--judge.url")
            self._check_url()

    def _check_url(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the port is not a number
            is_valid = False
        if not is_valid or parts.query or parts.fragment or not self.url.isascii() or not self.url.isprintable():
            raise SettingsError(f"--judge.url expects a URL such as http://localhost:8000/v1, got {self.url!r}")

    @property
    def is_given(self) -> bool:
        """Whether the settings name a judge."""
        return bool(self.model or self.url)


class Grade(NamedTuple):
    """The judge's grade of one answer."""

    outcome: str
    """One of the outcomes of the rubric, or `UNPARSABLE`."""
    reply: str
    """The last reply, shortened to `MAX_REPLY_CHARS`."""
    attempts: int
    """Number of replies."""


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are errors: a followed one would send the key to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Do not follow."""


class _TemporaryError(Exception):
    """A request failed temporarily. `pause_s`: the pause that the server demands, if any."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class JudgeClient:
    """A client of a grading server, for use by several threads."""

    def __init__(self, config: JudgeConfig, rubric: Rubric = ANSWER_RUBRIC) -> None:
        """A client; connects with the first request.

        Args:
            config: address, key and limits.
            rubric: what the judge decides.

        Raises:
            SettingsError: the environment variable with the key holds no possible key.
        """
        self._config, self._rubric = config, rubric
        self._endpoint = _endpoint(config.url)
        self._key = os.environ.get(config.api_key_env, "").strip()
        if not all("!" <= character <= "~" for character in self._key):
            raise SettingsError(
                f"the environment variable {config.api_key_env} holds no valid key: it has spaces or characters "
                "outside ASCII; set it to the key alone"
            )
        self._opener = urllib.request.build_opener(_RefuseRedirects)
        self.stopped = threading.Event()
        """Set it to end all pauses and retries at once."""

    def grade(self, item: str, attempts: int = 0) -> Grade:
        """The grade of an item.

        Args:
            item: of the rubric, such as question, gold answers and answer.
            attempts: earlier replies that named no outcome.

        Raises:
            EngineError: the server cannot be reached, refuses the request or does not answer as expected.
        """
        messages = [{"role": "user", "content": self._rubric.prefix + item + self._rubric.request}]
        while True:
            reply, attempts = self._complete(messages), attempts + 1
            outcome = self._rubric.parse_reply(reply)
            if outcome != UNPARSABLE or attempts > self._config.max_retries:
                return Grade(outcome, reply[:MAX_REPLY_CHARS], attempts)
            # The same prompt at temperature 0 would get the same reply.
            messages = [
                messages[0],
                {"role": "assistant", "content": reply[:MAX_REPLY_CHARS] or "(no reply)"},
                {"role": "user", "content": self._rubric.request.strip()},
            ]

    def _complete(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The model's reply to messages; retries temporary failures."""
        started_at, pause, num_requests = time.monotonic(), _FIRST_PAUSE_S, 0
        while True:
            num_requests += 1
            try:
                return self._without_key(self._request(messages))
            except _TemporaryError as error:
                wait = pause if error.pause_s is None else error.pause_s
                if num_requests > self._config.max_retries or wait > _MAX_PAUSE_S or self.stopped.is_set():
                    reason = self._without_key(str(error))
                    if wait > _MAX_PAUSE_S:
                        reason += f", and demands a pause of {wait:,.0f} s"
                    raise EngineError(
                        f"the judge at {self._endpoint} did not grade an answer: {reason} ({num_requests} requests in "
                        f"{time.monotonic() - started_at:,.0f} s); check that the server runs and which load it allows "
                        "(--judge.concurrency)"
                    ) from None
            self.stopped.wait(wait)
            pause = min(2 * pause, _MAX_PAUSE_S)

    def _request(self, messages: Sequence[Mapping[str, str]]) -> str:
        body = {
            "model": self._config.served_model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": self._config.max_new_tokens,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._endpoint, json.dumps(body).encode(), headers, method="POST")
        timeout = self._config.timeout_s
        try:
            deadline = time.monotonic() + timeout
            with self._opener.open(request, timeout=timeout) as response:
                data = _read(response, deadline)
        except urllib.error.HTTPError as error:
            raise self._http_error(error) from None
        except TimeoutError:
            raise _TemporaryError(f"no reply within --judge.timeout-s {timeout:g}") from None
        except (OSError, http.client.HTTPException) as error:  # OSError: also URLError
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _TemporaryError(f"no reply within --judge.timeout-s {timeout:g}") from None
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise EngineError(f"the judge at {self._endpoint} has no valid certificate: {reason}") from None
            raise _TemporaryError(f"{type(reason).__name__}: {reason}") from None
        return _reply_text(data)

    def _without_key(self, text: str) -> str:
        """A text from the server, which may repeat the key that was sent to it."""
        return text.replace(self._key, "(the key)") if self._key else text

    def _http_error(self, error: urllib.error.HTTPError) -> Exception:
        """The error for a status other than 200."""
        try:
            body = error.read(_MAX_RESPONSE_BYTES).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            body = ""
        text = self._without_key(" ".join(body.split()))[:_MAX_ERROR_CHARS]
        reason = f"HTTP {error.code}{f' ({text})' if text else ''}"
        if error.code in _RETRIED_STATUS:
            return _TemporaryError(reason, _retry_after(error.headers.get("Retry-After")))
        advice = "check --judge.url and --judge.served-model"
        if error.code in (401, 403):
            has_key = "is set" if self._key else "is not set"
            advice = f"check the key: the environment variable {self._config.api_key_env} {has_key}"
        elif 300 <= error.code < 400:
            advice = "it redirects to another address; give that address as --judge.url"
        return EngineError(f"the judge at {self._endpoint} refused a request: {reason}; {advice}")


def _endpoint(url: str) -> str:
    base = url.rstrip("/")
    if base.endswith("/chat/completions"):
        return base
    return f"{base}/chat/completions" if urlsplit(base).path else f"{base}/v1/chat/completions"


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body of a response. The time-out of a socket applies to each read, so a slow body needs a deadline."""
    data = bytearray()
    while chunk := response.read1(1 << 16):
        data += chunk
        if len(data) > _MAX_RESPONSE_BYTES:
            raise _TemporaryError(f"a reply of more than {_MAX_RESPONSE_BYTES:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(data)


def _reply_text(data: bytes) -> str:
    """The text of a chat completion; empty if the model returned none."""
    try:
        content = parse_json(data, lenient=True)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        content = 0
    if content is not None and not isinstance(content, str):
        start = data[:_MAX_ERROR_CHARS].decode(errors="replace")
        raise _TemporaryError(f"the reply is not a chat completion; expected choices[0].message.content, got {start!r}")
    return content or ""


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header demands: a number or a date; None if there is none."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
