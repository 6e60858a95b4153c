"""A client of the job server of a Ray cluster's head: submit, follow, list and stop jobs.

Ray reads the token from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; it is neither read nor shown here.
Errors of the head become a ClusterError.
"""

import asyncio
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""Seconds until a head must answer a request."""
STARTUP_TIMEOUT_S = 30.0
"""Seconds that a head may take after its first answer until it can run jobs."""
RETRY_INTERVAL_S = 3.0
MAX_RETRIES = 40
"""Retries of a broken log connection: about two minutes. The job itself is not affected."""
TERMINAL_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")


def parse_address(address: str | None) -> str:
    """The head's address, from the flag or else from RAY_API_SERVER_ADDRESS.

    Raises:
        SettingsError: neither is given, or the address is not of the form http://HEAD:8265.
    """
    address = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or "").rstrip("/")
    if not address:
        raise SettingsError("no --address is given; give that of the head's dashboard, --address http://HEAD:8265")
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise SettingsError(f"--address {address} is not the address of a head's dashboard; expected http://HEAD:8265")
    return address


def is_loopback_address(address: str) -> bool:
    """Whether the address is loopback: a head on this machine, or a tunnel."""
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_DEFAULT_MESSAGE = "Job is currently running."
"""Ray's message for a job that has not set one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJob:
    """A job, without its runtime environment, which may hold secrets."""

    job_id: str
    status: str
    metadata: Mapping[str, str]
    message: str
    error_type: str
    exit_code: int | None
    since_s: float | None
    """Unix time at which the job has started or, if it has ended, has ended."""

    @classmethod
    def from_details(cls, details: Any) -> Self:
        """The job that Ray's `JobDetails` describe."""
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
        """The exit status of the step: 0 success, 2 an error that the user can fix, 130 stopped, else 1."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 130
        return 2 if self.exit_code == 2 or self.error_type == "RUNTIME_ENV_SETUP_FAILURE" else 1

    @property
    def reason(self) -> str:
        """One line of the job's message: its progress, or the reason of its failure."""
        if self.status == "SUCCEEDED" or self.message == _DEFAULT_MESSAGE:
            return ""
        lines = [line.strip() for line in self.message.splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("slick: ")), lines[-1] if lines else "")


def submit_when_ready(start: Callable[[], object], *, limit_s: float = STARTUP_TIMEOUT_S, pause_s: float = 1.0) -> None:
    """Submit a job, and retry while the head has no job agent, which starts some seconds after its server.

    Raises:
        RuntimeError: the head rejects the job for another reason, or has no agent within `limit_s` seconds.
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
    """A connection to the head's job server; all methods raise ClusterError if the head rejects the request."""

    def __init__(self, address: str) -> None:
        self.address = address
        has_token = configure_authentication()
        if check_head_reachable(address) and not is_loopback_address(address):
            message = f"warning: {address} requires no token; anyone who can connect to it can run code there"
            print(message, file=sys.stderr)
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # takes precedence over the argument
        with self._translate_errors(has_token):
            from ray.job_submission import JobSubmissionClient

            for module in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env"):
                logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)  # they log every upload
            self._client: Any = JobSubmissionClient(address)

    @contextmanager
    def _translate_errors(self, has_token: bool = True) -> Iterator[None]:
        """Turn errors of the client into a ClusterError."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            reason = "it does not accept the token of this machine" if has_token else "this machine has no token"
            raise ClusterError(
                f"the head at {self.address} requires its cluster's token: {reason}. Put it into ~/.ray/auth_token or "
                "RAY_AUTH_TOKEN (on the head `ray get-auth-token` shows it), with RAY_AUTH_MODE=token or unset"
            ) from error
        except (OSError, RuntimeError, ValueError, LookupError) as error:
            raise ClusterError(f"the head at {self.address} rejected the request: {error}") from error

    def dashboard_url(self, job_id: str) -> str:
        """The job's page in the dashboard."""
        return f"{self.address}/#/jobs/{job_id}"

    def submit(
        self,
        entrypoint: str,
        job_id: str,
        folder: Path,
        env: Mapping[str, str],
        metadata: Mapping[str, str],
        packages: Sequence[str] = (),
    ) -> None:
        """Upload `folder` and start the job.

        Args:
            entrypoint: the command line, run in the folder.
            job_id: the job's id, unique on the cluster.
            folder: the working directory of the job.
            env: environment variables of the job and its workers.
            metadata: shown in lists of jobs.
            packages: lines of a requirements file that every node installs first.
        """
        runtime_env: dict[str, Any] = {"working_dir": str(folder), "env_vars": dict(env)}
        if packages:
            runtime_env["pip"] = list(packages)
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
        """All submitted jobs that the head still lists, the latest first."""
        with self._translate_errors():
            listed = [details for details in self._client.list_jobs() if details.submission_id]
        latest_first = sorted(listed, key=lambda details: details.start_time or 0, reverse=True)
        return [RayJob.from_details(details) for details in latest_first]

    def job(self, job_id: str) -> RayJob:
        """The current state of a job."""
        with self._translate_errors():
            return RayJob.from_details(self._client.get_job_info(job_id))

    def stop(self, job_id: str) -> bool:
        """Stop a job; False if it has already ended."""
        with self._translate_errors():
            return bool(self._client.stop_job(job_id))

    def follow(self, job_id: str) -> RayJob:
        """Print the log of a job until it ends, and return the job. A broken connection is opened again."""
        self.job(job_id)  # raises at once if there is no such job
        num_printed, failures = 0, 0
        while True:
            try:
                num_printed, is_complete = asyncio.run(self._print_log(job_id, num_printed))
                job = self.job(job_id)
            except ClusterError:
                failures += 1
                if failures > MAX_RETRIES:
                    raise
                time.sleep(RETRY_INTERVAL_S)
                continue
            failures = 0 if is_complete else failures + 1
            if job.status in TERMINAL_STATUSES and (is_complete or failures > 3):
                return job
            time.sleep(1.0 if is_complete else RETRY_INTERVAL_S)

    async def _print_log(self, job_id: str, num_printed: int) -> tuple[int, bool]:
        """Print the log after its first `num_printed` characters.

        Returns:
            The number of characters printed in all, and whether the end of the log was reached.
        """
        import aiohttp

        position = 0
        try:
            async for text in self._client.tail_job_logs(job_id):
                sys.stdout.write(text[max(0, num_printed - position) :])
                sys.stdout.flush()
                position += len(text)
        except (RuntimeError, OSError, aiohttp.ClientError):
            return max(num_printed, position), False
        return max(num_printed, position), True


def check_head_reachable(address: str) -> bool:
    """Check that a server answers at the address; return whether it answers without a token.

    Raises:
        ClusterError: no server answers within `CONNECT_TIMEOUT_S` seconds.
    """
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=CONNECT_TIMEOUT_S):
            return True
    except urllib.error.HTTPError:
        return False
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise ClusterError(
            f"no head answers at {address} ({why}); check that the cluster is up (`ray up cluster.yaml`) and that this "
            "machine reaches its port 8265 (`ray dashboard cluster.yaml` opens a tunnel: then --address "
            "http://127.0.0.1:8265)"
        ) from error
