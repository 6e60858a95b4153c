"""The head of a Ray cluster over HTTP: jobs submitted, watched, listed, stopped. The one import of Ray's job client.

A token is Ray's own business: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; it is neither read nor shown
here. Whatever the head refuses becomes one message.
"""

import asyncio
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from slick.cluster import configure_authentication
from slick.errors import ClusterError, SettingsError

CONNECT_TIMEOUT_S = 10.0
"""Seconds that a head has to answer at all."""
STARTUP_TIMEOUT_S = 30.0
"""Seconds that a head which answers may take until it can run jobs."""
RETRY_INTERVAL_S = 3.0
MAX_RETRIES = 40
"""A head that is gone for two minutes while its logs are followed is given up; the job is not."""
TERMINAL_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")


def parse_address(address: str | None) -> str:
    """The head's address, of the flag or of RAY_API_SERVER_ADDRESS.

    Raises:
        SettingsError: there is none, or it is not http://HEAD:8265.
    """
    address = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or "").rstrip("/")
    if not address:
        raise SettingsError("--address http://HEAD:8265 is needed: the dashboard of the cluster's head")
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise SettingsError(f"--address {address} is not an address of a head; wanted http://HEAD:8265")
    return address


def is_loopback_address(address: str) -> bool:
    """True for loopback: a head on this machine, or the near end of a tunnel."""
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_DEFAULT_MESSAGE = "Job is currently running."
"""Ray's message of a job that has said nothing of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJob:
    """What we want to know of a job; not its runtime environment, in which Ray's client hands out secrets."""

    job_id: str
    status: str
    metadata: Mapping[str, str]
    message: str
    error_type: str
    exit_code: int | None
    since_s: float | None
    """Unix time at which it began, or ended."""

    @classmethod
    def from_details(cls, details: Any) -> Self:
        """From Ray's JobDetails."""
        status = str(details.status)
        since_ms = details.end_time if status in TERMINAL_STATUSES else details.start_time
        return cls(
            job_id=details.submission_id,
            status=status,
            metadata=details.metadata or {},
            message=details.message or "",
            error_type=details.error_type or "",
            exit_code=details.driver_exit_code,
            since_s=None if since_ms is None else since_ms / 1000,
        )

    @property
    def exit_status(self) -> int:
        """As of the step's own door: 0 done, 2 something the user can mend, 130 stopped, else 1."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 130
        return 2 if self.exit_code == 2 or self.error_type == "RUNTIME_ENV_SETUP_FAILURE" else 1

    @property
    def reason(self) -> str:
        """The line of the message that counts: how far a running job is, or what ended it, in the step's own words."""
        if self.status == "SUCCEEDED" or self.message == _DEFAULT_MESSAGE:
            return ""
        lines = [line.strip() for line in self.message.splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("slick: ")), lines[-1] if lines else "")


def submit_when_ready(start: Callable[[], object], *, limit_s: float = STARTUP_TIMEOUT_S, pause_s: float = 1.0) -> None:
    """Submit a job to a head that may have been started just now: its job agent comes up some seconds after its server.

    Raises:
        RuntimeError: the head refused the job for another reason, or said too long that it has no agent yet.
    """
    end = time.monotonic() + limit_s
    while True:
        try:
            start()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(pause_s)
        else:
            return


