"""The Ray cluster of a process: connect to the one that is named, or start one on this machine."""

import json
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from slick import compat
from slick.cluster_access import check_loopback, job_config, local_cluster_auth
from slick.cluster_checks import (
    START_HINT,
    check_address_format,
    check_reachable,
    check_token,
    choose_temp_folder,
    object_store_bytes,
)
from slick.errors import ClusterError, ModelError, SettingsError
from slick.precision import CPU, Device

_LOG = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0
"""Seconds after which a cluster that does not let this process in is given up, on an idle machine."""
START_TIMEOUT_S = 60.0
"""Seconds after which a cluster that does not start here is given up, on an idle machine."""

# glibc gives every large buffer back to the kernel and faults it in again: a third of a small model's time on CPU.
# Its thresholds hold for the first heap alone, and Ray runs the code of actors and trainings in threads of their own.
MALLOC_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}

# What a cluster started here tells its processes; a value that is already set stays.
LOCAL_CLUSTER_ENV = {
    **MALLOC_ENV,
    # Ray's C++ parts print warnings about themselves on the terminal; what fails is raised all the same.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Actors of two steps start together; more than one process a core is no reason for a warning.
    "RAY_worker_maximum_startup_concurrency": "8",
    # Processes started ahead fit no trial of Tune, which asks for another environment; each takes 0.7 CPU seconds.
    "RAY_prestart_worker_first_driver": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

_LOG_PREFIX = re.compile(r"\[.{10,60}\] \w+\.(cc|h):\d+: ")
"""Of a log line of Ray's C++ part: time, level, process, file and line."""


def connect(num_cpus: int | None = None) -> None:
    """Connect to Ray once; a second call does nothing.

    With RAY_ADDRESS set (as in every submitted job; `auto` for the one on this machine) that cluster is joined.
    Otherwise a cluster starts on this machine.

    Args:
        num_cpus: logical CPUs of a cluster that is started here; more than the cores is fine, since Ray's own tasks
            need a slot beside the actors.

    Raises:
        ClusterError: Ray cannot be joined or started; the message says why, and how to fix it.
    """
    import ray

    if ray.is_initialized():
        return
    # Workers are started with the driver's Python: a launcher such as `uv run` must not be repeated in each.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address != "local":
        _connect_to_cluster(address)
    else:
        _start_local_cluster(num_cpus)


def _connect_to_cluster(address: str) -> None:
    """Join the cluster at an address. Token authentication is set explicitly: Ray's commands differ in its default."""
    import ray

    check_address_format(address)
    configure_authentication()
    check_token(os.environ)
    compat.reload_ray_authentication()
    host, port = _bootstrap_address(address)
    is_tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    check_reachable(host, port, address, is_tls=is_tls)
    failure = f"the Ray cluster at RAY_ADDRESS={address} cannot be joined"
    with _wrap_startup_errors(failure, f"correct the address, or {START_HINT}", limit_s=JOIN_TIMEOUT_S):
        ray.init(log_to_driver=False, job_config=job_config())


def _bootstrap_address(address: str) -> tuple[str, int]:
    """Host and port that Ray will connect to: it looks for `auto`, and takes this node's address for loopback.

    Raises:
        ClusterError: there is no cluster to find, or the address cannot be read.
    """
    try:
        host, _, port = compat.ray_bootstrap_address(address).rpartition(":")
        return host.strip("[]"), int(port)
    except ConnectionError as error:
        raise ClusterError(f"RAY_ADDRESS={address}, but no Ray cluster runs on this machine; {START_HINT}") from error
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"RAY_ADDRESS={address} cannot be used as an address ({error}); wanted is HOST:PORT, such as "
            f"127.0.0.1:6379, or auto. Correct it, or {START_HINT}"
        ) from error


def _start_local_cluster(num_cpus: int | None) -> None:
    """Start a cluster that only this machine reaches, and only with its token.

    It has the dashboard: Train and Tune need it to free the resources of stopped runs.
    """
    import ray

    temp_folder = choose_temp_folder(os.environ)
    object_store_memory = object_store_bytes(temp_folder)
    os.environ["RAY_TMPDIR"] = temp_folder
    for name, value in LOCAL_CLUSTER_ENV.items():
        os.environ.setdefault(name, value)
    advice = f"see the log files in {temp_folder}/ray/session_latest, and try again when the machine is less busy"
    failure = "Ray cannot be started on this machine"
    with local_cluster_auth(temp_folder) as token, _wrap_startup_errors(failure, advice, limit_s=START_TIMEOUT_S):
        context = ray.init(
            "local",  # else Ray joins any cluster that was started on this machine
            num_cpus=num_cpus or (os.cpu_count() or 1) + 2,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            object_store_memory=object_store_memory,
            log_to_driver=False,
            logging_level="WARNING",
            runtime_env=_interpreter_runtime_env(),
            job_config=job_config(),
        )
    try:
        check_loopback(context.address_info["node_ip_address"])
    except ClusterError:
        ray.shutdown()
        raise
    _LOG.info("Ray dashboard: http://%s (log in with the token %s)", context.dashboard_url, token)


def _interpreter_runtime_env() -> dict[str, str] | None:
    """A runtime environment for interpreters whose path has a space or another character that the shell interprets.

    Ray starts workers that have a runtime environment, as all of Train and Tune do, through an unquoted shell command.
    """
    quoted = shlex.quote(sys.executable)
    return None if quoted == sys.executable else {"py_executable": quoted}


