"""The Ray cluster of a process: the one that RAY_ADDRESS names, or one that is started on this machine."""

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
from typing import IO, Any

from slick import compat
from slick.cluster_setup import (
    START_HINT,
    check_address_format,
    check_loopback,
    check_reachable,
    check_token,
    choose_temp_folder,
    job_config,
    local_cluster_auth,
    object_store_bytes,
)
from slick.cluster_watch import watch_cluster
from slick.errors import ClusterError, ModelError, SettingsError
from slick.precision import CPU, Device

_LOG = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0
"""Timeout for joining a cluster, on an idle machine."""
START_TIMEOUT_S = 60.0
"""Timeout for starting a cluster, on an idle machine."""

# By default glibc returns every large buffer to the kernel, which takes a third of a small model's time on CPU. The
# thresholds apply only to the first arena, but Ray runs actors and trainings in other threads: hence one arena.
MALLOC_ENV = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}

# Environment of a local cluster; variables that are already set are kept.
LOCAL_CLUSTER_ENV = {
    **MALLOC_ENV,
    # Keeps internal warnings of Ray's C++ code off the terminal; errors are raised all the same.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Actors of two steps start together; more processes than cores need no warning.
    "RAY_worker_maximum_startup_concurrency": "8",
    # Prestarted workers cannot be used by trials, whose environment differs; each takes 0.7 CPU seconds.
    "RAY_prestart_worker_first_driver": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

_LOG_PREFIX = re.compile(r"\[.{10,60}\] \w+\.(cc|h):\d+: ")
"""The beginning of a log line of Ray's C++ code: time, level, process, file and line."""


def connect(num_cpus: int | None = None) -> None:
    """Connect to Ray; does nothing if this process is connected.

    If RAY_ADDRESS is set, as in every submitted job, that cluster is joined (`auto`: the one on this machine).
    Otherwise a cluster is started on this machine.

    Args:
        num_cpus: logical CPUs of a started cluster; may exceed the cores, since Ray's own tasks need slots, too.

    Raises:
        ClusterError: Ray cannot be joined or started.
    """
    import ray

    if ray.is_initialized():
        return
    # Workers use the driver's Python; they must not repeat a launcher such as `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address != "local":
        _connect_to_cluster(address)
    else:
        _start_local_cluster(num_cpus)


def _connect_to_cluster(address: str) -> None:
    """Join the cluster at an address, with an explicit authentication mode, since Ray's defaults differ."""
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
    """Host and port that Ray will connect to: it resolves `auto`, and replaces loopback by the node's address.

    Raises:
        ClusterError: there is no cluster on this machine, or the address is invalid.
    """
    try:
        host, _, port = compat.ray_bootstrap_address(address).rpartition(":")
        return host.strip("[]"), int(port)
    except ConnectionError as error:
        raise ClusterError(f"RAY_ADDRESS={address}, but no Ray cluster runs on this machine; {START_HINT}") from error
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"RAY_ADDRESS={address} is not a valid address ({error}); expected HOST:PORT, such as "
            f"127.0.0.1:6379, or auto. Correct it, or {START_HINT}"
        ) from error


def _start_local_cluster(num_cpus: int | None) -> None:
    """Start a cluster that is reachable only from this machine and with its token.

    It has a dashboard, since Train and Tune need one to release the resources of stopped runs.
    """
    import ray

    temp_folder = choose_temp_folder(os.environ)
    object_store_memory = object_store_bytes(temp_folder)
    os.environ["RAY_TMPDIR"] = temp_folder
    for name, value in LOCAL_CLUSTER_ENV.items():
        os.environ.setdefault(name, value)
    advice = f"see the log files in {temp_folder}/ray/session_latest, and try again when the machine is less busy"
    failure = "Ray cannot be started on this machine"
    processes, kill = compat.local_cluster_processes, compat.kill_local_cluster
    with (
        local_cluster_auth(temp_folder) as (token, private),
        watch_cluster(processes, ray.is_initialized, kill, private),
        _wrap_startup_errors(failure, advice, limit_s=START_TIMEOUT_S),
    ):
        context = ray.init(
            "local",  # otherwise Ray joins any cluster on this machine
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
    """A runtime environment for interpreters whose path has spaces or other special characters of the shell.

    Ray starts workers with a runtime environment, such as those of Train and Tune, by an unquoted shell command.
    """
    quoted = shlex.quote(sys.executable)
    return None if quoted == sys.executable else {"py_executable": quoted}


@contextmanager
def _wrap_startup_errors(failure: str, advice: str, *, limit_s: float) -> Iterator[None]:
    """Turn exceptions of Ray and timeouts into a ClusterError.

    Args:
        failure: the beginning of the message.
        advice: how to fix it.
        limit_s: timeout on an idle machine; multiplied by the load per core on a busy one.
    """
    limit_s *= max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer from Ray within {limit_s:.0f} s")

    # Ray waits in Python loops, which a signal interrupts; only the main thread may set one.
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGALRM, stop) if in_main else None
    on_termination = signal.getsignal(signal.SIGTERM)
    if in_main:
        signal.setitimer(signal.ITIMER_REAL, limit_s, 5.0)  # repeated, since Ray retries after some errors
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
            # Ray's C++ code has installed a handler that prints a stack trace and aborts.
            signal.signal(signal.SIGTERM, on_termination)


