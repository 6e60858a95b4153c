"""Environment variables of the processes that tests start."""

import os

EQUAL_PRIORITY = {"RAY_worker_niceness": "0"}
"""Overrides Ray's low priority of workers (nice 15), with which tests on a busy machine would take minutes longer."""


def environment_without_ray() -> dict[str, str]:
    """This process's environment without Ray's variables, for a process with another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | EQUAL_PRIORITY
