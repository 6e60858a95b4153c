"""The Ray cluster of a process: connect to the one that is named, or start one on this machine."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

# glibc gives every large buffer back to the kernel and faults it in again: a third of a small model's time on CPU.
# Its thresholds hold for the first heap alone, and Ray runs the code of actors and trainings in threads of their own.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}

# What a cluster started here tells its processes; a value that is already set stays.
LOCAL_ENVIRONMENT = {
    **KEEP_FREED_MEMORY,
    # Ray's C++ parts print warnings about themselves on the terminal; what fails is raised all the same.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Actors of two steps start together; more than one process a core is no reason for a warning.
    "RAY_worker_maximum_startup_concurrency": "8",
    # Processes started ahead fit no trial of Tune, which asks for another environment; each takes 0.7 CPU seconds.
    "RAY_prestart_worker_first_driver": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def connect(num_cpus: int | None = None) -> None:
    """Connect to Ray once; a second call does nothing.

    With RAY_ADDRESS set (as in every submitted job; `auto` for the one on this machine) that cluster is joined.
    Otherwise a cluster starts on loopback, with the dashboard, which Train and Tune need to free the resources of
    stopped runs. Token authentication is set explicitly either way: what Ray does by default differs between its
    commands.

    Args:
        num_cpus: logical CPUs of a cluster that is started here; more than the cores is fine, since Ray's own tasks
            need a slot beside the actors.
    """
    import ray

    if ray.is_initialized():
        return
    # Workers are started with the driver's Python: a launcher such as `uv run` must not be repeated in each.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if os.environ.get("RAY_ADDRESS"):
        choose_authentication()
        ray.init(log_to_driver=False)
        return
    os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback only
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _without_stderr():
        context = ray.init(
            "local",  # else Ray joins any cluster that was started on this machine
            num_cpus=num_cpus or (os.cpu_count() or 1) + 2,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level="WARNING",
        )
    print(f"Ray dashboard: http://{context.dashboard_url}", flush=True)


def tell_job(message: str) -> bool:
    """Put a line where the dashboard and `slick jobs` show the status of the Ray job that this driver belongs to.

    Ray has no public call for it: the line stands in the job's own record, which Ray rewrites when the job ends. A
    driver that is no submitted job, or a Ray that keeps its records otherwise, has no such line.

    Returns:
        Whether it stands there now.
    """
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))["metadata"]["job_submission_id"]
        key = f"_ray_internal_job_info_{job}"
        record = _internal_kv_get(key, namespace="job")
        if not record:
            return False
        changed = json.dumps(json.loads(record) | {"message": message})
        _internal_kv_put(key, changed, overwrite=True, namespace="job")
    except (KeyError, TypeError, ValueError):
        return False
    return True


def choose_authentication() -> bool:
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
def _without_stderr() -> Iterator[None]:
    """Send what C++ prints on the terminal nowhere, for as long as Ray starts: it greets with its own log level.

    What goes wrong is raised, and stands in Ray's log files.
    """
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
