"""Waiting for an event in a test, with a timeout that only a hanging test reaches."""

import time
from collections.abc import Callable

TIMEOUT_S = 900.0
"""Seconds after which a test counts as hanging, also on a busy machine.

pytest's timeout (pyproject.toml) is longer, so that the message of the wait is shown.
"""


def wait_for(condition: Callable[[], object], explain: Callable[[], object] = lambda: "timeout") -> None:
    """Return when the condition is true.

    Args:
        condition: called every 20 ms.
        explain: returns the message of a timeout.

    Raises:
        AssertionError: the condition is not true within `TIMEOUT_S`.
    """
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, explain()
        time.sleep(0.02)
