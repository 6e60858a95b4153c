"""The Ray cluster of a process: connect to the one that is named, or start one on this machine."""

import os


def connect(num_cpus: int | None = None) -> None:
    """Connect to Ray once; a second call does nothing.

    With RAY_ADDRESS set (as in every submitted job) that cluster is joined. Otherwise a cluster starts on loopback, with
    the dashboard, which Train and Tune need to free the resources of stopped runs. Token authentication is set
    explicitly either way: Ray's default depends on whether a token file was left behind.

    Args:
        num_cpus: logical CPUs of a cluster that is started here; more than the cores is fine, since Ray's own tasks need
            a slot beside the actors.
    """
    import ray

    if ray.is_initialized():
        return
    # Workers are started with the driver's Python: a launcher such as `uv run` must not be repeated in each.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        ray.init(log_to_driver=False)
        return
    os.environ["RAY_AUTH_MODE"] = "disabled"  # loopback only
    ray.init(
        num_cpus=num_cpus or (os.cpu_count() or 1) + 2,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        configure_logging=True,
        logging_level="WARNING",
    )