def _failure_reason(error: Exception, printed: str) -> str:
    """The reason in one line: the exception, and the last log line of Ray's C++ code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[-3:])[-600:] or type(error).__name__
    last = next((line for line in reversed(printed.splitlines()) if _LOG_PREFIX.match(line)), "")
    if not last:
        return reason
    advice = ""
    if "authenticat" in last.lower():
        advice = ". The cluster requires its token: put it into ~/.ray/auth_token or RAY_AUTH_TOKEN (on the head `ray "
        advice += "get-auth-token` shows it), with RAY_AUTH_MODE=token or unset"
    return f"{reason} ({_LOG_PREFIX.sub('', last)[:300]}){advice}"


_GPUS_WITHOUT_BFLOAT16 = ("K80", "M60", "P4", "P100", "V100", "T4")
"""GPUs without bfloat16, by Ray's accelerator types."""
_GPU_WAIT_S = 15.0


def detect_device(num_gpus: float | None) -> Device:
    """The device of actors or workers.

    If any node has GPUs of an older type, the work may run there, so none of it uses bfloat16. Otherwise a task with
    the same share of GPUs inspects its GPU. On an autoscaling cluster without nodes the task waits for the first node.

    Args:
        num_gpus: GPUs per actor or worker; None: 1 if the cluster has GPUs.

    Raises:
        SettingsError: the cluster on this machine has too few GPUs.
        ModelError: torch does not find the GPU that Ray assigned.
    """
    import ray

    if (known := device_without_ray(num_gpus)) is not None:
        return known
    own = not os.environ.get("RAY_ADDRESS")
    connect()
    resources = ray.cluster_resources()
    num_gpus = float(resources.get("GPU", 0) > 0) if num_gpus is None else num_gpus
    if not num_gpus:
        return CPU
    old = sorted(
        {name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")}
        & set(_GPUS_WITHOUT_BFLOAT16)
    )
    if old:
        return Device(is_gpu=True, supports_bfloat16=False, name=f"a cluster with GPUs of type {', '.join(old)}")
    if own and num_gpus > resources.get("GPU", 0):
        raise SettingsError(
            f"each process needs {num_gpus:g} GPUs, but this machine has {resources.get('GPU', 0):g}; use the CPU "
            "(--gpus-per-actor 0, for trainings --gpus-per-worker 0), or a cluster with GPUs (RAY_ADDRESS)"
        )
    probe = ray.remote(num_gpus=num_gpus, num_cpus=0)(_probe_gpu).remote()
    if not ray.wait([probe], timeout=_GPU_WAIT_S)[0]:
        _LOG.info("waiting for a GPU, which determines the precision (--dtype sets it) and the engine (--engine)")
    device: Device | ModelError = ray.get(probe)
    if isinstance(device, ModelError):
        raise device
    return device


def device_without_ray(num_gpus: float | None) -> Device | None:
    """The device of actors or workers if it is certain without Ray: the CPU; otherwise None.

    Args:
        num_gpus: as for `detect_device`.
    """
    if num_gpus == 0:
        return CPU
    ray: Any = sys.modules.get("ray")
    is_connected = bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())
    return CPU if num_gpus is None and not is_connected and not _may_have_gpu() else None


def _may_have_gpu() -> bool:
    """Whether this machine may have a GPU; False if it certainly has none, so that Ray need not be started to check."""
    return any(map(os.path.exists, ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))


def _probe_gpu() -> Device | ModelError:
    """The GPU of the task's process. An error is returned and not raised, since Ray would wrap it."""
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
    job_id = submitted_job_id()
    try:
        return bool(job_id) and compat.set_ray_job_message(job_id, message)
    except (TypeError, ValueError):  # its record is not JSON
        return False


def submitted_job_id() -> str:
    """The id of the Ray job that this driver belongs to; empty if it is not a submitted job."""
    try:
        return str(json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))["metadata"]["job_submission_id"])
    except (KeyError, TypeError, ValueError):
        return ""


def configure_authentication() -> bool:
    """Set RAY_AUTH_MODE if it is unset: `token` if there is a token, else `disabled`, since Ray aborts without a token.

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
    """Redirect the output of Ray's C++ code, which prints while Ray starts, to a file.

    Yields:
        The file, for error messages.
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