@contextmanager
def _wrap_startup_errors(failure: str, advice: str, *, limit_s: float) -> Iterator[None]:
    """Turn what Ray raises into one ClusterError, and a start that does not end as well.

    Args:
        failure: what cannot be done.
        advice: how to fix it.
        limit_s: seconds on an idle machine; on a busy one as many times more as tasks wait for a core.
    """
    limit_s *= max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))

    def stop(*_: object) -> None:
        raise TimeoutError(f"Ray has not answered within {limit_s:.0f} s")

    # Ray waits in loops of Python, which a signal interrupts; only the main thread may set one.
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGALRM, stop) if in_main else None
    if in_main:
        signal.setitimer(signal.ITIMER_REAL, limit_s, 5.0)  # again, since Ray takes some errors for a reason to retry
    try:
        with _redirect_stderr() as file:
            try:
                yield
            except Exception as error:
                file.seek(0)
                raise ClusterError(f"{failure}: {_failure_reason(error, file.read())}; {advice}") from error
    finally:
        if in_main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


def _failure_reason(error: Exception, printed: str) -> str:
    """Why Ray did not start, in one line: what it raised, and the last that its C++ part printed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[-3:])[-600:] or type(error).__name__
    last = next((line for line in reversed(printed.splitlines()) if _LOG_PREFIX.match(line)), "")
    if not last:
        return reason
    advice = ""
    if "authenticat" in last.lower():
        advice = ". The cluster wants its token: put it into ~/.ray/auth_token or RAY_AUTH_TOKEN (on the head `ray "
        advice += "get-auth-token` shows it), with RAY_AUTH_MODE=token or unset"
    return f"{reason} ({_LOG_PREFIX.sub('', last)[:300]}){advice}"


_GPUS_WITHOUT_BFLOAT16 = ("K80", "M60", "P4", "P100", "V100", "T4")
"""GPUs that compute no bfloat16, by the type that Ray gives their nodes."""
_GPU_WAIT_S = 15.0


def detect_device(num_gpus: float | None) -> Device:
    """What actors or workers will run on.

    Of a cluster without GPUs nothing more is asked. If a node has GPUs of an older type, the work may land there, so
    all of it does without bfloat16; else a task with the same share of GPUs looks at the one it gets. On a cluster that
    grows from zero the task waits for the first machine, as the work would.

    Args:
        num_gpus: of each; None for 1 where the cluster has GPUs.

    Raises:
        SettingsError: GPUs are asked of a cluster on this machine, which has too few.
        ModelError: torch sees no GPU where Ray has one.
    """
    import ray

    own = not os.environ.get("RAY_ADDRESS")
    if num_gpus == 0 or (num_gpus is None and own and not ray.is_initialized() and not _may_have_gpu()):
        return CPU
    connect()
    have = ray.cluster_resources()
    num_gpus = float(have.get("GPU", 0) > 0) if num_gpus is None else num_gpus
    if not num_gpus:
        return CPU
    old = sorted(
        {name.partition(":")[2] for name in have if name.startswith("accelerator_type:")} & set(_GPUS_WITHOUT_BFLOAT16)
    )
    if old:
        return Device(is_gpu=True, supports_bfloat16=False, name=f"a cluster with GPUs of type {', '.join(old)}")
    if own and num_gpus > have.get("GPU", 0):
        raise SettingsError(
            f"{num_gpus:g} GPUs are wanted for each process, and this machine has {have.get('GPU', 0):g}; use the CPU "
            "(--gpus-per-actor 0, for trainings --gpus-per-worker 0), or a cluster with GPUs (RAY_ADDRESS)"
        )
    found = ray.remote(num_gpus=num_gpus, num_cpus=0)(_probe_gpu).remote()
    if not ray.wait([found], timeout=_GPU_WAIT_S)[0]:
        _LOG.info("waiting for a GPU, which decides the precision (--dtype states it)")
    device: Device | ModelError = ray.get(found)
    if isinstance(device, ModelError):
        raise device
    return device


def _may_have_gpu() -> bool:
    """False only if this machine certainly has no GPU: then no Ray need be started to know it."""
    return any(map(os.path.exists, ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))


def _probe_gpu() -> Device | ModelError:
    """The GPU of a task's process; an error is returned, since raised it would come wrapped in one of Ray's."""
    from slick.inference.devices import current_gpu

    try:
        return current_gpu()
    except ModelError as error:
        return error


def set_job_message(message: str) -> bool:
    """Set the message of the Ray job that this driver belongs to, which the dashboard and `slick jobs` show.

    Returns:
        False if the driver is not a submitted job.
    """
    try:
        job_id = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))["metadata"]["job_submission_id"]
        return compat.set_ray_job_message(job_id, message)
    except (KeyError, TypeError, ValueError):
        return False


def configure_authentication() -> bool:
    """Set RAY_AUTH_MODE, if it is not set: to `token` where Ray will find one; asked for one it lacks, Ray aborts.

    Returns:
        Whether a token will be sent.
    """
    has_token = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or os.path.exists(
        os.path.expanduser("~/.ray/auth_token")
    )
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token else "disabled")
    return has_token and mode.lower() == "token"


@contextmanager
def _redirect_stderr() -> Iterator[IO[str]]:
    """Keep off the terminal what C++ prints while Ray starts: it greets with its own log level.

    Yields:
        The file that takes it, for the message of a failure.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(kept, 2)
            os.close(kept)