class RayJobClient:
    """A connection to the head's job server."""

    def __init__(self, address: str) -> None:
        self.address = address
        has_token = configure_authentication()
        if check_head_reachable(address) and not is_loopback_address(address):
            print(f"warning: {address} asks nobody for a token: who reaches it can run code there", file=sys.stderr)
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # which Ray heeds before it heeds the argument
        with self._translate_errors(has_token):
            from ray.job_submission import JobSubmissionClient

            for module in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env"):
                logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)  # they tell of every upload
            self._client: Any = JobSubmissionClient(address)

    @contextmanager
    def _translate_errors(self, has_token: bool = True) -> Iterator[None]:
        """Turn what the head refuses into one message."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            found = "it does not take the token found here" if has_token else "no token was found here"
            raise ClusterError(
                f"the head at {self.address} wants its cluster's token: {found}. Put it into ~/.ray/auth_token or "
                "RAY_AUTH_TOKEN (on the head `ray get-auth-token` shows it), with RAY_AUTH_MODE=token or unset"
            ) from error
        except (OSError, RuntimeError, ValueError, LookupError) as error:
            raise ClusterError(f"the head at {self.address} did not do what it was asked: {error}") from error

    def dashboard_url(self, job_id: str) -> str:
        """The job's page in the dashboard."""
        return f"{self.address}/#/jobs/{job_id}"

    def submit(
        self, entrypoint: str, job_id: str, folder: Path, env: Mapping[str, str], metadata: Mapping[str, str], pip: str
    ) -> None:
        """Upload `folder` and start the job.

        Args:
            entrypoint: the command line, run in the folder.
            job_id: of the new job; unique on the cluster.
            folder: what travels.
            env: environment of the job and all its workers.
            metadata: what lists of jobs show.
            pip: requirements file that every node installs first; empty for none.
        """
        runtime_env: dict[str, Any] = {"working_dir": str(folder), "env_vars": dict(env)}
        if pip:
            runtime_env["pip"] = pip
        start = partial(
            self._client.submit_job,
            entrypoint=entrypoint,
            submission_id=job_id,
            runtime_env=runtime_env,
            metadata=dict(metadata),
        )
        with self._translate_errors():
            submit_when_ready(start)

    def jobs(self) -> list[RayJob]:
        """All submitted jobs that the head remembers, the latest first."""
        with self._translate_errors():
            listed = [details for details in self._client.list_jobs() if details.submission_id]
        return [
            RayJob.from_details(details) for details in sorted(listed, key=lambda d: d.start_time or 0, reverse=True)
        ]

    def job(self, job_id: str) -> RayJob:
        """One job as it is now."""
        with self._translate_errors():
            return RayJob.from_details(self._client.get_job_info(job_id))

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; False if it had ended."""
        with self._translate_errors():
            return bool(self._client.stop_job(job_id))

    def follow(self, job_id: str) -> RayJob:
        """Print the job's log from its beginning until it has ended; a broken connection is taken up again."""
        self.job(job_id)  # one that is not there is said at once
        seen, failures = 0, 0
        while True:
            try:
                seen, whole = asyncio.run(self._print_log(job_id, seen))
                job = self.job(job_id)
            except ClusterError:
                failures += 1
                if failures > MAX_RETRIES:
                    raise
                time.sleep(RETRY_INTERVAL_S)
                continue
            failures = 0 if whole else failures + 1
            if job.status in TERMINAL_STATUSES and (whole or failures > 3):
                return job
            time.sleep(1.0 if whole else RETRY_INTERVAL_S)

    async def _print_log(self, job_id: str, seen: int) -> tuple[int, bool]:
        """Print what follows the first `seen` characters; how many there are now, and whether the log ended."""
        import aiohttp

        position = 0
        try:
            async for text in self._client.tail_job_logs(job_id):
                fresh = text[max(0, seen - position) :]
                position += len(text)
                sys.stdout.write(fresh)
                sys.stdout.flush()
        except (RuntimeError, OSError, aiohttp.ClientError):
            return max(seen, position), False
        return max(seen, position), True


def check_head_reachable(address: str) -> bool:
    """See that something answers, within seconds; a refusal is an answer. True if it answers without a token.

    Raises:
        ClusterError: nothing does.
    """
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=CONNECT_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return False
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise ClusterError(
            f"no head answers at {address} ({why}); see that the cluster is up (`ray up cluster.yaml`) and that this "
            "machine reaches its port 8265 (`ray dashboard cluster.yaml` opens a tunnel: then --address "
            "http://127.0.0.1:8265)"
        ) from error
