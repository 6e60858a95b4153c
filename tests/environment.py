"""Environment variables of the processes that tests start."""

import os

EQUAL_PRIORITY = {"RAY_worker_niceness": "0"}
"""Ray gives its workers a low priority (nice 15), so that beside other busy processes tests would wait for minutes."""


def environment_without_ray() -> dict[str, str]:
    """This process's environment without Ray's variables, for a process with another cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | EQUAL_PRIORITY
